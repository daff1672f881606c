"""Statistics of Table 1: uncertainty of every row's accuracy, and its difference from the baseline.

Input: ``table1.csv``, ``table1_runs.csv``, and which test images every classifier got right. Output:
``statistics.csv`` (full precision), Markdown and LaTeX, one row per method: mean, standard error and 95%
interval over runs; difference from the baseline with its interval over runs, over test images, and over both.
Whether a difference is more than chance is in :mod:`augbench.report.tables.contrasts`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from augbench.config.stages import Report
from augbench.report.contrasts import baseline_of
from augbench.report.inference.images import RESAMPLES, Hits, image_intervals, interval_of_both, paired_hits
from augbench.report.inference.paired import ALPHA, ErrorTerm, interval, pooled_error
from augbench.report.render import NONE, Layout, read_csv, signed, spread, write_table
from augbench.report.tables import table1
from augbench.report.tables.table1 import RunRow, standard_error


@dataclass(frozen=True)
class Row:
    """One method, in percent and percentage points; None for a single run's spread, or a row against itself.

    ``low_percent`` and ``high_percent`` bound the 95% t interval of the mean over ``n`` runs.
    ``binomial_percent`` is the standard error of one accuracy over ``n_test`` test images drawn at random.
    ``overlap`` is Table 1's. ``baseline_points`` is the difference from the baseline, paired by run, with its
    95% intervals over runs (``baseline_low`` and ``baseline_high``), over test images, and over both.
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
    baseline_images_low: float | None = None
    baseline_images_high: float | None = None
    baseline_both_low: float | None = None
    baseline_both_high: float | None = None


def binomial_error(accuracy_percent: float, images: int) -> float:
    """Binomial standard error of an accuracy over ``images`` test images, in percent: sqrt(p (1 - p) / n)."""
    share = accuracy_percent / 100
    return 100 * math.sqrt(share * (1 - share) / images)


def accuracies_of(runs: Sequence[RunRow]) -> dict[str, dict[int, float]]:
    """Test accuracy in percent, by method and run."""
    found: dict[str, dict[int, float]] = {}
    for run in runs:
        found.setdefault(run.method, {})[run.run] = run.test_top1_percent
    return found


def error_of(accuracies: Mapping[str, Mapping[int, float]], report: Report) -> ErrorTerm | None:
    """The error that all differences share, if the config asks for one; None for each difference's own."""
    return pooled_error(accuracies) if report.error == "pooled" else None


def build_rows(
    table: Sequence[table1.Row], runs: Sequence[RunRow], hits: Hits, seed: int, report: Report
) -> list[Row]:
    """Build the statistics of Table 1's rows, in their order.

    Parameters
    ----------
    hits : Hits
        Which test images every classifier got right (:func:`augbench.report.inference.images.read_hits`).
    seed : int
        Seed of the bootstrap samples of the test images.
    report : Report
        The config's choice of the error of differences.
    """
    accuracies, baseline = accuracies_of(runs), baseline_of(table)
    n_test = {run.method: run.n_test for run in runs}
    differences = _from_baseline(accuracies, hits, baseline, seed, error_of(accuracies, report))
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
                *differences.get(entry.method, ()),
            )
        )
    return rows


def _from_baseline(
    accuracies: Mapping[str, Mapping[int, float]],
    hits: Hits,
    baseline: str | None,
    seed: int,
    error: ErrorTerm | None,
) -> dict[str, tuple[float | None, ...]]:
    """Points and three intervals of every method that shares a run with the baseline."""
    if baseline is None:
        return {}
    shared = {
        method: sorted(own.keys() & accuracies[baseline].keys())
        for method, own in accuracies.items()
        if method != baseline and own.keys() & accuracies[baseline].keys()
    }
    if not shared:
        return {}
    paired = {method: paired_hits(hits[method], hits[baseline]) for method in shared}
    images = image_intervals([*paired.values()], seed)
    found: dict[str, tuple[float | None, ...]] = {}
    for (method, common), of_images in zip(shared.items(), images, strict=True):
        points = [accuracies[method][run] - accuracies[baseline][run] for run in common]
        found[method] = (
            fmean(points),
            *interval(points, error),
            *of_images,
            *interval_of_both(paired[method], error),
        )
    return found


# --- display ------------------------------------------------------------------------------------------------


FEWEST_FOR_LEVENE = 3  # runs; the two of a row are equally far from their median


def spread_note(accuracies: Mapping[str, Mapping[int, float]], error: ErrorTerm | None) -> str:
    """Say which spread intervals and tests use, and whether rows vary alike as far as a test can tell."""
    if error is None:
        return "Each contrast has the spread of its own differences."
    return (
        f"All contrasts have one spread, pooled over rows: {error.sd:.2f} points for one run's difference,"
        f" the residual of rows x runs, with {error.df} degrees of freedom."
        f" This assumes that all rows vary alike. {_alike([[*own.values()] for own in accuracies.values()])}"
    )


