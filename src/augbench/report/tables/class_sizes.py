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
from statistics import fmean

import numpy as np

from augbench.artifacts.pool import read_index
from augbench.classifier.replacing import replaced_images
from augbench.config.study import Study
from augbench.data.splits import read_split
from augbench.plan.paths import Plan
from augbench.pools.choice import read_choice
from augbench.report.render import Layout, write_table

THIRDS = ("head", "middle", "tail")


@dataclass(frozen=True)
class Row:
    """A class in a method's training sets.

    ``train`` is its number of images in the training split, by which ``third`` is chosen (empty if all
    classes have as many). ``real`` and ``added`` are the numbers of different real and of added images that a
    classifier of the method is trained on, means over training sets.
    """

    method: str
    label: str
    class_id: str
    third: str
    train: int
    real: float
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
    sets: Mapping[str, Mapping[str, float]],
    excluded: Collection[str] = (),
) -> list[Row]:
    """Build the rows, by method and class.

    Parameters
    ----------
    splits : mapping of str to path
        Manifests of ``train``, ``val`` and ``test``.
    real : mapping of method to path
        Manifest of the real images of each row.
    sets : mapping of method to mapping of path to float
        Manifests of the added images of each row that adds any, with the share of the real images that they
        replace (``use.replace``; :func:`sets_of`).
    excluded : collection of str
        Classes that the study leaves out.
    """
    train, validation, test = (count_classes(splits[name], excluded) for name in ("train", "val", "test"))
    third, rows = thirds(train), []
    for name in study.methods:
        own = count_classes(real[name], excluded)
        used = [_used(own, path, share) for path, share in sets.get(name, {}).items()] or [(own, {})]
        rows += [
            Row(
                method=name,
                label=study.label(name),
                class_id=class_id,
                third=third.get(class_id, ""),
                train=images,
                real=fmean(real_images.get(class_id, 0) for real_images, _ in used),
                added=fmean(added.get(class_id, 0) for _, added in used),
                validation=validation.get(class_id, 0),
                test=test.get(class_id, 0),
            )
            for class_id, images in train.items()
        ]
    return rows


def _used(
    real: Mapping[str, int], path: str | Path, share: float
) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """Real and added images of each class that a classifier is trained on."""
    added = Counter(read_index(path).column("class_id").to_pylist())
    if not share:
        return real, added
    replaced = {name: replaced_images(share, images, added[name]) for name, images in real.items()}
    return {name: images - replaced[name] for name, images in real.items()}, replaced


def sets_of(plan: Plan) -> dict[str, dict[str, float]]:
    """Manifests of each row's added images in all draws, with the share of real images that they replace.

    A row that chooses has the share of the row that it chose.
    """
    rows = plan.unfolded.study
    found: dict[str, dict[str, float]] = {}
    for method in (*plan.study.augmented, *plan.study.choosing):
        own = found.setdefault(method, {})
        for name in plan.in_all_draws(method):
            trained = read_choice(plan.selected(name)) if name in rows.choosing else name
            share = rows.methods[trained].use.replace
            own |= {plan.resample(name, run): share for run in plan.runs}
    return found


def tail_notes(study: Study, train: str | Path, excluded: Collection[str]) -> tuple[str, ...]:
    """A note on a long tail whose ratio is another one without the classes that the study leaves out."""
    if study.dataset.imbalance is None:
        return ()
    whole, rest = (_ratio(count_classes(train, without)) for without in ((), excluded))
    if whole == rest:
        return ()
    return (
        f"The long tail (dataset.imbalance: {study.dataset.imbalance:g}) is over all classes. Among those that "
        f"the study uses, the largest has {rest:.4g} times the training images of the smallest, not "
        f"{whole:.4g}.",
    )


def _ratio(counts: Mapping[str, int]) -> float:
    return max(counts.values()) / min(counts.values())


NOTES = (
    "Train: images of the training split. Columns of methods: real + added images that a classifier is trained"
    " on, means over training sets. Real images that added ones replace (use.replace) are not counted.",
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
        *(f"{_images(row.real)} + {row.added:.4g}" if row.added else _images(row.real) for row in own),
    )


def _images(mean: float) -> str:
    return f"{round(mean, 1):.12g}"


def write_class_sizes(
    study: str, rows: Sequence[Row], outs: Mapping[str, str | Path], notes: tuple[str, ...] = ()
) -> None:
    """Write the sizes to ``outs``, which maps formats (any of ``csv``, ``md``) to paths."""
    by_class: dict[str, list[Row]] = {}
    for row in rows:
        by_class.setdefault(row.class_id, []).append(row)
    labels = dict.fromkeys(row.method for row in rows)
    names = {row.method: row.label for row in rows}
    header = ("Class", "Third", "Train", "Validation", "Test", *(names[method] for method in labels))
    numeric = (False, False, *[True] * (3 + len(labels)))
    cells = tuple(map(_cells, by_class.values()))
    layout = Layout(f"Sizes of the classes, study {study}", header, numeric, cells, (*NOTES, *notes))
    write_table(outs, layout, rows)
