"""Statistics of Table 1: how sure its numbers are, and which differences between methods are more than chance.

Flows in: ``table1.csv`` and ``table1_runs.csv`` and nothing else. Flows out: ``statistics.csv`` (full precision), Markdown and LaTeX, one row per
method: mean, standard error and 95% interval over runs; differences to the baseline and to retrieval, paired by run, with Holm's correction.

Run r of every method has the same seed for weights and order, and the same places drawn from pools of one size (:mod:`augbench.resample`), so
differences are taken run by run.
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
    """A method's accuracy less a reference's, paired by run.

    Attributes
    ----------
    points : float
        Mean difference in percentage points.
    low, high : float or None
        95% t interval; None for a single pair.
    p : float or None
        Two-sided paired t test; None for a single pair, and where all differences are equal, for which the test is not defined.
    """

    points: float
    low: float | None
    high: float | None
    p: float | None


@dataclass(frozen=True)
class Row:
    """One method, in percent and percentage points; None stands for what there is not, as in a single run or against itself.

    ``low_percent`` and ``high_percent`` bound the 95% t interval of the mean over ``n`` runs. ``binomial_percent`` is the standard error that ``n_test``
    test images, drawn at random, leave in one accuracy. ``overlap`` is Table 1's. ``p_holm`` is corrected for all comparisons with that reference.
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
    """95% interval of the mean, from Student's t with n - 1 degrees of freedom; None, None for a single value."""
    from scipy.stats import t

    stderr = standard_error(values)
    if stderr is None:
        return None, None
    reach = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * stderr
    return fmean(values) - reach, fmean(values) + reach


def binomial_error(accuracy_percent: float, images: int) -> float:
    """Standard error of an accuracy over ``images`` test images drawn at random, in percent: sqrt(p (1 - p) / n)."""
    share = accuracy_percent / 100
    return 100 * math.sqrt(share * (1 - share) / images)


def compare(own: Mapping[int, float], reference: Mapping[int, float]) -> Difference | None:
    """Accuracies by run against a reference's; runs that only one of them has are left out, and None says that no run is left."""
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
    """Holm's step-down correction (Scandinavian Journal of Statistics 6, 1979); None stays and is not counted.

    The k-th smallest of m is multiplied by m - k + 1; none may be smaller than one before it, nor larger than 1.
    """
    order = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[place] = largest
    return adjusted


def baseline_of(rows: Sequence[table1.Row]) -> str | None:
    """The row of the training split alone, the first one if there are several."""
    return next((row.method for row in rows if row.family == "real" and row.split == "train"), None)


def retrieval_of(rows: Sequence[table1.Row]) -> str | None:
    """The first row of family ``retrieval``: not the best one, which would be chosen by the accuracies that are then compared."""
    return next((row.method for row in rows if row.family == "retrieval"), None)


def build_rows(table: Sequence[table1.Row], runs: Sequence[RunRow]) -> list[Row]:
    """The statistics of Table 1's rows, in their order."""
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
    """Points, interval, p and Holm's p of every method against ``reference``; nothing of the reference itself."""
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


# --- what is shown ----------------------------------------------------------------------------------------------------


def _notes(rows: Sequence[Row], baseline: str | None, retrieval: str | None) -> tuple[str, ...]:
    """What the spread measures and does not, and what was compared with what."""
    labels = {row.method: row.label for row in rows}
    notes = [
        "±: standard error of the mean over n classifiers. 95%: Student's t interval with n - 1 degrees of freedom, which is wide for few runs.",
        "The spread over runs measures what differs between them: the added images drawn from the pool, the classifier's initial weights and the order of images."
        " It says nothing of other training or test images, another pool, or other fine-tuning, of which there is one each.",
        "Test error: standard error that the number of test images leaves in one accuracy (binomial). All methods see the same test images, so it largely cancels in"
        " differences between them, and is not part of any interval here.",
        "Overlap: mean share of images that two sets of a method have in common. Where it is near 100% the spread measures the classifier's seed only.",
    ]
    for name, reference, count in (
        ("baseline", baseline, sum(row.baseline_p is not None for row in rows)),
        ("retrieval", retrieval, sum(row.retrieval_p is not None for row in rows)),
    ):
        if reference is not None:
            notes.append(
                f"Against {name}: accuracy less that of '{labels[reference]}' in percentage points, paired by run, since run r of every method has the same seeds;"
                f" in brackets its 95% t interval; p of the two-sided paired t test, corrected by Holm for the {count} comparisons of this column."
            )
    few = min((row.n for row in rows), default=0)
    if few < 5:
        notes.append(
            f"With {few} runs, only large differences can be told from chance: a large p is no sign that two methods are equal."
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
    """The rows of ``statistics.csv``."""
    return read_csv(path, Row)


def write_statistics(
    study: str, table: str | Path, runs: str | Path, outs: Mapping[str, str | Path]
) -> list[Row]:
    """Write the statistics to ``outs``: paths by format (``csv``, ``md``, ``tex``), those that are given.

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
    caption = (
        f"Spread over training sets, and paired differences to the baseline and to retrieval, study {study}."
    )
    texts = {
        "csv": render_csv(rows, notes),
        "md": render_markdown(layout),
        "tex": render_latex(layout, caption, f"{study}-statistics"),
    }
    for kind, path in outs.items():
        write_text(path, texts[kind])
    return rows
