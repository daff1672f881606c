"""Accuracy where classes differ in their training images: macro, and of the head, the middle and the tail.

Input: Table 1, its runs, which test images every classifier got right, the classes' training images. Output:
``class_groups.csv`` (full precision), Markdown and LaTeX. Macro accuracy is the mean over classes of each
class's accuracy (its recall), so that a class counts alike whatever its number of test images. Head, middle
and tail are the thirds of the classes by training images (:func:`augbench.report.tables.class_sizes.thirds`);
their accuracies are means over their classes. Errors, intervals and differences are those of the top-1
accuracy in :mod:`augbench.report.tables.statistics`, with a weight per test image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from augbench.artifacts.parquet import whole
from augbench.config.stages import Report
from augbench.report.contrasts import baseline_of
from augbench.report.inference.images import RESAMPLES, Hits
from augbench.report.render import Layout, spread, write_table
from augbench.report.tables import statistics, table1
from augbench.report.tables.class_sizes import THIRDS, thirds
from augbench.report.tables.statistics import between, difference
from augbench.report.tables.table1 import RunRow

MACRO = "macro"


@dataclass(frozen=True)
class Row:
    """An accuracy of a method: ``measure`` is macro, head, middle or tail, over ``classes`` classes.

    The other fields are those of :class:`augbench.report.tables.statistics.Row`.
    """

    method: str
    label: str
    measure: str
    classes: int
    n: int
    mean_percent: float
    stderr_percent: float | None
    low_percent: float | None
    high_percent: float | None
    n_test: int
    baseline_points: float | None
    baseline_low: float | None
    baseline_high: float | None
    baseline_images_low: float | None
    baseline_images_high: float | None
    baseline_both_low: float | None
    baseline_both_high: float | None


def read_labels(path: str | Path) -> np.ndarray:
    """Label of every test image, int (N,), in the order of a prediction file."""
    with whole(path):
        return np.asarray(pq.read_table(path, columns=["label"]).column("label").to_numpy())


def weights_of(labels: np.ndarray, chosen: Sequence[int]) -> np.ndarray:
    """Weight of every test image, float (N,), by which the mean over images is that over ``chosen`` classes.

    An image of a chosen class has N / (C x n), of n images of the class, C chosen classes with test images
    and N images of them; others have 0.
    """
    counts = np.bincount(labels, minlength=max(chosen, default=0) + 1)
    tested = [label for label in chosen if counts[label]]
    images = counts[tested].sum()
    weights = np.zeros(len(counts))
    weights[tested] = images / (len(tested) * counts[tested])
    return weights[labels]


def measures_of(
    labels: np.ndarray, training_images: Mapping[str, int], class_labels: Mapping[str, int]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield every measure with the labels of its classes that have test images.

    Parameters
    ----------
    labels : ndarray, int (N,)
        Label of every test image.
    training_images, class_labels : mapping of str to int
        Images in the training split, and label, by class id.
    """
    tested = {*labels.tolist()}
    found = {class_id: label for class_id, label in class_labels.items() if label in tested}
    yield MACRO, np.array(sorted(found.values()))
    group = thirds({class_id: training_images[class_id] for class_id in found})
    for third in THIRDS if group else ():
        yield third, np.array(sorted(found[class_id] for class_id in found if group[class_id] == third))


def build_rows(
    table: Sequence[table1.Row],
    runs: Sequence[RunRow],
    hits: Hits,
    labels: np.ndarray,
    training_images: Mapping[str, int],
    class_labels: Mapping[str, int],
    seed: int,
    report: Report,
) -> list[Row]:
    """Build the rows, by method and measure.

    Parameters
    ----------
    table, runs, hits, seed, report
        As for :func:`augbench.report.tables.statistics.build_rows`.
    labels, training_images, class_labels
        As for :func:`measures_of`; ``labels`` in the order of the images of ``hits``.
    """
    rows = []
    for measure, chosen in measures_of(labels, training_images, class_labels):
        weights = weights_of(labels, chosen.tolist())
        own = np.flatnonzero(weights)
        weighted = {
            method: {run: values[own] * weights[own] for run, values in by_run.items()}
            for method, by_run in hits.items()
        }
        scored = [
            replace(run, test_top1_percent=100 * float(weighted[run.method][run.run].mean()), n_test=len(own))
            for run in runs
        ]
        for found in statistics.build_rows(table, scored, weighted, seed, report):
            kept = {
                name: getattr(found, name)
                for name in Row.__dataclass_fields__
                if name not in ("measure", "classes")
            }
            rows.append(Row(measure=measure, classes=len(chosen), **kept))
    order = {entry.method: place for place, entry in enumerate(table)}
    return sorted(rows, key=lambda row: order[row.method])


