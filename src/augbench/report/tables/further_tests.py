"""Accuracy on test sets of other distributions, beside the ordinary test images.

Input: ``table1.csv``, ``table1_runs.csv``, predictions of every classifier on every set, and the pairs that
the leakage guard found. Output: ``further_tests.csv`` (full precision, one line per set and row), Markdown
and text (one line per row, two columns per set).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean

import pyarrow.compute as pc
import pyarrow.parquet as pq

from augbench.config.data import CorruptedTest, FolderTest, FurtherTest
from augbench.leakage.records import count_images, read_leaks
from augbench.plan.paths import Plan
from augbench.pools.choice import read_choice
from augbench.report.contrasts import baseline_of
from augbench.report.inference.images import Hits, average_hits, read_hits
from augbench.report.inference.paired import interval
from augbench.report.render import NONE, Layout, read_csv, write_table
from augbench.report.tables import statistics, table1
from augbench.report.tables.statistics import accuracies_of, between, difference
from augbench.report.tables.table1 import RunRow, average_draws
from augbench.seeds import derive_seed

ORDINARY = "test"  # the ordinary test images; no further test set has this name
WIDTH = 110  # characters of the text


@dataclass(frozen=True)
class Row(statistics.Row):
    """One row of the study on one set: its statistics there (:class:`augbench.report.tables.statistics.Row`).

    Attributes
    ----------
    test, family : str
        Name of the set, or :data:`ORDINARY`; and the row's family.
    classes : int
        Number of classes that the set has; predictions are the best of these.
    more_points, more_low, more_high : float or None
        Difference from the baseline here, minus that on the ordinary test images; mean over runs with its 95%
        t interval. None for the baseline and the ordinary test images; no interval for a single run.
    near_added, near_images : int or None
        Number of images of the row's pools that near-duplicate an image of the set, and of such images of the
        set; None without added images or guard. A row that chooses has those of the row that it chose.
    """

    test: str = ORDINARY
    family: str = ""
    classes: int = 0
    more_points: float | None = None
    more_low: float | None = None
    more_high: float | None = None
    near_added: int | None = None
    near_images: int | None = None


@dataclass(frozen=True)
class Scored:
    """Scores of all classifiers on one set: hits by row and run, and the number of its classes."""

    hits: Hits
    classes: int


def read_scored(predictions: Mapping[str, Sequence[str | Path]]) -> Scored:
    """Read the predictions of every row's classifiers on one set, in the order of their runs."""
    first = next(path for paths in predictions.values() for path in paths)
    labels = pq.read_table(first, columns=["label"]).column("label")
    return Scored(read_hits(predictions), pc.count_distinct(labels).as_py())


def runs_on(runs: Sequence[RunRow], hits: Hits) -> list[RunRow]:
    """The runs of Table 1 with their accuracies on another set."""
    return [
        replace(run, test_top1_percent=100 * float(own.mean()), n_test=len(own))
        for run in runs
        for own in (hits[run.method][run.run],)
    ]


def build_rows(
    plan: Plan,
    table: Sequence[table1.Row],
    runs: Sequence[RunRow],
    scored: Mapping[str, Scored],
    leaks: Mapping[str, Mapping[str, str | Path]],
) -> list[Row]:
    """Build the rows: set by set, the ordinary test images first, in the order of Table 1.

    Parameters
    ----------
    scored : mapping of str to Scored
        By set, with :data:`ORDINARY` first.
    leaks : mapping of str to mapping of str to path
        By further test set and row: pairs that the leakage guard found.
    """
    study, baseline = plan.study, baseline_of(table)
    per_draw, draws = study.augmentation.resamples, study.dataset.draws
    families = {entry.method: entry.family for entry in table}
    seed = derive_seed(study.seed, "bootstrap")
    ordinary: dict[str, dict[int, float]] = {}
    rows = []
    for test, found in scored.items():
        own, hits = runs_on(runs, found.hits), found.hits
        if draws > 1:
            own, hits = average_draws(own, per_draw), average_hits(hits, per_draw)
        accuracies = accuracies_of(own)
        ordinary = ordinary or accuracies
        near = near_duplicates(plan, test, leaks.get(test, {}))
        for row in statistics.build_rows(table, own, hits, seed, study.report):
            further = baseline if test != ORDINARY else None
            more = _more(accuracies, ordinary, row.method, further)
            near_added, near_images = near.get(row.method, (None, None))
            rows.append(
                Row(
                    **asdict(row),
                    test=test,
                    family=families[row.method],
                    classes=found.classes,
                    more_points=more[0],
                    more_low=more[1],
                    more_high=more[2],
                    near_added=near_added,
                    near_images=near_images,
                )
            )
    return rows


def _more(
    here: Mapping[str, Mapping[int, float]],
    there: Mapping[str, Mapping[int, float]],
    method: str,
    baseline: str | None,
) -> tuple[float | None, float | None, float | None]:
    """Gain over the baseline here minus that on the ordinary test images, with its interval over runs."""
    if baseline is None or method == baseline:
        return None, None, None
    points = [
        here[method][run] - here[baseline][run] - (there[method][run] - there[baseline][run])
        for run in sorted(here[method].keys() & here[baseline].keys())
    ]
    return (fmean(points), *interval(points)) if points else (None, None, None)


