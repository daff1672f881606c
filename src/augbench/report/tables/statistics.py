"""Statistics of Table 1: uncertainty of its numbers, and differences that are more than chance.

Input: ``table1.csv`` and ``table1_runs.csv`` only. Output: ``statistics.csv`` (full precision), Markdown
and LaTeX, one row per method: mean, standard error and 95% interval over runs; differences from the
baseline and from retrieval, paired by run, with Holm's correction.

Run r of every method has the same seed for weights and order. It also draws the same places from pools of
the same size (:mod:`augbench.resample`). Differences are therefore taken run by run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from augbench.files import write_text
from augbench.report.render import (
    NONE,
    Layout,
    read_csv,
    render_csv,
    render_latex,
    render_markdown,
    signed,
    spread,
)
from augbench.report.tables import table1
from augbench.report.tables.table1 import RunRow, standard_error

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """A method's accuracy minus a reference's, paired by run.

    Attributes
    ----------
    points : float
        Mean difference in percentage points.
    low, high : float or None
        95% t interval; None for a single pair.
    p : float or None
        Two-sided paired t test; None for a single pair, or if all differences are equal, because the test
        is then undefined.
    """

    points: float
    low: float | None
    high: float | None
    p: float | None


@dataclass(frozen=True)
class Row:
    """One method, in percent and percentage points; None for a single run's spread, or a row against itself.

    ``low_percent`` and ``high_percent`` bound the 95% t interval of the mean over ``n`` runs.
    ``binomial_percent`` is the standard error of one accuracy over ``n_test`` test images drawn at random.
    ``overlap`` is Table 1's. ``p_holm`` is corrected for all comparisons with that reference.
    """

    method: str
    label: str
    n: int
    mean_percent: float
    stderr_percent: float | None
    low_percent: float | None
    high_percent: float | None
    n_test: int
    binomial_percent: float
    overlap: float | None
    baseline_points: float | None = None
    baseline_low: float | None = None
    baseline_high: float | None = None
    baseline_p: float | None = None
    baseline_p_holm: float | None = None
    retrieval_points: float | None = None
    retrieval_low: float | None = None
    retrieval_high: float | None = None
    retrieval_p: float | None = None
    retrieval_p_holm: float | None = None


def interval(values: Sequence[float]) -> tuple[float, float] | tuple[None, None]:
    """95% t interval of the mean, with n - 1 degrees of freedom; (None, None) for a single value."""
    from scipy.stats import t

    stderr = standard_error(values)
    if stderr is None:
        return None, None
    reach = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * stderr
    return fmean(values) - reach, fmean(values) + reach


def binomial_error(accuracy_percent: float, images: int) -> float:
    """Binomial standard error of an accuracy over ``images`` test images, in percent: sqrt(p (1 - p) / n)."""
    share = accuracy_percent / 100
    return 100 * math.sqrt(share * (1 - share) / images)


def compare(own: Mapping[int, float], reference: Mapping[int, float]) -> Difference | None:
    """Compare accuracies by run with a reference's, over their common runs; None without a common run."""
    from scipy.stats import ttest_rel

    runs = sorted(own.keys() & reference.keys())
    if not runs:
        return None
    differences = [own[run] - reference[run] for run in runs]
    low, high = interval(differences)
    varies = len(runs) > 1 and not np.allclose(differences, differences[0], rtol=0, atol=1e-9)
    p = (
        float(ttest_rel([own[run] for run in runs], [reference[run] for run in runs]).pvalue)
        if varies
        else None
    )
    return Difference(fmean(differences), low, high, p)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct p values by Holm's step-down method (Scandinavian Journal of Statistics 6, 1979).

    None stays None and is not counted. The k-th smallest of m values is multiplied by m - k + 1. No result
    may be smaller than the one before it, or larger than 1.
    """
    order = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[place] = largest
    return adjusted


def baseline_of(rows: Sequence[table1.Row]) -> str | None:
    """The method of the row with the training split alone; the first one if there are several."""
    return next((row.method for row in rows if row.family == "real" and row.split == "train"), None)


def retrieval_of(rows: Sequence[table1.Row]) -> str | None:
    """The method of the first row of family ``retrieval``.

    Not the best one: that would be chosen by the same accuracies that are then compared.
    """
    return next((row.method for row in rows if row.family == "retrieval"), None)


def build_rows(table: Sequence[table1.Row], runs: Sequence[RunRow]) -> list[Row]:
    """Build the statistics of Table 1's rows, in their order."""
    accuracies: dict[str, dict[int, float]] = {row.method: {} for row in table}
    for run in runs:
        accuracies[run.method][run.run] = run.test_top1_percent
    n_test = {run.method: run.n_test for run in runs}
    baseline, retrieval = (
        _against(accuracies, reference) for reference in (baseline_of(table), retrieval_of(table))
    )
    rows = []
    for entry in table:
        values = [*accuracies[entry.method].values()]
        mean = fmean(values)
        low, high = interval(values)
        rows.append(
            Row(
                entry.method,
                entry.label,
                len(values),
                mean,
                standard_error(values),
                low,
                high,
                n_test[entry.method],
                binomial_error(mean, n_test[entry.method]),
                entry.overlap,
                *baseline[entry.method],
                *retrieval[entry.method],
            )
        )
    return rows


