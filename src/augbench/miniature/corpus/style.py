"""The web style: the shift between miniature corpus and target data set, at levels none, mild and strong.

Images are rotated, scaled, cropped, mirrored, inverted in contrast, tinted, put before a textured
background, and blurred. Some show an attribute besides (:mod:`augbench.miniature.corpus.attributes`). The
style of an image depends only on (seed, its index, its attribute).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from augbench.miniature.corpus.looks import (
    BACKDROPS,
    NOISE,
    PICTURES,
    PLACES,
    SIDE,
    SURFACES,
    Placement,
    blur,
    tiled,
)
from augbench.seeds import derive_seed

# Images styled together. A whole part does not fit into a CPU's cache and takes more than twice as long.
AT_ONCE = 256


@dataclass(frozen=True)
class StyleLevel:
    """Probabilities and sizes of the changes: angles in degrees, shift and blur in pixels of 32."""

    rotation: float
    scale: tuple[float, float]
    shift: float
    mirror: float
    invert: float
    tint: float
    background: float
    blur: float
    blur_sigma: float


LEVELS = {
    "none": StyleLevel(
        rotation=0.0,
        scale=(1.0, 1.0),
        shift=0.0,
        mirror=0.0,
        invert=0.0,
        tint=0.0,
        background=0.0,
        blur=0.0,
        blur_sigma=0.0,
    ),
    "mild": StyleLevel(
        rotation=10.0,
        scale=(0.85, 1.1),
        shift=2.0,
        mirror=0.3,
        invert=0.3,
        tint=0.4,
        background=0.35,
        blur=0.3,
        blur_sigma=0.7,
    ),
    "strong": StyleLevel(
        rotation=30.0,
        scale=(0.65, 1.3),
        shift=4.0,
        mirror=0.5,
        invert=0.5,
        tint=0.9,
        background=0.8,
        blur=0.6,
        blur_sigma=1.2,
    ),
}


def clean_images(images: np.ndarray) -> torch.Tensor:
    """Pad grey images ``uint8 (N, 28, 28)`` with black to the target's ``uint8 (N, 3, 32, 32)``."""
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    return torch.from_numpy(padded)[:, None].repeat(1, 3, 1, 1)


def _placed(level: StyleLevel, draws: torch.Tensor) -> Placement:
    """Draw where each garment is."""
    return Placement(
        angle=torch.deg2rad((draws[:, 0] * 2 - 1) * level.rotation),
        scale=level.scale[0] + draws[:, 1] * (level.scale[1] - level.scale[0]),
        shift=(draws[:, 2:4] * 2 - 1) * level.shift * 2 / SIDE,
    )


def _warp(grey: torch.Tensor, place: Placement, mirrored: torch.Tensor) -> torch.Tensor:
    mirror = torch.where(mirrored, -1.0, 1.0)
    cos, sin = torch.cos(place.angle) / place.scale, torch.sin(place.angle) / place.scale
    affine = torch.stack(
        [
            torch.stack([cos * mirror, -sin, place.shift[:, 0]], 1),
            torch.stack([sin * mirror, cos, place.shift[:, 1]], 1),
        ],
        1,
    )
    grid = F.affine_grid(affine, list(grey.shape), align_corners=False)
    return F.grid_sample(grey, grid, align_corners=False)


def _textures(draws: torch.Tensor) -> torch.Tensor:
    """Make soft clouds, half of them with stripes: ``(N, 3, 32, 32)`` in 0..1 from 64 uniform draws each."""
    count = len(draws)
    clouds = F.interpolate(
        draws[:, :48].reshape(count, 3, 4, 4), size=SIDE, mode="bilinear", align_corners=False
    )
    colour = draws[:, 48:51, None, None]
    axis = torch.linspace(0, 1, SIDE)
    frequency = 4 + 8 * draws[:, 51]
    angle = np.pi * draws[:, 52]
    ramp = (
        torch.cos(angle)[:, None, None] * axis[None, :, None]
        + torch.sin(angle)[:, None, None] * axis[None, None, :]
    )
    stripes = 0.5 + 0.5 * torch.sin(2 * np.pi * frequency[:, None, None] * ramp)
    striped = (draws[:, 53] < 0.5).float()[:, None, None, None]
    return 0.5 * colour + 0.5 * clouds * (1 - striped + striped * stripes[:, None])


