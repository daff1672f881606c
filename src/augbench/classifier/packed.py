"""Decoded images of any sizes in one tensor, from which a batch is taken without a loop over images.

Input: uint8 pixels, one image after the other. Output: padded batches of whole images or of boxes in them.
A GPU starts each copy separately, so hundreds of small copies per step would take longer than the step.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch

from augbench.classifier.crops import at_origin, send
from augbench.models.folders import to_device


class Packed:
    """Images of these sizes; :meth:`write` gives their pixels.

    Parameters
    ----------
    sizes : ndarray, int (N, 2)
        Height and width of each image.

    Raises
    ------
    torch.OutOfMemoryError
        They do not fit on ``device``.
    """

    def __init__(self, sizes: np.ndarray, device: torch.device) -> None:
        self.sizes = sizes
        self.areas = sizes.prod(axis=1)
        self.ends = 3 * self.areas.cumsum()
        self.pixels = torch.empty(3 * int(self.areas.sum()), dtype=torch.uint8, device=device)

    @cached_property
    def one_size(self) -> bool:
        """Whether all images have the same size."""
        return bool((self.sizes == self.sizes[0]).all())

    def write(self, rows: slice, pixels: torch.Tensor) -> None:
        """Set consecutive images; ``pixels`` has those of each (3, H, W), one image after the other."""
        first = int(self.ends[rows.start] - 3 * self.areas[rows.start])
        self.pixels[first : int(self.ends[rows.stop - 1])] = to_device(pixels, self.pixels.device)

    def take(self, chosen: np.ndarray, boxes: np.ndarray | None = None) -> torch.Tensor:
        """Return images ``chosen``, or boxes in them, padded with zeros to one size.

        Parameters
        ----------
        boxes : ndarray, int (N, 4), optional
            Top, left, height and width in each image. Default: the whole images.
        """
        device = self.pixels.device
        if boxes is None and self.one_size:
            (rows,) = send([chosen], device)
            return self.pixels.view(-1, 3, *self.sizes[0].tolist()).index_select(0, rows)
        if boxes is None:
            boxes = at_origin(self.sizes[chosen])
        areas, widths = self.areas[chosen], self.sizes[chosen, 1]
        first = self.ends[chosen] - 3 * areas + boxes[:, 0] * widths + boxes[:, 1]
        height, width = (int(side) for side in boxes[:, 2:].max(axis=0))
        first_, width_, area, tall, wide = (
            part.view(-1, 1, 1) for part in send([first, widths, areas, boxes[:, 2], boxes[:, 3]], device)
        )
        row = torch.arange(height, device=device).view(1, -1, 1)
        column = torch.arange(width, device=device).view(1, 1, -1)
        inside = (row < tall) & (column < wide)
        place = torch.where(inside, first_ + row * width_ + column, 0)
        out = torch.empty((len(chosen), 3, height, width), dtype=torch.uint8, device=device)
        for channel in range(3):  # the places of all channels at once would need three times the memory
            out[:, channel] = self.pixels[place + channel * area] * inside
        return out
