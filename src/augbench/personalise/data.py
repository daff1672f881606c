"""Training data of fine-tuning: latents, and random numbers for each image and epoch.

Input: images, the VAE, ids of images and numbers of epochs. Output: latent moments, computed once per
image and mirror image, and the flip, noise and timestep of every sample. None of it depends on the other
images of a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from augbench.data.decode import in_order, square
from augbench.models.folders import to_device
from augbench.runtime.fit import BatchLimit
from augbench.seeds import derive_seed

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


@dataclass(frozen=True)
class Draw:
    """The random numbers of one sample.

    Attributes
    ----------
    mirrored : bool
        Whether the mirror image is used.
    posterior, noise : Tensor
        Standard normal, of the latent's shape: ``posterior`` samples the VAE's posterior, and the
        denoiser has to predict ``noise``.
    timestep : int
        Timestep of the noise schedule.
    prompt : int
        Random number that chooses the prompt if there are several.
    """

    mirrored: bool
    posterior: torch.Tensor
    noise: torch.Tensor
    timestep: int
    prompt: int


def encode_moments(
    vae: AutoencoderKL,
    images: Iterable[Image.Image],
    resolution: int,
    mirror: bool,
    limit: BatchLimit,
    dtype: torch.dtype,
) -> Iterator[torch.Tensor]:
    """Latent moments of images, batch by batch, on the CPU.

    Parameters
    ----------
    images : iterable of Image
        8-bit RGB of any size; they are resized in threads, a few ahead of the VAE.
    mirror : bool
        Whether mirror images are encoded too.
    dtype
        Precision in which the moments are kept.

    Yields
    ------
    Tensor
        ``(images, 1 or 2, 2, channels, height, width)``. Dimension 1: the image and, with ``mirror``, its
        mirror image. Dimension 2: mean and standard deviation of the VAE's posterior, both times
        ``scaling_factor``, after ``shift_factor`` was subtracted from the mean if the VAE has one.
    """
    squares = in_order(lambda image: np.asarray(square(image, resolution)), images)
    encode = partial(_encode, vae, mirror=mirror, dtype=dtype)
    return limit.stream(encode, squares)


@torch.no_grad()
def _encode(
    vae: AutoencoderKL, squares: Sequence[np.ndarray], mirror: bool, dtype: torch.dtype
) -> torch.Tensor:
    """Latent moments of a batch of square images, ``uint8 (side, side, 3)`` each."""
    pixels = to_device(torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2), vae.device)
    pixels = pixels.float() / 127.5 - 1
    views = [_moments(vae, view) for view in ((pixels, pixels.flip(-1)) if mirror else (pixels,))]
    return torch.stack(views, 1).to(dtype).cpu()


def _moments(vae: AutoencoderKL, pixels: torch.Tensor) -> torch.Tensor:
    """Moments ``float32 (N, 2, channels, height, width)``; images that overflow float16 are encoded again."""
    posterior = vae.encode(pixels.to(vae.dtype)).latent_dist
    moments = torch.stack([posterior.mean, posterior.std], 1).float()
    if shift := getattr(vae.config, "shift_factor", None):
        moments[:, 0] -= shift
    moments *= vae.config.scaling_factor
    if vae.dtype == torch.float16 and (lost := ~moments.isfinite().flatten(1).all(1)).any():
        moments[lost] = _moments(vae.float(), pixels[lost])
        vae.half()
    return moments


def epoch_order(seed: int, scope: Sequence[str], epoch: int, size: int) -> np.ndarray:
    """Order of an epoch's ``size`` images; ``scope`` names the classes that share their steps."""
    return np.random.default_rng(derive_seed(seed, "finetune order", *scope, epoch)).permutation(size)


def draw_training(
    seed: int, class_id: str, image_id: str, epoch: int, shape: Sequence[int], flip: float, timesteps: int
) -> Draw:
    """Random numbers of a training image in an epoch, a function of the arguments only (seeded images)."""
    scope = ("finetune", class_id, image_id, epoch)
    generator = torch.Generator().manual_seed(derive_seed(seed, *scope))
    mirrored = bool(torch.rand((), generator=generator) < flip)
    posterior, noise = torch.randn((2, *shape), generator=generator)
    timestep = int(torch.randint(0, timesteps, (), generator=generator))
    return Draw(mirrored, posterior, noise, timestep, derive_seed(seed, *scope, "prompt"))


def draw_validation(
    seed: int, class_id: str, image_id: str, number: int, shape: Sequence[int], timesteps: int
) -> Draw:
    """Random numbers for a validation image's loss, the same in every epoch, so that epochs are comparable.

    All draws of an image have the same prompt. The image is not mirrored, and its latent is the mode of
    the VAE's posterior.
    """
    scope = ("finetune validation", class_id, image_id)
    generator = torch.Generator().manual_seed(derive_seed(seed, *scope, number))
    noise = torch.randn(tuple(shape), generator=generator)
    timestep = int(torch.randint(0, timesteps, (), generator=generator))
    return Draw(False, torch.zeros(tuple(shape)), noise, timestep, derive_seed(seed, *scope, "prompt"))
