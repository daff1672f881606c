"""Random resized crop, flip and evaluation crop of whole batches on the device, as two matrix products.

Input: boxes drawn on the CPU, so they are the same for every device, and uint8 images. Output: normalised
float images of the classifier's resolution. The boxes have the distribution of torchvision's
``RandomResizedCrop``. Cropping and resizing equal torchvision's antialiased bilinear ``resized_crop`` of
float images. Bilinear resizing is linear and separable, so a batch with different boxes is
``rows @ image @ columns``. This needs no loop over images and gives the same result for any batch size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from augbench.models.folders import to_device

ASPECT_RATIOS = (3 / 4, 4 / 3)  # torchvision's default
ATTEMPTS = 10  # torchvision's number; after that, the central crop is used
MOST_PIXELS = 2**22  # of a padded part of a batch: 50 MB as floats
MEAN = (0.485, 0.456, 0.406)  # of ImageNet's channels; torchvision's reference uses it for any data set
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Crops:
    """Crop and flip of each image.

    Attributes
    ----------
    boxes : ndarray, int (N, 4)
        Top, left, height, width in pixels.
    flips : ndarray, bool (N,)
        Whether the crop is flipped horizontally.
    """

    boxes: np.ndarray
    flips: np.ndarray


def draw_crops(rng: np.random.Generator, sizes: np.ndarray, min_area: float) -> Crops:
    """Draw a box and a flip for each image.

    They have the distributions of torchvision's ``RandomResizedCrop`` and ``RandomHorizontalFlip``.

    Parameters
    ----------
    sizes : ndarray, int (N, 2)
        Height and width of each image.
    min_area : float
        Smallest share of the image's area that a box has; the largest is 1.
    """
    heights, widths = sizes[:, 0], sizes[:, 1]
    boxes = _central_boxes(heights, widths)
    pending = np.arange(len(sizes))
    low, high = np.log(ASPECT_RATIOS)
    for _ in range(ATTEMPTS):
        if not len(pending):
            break
        area = heights[pending] * widths[pending] * rng.uniform(min_area, 1.0, len(pending))
        ratio = np.exp(rng.uniform(low, high, len(pending)))
        width = np.rint(np.sqrt(area * ratio)).astype(np.int64)
        height = np.rint(np.sqrt(area / ratio)).astype(np.int64)
        fits = (0 < width) & (width <= widths[pending]) & (0 < height) & (height <= heights[pending])
        chosen, height, width = pending[fits], height[fits], width[fits]
        top = rng.integers(0, heights[chosen] - height + 1)
        left = rng.integers(0, widths[chosen] - width + 1)
        boxes[chosen] = np.stack([top, left, height, width], axis=1)
        pending = pending[~fits]
    return Crops(boxes, rng.random(len(sizes)) < 0.5)


def _central_boxes(heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Return the largest central boxes with an allowed aspect ratio: torchvision's fallback."""
    ratio = widths / heights
    height = np.where(ratio < ASPECT_RATIOS[0], np.rint(widths / ASPECT_RATIOS[0]), heights).astype(np.int64)
    width = np.where(ratio > ASPECT_RATIOS[1], np.rint(heights * ASPECT_RATIOS[1]), widths).astype(np.int64)
    return np.stack([(heights - height) // 2, (widths - width) // 2, height, width], axis=1)


def send(arrays: Sequence[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """Copy arrays of whole numbers or truth values to ``device``, all in one asynchronous copy, as int64."""
    flat = np.concatenate([array.ravel() for array in arrays]).astype(np.int64, copy=False)
    parts = to_device(torch.from_numpy(flat), device).split([array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]


def at_origin(sizes: np.ndarray) -> np.ndarray:
    """Boxes of these heights and widths, int (N, 2), at the upper left corner."""
    return np.concatenate([np.zeros_like(sizes), sizes], axis=1)


def in_parts(boxes: np.ndarray) -> list[np.ndarray]:
    """Split boxes by size into parts that, padded to one size, have at most :data:`MOST_PIXELS` each.

    Returns
    -------
    list of ndarray, int
        Numbers of the boxes of each part, which together are all. A larger box is a part of its own.
    """
    order = np.argsort(boxes[:, 2] * boxes[:, 3], kind="stable")
    starts, largest = [0], np.zeros(2, dtype=np.int64)
    for place, side in enumerate(boxes[order, 2:]):
        largest = np.maximum(largest, side)
        if (place + 1 - starts[-1]) * largest.prod() > MOST_PIXELS and place > starts[-1]:
            starts.append(place)
            largest = side
    return np.split(order, starts[1:])


def _weights(
    start: torch.Tensor,
    length: torch.Tensor,
    total: torch.Tensor,
    offset: torch.Tensor,
    output: int,
    source: int,
) -> torch.Tensor:
    """Weights ``(N, output, source)`` of antialiased bilinear resizing along one axis.

    Source pixels ``start .. start + length`` become ``total`` pixels, of which ``output`` pixels from
    ``offset`` on are kept. ``start``, ``length``, ``total`` and ``offset`` are float tensors (N,).
    """
    scale = (length / total)[:, None, None]
    support = scale.clamp(min=1.0)
    target = torch.arange(output, device=start.device, dtype=torch.float32)[None, :, None]
    pixel = torch.arange(source, device=start.device, dtype=torch.float32)[None, None, :]
    first, last = start[:, None, None], (start + length)[:, None, None]
    centre = first + scale * (target + offset[:, None, None] + 0.5)
    weights = (1 - (pixel + 0.5 - centre).abs() / support).clamp(min=0)
    weights = weights * ((pixel >= first) & (pixel < last))
    return weights / weights.sum(dim=2, keepdim=True)


def _resample(images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Compute ``rows @ image @ columns``, normalised: uint8 (N, 3, H, W) to float (N, 3, R, R)."""
    count, channels, height, width = images.shape
    cut = torch.bmm(images.float().reshape(count, channels * height, width), columns.transpose(1, 2))
    cut = cut.reshape(count, channels, height, -1).transpose(1, 2).reshape(count, height, -1)
    cut = torch.bmm(rows, cut).reshape(count, rows.shape[1], channels, -1).transpose(1, 2)
    return normalise(cut)


def normalise(images: torch.Tensor) -> torch.Tensor:
    """Scale pixels of 0 to 255 to torchvision's normalised floats, contiguous."""
    mean, std = to_device(torch.tensor([MEAN, STD]), images.device).view(2, 1, 3, 1, 1)
    return (images * (1 / (255 * std)) - mean / std).contiguous()


def cut(images: torch.Tensor, crops: Crops, resolution: int) -> torch.Tensor:
    """Crop, flip and resize a batch.

    Parameters
    ----------
    images : Tensor, uint8 (N, 3, H, W)
        Images; smaller ones are at the upper left corner.
    crops : Crops
        One box and one flip per image.

    Returns
    -------
    Tensor, float32 (N, 3, resolution, resolution), normalised
    """
    places, flips = send([crops.boxes, crops.flips], images.device)
    boxes = places.float()
    whole = torch.full_like(boxes[:, 0], resolution)
    none = torch.zeros_like(whole)
    rows = _weights(
        start=boxes[:, 0],
        length=boxes[:, 2],
        total=whole,
        offset=none,
        output=resolution,
        source=images.shape[2],
    )
    columns = _weights(
        start=boxes[:, 1],
        length=boxes[:, 3],
        total=whole,
        offset=none,
        output=resolution,
        source=images.shape[3],
    )
    columns = torch.where(flips.bool()[:, None, None], columns.flip(1), columns)
    return _resample(images, rows, columns)


def cut_centre(images: torch.Tensor, sizes: np.ndarray, resize: int, resolution: int) -> torch.Tensor:
    """Resize the shorter side to ``resize`` and crop the centre, as torchvision's reference evaluates.

    Parameters
    ----------
    images : Tensor, uint8 (N, 3, H, W)
        Images; smaller ones are at the upper left corner.
    sizes : ndarray, int (N, 2)
        Height and width of each image.
    resize, resolution : int
        Shorter side before the crop, and side of the crop; ``resize >= resolution``.

    Returns
    -------
    Tensor, float32 (N, 3, resolution, resolution), normalised
    """
    if resize == resolution and images.shape[2:] == (resolution, resolution) and (sizes == resolution).all():
        return normalise(images)
    shorter = sizes.min(axis=1, keepdims=True)
    totals = resize * sizes // shorter  # torchvision's Resize truncates the longer side
    offsets = np.rint((totals - resolution) / 2)
    values = [part.float() for part in send([sizes, totals, offsets], images.device)]
    rows, columns = (
        _weights(
            start=torch.zeros_like(size),
            length=size,
            total=total,
            offset=offset,
            output=resolution,
            source=source,
        )
        for size, total, offset, source in zip(
            values[0].unbind(1), values[1].unbind(1), values[2].unbind(1), images.shape[2:], strict=True
        )
    )
    return _resample(images, rows, columns)
