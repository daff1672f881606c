"""Images of the report: which classes changed most, and thumbnails of their real and added images.

Input: accuracies per class, Table 1, the training split and each method's first training set. Output:
``report_images.parquet``, class by class, the most changed class first, as many as fit into a page of the
requested size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import pyarrow as pa

from augbench.artifacts.pool import read_index
from augbench.data.classes import ClassInfo, read_class_table
from augbench.data.splits import read_split
from augbench.progress import Progress
from augbench.report.contrasts import baseline_of
from augbench.report.figures.figure5a import changes
from augbench.report.pictures import (
    REAL,
    ImageRecord,
    Shown,
    added_pictures,
    choose,
    encode_thumbnail,
    real_pictures,
    rows_of,
    write_encoded,
)
from augbench.report.tables import table1
from augbench.report.tables.per_class import ClassAccuracies, read_per_class

if TYPE_CHECKING:
    from augbench.runtime.job import Job

SIDE, QUALITY = 128, 82  # a thumbnail's largest side in pixels, and its JPEG quality
CLASSES_AT_ONCE = 25  # classes read together, so that data set and shards are opened once for all of them
IN_PAGE = 4 / 3  # growth in size by base64
DETAILS_BYTES = 600  # size in the page of an image's prompt, seed, address and so on
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class ClassChange:
    """The change of a class's accuracy.

    Attributes
    ----------
    baseline_percent : float or None
        Accuracy without added images; None if the study has no such row.
    points : mapping of method to float
        Accuracy minus the baseline's, mean over runs, in percentage points; empty without a baseline.
    size : float or None
        Mean absolute change over the rows that add images, in points; None without such rows or without a
        baseline.
    """

    info: ClassInfo
    n_test: int
    baseline_percent: float | None
    points: Mapping[str, float]
    size: float | None


def most_changed(
    accuracies: Mapping[str, ClassAccuracies], table: Sequence[table1.Row], classes: Sequence[ClassInfo]
) -> list[ClassChange]:
    """The scored classes, the most changed class first, ties in label order.

    Raises
    ------
    UserError
        A method and the baseline share no run, or differ in their classes.
    """
    baseline = baseline_of(table)
    first = next(iter(accuracies.values()), None)
    if first is None:
        return []
    points = {}
    if baseline is not None:
        points = {
            row.method: changes(accuracies[row.method], accuracies[baseline])[0]
            for row in table
            if row.method != baseline
        }
        before = 100 * accuracies[baseline].top1.mean(axis=0)
    by_id = {info.class_id: info for info in classes}
    added = [row.method for row in table if row.family not in ("real", "control") and row.method in points]
    found = [
        ClassChange(
            by_id[class_id],
            int(first.n_test[place]),
            float(before[place]) if baseline is not None else None,
            {name: float(values[place]) for name, values in points.items()},
            fmean(abs(float(points[name][place])) for name in added) if added else None,
        )
        for place, class_id in enumerate(first.class_ids)
    ]
    # rounded, so that floating-point errors do not break ties
    return sorted(found, key=lambda change: -round(change.size or 0.0, 6))


def collect(
    job: Job,
    per_class: str | Path,
    table: str | Path,
    manifests: Mapping[str, str | Path],
    train_path: str | Path,
    classes_path: str | Path,
    out: str | Path,
) -> None:
    """Choose random images of each class and method, and write their thumbnails until the page is full.

    Parameters
    ----------
    per_class, table : path
        ``per_class.parquet`` and ``table1.csv``.
    manifests : mapping of method to path
        ``resamples/{method}/selected/0.parquet`` of the rows with their own pool.

    Raises
    ------
    UserError
        A shard or a training image is missing or damaged.
    """
    ranked = most_changed(read_per_class(per_class), table1.read_rows(table), read_class_table(classes_path))
    budget = job.study.report.page_megabytes * MEGABYTE
    kept: list[tuple[ImageRecord, bytes]] = []
    taken = 0.0
    progress = Progress("thumbnails", len(ranked), "class")
    for pictures in _by_class(job, [change.info for change in ranked], manifests, train_path):
        taken += sum(IN_PAGE * len(encoded) + DETAILS_BYTES for _, encoded in pictures)
        if taken > budget:
            break
        kept += pictures
        progress.update()
    write_encoded(kept, out)


def _by_class(
    job: Job, classes: Sequence[ClassInfo], manifests: Mapping[str, str | Path], train_path: str | Path
) -> Iterator[list[tuple[ImageRecord, bytes]]]:
    """Yield the pictures of one class after another: the real ones, then each method's."""
    train = read_split(train_path)
    members: dict[str, list[int]] = {}
    for row, class_id in enumerate(train.class_ids):
        members.setdefault(class_id, []).append(row)
    sets = {method: read_index(path) for method, path in manifests.items()}
    count, seed = job.study.report.page_images_per_class, job.study.seed
    for start in range(0, len(classes), CLASSES_AT_ONCE):
        group = classes[start : start + CLASSES_AT_ONCE]
        by_id = {info.class_id: info for info in group}
        wanted = [
            (info, own[place])
            for info in group
            for own in [members[info.class_id]]
            for place in choose(len(own), count, seed, "report", REAL, info.class_id)
        ]
        found: dict[str, list[tuple[ImageRecord, bytes]]] = {info.class_id: [] for info in group}

        def keep(shown: Iterable[Shown], found: dict[str, list[tuple[ImageRecord, bytes]]] = found) -> None:
            for picture, image in shown:
                found[picture.class_id].append((picture, encode_thumbnail(image, SIDE, QUALITY)))

        keep(real_pictures(job, train, wanted))
        for method, rows in sets.items():
            parts = []
            for info in group:
                own_rows = rows_of(rows, info.class_id)
                # same places for every method: generated images of one place start from the same noise
                places = choose(own_rows.num_rows, count, seed, "report", info.class_id)
                parts.append(own_rows.take(pa.array(places, pa.int64())))
            keep(added_pictures(method, pa.concat_tables(parts), by_id, job.folder))
        yield from found.values()
