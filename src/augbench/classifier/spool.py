"""Decoded images in a file, for sets that do not fit in memory or are shared by several processes.

Input: uint8 pixels, one image after the other. Output: any image by its number, read by several threads at
a time. Training takes images in random order, but shards are compressed and sorted by class. Reading from
the shards would decode a whole row group for each image in every epoch. The file has no name, so the system
removes it when its last process ends, even if that is killed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np
import torch

from augbench.classifier.compute import ProcessGroup
from augbench.errors import UserError

READERS = 8  # threads; a network file system answers slowly, but many requests at once


class Spool:
    """Images of any sizes, stored one after the other.

    Parameters
    ----------
    folder : Path, optional
        Folder of the file; None: the system's folder for temporary files.

    Raises
    ------
    UserError
        The folder is not writable.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            # stays open as long as the spool exists
            own = tempfile.TemporaryFile(dir=folder, buffering=1 << 20)  # noqa: SIM115
        except OSError as error:
            raise self._unwritable(error) from error
        self.files: list[IO[bytes]] = [own]
        self.shapes: list[tuple[int, int]] = []
        self._file_of = self._offset_of = np.empty(0, dtype=np.int64)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="read-images")

    @property
    def _place(self) -> str:
        return str(self.folder or tempfile.gettempdir())

    def expect(self, needed: float) -> None:
        """Check that the disk has room for ``needed`` further bytes: writing must not fail hours later.

        Raises
        ------
        UserError
            It has not.
        """
        if (free := shutil.disk_usage(self._place).free) < needed:
            raise UserError(
                "execution.scratch",
                f"decoded images need about {needed / 1e9:,.3g} GB in {self._place!r}, and {free / 1e9:,.3g}"
                " GB are free",
                "name a folder with more space, or a smaller classifier.decoded_size",
            )

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            "execution.scratch",
            f"{error.strerror} in {self._place!r}",
            "decoded images that don't fit in memory go there: name a folder with more space",
        )

    def append(self, pixels: torch.Tensor) -> None:
        """Add an image, uint8 (3, H, W).

        Raises
        ------
        UserError
            The disk is full.
        """
        try:
            self.files[0].write(pixels.numpy().data)
        except OSError as error:
            raise self._unwritable(error) from error
        self.shapes.append((pixels.shape[1], pixels.shape[2]))

    def finish(self, group: ProcessGroup) -> None:
        """End writing; from now on the images of all processes of the group, by rank, are one spool.

        Raises
        ------
        UserError
            The disk is full.
        """
        try:
            self.files[0].flush()
        except OSError as error:
            raise self._unwritable(error) from error
        parts = group.collect((os.getpid(), self.files[0].fileno(), self.shapes))
        # a file without a name can be opened through the process that holds it
        others = [
            None if rank == group.rank else f"/proc/{pid}/fd/{number}"
            for rank, (pid, number, _) in enumerate(parts)
        ]
        own = self.files[0]
        self.files = [own if path is None else Path(path).open("rb") for path in others]  # noqa: SIM115
        group.collect(None)  # wait: no process may close its file before all have opened it
        self.shapes = [shape for _, _, shapes in parts for shape in shapes]
        lengths = [
            np.array([3 * height * width for height, width in shapes], dtype=np.int64)
            for _, _, shapes in parts
        ]
        self._file_of = np.repeat(np.arange(len(parts)), [len(part) for part in lengths])
        self._offset_of = np.concatenate([np.cumsum(part) - part for part in lengths])

    def __len__(self) -> int:
        return len(self.shapes)

    def read(self, chosen: np.ndarray, canvas: torch.Tensor, boxes: np.ndarray) -> None:
        """Write parts of images ``chosen`` to the upper left corners of ``canvas``.

        ``canvas`` is uint8 (len(chosen), 3, H, W), in main memory; ``boxes`` has the top, left, height and
        width of each part.
        """
        pixels = canvas.numpy()

        def read_some(places: np.ndarray) -> None:
            for place in places.tolist():
                self._read_one(int(chosen[place]), pixels[place], boxes[place])

        list(self._readers.map(read_some, np.array_split(np.arange(len(chosen)), READERS)))

    def _read_one(self, i: int, out: np.ndarray, box: np.ndarray) -> None:
        top, left, height, width = box.tolist()
        exact = out.shape[1:] == self.shapes[i] == (height, width)
        image = out if exact else np.empty((3, *self.shapes[i]), dtype=np.uint8)
        rest, offset = image.reshape(-1).data, int(self._offset_of[i])
        while rest:
            count = os.preadv(self.files[self._file_of[i]].fileno(), [rest], offset)
            if not count:
                raise RuntimeError(f"image {i}: the file of decoded images ends at byte {offset}")
            rest, offset = rest[count:], offset + count
        if not exact:
            out[:, :height, :width] = image[:, top : top + height, left : left + width]
