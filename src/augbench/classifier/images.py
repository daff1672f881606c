"""Labelled images, decoded once and resident for many runs.

Flows in: ids, labels and a function that yields images. Flows out: an :class:`ImagePool` of uint8 tensors that stays on the device
for all runs of a process, and a hash of what the set holds, which is known without decoding anything.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

import numpy as np
import torch
from PIL import Image

from augbench.errors import UserError
from augbench.files import canonical_hash
from augbench.progress import track

logger = logging.getLogger(__name__)


def as_tensor(image: Image.Image, side: int) -> torch.Tensor:
    """RGB pixels, uint8 (3, H, W); an image whose shorter side exceeds ``side`` is scaled down to it.

    torchvision's reference crops from the full-size file. Cropping from the size that evaluation uses needs a tenth of the
    memory and is what fast ImageNet trainers do.
    """
    image = image.convert("RGB")
    shorter = min(image.size)
    if shorter > side:
        width, height = (side * length // shorter for length in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


class ImagePool:
    """Images on a device: one uint8 tensor ``(N, 3, H, W)`` if all have one size, else a list of tensors.

    Parameters
    ----------
    images : iterable of PIL images
    count : int
        How many there are.
    side : int
        Longest shorter side, in pixels; larger images are scaled down (:func:`as_tensor`).
    device : torch.device
        Where they are kept; a pool that would take more than half of the free CUDA memory stays in main memory.
    what : str
        Name in progress lines.
    """

    def __init__(self, images: Iterable[Image.Image], count: int, side: int, device: torch.device, what: str) -> None:
        stacked: torch.Tensor | None = None
        listed: list[torch.Tensor] = []
        found = 0
        for i, image in enumerate(track(images, f"decoding {what}", "image", count)):
            pixels, found = as_tensor(image, side), i + 1
            if found > count:
                break
            if i == 0:
                stacked = torch.empty((count, *pixels.shape), dtype=torch.uint8)
            if stacked is not None and pixels.shape != stacked.shape[1:]:
                listed, stacked = list(stacked[:i].unbind()), None
            if stacked is None:
                listed.append(pixels)
            else:
                stacked[i] = pixels
        if found != count:
            raise UserError(what, f"{found} images read", f"{count} are listed")
        self.images: torch.Tensor | list[torch.Tensor] = listed if stacked is None else stacked
        self.sizes = np.array([image.shape[1:] for image in self.images], dtype=np.int64).reshape(-1, 2)
        if device.type == "cuda" and 3 * int(self.sizes.prod(axis=1).sum()) < torch.cuda.mem_get_info(device)[0] / 2:
            self.images = self.images.to(device) if isinstance(self.images, torch.Tensor) else [image.to(device) for image in self.images]

    def __len__(self) -> int:
        return len(self.sizes)


def gather(pools: Sequence[ImagePool], indices: np.ndarray, device: torch.device) -> tuple[torch.Tensor, np.ndarray]:
    """Images at ``indices`` of the pools laid end to end.

    Returns
    -------
    images : Tensor, uint8 (len(indices), 3, H, W)
        H and W are the largest height and width; smaller images lie at the upper left corner, the rest is undefined.
    sizes : ndarray, int (len(indices), 2)
        Height and width of each image.
    """
    if len(pools) == 1 and isinstance(pools[0].images, torch.Tensor):
        images = pools[0].images
        return images[torch.from_numpy(indices).to(images.device)].to(device), pools[0].sizes[indices]
    sizes = np.empty((len(indices), 2), dtype=np.int64)
    members, first = [], 0
    for pool in pools:
        places = np.flatnonzero((first <= indices) & (indices < first + len(pool)))
        members.append((pool, places, indices[places] - first))
        sizes[places] = pool.sizes[members[-1][2]]
        first += len(pool)
    height, width = (int(side) for side in sizes.max(axis=0))
    canvas = torch.zeros((len(indices), 3, height, width), dtype=torch.uint8, device=device)
    for pool, places, chosen in members:
        if isinstance(pool.images, torch.Tensor):
            source = pool.images[torch.from_numpy(chosen).to(pool.images.device)].to(device)
            canvas[torch.from_numpy(places).to(device), :, : source.shape[2], : source.shape[3]] = source
        else:
            for place, i in zip(places.tolist(), chosen.tolist(), strict=True):
                image = pool.images[i]
                canvas[place, :, : image.shape[1], : image.shape[2]] = image.to(device, non_blocking=True)
    return canvas, sizes


class LabelledImages:
    """A set of images with ids and labels; nothing is decoded before :meth:`pool` is called, then once for all runs.

    Parameters
    ----------
    ids : sequence of str
        What the images are: image ids, or hashes of their bytes. With the labels they make :attr:`key`.
    labels : array of int (N,)
    load : callable
        Yields the images, in the order of ``ids``.
    what : str
        Name in progress lines and errors.
    """

    def __init__(self, ids: Sequence[str], labels: Sequence[int] | np.ndarray, load: Callable[[], Iterable[Image.Image]], what: str) -> None:
        self.ids, self.labels, self.load, self.what = list(ids), np.asarray(labels, dtype=np.int64), load, what
        if len(self.ids) != len(self.labels):
            raise ValueError(f"{len(self.ids)} ids, {len(self.labels)} labels")
        self._pool: ImagePool | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def key(self) -> str:
        """Hash of the ordered ids and labels."""
        return canonical_hash([self.ids, self.labels.tolist()])

    def pool(self, side: int, device: torch.device) -> ImagePool:
        """The images, decoded at the first call."""
        if self._pool is None:
            self._pool = ImagePool(self.load(), len(self), side, device, self.what)
        return self._pool