def near_duplicates(plan: Plan, test: str, leaks: Mapping[str, str | Path]) -> dict[str, tuple[int, int]]:
    """Near-duplicates by row, in added images and in images of the set.

    A row that draws has those of all its pools; a row that chooses has those of the row that it chose.
    """
    study = plan.study
    pairs = {pool: read_leaks(path) for pool, path in leaks.items()}
    found = {}
    for name in (*study.augmented, *study.choosing) if pairs else ():
        pools = study.pools_of(read_choice(plan.selected(name)) if name in study.choosing else name)
        images = {image for pool in pools for image in pairs[pool].column("image_id").to_pylist()}
        found[name] = sum(count_images(pairs[pool], test) for pool in pools), len(images)
    return found


# --- display ------------------------------------------------------------------------------------------------


def described(test: FurtherTest) -> str:
    """What a further test set is, in words."""
    if isinstance(test, FolderTest):
        return f"the images in {Path(test.root).name}"
    if isinstance(test, CorruptedTest):
        return f"the test images with {test.corruption.replace('_', ' ')}, severity {test.severity}"
    return f"the test images in the web's style, shift {test.shift}"


def _notes(plan: Plan, rows: Sequence[Row], spread: str) -> tuple[str, ...]:
    """Notes on the sets, their classes, the intervals, and near-duplicates."""
    first = {row.test: row for row in reversed(rows)}
    sets = [
        f"{name}: {described(test)}, {first[name].n_test:,} images of {first[name].classes:,} classes"
        for name, test in plan.study.dataset.further_tests.items()
    ]
    unit = "runs" if plan.study.dataset.draws == 1 else "draws of the training images"
    notes = [
        f"{'; '.join(sets)}. {ORDINARY}: the ordinary test images.",
        "A prediction is the best of the classes that the set has; other classes are masked, as is usual for"
        " ImageNet-R and -A. Accuracies on sets with different classes are not comparable with each other.",
        f"In brackets: 95% t interval over {unit}. Difference: from training without added images, in"
        f" percentage points, paired by run. {spread} No interval is corrected for the number of rows and"
        " sets. further_tests.csv also has the intervals over test images, and by how much more a row helps"
        " on a set than on the ordinary test images.",
        "Nothing was trained, chosen or stopped by these sets.",
    ]
    return (*notes, *near_notes(plan, rows))


def near_notes(plan: Plan, rows: Sequence[Row]) -> tuple[str, ...]:
    """A note per further test set on the added images that near-duplicate its images, if searched."""
    return tuple(
        f"Near-duplicates of {test} among the added images (counted, never dropped): {', '.join(counts)}."
        for test in plan.further_tests
        if (
            counts := [
                f"{row.label} {row.near_added} (of {row.near_images} images)"
                for row in rows
                if row.test == test and row.method in plan.study.pooled and row.near_added is not None
            ]
        )
    )


def _layout(plan: Plan, rows: Sequence[Row], notes: tuple[str, ...]) -> Layout:
    tests = list(dict.fromkeys(row.test for row in rows))
    by_row = {(row.test, row.method): row for row in rows}
    header, cells = ["Method", "n"], []
    for test in tests:
        header += [f"{test} (%)", "Difference"]
    for row in (row for row in rows if row.test == tests[0]):
        line = [row.label, str(row.n)]
        for test in tests:
            line += _cells(by_row[test, row.method])
        cells.append(tuple(line))
    numeric = (False, *[True] * (len(header) - 1))
    title = f"Accuracy on further tests, study {plan.study.study}"
    return Layout(title, tuple(header), numeric, tuple(cells), notes)


def _cells(row: Row) -> tuple[str, str]:
    ends = between(row.low_percent, row.high_percent)
    accuracy = f"{row.mean_percent:.1f}" + ("" if ends == NONE else f" [{ends}]")
    return accuracy, difference(row.baseline_points, row.baseline_low, row.baseline_high)


def read_rows(path: str | Path) -> list[Row]:
    """Read the rows of ``further_tests.csv``."""
    return read_csv(path, Row)


def write_further_tests(
    plan: Plan, table_path: str | Path, runs_path: str | Path, outs: Mapping[str, str | Path]
) -> list[Row]:
    """Write the table to ``outs``, which maps formats (any of ``csv``, ``md``, ``txt``) to paths.

    Parameters
    ----------
    plan : Plan
        Plan of the study, whose predictions and near-duplicates are read.
    table_path, runs_path : path
        ``table1.csv`` and ``table1_runs.csv``.
    """
    table, runs = table1.read_rows(table_path), read_csv(runs_path, RunRow)
    predictions = {ORDINARY: {method: plan.predictions(method) for method in plan.methods}}
    for test in plan.further_tests:
        predictions[test] = {method: plan.further_predictions_of(test, method) for method in plan.methods}
    scored = {test: read_scored(paths) for test, paths in predictions.items()}
    leaks = {test: plan.further_leaks(test) for test in plan.further_tests}
    rows = build_rows(plan, table, runs, scored, leaks)
    error = plan.study.report.error
    spread = (
        "Each difference has its own spread." if error == "own" else "All rows of a set share one spread."
    )
    notes = _notes(plan, rows, spread)
    layout = _layout(plan, rows, notes)
    write_table(outs, layout, rows, width=WIDTH)
    return rows
