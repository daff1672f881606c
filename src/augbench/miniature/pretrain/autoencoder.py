"""The miniature's VAE, from 32 x 32 x 3 pixels to 8 x 8 x 4 latents (Rombach et al., 2022)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from augbench.config.pretrain import PretrainAutoencoder
from augbench.miniature.pretrain.loop import EpochSampler, Schedule, step_generator, train


def new_autoencoder(config: PretrainAutoencoder) -> AutoencoderKL:
    """Return an untrained VAE with two halvings of the resolution and four latent channels."""
    return AutoencoderKL(
        block_out_channels=config.channels,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=16,
        sample_size=32,
    )


def to_pixels(images: torch.Tensor) -> torch.Tensor:
    """Convert ``uint8`` to the VAE's range, -1 to 1."""
    return images.float() / 127.5 - 1


def _edges(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return images.diff(dim=-1), images.diff(dim=-2)


def train_autoencoder(
    images: torch.Tensor, config: PretrainAutoencoder, seed: int, folder: Path, checkpoint_steps: int
) -> list[dict[str, float]]:
    """Train on ``images`` uint8 (N, 3, 32, 32) and return the history.

    The loss is L1 on pixels, L1 on differences of neighbouring pixels (for sharp edges), and the KL term.
    ``folder/model`` is an ``AutoencoderKL`` in diffusers' layout; its scaling factor gives the latent means
    a standard deviation of 1.
    """
    torch.manual_seed(seed)
    model = new_autoencoder(config).train()
    sampler = EpochSampler(len(images), config.batch_size, seed)

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        pixels = to_pixels(images[torch.from_numpy(sampler.indices(step))])
        posterior = model.encode(pixels).latent_dist
        mean, std = posterior.mean, posterior.std
        noise = torch.randn(mean.shape, generator=step_generator(seed, step))
        output = model.decode(mean + std * noise).sample
        l1 = F.l1_loss(output, pixels)
        edges = sum(F.l1_loss(a, b) for a, b in zip(_edges(output), _edges(pixels), strict=True))
        kl = posterior.kl().mean()
        loss = l1 + edges + config.kl_weight * kl
        return loss, {"l1": l1.item(), "edges": float(edges), "kl": kl.item()}

    schedule = Schedule(config.steps, config.lr)
    history = train(
        "VAE",
        module=model,
        loss_at=loss_at,
        schedule=schedule,
        checkpoint=folder / "checkpoint.pt",
        checkpoint_steps=checkpoint_steps,
    )
    model.eval()
    with torch.inference_mode():
        spread = torch.cat(
            [model.encode(to_pixels(batch)).latent_dist.mean for batch in images[:4096].split(256)]
        ).std()
    model.register_to_config(scaling_factor=1 / spread.item())
    model.save_pretrained(folder / "model")
    return history


@torch.inference_mode()
def encode_images(model: AutoencoderKL, images: torch.Tensor, batch_size: int = 256) -> torch.Tensor:
    """Encode to scaled moments ``float32 (N, 8, 8, 8)``: mean and standard deviation, 4 channels each."""
    parts = []
    for batch in images.split(batch_size):
        posterior = model.encode(to_pixels(batch)).latent_dist
        parts.append(torch.cat([posterior.mean, posterior.std], 1) * model.config.scaling_factor)
    return torch.cat(parts)