def _notes(rows: Sequence[Row], baseline: str | None, draws: int) -> tuple[str, ...]:
    """Notes on the measures, their errors and intervals."""
    sizes = {row.measure: row.classes for row in rows}
    notes = [
        f"Macro: mean of the accuracies of {sizes[MACRO]} classes (macro-averaged recall). It equals top-1"
        " where all classes have as many test images.",
    ]
    if len(sizes) > 1:
        counts = ", ".join(f"{third} {sizes[third]}" for third in THIRDS)
        notes.append(
            "Head, middle, tail: mean accuracy of the classes with the most, medium and fewest training"
            f" images: thirds of the classes ({counts}), of which the first have one class more if need be."
            " Classes of one size are in label order, so a size may be in two thirds. class_sizes.md names"
            " each class's third."
        )
    else:
        notes.append(
            "All classes have as many training images, or there are fewer than 3: no head and no tail."
        )
    notes.append(
        f"±: standard error of the mean over n {'classifiers' if draws == 1 else 'draws'}. 95%: Student's t"
        " interval with n - 1 degrees of freedom."
    )
    if baseline is not None:
        label = next(row.label for row in rows if row.method == baseline)
        notes.append(
            f"Against baseline: accuracy minus that of '{label}', in percentage points, paired by run, with"
            " the 95% t interval over runs in brackets. class_groups.csv has the intervals over test images,"
            f" from {RESAMPLES:,} bootstrap samples, and over both. These differences are not corrected for"
            " their number; the tests are those of contrasts.md."
        )
    return tuple(notes)


def _columns(measure: str, baseline: str | None) -> tuple[str, ...]:
    title = measure.capitalize()
    if measure in ("head", "middle"):
        return (f"{title} (%)",)
    return (f"{title} (%)", f"{title} 95%", *([f"{title} against baseline"] if baseline else []))


def _cells(row: Row, baseline: str | None) -> tuple[str, ...]:
    accuracy = spread(row.mean_percent, row.stderr_percent)
    if row.measure in ("head", "middle"):
        return (accuracy,)
    against = difference(row.baseline_points, row.baseline_low, row.baseline_high)
    return (accuracy, between(row.low_percent, row.high_percent), *([against] if baseline else []))


def write_class_groups(
    study: str,
    table: Sequence[table1.Row],
    rows: Sequence[Row],
    outs: Mapping[str, str | Path],
    draws: int = 1,
) -> None:
    """Write the accuracies to ``outs``, which maps formats (any of ``csv``, ``md``, ``tex``) to paths.

    Parameters
    ----------
    table : sequence of Row
        Table 1's rows, whose top-1 accuracies are shown beside the others.
    draws : int
        Draws of the training images; with several, a run is a draw.
    """
    baseline = baseline_of(table)
    measures = list(dict.fromkeys(row.measure for row in rows))
    header = ("Method", "n", "Top-1 (%)", *(name for one in measures for name in _columns(one, baseline)))
    lines = [
        (
            entry.label,
            str(entry.n),
            spread(entry.top1_percent, entry.stderr_percent),
            *(cell for row in rows if row.method == entry.method for cell in _cells(row, baseline)),
        )
        for entry in table
    ]
    notes = _notes(rows, baseline, draws)
    title = f"Accuracy by class size, study {study}"
    layout = Layout(title, header, (False, *[True] * (len(header) - 1)), tuple(lines), notes)
    caption = f"Macro accuracy, and that of frequent and rare classes, study {study}."
    write_table(outs, layout, rows, caption, f"{study}-class-groups")
