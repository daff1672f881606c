"""Labelled images, decoded once for many runs and kept on the device, in main memory, or in a file.

Input: ids, labels and a function that yields images. Output: an :class:`ImagePool` of uint8 images for all
runs of a process, batches of them, and a hash of the set that needs no decoding. Batches are the same
wherever the images are kept; from a file, they are read ahead.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property

import numpy as np
import torch
from PIL import Image

from augbench.batches import in_batches
from augbench.classifier.compute import Compute
from augbench.classifier.crops import at_origin, send
from augbench.classifier.packed import Packed
from augbench.classifier.spool import Spool
from augbench.data.decode import in_order, middle
from augbench.data.stamps import KeyName, Stamps, names_in_keys
from augbench.errors import UserError
from augbench.files import canonical_hash
from augbench.memory import free_memory
from augbench.progress import track
from augbench.runtime.fit import give_back

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")
READ_TOGETHER = 256  # images read from a file at once
CHECK_EVERY = 1024  # images written to a file between looks at the free disk


def as_tensor(image: Image.Image, side: int | None) -> torch.Tensor:
    """Convert to RGB pixels, uint8 (3, H, W); scale an image down if its shorter side exceeds ``side``.

    torchvision's reference crops from the full-size file (None). Cropping from the size that evaluation uses
    needs half of the memory or less; fast ImageNet trainers do the same.
    """
    image = middle(image.convert("RGB"))
    shorter = min(image.size)
    if side is not None and shorter > side:
        width, height = (side * length // shorter for length in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _free_on(gpu: torch.device) -> int:
    """Free memory of a GPU, in bytes. What torch keeps of earlier runs is given back: all find the same."""
    give_back()
    return torch.cuda.mem_get_info(gpu)[0]


class ImagePool:
    """Images of any sizes, uint8.

    Parameters
    ----------
    images : iterable of PIL images
        In a group, each process gives and decodes only its
        :meth:`~augbench.classifier.compute.ProcessGroup.rows`. The processes then read each other's files,
        so that each has all images.
    count : int
        Number of images of all processes.
    side : int, optional
        Longest allowed shorter side, in pixels; larger images are scaled down (:func:`as_tensor`). None: none
        are.
    compute : Compute
        Where they are kept. ``storage.where: auto`` takes the device if they fit into half of its free
        memory, else main memory if they fit into half of what is free there, else a file. ``device`` falls
        back to these, with a warning.
    what : str
        Name in progress lines.

    Attributes
    ----------
    images : Tensor, list of Tensor, Packed or Spool
        In main memory one tensor ``(N, 3, H, W)`` if all have one size, else one tensor per image; on a GPU
        one :class:`~augbench.classifier.packed.Packed`; or the file.
    sizes : ndarray, int (N, 2)
        Height and width of each image.

    Raises
    ------
    UserError
        The number of images is not ``count``, or the disk is full.
    """

    def __init__(
        self, images: Iterable[Image.Image], count: int, side: int | None, compute: Compute, what: str
    ) -> None:
        device, group, where = compute.device, compute.group, compute.storage.where
        rows = group.rows(count)
        through_file = group.size > 1 or where == "disk"
        budget = 0.0 if through_file else float("inf") if where == "memory" else free_memory() / 2
        self.images: torch.Tensor | list[torch.Tensor] | Packed | Spool = self._decode(
            images, rows.stop - rows.start, side, budget, compute, what
        )
        if isinstance(self.images, Spool):
            self.images.finish(group)
        shapes = (
            self.images.shapes
            if isinstance(self.images, Spool)
            else [image.shape[1:] for image in self.images]
        )
        self.sizes = np.array(shapes, dtype=np.int64).reshape(-1, 2)
        size = 3 * int(self.sizes.prod(axis=1).sum())
        if device.type == "cuda" and where in ("auto", "device"):
            room = _free_on(device) / (2 if where == "auto" else 1)
            if (size >= room or not self._moved(device)) and where == "device":
                logger.warning(
                    "execution.image_pool: device, but the pixels of %s, %.3g GB, do not fit into the %.3g GB"
                    " that are free on the GPU", what, size / 1e9, room / 1e9,
                )  # fmt: skip
        if isinstance(self.images, Spool) and (
            where == "memory" or (where != "disk" and size * group.size < free_memory() / 2)
        ):
            self.images = self._read_all(self.images)
        place = (
            "in a file"
            if isinstance(self.images, Spool)
            else "on the GPU"
            if isinstance(self.images, Packed)
            else "in main memory"
        )
        logger.info("%s: %d images, %.3g GB as pixels, are kept %s", what, count, size / 1e9, place)

    @staticmethod
    def _decode(
        images: Iterable[Image.Image],
        count: int,
        side: int | None,
        budget: float,
        compute: Compute,
        what: str,
    ) -> torch.Tensor | list[torch.Tensor] | Spool:
        """Decode this process's images, into a file if they exceed ``budget`` bytes or for a group."""
        stacked: torch.Tensor | None = None
        listed: list[torch.Tensor] = []
        spool = Spool(compute.storage.scratch) if compute.group.size > 1 else None
        found = taken = 0
        for i, image in enumerate(track(images, f"decoding {what}", "image", count)):
            pixels, found = as_tensor(image, side), i + 1
            if found > count:
                break
            taken += pixels.numel()
            begins = spool is None and taken > budget
            if begins:
                spool = Spool(compute.storage.scratch)
            if spool is not None and (found % CHECK_EVERY == 0 or (begins and found > CHECK_EVERY)):
                left = count if begins else count - found
                spool.expect(taken / found * left * compute.group.size)
            if spool is not None and begins:
                for held in listed if stacked is None else stacked[:i]:
                    spool.append(held)
                stacked, listed = None, []
            if spool is not None:
                spool.append(pixels)
                continue
            if i == 0 and count * pixels.numel() <= budget:
                stacked = torch.empty((count, *pixels.shape), dtype=torch.uint8)
            if stacked is not None and pixels.shape != stacked.shape[1:]:
                listed, stacked = list(stacked[:i].unbind()), None
            if stacked is None:
                listed.append(pixels)
            else:
                stacked[i] = pixels
        if found != count:
            raise UserError(what, f"{found} images read", f"{count} are listed")
        if spool is not None:
            return spool
        return listed if stacked is None else stacked

    def _moved(self, device: torch.device) -> bool:
        """Move the images into the memory of ``device``; False if they do not fit."""
        try:
            packed = Packed(self.sizes, device)
            for chosen in in_batches(range(len(self)), READ_TOGETHER):
                pixels = [image.flatten() for image in self._whole(np.array(chosen))]
                packed.write(slice(chosen[0], chosen[-1] + 1), torch.cat(pixels))
        except torch.OutOfMemoryError:
            return False
        self.images = packed
        return True

    def _whole(self, chosen: np.ndarray) -> Iterator[torch.Tensor]:
        """Yield images, uint8 (3, H, W), without padding."""
        for image, (height, width) in zip(self.take(chosen), self.sizes[chosen].tolist(), strict=True):
            yield image[:, :height, :width]

    def _read_all(self, spool: Spool) -> torch.Tensor | list[torch.Tensor]:
        """Read the images of a file into main memory."""
        batches = map(np.array, in_batches(range(len(spool)), READ_TOGETHER))
        if not (self.sizes == self.sizes[:1]).all():
            return [image.clone() for chosen in batches for image in self._whole(chosen)]
        stacked = torch.empty((len(spool), 3, *self.sizes[0].tolist()), dtype=torch.uint8)
        for chosen in batches:
            stacked[chosen[0] : chosen[-1] + 1] = self.take(chosen)
        return stacked

    def __len__(self) -> int:
        return len(self.sizes)

    def is_on(self, device: torch.device) -> bool:
        """Whether the images are in the memory of this kind of device, so that batches need no copy."""
        if isinstance(self.images, Packed):
            return self.images.pixels.device.type == device.type
        return not isinstance(self.images, Spool) and device.type == "cpu"

    def take(self, chosen: np.ndarray, pinned: bool = False, boxes: np.ndarray | None = None) -> torch.Tensor:
        """Return images ``chosen``, uint8 (N, 3, H, W), where they are kept; from a file, in main memory.

        Parameters
        ----------
        boxes : ndarray, int (N, 4), optional
            Part of each image to return: top, left, height, width. Default: the whole images.
        pinned : bool
            Use page-locked memory, from which a GPU copies while it computes; for images that are not on
            the device.

        Returns
        -------
        Tensor
            H and W are the largest height and width; smaller images are at the upper left corner, padded
            with zeros.
        """
        if isinstance(self.images, Packed):
            return self.images.take(chosen, boxes)
        if isinstance(self.images, torch.Tensor) and boxes is None:
            out = (
                torch.empty((len(chosen), *self.images.shape[1:]), dtype=torch.uint8, pin_memory=True)
                if pinned
                else None
            )
            return torch.index_select(self.images, 0, torch.from_numpy(chosen), out=out)
        if boxes is None:
            boxes = at_origin(self.sizes[chosen])
        height, width = (int(side) for side in boxes[:, 2:].max(axis=0))
        canvas = torch.zeros((len(chosen), 3, height, width), dtype=torch.uint8, pin_memory=pinned)
        if isinstance(self.images, Spool):
            self.images.read(chosen, canvas, boxes)
        else:
            for place, (i, box) in enumerate(zip(chosen.tolist(), boxes.tolist(), strict=True)):
                top, left, height, width = box
                part = self.images[i][:, top : top + height, left : left + width]
                canvas[place, :, :height, :width] = part
        return canvas