Compared = tuple[float | None, float | None, float | None, float | None, float | None]


def _against(accuracies: Mapping[str, Mapping[int, float]], reference: str | None) -> dict[str, Compared]:
    """Points, interval, p and Holm's p of every method against ``reference``; Nones for the reference."""
    nothing: Compared = (None,) * 5
    if reference is None:
        return dict.fromkeys(accuracies, nothing)
    found = {
        method: None if method == reference else compare(own, accuracies[reference])
        for method, own in accuracies.items()
    }
    corrected = holm([None if difference is None else difference.p for difference in found.values()])
    return {
        method: nothing
        if difference is None
        else (difference.points, difference.low, difference.high, difference.p, p)
        for (method, difference), p in zip(found.items(), corrected, strict=True)
    }


# --- display ------------------------------------------------------------------------------------------------


def _notes(rows: Sequence[Row], baseline: str | None, retrieval: str | None) -> tuple[str, ...]:
    """Notes on what the errors and intervals cover, and on the comparisons."""
    labels = {row.method: row.label for row in rows}
    notes = [
        "±: standard error of the mean over n classifiers. 95%: Student's t interval with n - 1 degrees of"
        " freedom, which is wide for few runs.",
        "The spread over runs covers what differs between runs: the added images drawn from the pool, the"
        " classifier's initial weights and the order of images. It does not cover other training or test"
        " images, another pool or another fine-tuning: the study has only one of each.",
        "Test error: standard error of one accuracy due to the number of test images (binomial). All"
        " methods are tested on the same images, so it largely cancels in differences between methods. No"
        " interval here includes it.",
        "Overlap: mean share of images that two sets of a method have in common. Near 100%, the spread"
        " measures the classifier's seed only.",
    ]
    for name, reference, count in (
        ("baseline", baseline, sum(row.baseline_p is not None for row in rows)),
        ("retrieval", retrieval, sum(row.retrieval_p is not None for row in rows)),
    ):
        if reference is not None:
            notes.append(
                f"Against {name}: accuracy minus that of '{labels[reference]}', in percentage points, with"
                " the 95% t interval in brackets. Differences are paired by run, because run r of every"
                " method has the same seeds. p: two-sided paired t test, corrected by Holm's method for the"
                f" {count} comparisons in this column."
            )
    few = min((row.n for row in rows), default=0)
    if few < 5:
        notes.append(
            f"With n = {few}, only large differences can be distinguished from chance. A large p does not"
            " mean that two methods are equal."
        )
    return tuple(notes)


HEADER = (
    "Method",
    "n",
    "Top-1 (%)",
    "95%",
    "Test error",
    "Overlap",
    "Against baseline",
    "p",
    "Against retrieval",
    "p",
)
NUMERIC = (False, *[True] * 9)


def _range(low: float | None, high: float | None, show: str = ".1f") -> str:
    return NONE if low is None or high is None else f"{low:{show}} to {high:{show}}"


def _difference(points: float | None, low: float | None, high: float | None) -> str:
    return signed(points) + ("" if low is None else f" [{_range(low, high, '+.1f')}]")


def _p(value: float | None) -> str:
    return NONE if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.label,
        str(row.n),
        spread(row.mean_percent, row.stderr_percent),
        _range(row.low_percent, row.high_percent),
        f"{row.binomial_percent:.1f}",
        NONE if row.overlap is None else f"{row.overlap:.0%}",
        _difference(row.baseline_points, row.baseline_low, row.baseline_high),
        _p(row.baseline_p_holm),
        _difference(row.retrieval_points, row.retrieval_low, row.retrieval_high),
        _p(row.retrieval_p_holm),
    )


def read_rows(path: str | Path) -> list[Row]:
    """Read the rows of ``statistics.csv``."""
    return read_csv(path, Row)


def write_statistics(
    study: str, table: str | Path, runs: str | Path, outs: Mapping[str, str | Path]
) -> list[Row]:
    """Write the statistics to ``outs``, which maps formats (any of ``csv``, ``md``, ``tex``) to paths.

    Parameters
    ----------
    study : str
        The study's name.
    table, runs : path
        ``table1.csv`` and ``table1_runs.csv``.
    """
    entries = table1.read_rows(table)
    rows = build_rows(entries, read_csv(runs, RunRow))
    notes = _notes(rows, baseline_of(entries), retrieval_of(entries))
    layout = Layout(f"Statistics of Table 1, study {study}", HEADER, NUMERIC, tuple(map(_cells, rows)), notes)
    caption = f"Spread over runs, and paired differences from the baseline and from retrieval, study {study}."
    texts = {
        "csv": render_csv(rows, notes),
        "md": render_markdown(layout),
        "tex": render_latex(layout, caption, f"{study}-statistics"),
    }
    for kind, path in outs.items():
        write_text(path, texts[kind])
    return rows
