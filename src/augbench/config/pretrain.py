"""The ``pretrain`` section: training of the miniature's models. Real studies do not need it."""

from __future__ import annotations

from pydantic import model_validator

from augbench.config.base import Fraction, Positive, Section, key


class PretrainClip(Section):
    """The small CLIP: OpenAI's architecture and vocabulary, with fewer and narrower layers."""

    width: int = key(128, "Hidden size of both towers and of the shared space.", "channels", ge=16)
    vision_layers: Positive = key(4, "Layers of the image tower (patches of 4 pixels).", "layers")
    text_layers: Positive = key(3, "Layers of the text tower.", "layers")
    heads: Positive = key(4, "Attention heads.")
    epochs: Positive = key(8, "Passes over the corpus.", "epochs")
    batch_size: Positive = key(256, "Image-caption pairs per step.", "images")
    lr: float = key(1e-3, "Peak learning rate; linear warm-up, then cosine.", gt=0)
    image_epochs: Positive = key(
        3,
        "Further passes that train only the image tower, against the finished text tower.",
        "epochs",
        "after Zhai et al., 2022",
    )
    image_lr: float = key(5e-4, "Peak learning rate of these further passes.", gt=0)
    image_grey: Fraction = key(
        0.3, "Share of images converted to grey in these further passes; 0 if colours matter.", new=True
    )


class PretrainAutoencoder(Section):
    """The VAE: images of 32 x 32 pixels to latents of 8 x 8 x 4."""

    channels: tuple[Positive, Positive, Positive] = key((32, 64, 64), "Channels per resolution.", "channels")
    steps: Positive = key(2500, "Training steps.", "steps")
    batch_size: Positive = key(64, "Images per step.", "images")
    lr: float = key(2e-3, "Peak learning rate; linear warm-up, then cosine.", gt=0)
    kl_weight: float = key(
        1e-6, "Weight of the KL term, as in latent diffusion.", source="Rombach et al., 2022", ge=0
    )


class PretrainUnet(Section):
    """The conditional U-Net on latents of 8 x 8 x 4."""

    channels: tuple[Positive, Positive] = key((64, 128), "Channels per resolution.", "channels")
    layers_per_block: Positive = key(1, "ResNet blocks per resolution.")
    steps: Positive = key(8000, "Training steps.", "steps")
    restart_at: int = key(
        0,
        "Step at which the schedule of the learning rate begins anew over the steps that are left; 0: never.",
        "steps",
        source="Loshchilov and Hutter, 2017",
        ge=0,
        new=True,
    )
    batch_size: Positive = key(64, "Latents per step.", "images")
    lr: float = key(1e-3, "Peak learning rate; linear warm-up, then cosine.", gt=0)
    caption_dropout: Fraction = key(
        0.1,
        "Share of captions replaced by the empty caption, which makes guidance possible.",
        source="Ho and Salimans, 2022",
    )
    ema_decay: float = key(0.999, "Decay of the weights' moving average, which is what is kept.", gt=0, lt=1)

    @model_validator(mode="after")
    def _restarts_before_its_end(self) -> PretrainUnet:
        if self.restart_at >= self.steps:
            raise ValueError(f"restart_at: {self.restart_at}; allowed: less than steps ({self.steps})")
        return self


class PretrainReference(Section):
    """The reference classifiers that judge generated images.

    One is trained on the corpus's clean garments, the other on clean garments and those in web style.
    """

    epochs: Positive = key(3, "Passes over the garment images.", "epochs")
    batch_size: Positive = key(128, "Images per step.", "images")
    lr: float = key(3e-3, "Peak learning rate; linear warm-up, then cosine.", gt=0)
    base_width: int = key(32, "Channels of the first stage of the ResNet-18.", "channels", ge=4)


class Pretrain(Section):
    """Pre-training of the miniature's models on the corpus."""

    clip: PretrainClip = key(PretrainClip(), "The small CLIP.")
    autoencoder: PretrainAutoencoder = key(PretrainAutoencoder(), "The VAE.")
    unet: PretrainUnet = key(PretrainUnet(), "The U-Net.")
    reference: PretrainReference = key(PretrainReference(), "The reference classifiers.")
    checkpoint_steps: Positive = key(
        250,
        "Steps between checkpoints; an interrupted run resumes from the last one.",
        "steps",
    )
    measured_images_per_class: int = key(
        100, "Images generated per class to measure agreement and diversity.", "images", ge=4
    )
