"""One interface over the kinds of data set: what classes there are, which images, and the images themselves.

Flows in: the ``dataset`` section of the config. Flows out: an :class:`ImageSource`. A new kind of data set is a section of
the config and a subclass; a new data set of a known kind is YAML alone. Nothing heavy is imported here: every start of
Snakemake asks for the classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from augbench.data.classes import ClassInfo
from augbench.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class ImageList:
    """Images in a fixed order: unique ids, and where each one is within the data set (never a machine's path)."""

    image_ids: Sequence[str]
    sources: Sequence[str]

    def __len__(self) -> int:
        return len(self.image_ids)


@dataclass(frozen=True)
class ClassImages:
    """One class's images; ``validation`` and ``test`` are None where they are to be sampled from the pool."""

    class_id: str
    pool: ImageList
    validation: ImageList | None = None
    test: ImageList | None = None


class ImageSource(ABC):
    """A data set that can be listed and read."""

    @abstractmethod
    def classes(self) -> list[ClassInfo]:
        """The classes in label order; a shipped table is read even where the data is not.

        Raises
        ------
        UserError
            No table and no data, or folder names that can't be class ids.
        """

    @abstractmethod
    def scan(self) -> list[ClassImages]:
        """The images of every class, in label order, each list in an order that depends on the data set alone.

        Raises
        ------
        UserError
            Data missing, or not as the class table says; all problems in one error, a line each.
        """

    @abstractmethod
    def load(self, sources: Sequence[str]) -> Iterator[Image]:
        """The images at ``sources`` (the column of a split), in that order, as 8-bit RGB.

        Raises
        ------
        UserError
            An image is missing or corrupt; the error names its file.
        """

    def damage(self, source: str) -> UserError | None:
        """What is wrong with one image's file as far as can be seen without decoding it; None if nothing is."""
        return None
