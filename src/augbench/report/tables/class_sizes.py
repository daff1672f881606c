"""Sizes of the classes: real and added training images, validation and test images, per row and class.

Input: the split manifests, the manifests of added images, the classes that are left out. Output:
``class_sizes.csv``, one row per method and class, and Markdown, one row per class. The classes' thirds, head,
middle and tail, are those of :mod:`augbench.report.tables.class_groups`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from augbench.artifacts.pool import read_index
from augbench.config.study import Study
from augbench.data.splits import read_split
from augbench.report.render import Layout, write_table

THIRDS = ("head", "middle", "tail")


@dataclass(frozen=True)
class Row:
    """A class in a method's training sets.

    ``train`` is its number of images in the training split, by which ``third`` is chosen (empty if all
    classes have as many). ``real`` is the number of different real images that the method's classifiers see,
    ``added`` the mean number of added images over training sets.
    """

    method: str
    label: str
    class_id: str
    third: str
    train: int
    real: int
    added: float
    validation: int
    test: int


def thirds(training_images: Mapping[str, int]) -> dict[str, str]:
    """Third of every class by its training images: head, middle or tail.

    Classes are sorted by their training images, largest first. Classes of one size stay in label order, so
    that they may be in two thirds. If the number of classes is no multiple of 3, the first thirds have one
    more. Empty if all classes have as many images, or if there are fewer than 3 classes.

    Parameters
    ----------
    training_images : mapping of str to int
        Images in the training split by class id, in label order.
    """
    if len({*training_images.values()}) < 2 or len(training_images) < len(THIRDS):
        return {}
    order = sorted(training_images, key=lambda class_id: -training_images[class_id])
    places = np.array_split(np.arange(len(order)), len(THIRDS))
    return {order[place]: third for third, part in zip(THIRDS, places, strict=True) for place in part}


def count_classes(path: str | Path, excluded: Collection[str] = ()) -> dict[str, int]:
    """Number of images of each class in a split, in label order, without the classes that are left out."""
    counts = Counter(read_split(path).class_ids)
    return {class_id: count for class_id, count in counts.items() if class_id not in excluded}


def build_rows(
    study: Study,
    splits: Mapping[str, str | Path],
    real: Mapping[str, str | Path],
    sets: Mapping[str, Sequence[str | Path]],
    excluded: Collection[str] = (),
) -> list[Row]:
    """Build the rows, by method and class.

    Parameters
    ----------
    splits : mapping of str to path
        Manifests of ``train``, ``val`` and ``test``.
    real : mapping of method to path
        Manifest of the real images of each row.
    sets : mapping of method to sequence of path
        Manifests of the added images of each row that adds any.
    excluded : collection of str
        Classes that the study leaves out.
    """
    train, validation, test = (count_classes(splits[name], excluded) for name in ("train", "val", "test"))
    third, rows = thirds(train), []
    for name in study.methods:
        own = count_classes(real[name], excluded)
        added = [Counter(read_index(path).column("class_id").to_pylist()) for path in sets.get(name, ())]
        rows += [
            Row(
                method=name,
                label=study.label(name),
                class_id=class_id,
                third=third.get(class_id, ""),
                train=images,
                real=own.get(class_id, 0),
                added=float(np.mean([counts[class_id] for counts in added])) if added else 0.0,
                validation=validation.get(class_id, 0),
                test=test.get(class_id, 0),
            )
            for class_id, images in train.items()
        ]
    return rows


NOTES = (
    "Train: images of the training split. Columns of methods: real images that its classifiers are trained"
    " on + added images, mean over training sets.",
    "Third: classes sorted by training images, in three parts; classes of one size are in label order, and"
    " the first parts have one class more if need be. It is empty where all classes have as many training"
    " images.",
)


def _cells(own: Sequence[Row]) -> tuple[str, ...]:
    first = own[0]
    return (
        first.class_id,
        first.third,
        str(first.train),
        str(first.validation),
        str(first.test),
        *(f"{row.real} + {row.added:.4g}" if row.added else str(row.real) for row in own),
    )


def write_class_sizes(study: str, rows: Sequence[Row], outs: Mapping[str, str | Path]) -> None:
    """Write the sizes to ``outs``, which maps formats (any of ``csv``, ``md``) to paths."""
    by_class: dict[str, list[Row]] = {}
    for row in rows:
        by_class.setdefault(row.class_id, []).append(row)
    labels = dict.fromkeys(row.method for row in rows)
    names = {row.method: row.label for row in rows}
    header = ("Class", "Third", "Train", "Validation", "Test", *(names[method] for method in labels))
    numeric = (False, False, *[True] * (3 + len(labels)))
    cells = tuple(map(_cells, by_class.values()))
    layout = Layout(f"Sizes of the classes, study {study}", header, numeric, cells, NOTES)
    write_table(outs, layout, rows)
