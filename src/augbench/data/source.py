"""One interface to all kinds of data set: their classes, their lists of images, and the images.

A new kind of data set needs a section of the config and a subclass of :class:`ImageSource`. A new data
set of a known kind needs only YAML. No heavy library is imported here, because every start of Snakemake
asks for the classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from augbench.data.classes import ClassInfo
from augbench.data.stamps import Stamps, check_unchanged
from augbench.data.walk import LeftOut

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class ImageList:
    """Images in a fixed order: unique ids, and each one's location within the data set (no absolute path)."""

    image_ids: Sequence[str]
    sources: Sequence[str]

    def __len__(self) -> int:
        return len(self.image_ids)


@dataclass(frozen=True)
class ClassImages:
    """Images of one class; ``validation`` and ``test`` are None if they are to be sampled from the pool."""

    class_id: str
    pool: ImageList
    validation: ImageList | None = None
    test: ImageList | None = None


@dataclass(frozen=True)
class StoredFile:
    """An image's file as the data set stores it; ``path`` is None if it is a part of another file."""

    content: bytes
    path: Path | None = None


class ImageSource(ABC):
    """A data set that can be listed and read.

    Attributes
    ----------
    left_out : sequence of LeftOut
        Files and folders that the last :meth:`scan` found and does not use.
    """

    left_out: Sequence[LeftOut] = ()

    @abstractmethod
    def classes(self) -> list[ClassInfo]:
        """Classes in label order; a shipped table is read even if the data is missing.

        Raises
        ------
        UserError
            There is neither a table nor data, or folder names can't be class ids.
        """

    @abstractmethod
    def scan(self) -> list[ClassImages]:
        """List the images of every class, in label order; a list's order depends only on the data set.

        Raises
        ------
        UserError
            Data is missing or does not match the class table; one error reports all problems, a line each.
        """

    @abstractmethod
    def load(self, sources: Sequence[str]) -> Iterator[Image]:
        """Yield the images at ``sources`` (a split's column ``source``), in that order, as 8-bit RGB.

        Raises
        ------
        UserError
            An image is missing or corrupt; the error names its file.
        """

    def files(self, sources: Sequence[str]) -> list[Path] | None:
        """Return the file that holds each of the images at ``sources``.

        None: nobody can replace an image, because hashes verify what the data set holds.
        """
        return None

    def check_unchanged(self, sources: Sequence[str], stamps: Stamps | None) -> None:
        """Check that the files of images are as the splits recorded them (:mod:`augbench.data.stamps`).

        Parameters
        ----------
        stamps : sequence of Stamp or None
            What the splits recorded; None if they recorded nothing.

        Raises
        ------
        UserError
            A file has changed.
        """
        recorded = [
            (source, stamp)
            for source, stamp in zip(sources, stamps or [None] * len(sources), strict=True)
            if stamp is not None
        ]
        if recorded:
            files = self.files([source for source, _ in recorded])
            assert files is not None
            check_unchanged(files, [stamp for _, stamp in recorded])

    def load_unchanged(self, sources: Sequence[str], stamps: Stamps | None) -> Iterator[Image]:
        """Yield images (:meth:`load`) after :meth:`check_unchanged`."""
        self.check_unchanged(sources, stamps)
        return self.load(sources)

    def stored(self, sources: Sequence[str]) -> Iterator[StoredFile | None] | None:
        """Yield the files of the images at ``sources``, undecoded; None for one that can't be read.

        None in place of the iterator: the data set does not store its images as files.
        """
        return None
