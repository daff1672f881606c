"""Images that a row learns from, if they are not the training images alone: their manifest and their pixels.

Input: the training split and the first training sets of the rows that are learned from. Output: a manifest in
the form of a split. Its added images have their class and the hash of their bytes as their id, so that what
is learned does not depend on the row that made them, and a source that names their shard. Validation images
are always real.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from augbench.artifacts.origins import ADDED, added_source, counts_by_row, parse_added
from augbench.artifacts.pool import load_images, read_index
from augbench.config.methods import PersonaliseMethod
from augbench.data.source import ClassImages, ImageSource
from augbench.data.splits import Split, read_split, write_split
from augbench.data.stamps import Stamp
from augbench.errors import UserError, some
from augbench.resample import check_same_labels

if TYPE_CHECKING:
    from PIL import Image

    from augbench.data.classes import ClassInfo

logger = logging.getLogger(__name__)


def write_learned_images(
    name: str,
    row: PersonaliseMethod,
    train_path: str | Path,
    sets: Mapping[str, str | Path],
    out: str | Path,
    excluded: Collection[str] = (),
) -> None:
    """Write the manifest of the images that a row learns from, classes in the order of the training split.

    A class that training leaves out may have no image in a set. If the row learns from no training images,
    such a class has these all the same, because every class has vectors; they are used for nothing.

    Parameters
    ----------
    sets : mapping of row to path
        Manifest of the first training set of each row that is learned from.
    excluded : collection of str
        Classes that training and scoring leave out.

    Raises
    ------
    UserError
        A set has no image of a class that is not left out.
    """
    train = read_split(train_path)
    labels = dict(zip(train.class_ids, train.labels.tolist(), strict=True))
    # by class and image_id: source, and the stamp of a training image's file
    entries: dict[str, dict[str, tuple[str, Stamp | None]]] = {class_id: {} for class_id in labels}
    taught = set(labels) if row.learns_from_training_images else set(excluded)
    stamps = train.stamps or [None] * len(train)
    images = zip(train.image_ids, train.class_ids, train.sources, stamps, strict=True)
    for image_id, class_id, source, stamp in images:
        if class_id in taught:
            entries[class_id][image_id] = (source, stamp)
    for pool, path in sets.items():
        added = read_index(path)
        check_same_labels(added, labels, str(path))
        found = set(added.column("class_id").to_pylist())
        if without := [class_id for class_id in labels if class_id not in found and class_id not in excluded]:
            raise UserError(
                f"methods.{name}.learn_from",
                f"{pool!r} has no image of {len(without)} class(es): {some(without)}",
                f"let {pool} have images of every class, or leave these classes out (retrieval.exclude)",
            )
        for image in added.to_pylist():
            image_id = f"{image['class_id']}/{image['sha256']}"
            entries[image["class_id"]].setdefault(image_id, (added_source(image), None))
    rows = [
        (image_id, class_id, source, stamp)
        for class_id, those in entries.items()
        for image_id, (source, stamp) in those.items()
    ]
    ids, class_ids, sources, known = zip(*rows, strict=True)
    counts = counts_by_row(sources)
    logger.info("%s learns from images of: %s", name, ", ".join(f"{row} {n}" for row, n in counts.items()))
    write_split(
        Split(
            list(ids),
            list(class_ids),
            np.array([labels[class_id] for class_id in class_ids], dtype=np.int32),
            list(sources),
            None if train.stamps is None else known,
        ),
        out,
    )


class WithAddedImages(ImageSource):
    """A data set, and the added images in a study's folder that manifests name."""

    def __init__(self, source: ImageSource, folder: Path) -> None:
        self.source, self.folder = source, folder

    def classes(self) -> list[ClassInfo]:
        """Classes of the data set."""
        return self.source.classes()

    def scan(self) -> list[ClassImages]:
        """Images of the data set."""
        return self.source.scan()

    def files(self, sources: Sequence[str]) -> list[Path] | None:
        """Files of images of the data set."""
        return self.source.files(sources)

    def load(self, sources: Sequence[str]) -> Iterator[Image.Image]:
        """Yield training images and added images, in the order of ``sources``.

        Raises
        ------
        UserError
            An image is missing or damaged; a shard was made again with other images.
        """
        places = [parse_added(source) for source in sources if source.startswith(ADDED)]
        added = load_images(pa.Table.from_pylist(places), self.folder) if places else iter(())
        real = self.source.load([source for source in sources if not source.startswith(ADDED)])
        for source in sources:
            yield next(added if source.startswith(ADDED) else real)