def _split(pools: Sequence[ImagePool], indices: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each pool of a concatenation: the places of a batch that it fills, and the images that go there."""
    parts, first = [], 0
    for pool in pools:
        places = np.flatnonzero((first <= indices) & (indices < first + len(pool)))
        parts.append((places, indices[places] - first))
        first += len(pool)
    return parts


def _of(boxes: np.ndarray | None, places: np.ndarray) -> np.ndarray | None:
    return None if boxes is None else boxes[places]


def gather(
    pools: Sequence[ImagePool],
    indices: np.ndarray,
    device: torch.device,
    ready: Sequence[torch.Tensor | None] | None = None,
    boxes: np.ndarray | None = None,
) -> tuple[torch.Tensor, np.ndarray]:
    """Return the images at ``indices`` of the concatenated pools, on ``device``.

    Parameters
    ----------
    ready : sequence of Tensor, optional
        For each pool, its images of this batch, if they have been read already.
    boxes : ndarray, int (len(indices), 4), optional
        Part of each image to return (:meth:`ImagePool.take`). Default: the whole images.

    Returns
    -------
    images : Tensor, uint8 (len(indices), 3, H, W), on ``device``
        H and W are the largest height and width; smaller images are at the upper left corner, the rest is
        undefined.
    sizes : ndarray, int (len(indices), 2)
        Height and width of each image, or of its part.
    """
    read = list(ready or [None] * len(pools))
    if len(pools) == 1:
        images = read[0] if read[0] is not None else pools[0].take(indices, boxes=boxes)
        sizes = pools[0].sizes[indices] if boxes is None else boxes[:, 2:]
        return images.to(device, non_blocking=True), sizes
    parts = _split(pools, indices)
    sizes = np.empty((len(indices), 2), dtype=np.int64)
    for pool, (places, chosen) in zip(pools, parts, strict=True):
        sizes[places] = pool.sizes[chosen] if boxes is None else boxes[places, 2:]
    height, width = (int(side) for side in sizes.max(axis=0))
    canvas = torch.zeros((len(indices), 3, height, width), dtype=torch.uint8, device=device)
    targets = send([places for places, _ in parts], device)
    for pool, (places, chosen), found, target in zip(pools, parts, read, targets, strict=True):
        if len(places):
            images = pool.take(chosen, boxes=_of(boxes, places)) if found is None else found
            images = images.to(device, non_blocking=True)
            canvas[target, :, : images.shape[2], : images.shape[3]] = images
    return canvas, sizes


def stream(
    pools: Sequence[ImagePool],
    batches: Sequence[np.ndarray],
    device: torch.device,
    boxes: Sequence[np.ndarray] | None = None,
) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
    """Yield the images and sizes of each batch (:func:`gather`), or with ``boxes`` of parts of them.

    Another thread reads images that are not on the device a few batches ahead.
    """
    no_boxes: list[np.ndarray | None] = [None] * len(batches)
    wanted = list(zip(batches, boxes or no_boxes, strict=True))
    if all(pool.is_on(device) for pool in pools):
        for batch, cut in wanted:
            yield gather(pools, batch, device, boxes=cut)
        return
    pinned = device.type == "cuda"

    def read(one: tuple[np.ndarray, np.ndarray | None]) -> list[torch.Tensor | None]:
        parts = zip(pools, _split(pools, one[0]), strict=True)
        return [
            None if pool.is_on(device) or not len(chosen) else pool.take(chosen, pinned, _of(one[1], places))
            for pool, (places, chosen) in parts
        ]

    for (batch, cut), ready in zip(wanted, in_order(read, wanted, threads=1), strict=True):
        yield gather(pools, batch, device, ready, cut)


class LabelledImages:
    """A set of images with ids and labels; the first call of :meth:`pool` decodes them, once for all runs.

    Parameters
    ----------
    ids : sequence of str
        Image ids, or hashes of the images' bytes. With the labels they make :attr:`key`.
    labels : array of int (N,)
    load : callable
        Yields the images of a slice, in the order of ``ids``.
    what : str
        Name in progress lines and errors.
    stamps : sequence of Stamp or None, optional
        Stamps of the images' files, which make :attr:`key`, too.
    """

    def __init__(
        self,
        ids: Sequence[str],
        labels: Sequence[int] | np.ndarray,
        load: Callable[[slice], Iterable[Image.Image]],
        what: str,
        stamps: Stamps | None = None,
    ) -> None:
        self.ids, self.labels = list(ids), np.asarray(labels, dtype=np.int64)
        self.load, self.what, self.stamps = load, what, stamps
        if len(self.ids) != len(self.labels):
            raise ValueError(f"{len(self.ids)} ids, {len(self.labels)} labels")
        self._pool: ImagePool | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def key_names(self) -> list[KeyName]:
        """What names the images in the store's keys."""
        return names_in_keys(self.ids, self.stamps)

    @cached_property
    def key(self) -> str:
        """Hash of the ordered ids, stamps and labels."""
        return self.key_of(np.arange(len(self)))

    def key_of(self, rows: np.ndarray) -> str:
        """Hash of the ids, stamps and labels of some images, in this order."""
        return canonical_hash([[self.key_names[row] for row in rows], self.labels[rows].tolist()])

    def pool(self, side: int | None, compute: Compute) -> ImagePool:
        """Return the images, decoded at the first call."""
        if self._pool is None:
            self._pool = ImagePool(
                self.load(compute.group.rows(len(self))), len(self), side, compute, self.what
            )
        return self._pool

    def forget(self) -> None:
        """Release the memory of the decoded images."""
        self._pool = None