def web_style(
    images: np.ndarray, indices: np.ndarray, level: str, seed: int, attributes: Sequence[str | None] = ()
) -> torch.Tensor:
    """Give clean images the web style.

    Parameters
    ----------
    images : ndarray, uint8 (N, 28, 28)
        Garments, light on black.
    indices : ndarray, int (N,)
        Index of each image in the corpus; with ``seed`` it decides the style.
    level : str
        A key of :data:`LEVELS`.
    attributes : sequence of str or None
        The attribute that each image shows; if empty, none does.

    Returns
    -------
    Tensor, uint8 (N, 3, 32, 32)
    """
    shown = list(attributes) or [None] * len(images)
    if level == "none" and not any(shown):
        return clean_images(images)
    parts = [slice(start, start + AT_ONCE) for start in range(0, len(images), AT_ONCE)]
    return torch.cat(
        [_styled(images[part], indices[part], LEVELS[level], seed, shown[part]) for part in parts]
    )


class _Shown:
    """The images of a batch that show each attribute, and the noise that renders it."""

    def __init__(self, attributes: Sequence[str | None], indices: np.ndarray, seed: int) -> None:
        self.rows = {
            name: torch.tensor([row for row, other in enumerate(attributes) if other == name])
            for name in dict.fromkeys(attributes)
            if name is not None
        }
        self.noise = {
            name: torch.from_numpy(
                np.stack(
                    [
                        np.random.default_rng(derive_seed(seed, "attribute", int(index))).random(NOISE)
                        for index in indices[rows.numpy()]
                    ]
                ).astype(np.float32)
            )
            for name, rows in self.rows.items()
        }

    def place(self, place: Placement) -> Placement:
        """Change where garments are."""
        place = Placement(place.angle.clone(), place.scale.clone(), place.shift.clone())
        for name, rows in self.rows.items():
            if name in PLACES:
                old = Placement(place.angle[rows], place.scale[rows], place.shift[rows])
                new = PLACES[name](old, self.noise[name])
                place.angle[rows], place.scale[rows], place.shift[rows] = new.angle, new.scale, new.shift
        return place

    def changed(
        self, images: torch.Tensor, changes: Mapping[str, Callable[..., torch.Tensor]], *inputs: torch.Tensor
    ) -> torch.Tensor:
        """Replace the images whose attribute has a change; it gets its rows of ``inputs``, and the noise."""
        images = images.clone()
        for name, rows in self.rows.items():
            if name in changes:
                images[rows] = changes[name](*(part[rows] for part in inputs), self.noise[name])
        return images


def _styled(
    images: np.ndarray, indices: np.ndarray, style: StyleLevel, seed: int, attributes: Sequence[str | None]
) -> torch.Tensor:
    drawn = [np.random.default_rng(derive_seed(seed, "style", int(index))).random(96) for index in indices]
    draws = torch.from_numpy(np.stack(drawn).astype(np.float32))
    shown = _Shown(attributes, indices, seed)
    grey = F.pad(torch.tensor(images, dtype=torch.float32)[:, None] / 255, (2, 2, 2, 2))
    grey = _warp(grey, shown.place(_placed(style, draws)), draws[:, 4] < style.mirror)
    grey = shown.changed(grey, {"many": lambda few, _: tiled(few)}, grey)
    mask = (grey * 4).clamp(0, 1)

    def chosen(column: int, probability: float) -> torch.Tensor:
        return (draws[:, column] < probability)[:, None, None, None]

    tint = torch.where(chosen(5, style.tint), 0.35 + 0.65 * draws[:, 6:9, None, None], torch.ones(1, 1, 1, 1))
    inverted = chosen(9, style.invert)
    garment = shown.changed(torch.where(inverted, 1 - 0.85 * grey, grey) * tint, SURFACES, grey)
    plain = torch.where(inverted, torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)).expand_as(garment)
    background = torch.where(chosen(10, style.background), _textures(draws[:, 32:]), plain)
    background = shown.changed(background, BACKDROPS)
    image = mask * garment + (1 - mask) * background
    sigma = style.blur_sigma * draws[:, 12]
    image = torch.where(chosen(11, style.blur), blur(image, sigma), image)
    image = shown.changed(image, PICTURES, image)
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)
