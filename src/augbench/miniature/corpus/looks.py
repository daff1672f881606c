"""Render the attributes of the miniature corpus: what a look, a scene or a colour changes in an image.

A garment becomes an image in four steps, and an attribute changes one or two of them: ``place`` (angle, size
and position), ``surface`` (the garment's material), ``backdrop`` (what is behind it), and ``picture`` (the
whole image). Each function works on a batch of images that show the same attribute. Images are
``float32 (N, C, 32, 32)`` in 0..1; ``noise`` is uniform in 0..1, ``(N, 1056)``: 32 numbers and one map per
image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

SIDE = 32
NOISE = 32 + SIDE * SIDE
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601; PIL converts to grey with the same weights


@dataclass
class Placement:
    """Where garments are: angle in radians ``(N,)``, scale ``(N,)``, shift ``(N, 2)`` in half sides."""

    angle: torch.Tensor
    scale: torch.Tensor
    shift: torch.Tensor


# --- helpers ------------------------------------------------------------------------------------


def blur(images: torch.Tensor, sigma: torch.Tensor, radius: int = 2) -> torch.Tensor:
    """Blur images ``(N, 3, 32, 32)`` with Gaussians of ``sigma`` pixels ``(N,)``."""
    offsets = torch.arange(-radius, radius + 1).float()
    kernel = torch.exp(-(offsets**2) / (2 * sigma.clamp(min=1e-3)[:, None] ** 2))
    kernel = kernel / kernel.sum(1, keepdim=True)
    count = len(images)
    flat = F.pad(images.reshape(1, count * 3, SIDE, SIDE), (radius,) * 4, mode="replicate")
    weights = kernel.repeat_interleave(3, 0)
    flat = F.conv2d(flat, weights[:, None, None, :], groups=count * 3)
    return F.conv2d(flat, weights[:, None, :, None], groups=count * 3).reshape(count, 3, SIDE, SIDE)


def grey_of(images: torch.Tensor) -> torch.Tensor:
    """Luminance ``(N, 1, H, W)`` of images ``(N, 3, H, W)``."""
    return (images * torch.tensor(LUMA)[:, None, None]).sum(1, keepdim=True)


def _map(noise: torch.Tensor) -> torch.Tensor:
    return noise[:, 32:].reshape(-1, 1, SIDE, SIDE)


def _coarse(noise: torch.Tensor, cells: int) -> torch.Tensor:
    grid = noise[:, 32 : 32 + cells * cells].reshape(-1, 1, cells, cells)
    return F.interpolate(grid, size=SIDE, mode="bilinear", align_corners=False)


def _rgb(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None, None]


def _mixed(noise: torch.Tensor, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    share = noise[:, :1, None, None]
    return one * share + other * (1 - share)


def _bright_colour(noise: torch.Tensor) -> torch.Tensor:
    """One saturated colour per image, ``(N, 3, 1, 1)``."""
    hue = 2 * math.pi * (noise[:, 1, None] + torch.tensor([0.0, 1 / 3, 2 / 3]))
    return (0.5 + 0.5 * torch.cos(hue))[:, :, None, None]


def _edges(grey: torch.Tensor) -> torch.Tensor:
    """Strength of the edges of ``(N, 1, 32, 32)``, 0..1."""
    across = F.pad(grey, (1, 0, 0, 0)).diff(dim=-1)
    down = F.pad(grey, (0, 0, 1, 0)).diff(dim=-2)
    return (2.2 * (across.abs() + down.abs())).clamp(0, 1)


def _axes() -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns of an image's pixels, in pixels: ``(32, 1)`` and ``(1, 32)``."""
    return torch.arange(SIDE).float()[:, None], torch.arange(SIDE).float()[None, :]


def _posterised(image: torch.Tensor, levels: int) -> torch.Tensor:
    return (image * (levels - 1)).round() / (levels - 1)


def _outline(mask: torch.Tensor) -> torch.Tensor:
    return (F.max_pool2d(mask, 3, 1, 1) - mask).clamp(0, 1)


# --- place --------------------------------------------------------------------------------------


def _close_up(place: Placement, noise: torch.Tensor) -> Placement:
    return Placement(place.angle, 1.7 + 0.4 * noise[:, 0], place.shift)


def _cropped(place: Placement, noise: torch.Tensor) -> Placement:
    far = torch.where(noise[:, :2] < 0.5, -1.0, 1.0) * (0.5 + 0.3 * noise[:, 2:4])
    along = noise[:, 4] < 0.5
    shift = torch.stack([torch.where(along, far[:, 0], 0), torch.where(along, 0, far[:, 1])], 1)
    return Placement(place.angle, place.scale, shift)


