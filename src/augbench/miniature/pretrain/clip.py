"""The small CLIP: contrastive training on images and captions of the corpus (Radford et al., 2021).

Both towers are trained together first. Then the image tower is trained alone against the frozen text tower,
as in locked-image tuning (Zhai et al., 2022) with the roles of the towers exchanged. The second stage is
cheap, because every caption is encoded once, and it does not change the text states that condition the
U-Net.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
)

from augbench.config.pretrain import PretrainClip
from augbench.miniature.corpus.looks import grey_of
from augbench.miniature.pretrain.loop import EpochSampler, Schedule, step_generator, train
from augbench.models.transformers_clip import embed_texts
from augbench.seeds import derive_seed

IMAGE_SIDE, PATCH_SIDE = 32, 4
LENGTHS = 6  # groups of captions of similar length in a batch


def new_clip(config: PretrainClip) -> CLIPModel:
    """Return an untrained CLIP with OpenAI's vocabulary and activation and the sizes in ``config``."""
    text = CLIPTextConfig(
        hidden_size=config.width,
        intermediate_size=4 * config.width,
        num_hidden_layers=config.text_layers,
        num_attention_heads=config.heads,
        projection_dim=config.width,
    )
    vision = CLIPVisionConfig(
        hidden_size=config.width,
        intermediate_size=4 * config.width,
        num_hidden_layers=config.vision_layers,
        num_attention_heads=config.heads,
        projection_dim=config.width,
        image_size=IMAGE_SIDE,
        patch_size=PATCH_SIDE,
    )
    return CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=config.width)
    )


def image_processor() -> CLIPImageProcessor:
    """Return CLIP's image processor at the miniature's size, with OpenAI's mean and standard deviation."""
    side = {"height": IMAGE_SIDE, "width": IMAGE_SIDE}
    return CLIPImageProcessor(size={"shortest_edge": IMAGE_SIDE}, crop_size=side)


def normalise(images: torch.Tensor) -> torch.Tensor:
    """Convert ``uint8 (N, 3, H, W)`` to the image tower's input range."""
    processor = image_processor()
    mean = torch.tensor(processor.image_mean)[:, None, None]
    std = torch.tensor(processor.image_std)[:, None, None]
    return (images.float() / 255 - mean) / std


def train_clip(
    images: torch.Tensor,
    captions: Sequence[str],
    tokenizer: CLIPTokenizer,
    config: PretrainClip,
    seed: int,
    folder: Path,
    checkpoint_steps: int,
) -> list[dict[str, float]]:
    """Train on ``images`` uint8 (N, 3, 32, 32) and their captions, and return the history.

    ``folder/model`` is a ``CLIPModel`` in transformers' layout, with tokenizer and image processor.
    """
    torch.manual_seed(seed)
    model = new_clip(config).train()
    sampler = EpochSampler(len(images), config.batch_size, seed)
    tokens = tokenizer(list(captions), truncation=True, max_length=77).input_ids

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        chosen = sampler.indices(step)
        generator = step_generator(seed, step)
        pixels = _augment(images[torch.from_numpy(chosen)], generator)
        texts = _embed_captions(model, [tokens[i] for i in chosen], int(tokenizer.pad_token_id))
        embedded = model.get_image_features(pixel_values=normalise(pixels)).pooler_output
        logits = model.logit_scale.exp() * F.normalize(embedded, dim=-1) @ F.normalize(texts, dim=-1).T
        target = torch.arange(len(chosen))
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        with torch.no_grad():
            model.logit_scale.clamp_(max=np.log(100.0))
        return loss, {"loss": loss.item()}

    schedule = Schedule(config.epochs * sampler.per_epoch, config.lr)
    history = train(
        "CLIP",
        module=model,
        loss_at=loss_at,
        schedule=schedule,
        checkpoint=folder / "checkpoint.pt",
        checkpoint_steps=checkpoint_steps,
        weight_decay=0.1,
    )
    image_history = _train_image_tower(
        model=model,
        images=images,
        captions=captions,
        tokenizer=tokenizer,
        config=config,
        seed=seed,
        folder=folder,
        checkpoint_steps=checkpoint_steps,
    )
    history += [{"image_step": record["step"], "image_loss": record["loss"]} for record in image_history]
    model.eval().save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    image_processor().save_pretrained(folder / "model")
    return history