def _alike(rows: Sequence[Sequence[float]]) -> str:
    """Say whether rows vary alike, as far as Levene's test (around medians) can tell."""
    from scipy.stats import levene

    p = levene(*rows, center="median").pvalue if min(map(len, rows)) >= FEWEST_FOR_LEVENE else math.nan
    if math.isnan(p):
        return "So few runs can't say whether they do."
    if p < ALPHA:
        return (
            "Rows do not vary alike (Levene's test), so this spread is too small for some and too large for"
            f" others; report.error: own does not assume it (p = {p:.2f})."
        )
    return f"Levene's test finds no row that varies more than others (p = {p:.2f})."


def _notes(rows: Sequence[Row], baseline: str | None, spread: str, draws: int) -> tuple[str, ...]:
    """Notes on what the errors and intervals cover."""
    labels = {row.method: row.label for row in rows}
    notes = [
        f"±: standard error of the mean over n {'classifiers' if draws == 1 else 'draws'}. 95%: Student's t"
        " interval with n - 1 degrees of freedom, which is wide for few runs.",
        "The spread over runs covers what differs between runs: the added images drawn from the pool, the"
        " classifier's initial weights and the order of images. It does not cover other training or test"
        " images, another pool or another fine-tuning: the study has only one of each."
        if draws == 1
        else f"A run is one of {draws} draws of the training images. The spread over runs covers these"
        " images, what is learned and made from them, the draw from a pool, the classifier's initial weights"
        " and the order of images. It does not cover other test images. Nor does it cover another pool of"
        " the rows that make one pool for all draws.",
        "Test error: standard error of one accuracy due to the number of test images (binomial). All"
        " methods are tested on the same images, so it largely cancels in differences between methods.",
        "Overlap: mean share of images that two sets of a method have in common. Near 100%, the spread"
        " measures the classifier's seed only.",
    ]
    if baseline is not None:
        notes.append(
            f"Against baseline: accuracy minus that of '{labels[baseline]}', in percentage points, with the"
            " 95% t interval over runs in brackets. Differences are paired by run, because run r of every"
            f" method has the same seeds. {spread} Other test images: 95% interval of the same difference"
            f" from {RESAMPLES:,} bootstrap samples of the test images, with the trained classifiers as they"
            " are. Runs and images: 95% interval over other runs and other test images together."
        )
    notes.append("Which differences are more than chance: contrasts.md.")
    return tuple(notes)


HEADER = (
    "Method",
    "n",
    "Top-1 (%)",
    "95%",
    "Test error",
    "Overlap",
    "Against baseline",
    "Other test images",
    "Runs and images",
)
NUMERIC = (False, *[True] * 8)


def between(low: float | None, high: float | None, show: str = ".1f") -> str:
    """An interval as ``1.0 to 2.0``; a dash if there is none."""
    return NONE if low is None or high is None else f"{low:{show}} to {high:{show}}"


def difference(points: float | None, low: float | None, high: float | None) -> str:
    """A difference with its interval, as ``+1.5 [+1.0 to +2.0]``; a dash if there is none."""
    return signed(points) + ("" if low is None else f" [{between(low, high, '+.1f')}]")


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.label,
        str(row.n),
        spread(row.mean_percent, row.stderr_percent),
        between(row.low_percent, row.high_percent),
        f"{row.binomial_percent:.1f}",
        NONE if row.overlap is None else f"{row.overlap:.0%}",
        difference(row.baseline_points, row.baseline_low, row.baseline_high),
        between(row.baseline_images_low, row.baseline_images_high, "+.1f"),
        between(row.baseline_both_low, row.baseline_both_high, "+.1f"),
    )


def read_rows(path: str | Path) -> list[Row]:
    """Read the rows of ``statistics.csv``."""
    return read_csv(path, Row)


def write_statistics(
    study: str,
    table: Sequence[table1.Row],
    runs: Sequence[RunRow],
    hits: Hits,
    seed: int,
    report: Report,
    outs: Mapping[str, str | Path],
    draws: int = 1,
) -> list[Row]:
    """Write the statistics to ``outs``, which maps formats (any of ``csv``, ``md``, ``tex``) to paths.

    ``study`` is the study's name, ``draws`` its number of draws of the training images; with several, a run
    is a draw. The other parameters are those of :func:`build_rows`.
    """
    rows, accuracies = build_rows(table, runs, hits, seed, report), accuracies_of(runs)
    spread = spread_note(accuracies, error_of(accuracies, report))
    notes = _notes(rows, baseline_of(table), spread, draws)
    layout = Layout(f"Statistics of Table 1, study {study}", HEADER, NUMERIC, tuple(map(_cells, rows)), notes)
    caption = f"Spread over runs, and paired differences from the baseline, study {study}."
    write_table(outs, layout, rows, caption, f"{study}-statistics")
    return rows