def _large(place: Placement, noise: torch.Tensor) -> Placement:
    return Placement(place.angle, 1.25 + 0.15 * noise[:, 0], place.shift)


def _small(place: Placement, noise: torch.Tensor) -> Placement:
    return Placement(place.angle, 0.45 + 0.1 * noise[:, 0], place.shift)


def _weird(place: Placement, noise: torch.Tensor) -> Placement:
    return Placement(math.pi * (0.4 + 1.2 * noise[:, 0]), place.scale, place.shift)


PLACES: dict[str, Callable[[Placement, torch.Tensor], Placement]] = {
    "close-up": _close_up,
    "cropped": _cropped,
    "large": _large,
    "small": _small,
    "weird": _weird,
}


def tiled(grey: torch.Tensor) -> torch.Tensor:
    """Four small garments in place of one, ``(N, 1, 32, 32)``: the look "many"."""
    return F.interpolate(grey, scale_factor=0.5, mode="area").repeat(1, 1, 2, 2)


# --- surface: (grey, noise) -> garment ------------------------------------------------------------


def _dirty(grey: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    spots = ((_coarse(noise, 9) - 0.55) * 8).clamp(0, 1) * 0.9
    return grey * (1 - spots) + spots * _rgb(0.36, 0.24, 0.1)


def _embroidered(grey: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    rows, columns = _axes()
    stitches = (((rows + columns) % 4 < 2) ^ ((rows - columns) % 4 < 2)).float()
    thread = _mixed(noise, _rgb(0.85, 0.15, 0.2), _rgb(0.95, 0.75, 0.2))
    return (0.35 + 0.65 * stitches) * thread * (0.6 + 0.4 * grey)


def _origami(grey: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    rows, columns = _axes()
    shade = torch.zeros_like(grey)
    for line in range(3):
        angle = math.pi * (noise[:, 2 + line, None, None] + line / 3)
        side = torch.cos(angle) * (columns - 16) + torch.sin(angle) * (rows - 16)
        shade = shade + (side > 0).float()[:, None] * (0.25 - 0.06 * line)
    return (0.45 + shade).clamp(0, 1) * (0.6 + 0.4 * _bright_colour(noise))


def _plushie(grey: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    fur = 0.55 + 0.45 * _map(noise)
    return fur * _mixed(noise, _rgb(0.95, 0.75, 0.6), _rgb(0.75, 0.55, 0.4)).expand(len(grey), 3, SIDE, SIDE)


def _plastic(grey: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    shine = ((F.avg_pool2d(grey, 5, 1, 2) - 0.45) * 5).clamp(0, 1) * (_axes()[0] < 14).float() * 0.75
    flat = _bright_colour(noise) * (0.55 + 0.45 * _posterised(grey, 3))
    return flat * (1 - shine) + shine


def _sculpture(grey: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    smooth = F.avg_pool2d(grey, 3, 1, 1)
    relief = F.pad(smooth, (1, 0, 1, 0))[..., :-1, :-1] - smooth
    return (0.6 - 1.6 * relief + 0.08 * (_map(noise) - 0.5)).clamp(0, 1) * _rgb(0.96, 0.95, 0.9)


def _cartoon(grey: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    lines = (_edges(_posterised(grey, 3)) > 0.35).float()
    return _bright_colour(noise) * (0.6 + 0.4 * _posterised(grey, 3)) * (1 - lines)


def _graffiti(grey: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    inner = 1 - _outline(1 - (grey * 4).clamp(0, 1))
    return _bright_colour(noise) * inner + (1 - inner)


def _tattoo(grey: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    ink = (1.4 * _edges(grey) + _outline(1 - (grey * 4).clamp(0, 1))).clamp(0, 1)
    return (1 - ink) * _skin(noise) + ink * _rgb(0.1, 0.14, 0.3)


def _sketched(grey: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    pencil = (1.2 * _edges(grey) + _outline(1 - (grey * 4).clamp(0, 1))).clamp(0, 1)
    return (0.97 - 0.85 * pencil).expand(-1, 3, -1, -1)


def _colour(red: float, green: float, blue: float, least: float = 0.25) -> Callable[..., torch.Tensor]:
    def surface(grey: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return (least + (1 - least) * grey) * _rgb(red, green, blue)

    return surface


def _striped(grey: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    rows, columns = _axes()
    across = (noise[:, 2, None, None, None] < 0.5).float()
    stripes = ((across * rows + (1 - across) * columns) % 6 < 3).float()
    dark = 0.15 + 0.2 * _bright_colour(noise)
    return (0.4 + 0.6 * grey) * (stripes + (1 - stripes) * dark)


SURFACES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "dirty": _dirty,
    "embroidered": _embroidered,
    "origami": _origami,
    "plushie": _plushie,
    "plastic": _plastic,
    "sculpture": _sculpture,
    "cartoon": _cartoon,
    "graffiti": _graffiti,
    "tattoo": _tattoo,
    "drawing": _sketched,
    "black": _colour(0.14, 0.14, 0.16, 0.1),
    "white": _colour(1.0, 1.0, 1.0, 0.8),
    "grey": _colour(0.55, 0.55, 0.55, 0.6),
    "red": _colour(0.95, 0.1, 0.1),
    "blue": _colour(0.1, 0.25, 0.95),
    "green": _colour(0.1, 0.7, 0.15),
    "brown": _colour(0.5, 0.28, 0.1),
    "pink": _colour(1.0, 0.5, 0.75),
    "beige": _colour(0.93, 0.85, 0.65, 0.5),
    "striped": _striped,
}


# --- backdrop: noise -> background ----------------------------------------------------------------


def _skin(noise: torch.Tensor) -> torch.Tensor:
    plain = _mixed(noise, _rgb(0.93, 0.76, 0.65), _rgb(0.6, 0.42, 0.3))
    return plain.expand(len(noise), 3, SIDE, SIDE)


def _plain(*values: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def backdrop(noise: torch.Tensor) -> torch.Tensor:
        return _rgb(*values).expand(len(noise), 3, SIDE, SIDE)

    return backdrop


def _bricks(noise: torch.Tensor) -> torch.Tensor:
    rows, columns = _axes()
    course = (rows // 5) % 2
    mortar = ((rows % 5 < 1) | ((columns + 4 * course) % 8 < 1)).float()
    brick = _rgb(0.62, 0.28, 0.2) * (0.8 + 0.3 * _coarse(noise, 8))
    return mortar * 0.75 + (1 - mortar) * brick


def _checker(noise: torch.Tensor) -> torch.Tensor:
    rows, columns = _axes()
    floor = (((rows // 4) + (columns // 4)) % 2) * (rows >= 16)
    sky = (0.25 + 0.5 * rows / SIDE) * (rows < 16)
    return (sky * _rgb(0.5, 0.6, 1.0) + floor * _rgb(0.8, 0.8, 0.85)).expand(len(noise), 3, SIDE, SIDE)


def _ground(
    top: torch.Tensor, bottom: torch.Tensor, cells: int, depth: float = 0.5
) -> Callable[..., torch.Tensor]:
    """A sky above a textured ground, with the horizon between a third and two thirds of the height."""

    def backdrop(noise: torch.Tensor) -> torch.Tensor:
        below = (_axes()[0] >= 10 + 10 * noise[:, 5, None, None]).float()[:, None]
        texture = 1 - depth + 2 * depth * (_coarse(noise, cells) - 0.25)
        return ((1 - below) * top + below * (bottom * texture)).clamp(0, 1)

    return backdrop


def _waves(noise: torch.Tensor) -> torch.Tensor:
    rows, columns = _axes()
    phase = 6 * noise[:, 6, None, None]
    crests = 0.5 + 0.5 * torch.sin(1.4 * rows + 1.2 * torch.sin(columns / 4 + phase) + phase)
    return crests[:, None] * _rgb(0.35, 0.75, 0.9) + (1 - crests[:, None]) * _rgb(0.05, 0.25, 0.55)


def _night(noise: torch.Tensor) -> torch.Tensor:
    lights = (_map(noise) > 0.985).float()
    return lights * _rgb(1.0, 0.85, 0.4) + (1 - lights) * _rgb(0.06, 0.04, 0.14)


def _street(noise: torch.Tensor) -> torch.Tensor:
    rows, columns = _axes()
    windows = ((rows % 6 < 3) & (columns % 6 < 3) & (rows < 24)).float()
    lit = _mixed(noise, _rgb(0.95, 0.9, 0.55), _rgb(0.3, 0.35, 0.45))
    wall = _mixed(noise, _rgb(0.55, 0.55, 0.58), _rgb(0.65, 0.6, 0.55))
    road = (rows >= 26).float() * 0.6
    return (windows * lit + (1 - windows) * wall) * (1 - road)


def _room(noise: torch.Tensor) -> torch.Tensor:
    rows, columns = _axes()
    boards = ((columns % 8 < 1) & (rows >= 22)).float()
    floor = (rows >= 22).float()
    wall = _mixed(noise, _rgb(0.95, 0.85, 0.65), _rgb(0.85, 0.75, 0.8))
    return (1 - floor) * wall + floor * _rgb(0.55, 0.35, 0.2) * (1 - 0.5 * boards)


def _clouds(noise: torch.Tensor) -> torch.Tensor:
    cloud = ((_coarse(noise, 6) - 0.45) * 3).clamp(0, 1)
    return cloud + (1 - cloud) * _rgb(0.35, 0.6, 0.98)


BACKDROPS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "clean": _plain(1.0, 1.0, 1.0),
    "drawing": _plain(0.97, 0.97, 0.97),
    "cartoon": _plain(0.99, 0.93, 0.6),
    "plastic": _plain(0.9, 0.95, 1.0),
    "sculpture": _plain(0.2, 0.2, 0.24),
    "origami": _plain(0.93, 0.9, 0.84),
    "tattoo": _skin,
    "graffiti": _bricks,
    "rendering": _checker,
    "snow": _ground(_rgb(0.78, 0.86, 0.95), _rgb(1.0, 1.0, 1.0), 6, 0.15),
    "night": _night,
    "water": _waves,
    "desert": _ground(_rgb(0.98, 0.85, 0.6), _rgb(0.88, 0.66, 0.32), 6, 0.25),
    "nature": _ground(_rgb(0.55, 0.78, 0.95), _rgb(0.25, 0.6, 0.15), 12),
    "sky": _clouds,
    "street": _street,
    "inside": _room,
    "black": _plain(0.85, 0.85, 0.85),
    "white": _plain(0.3, 0.3, 0.35),
}


# --- picture: (image, noise) -> image -------------------------------------------------------------


def _black_and_white(image: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    contrast = (grey_of(image) - 0.5) * 1.5 + 0.5
    return contrast.clamp(0, 1).expand_as(image)


def _dark(image: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    return image * (0.22 + 0.13 * noise[:, 0, None, None, None])


def _bright(image: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    return 0.5 + 0.5 * image


def _blurry(image: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    return blur(image, 1.8 + 0.8 * noise[:, 0], radius=5)


def _hard_to_see(image: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    mean = image.mean((2, 3), keepdim=True)
    return mean + (0.16 + 0.08 * noise[:, 0, None, None, None]) * (image - mean)


def _pixelated(image: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    return F.interpolate(F.avg_pool2d(image, 4), scale_factor=4, mode="nearest")


def _jpeg(image: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Keep three coefficients of each block's cosine transform, roughly quantised, and false colour."""
    index = torch.arange(8).float()
    basis = torch.cos(math.pi * (index[None, :] + 0.5) * index[:, None] / 8) / 2
    basis[0] = basis[0] / math.sqrt(2)
    blocks = F.unfold(image, 8, stride=8).reshape(len(image), 3, 8, 8, 16)
    parts = torch.einsum("ui,ncijb,vj->ncuvb", basis, blocks, basis)
    kept = ((index[:, None] + index[None, :]) <= 1).float()[:, :, None]
    parts = (parts * kept / 0.8).round() * 0.8
    blocks = torch.einsum("ui,ncuvb,vj->ncijb", basis, parts, basis)
    return F.fold(blocks.reshape(len(image), 192, 16), (SIDE, SIDE), 8, stride=8)


def _bad(image: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    return image + 0.9 * (_map(noise) - 0.5)


def _painting(image: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Broad strokes in warm colours, in a gilded frame."""
    strokes = F.interpolate(F.avg_pool2d(image, 2), scale_factor=2, mode="nearest")
    canvas = _posterised(strokes, 4) * _rgb(1.0, 0.9, 0.7) * (0.85 + 0.3 * _coarse(noise, 10))
    rows, columns = _axes()
    frame = ((torch.minimum(rows, columns) < 2) | (torch.maximum(rows, columns) > SIDE - 3)).float()
    return frame * _rgb(0.7, 0.5, 0.15) + (1 - frame) * canvas


def _video_game(image: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Large pixels in few colours below a bar that shows the player's health."""
    blocks = F.interpolate(F.avg_pool2d(image, 2), scale_factor=2, mode="nearest")
    rows, columns = _axes()
    bar = (rows < 4).float().expand(SIDE, SIDE)
    left = (columns < 6 + 22 * noise[:, 0, None, None]).float()[:, None]
    health = left * _rgb(0.1, 0.9, 0.2) + (1 - left) * _rgb(0.8, 0.05, 0.05)
    return bar * health + (1 - bar) * _posterised(blocks, 3) * _rgb(0.9, 0.85, 1.0)


def _smooth(image: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    return blur(image, torch.full((len(image),), 0.7))


PICTURES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "black and white": _black_and_white,
    "dark": _dark,
    "bright": _bright,
    "blurry": _blurry,
    "hard to see": _hard_to_see,
    "pixelated": _pixelated,
    "jpeg corrupted": _jpeg,
    "bad": _bad,
    "painting": _painting,
    "video game": _video_game,
    "rendering": _smooth,
}