def _embed_captions(model: CLIPModel, tokens: Sequence[Sequence[int]], padding: int) -> torch.Tensor:
    """Embed captions ``(N, D)``, those of similar length together, because most are short."""
    order = sorted(range(len(tokens)), key=lambda row: len(tokens[row]))
    parts = []
    for rows in np.array_split(np.array(order), min(LENGTHS, len(order))):
        ids = torch.full((len(rows), max(len(tokens[row]) for row in rows)), padding)
        for place, row in enumerate(rows):
            ids[place, : len(tokens[row])] = torch.tensor(tokens[row])
        parts.append(model.get_text_features(input_ids=ids).pooler_output)
    return torch.cat(parts)[torch.tensor(order).argsort()]


def _train_image_tower(
    model: CLIPModel,
    images: torch.Tensor,
    captions: Sequence[str],
    tokenizer: CLIPTokenizer,
    config: PretrainClip,
    seed: int,
    folder: Path,
    checkpoint_steps: int,
) -> list[dict[str, float]]:
    """Train the image tower alone against the captions' embeddings. The rest of ``model`` stays as it is."""
    targets = embed_texts(model.eval(), tokenizer, captions)
    scale = model.logit_scale.detach().exp()
    seed = derive_seed(seed, "image tower")
    sampler = EpochSampler(len(images), config.batch_size, seed)
    tower = torch.nn.ModuleList([model.vision_model, model.visual_projection]).train()

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        chosen = torch.from_numpy(sampler.indices(step))
        pixels = _augment_each(images[chosen], step_generator(seed, step), config.image_grey)
        features = model.get_image_features(pixel_values=normalise(pixels)).pooler_output
        embedded = F.normalize(features, dim=-1)
        logits = scale * embedded @ targets[chosen].T
        own = torch.arange(len(chosen))
        loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        return loss, {"loss": loss.item()}

    schedule = Schedule(config.image_epochs * sampler.per_epoch, config.image_lr)
    return train(
        "CLIP, image tower",
        module=tower,
        loss_at=loss_at,
        schedule=schedule,
        checkpoint=folder / "image_checkpoint.pt",
        checkpoint_steps=checkpoint_steps,
        weight_decay=0.1,
    )


def _augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shift a batch by up to two pixels and mirror it at random, against overfitting."""
    shift = torch.randint(-2, 3, (2,), generator=generator).tolist()
    padded = F.pad(images.float(), (2, 2, 2, 2), mode="replicate")
    top, left = 2 + shift[0], 2 + shift[1]
    cropped = padded[:, :, top : top + IMAGE_SIDE, left : left + IMAGE_SIDE]
    mirrored = torch.rand((), generator=generator) < 0.5
    return cropped.flip(3) if mirrored else cropped


def _augment_each(images: torch.Tensor, generator: torch.Generator, grey_share: float) -> torch.Tensor:
    """Shift every image of ``(N, 3, H, W)`` by up to two pixels, mirror half of them, turn some grey."""
    count = len(images)
    top, left = torch.randint(0, 5, (2, count), generator=generator)
    mirrored = torch.rand(count, generator=generator) < 0.5
    grey = torch.rand(count, generator=generator) < grey_share
    padded = F.pad(images.float(), (2, 2, 2, 2), mode="replicate")
    along = torch.arange(IMAGE_SIDE)
    rows, columns = top[:, None] + along, left[:, None] + along
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    every = torch.arange(count)[:, None, None]
    cropped = padded[every, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return torch.where(grey[:, None, None, None], grey_of(cropped).expand_as(cropped), cropped)


@torch.inference_mode()
def embed_images(model: CLIPModel, images: torch.Tensor, batch_size: int = 256) -> torch.Tensor:
    """Embed ``uint8 (N, 3, 32, 32)`` to unit vectors ``float32 (N, D)``."""
    parts = [
        model.get_image_features(pixel_values=normalise(batch)).pooler_output
        for batch in images.split(batch_size)
    ]
    return F.normalize(torch.cat(parts), dim=-1)
