"""Contrasts: which differences between rows are more than chance, and what more runs would show.

Input: ``table1.csv``, ``table1_runs.csv``, and which test images every classifier got right. Output:
``contrasts.csv`` (full precision), Markdown and LaTeX, one row per contrast of the config
(:mod:`augbench.report.contrasts`): difference with its intervals, tests with Holm's correction over all
contrasts, and power.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from augbench.config.stages import Report
from augbench.report.contrasts import Pair, pairs_of
from augbench.report.inference.images import RESAMPLES, Hits, image_intervals, interval_of_both, paired_hits
from augbench.report.inference.paired import ALPHA, Difference, compare, holm
from augbench.report.inference.power import MOST_RUNS, detectable, runs_needed
from augbench.report.render import NONE, Layout, read_csv, write_table
from augbench.report.tables import table1
from augbench.report.tables.statistics import accuracies_of, between, difference, error_of, spread_note
from augbench.report.tables.table1 import RunRow

MORE, LESS, SAME, UNKNOWN = "more", "less", "same", "can't tell"


@dataclass(frozen=True)
class Row:
    """One contrast, in percentage points; None where a single run has no value.

    Attributes
    ----------
    kind : str
        Reason for the contrast: ``baseline``, ``twice``, ``family`` or ``named``
        (:mod:`augbench.report.contrasts`).
    n : int
        Runs that both rows have; differences are paired by run.
    points : float
        Mean of the differences.
    sd_points, df : float, int
        Standard deviation of one run's difference that intervals and tests use, and its degrees of freedom:
        that of these differences, or that of all rows (``report.error``).
    low, high : float
        95% t interval over runs.
    images_low, images_high : float
        95% bootstrap interval over the ``n_test`` test images, for the classifiers as they are.
    both_low, both_high : float
        95% interval over other runs and other test images.
    p, p_holm : float
        Two-sided paired t test, and the same corrected for all contrasts; None as in
        :class:`~augbench.report.inference.paired.Difference`.
    p_same, p_same_holm : float
        Test of a difference smaller than ``margin``, and the same corrected for all contrasts.
    detectable_alone, detectable_holm : float
        Smallest difference detected with 80% power at level 0.05, and at 0.05 divided by ``contrasts``.
    runs_for_margin : int
        Runs that detect a difference of ``margin`` with 80% power at 0.05 divided by ``contrasts``; None if
        too many.
    contrasts : int
        Number of contrasts that are tested together.
    """

    row: str  # first, because a free text may begin with #, which marks notes in a CSV file
    kind: str
    name: str
    row_label: str
    against: str
    against_label: str
    n: int
    n_test: int
    points: float
    sd_points: float | None
    df: int | None
    low: float | None
    high: float | None
    images_low: float
    images_high: float
    both_low: float | None
    both_high: float | None
    p: float | None
    p_holm: float | None
    p_same: float | None
    p_same_holm: float | None
    detectable_alone: float | None
    detectable_holm: float | None
    runs_for_margin: int | None
    margin: float
    contrasts: int

    @property
    def verdict(self) -> str:
        """What the tests say: :data:`MORE`, :data:`LESS`, :data:`SAME` (within the margin), or unknown."""
        return verdict_of(self.points, self.p_holm, self.p_same_holm)


def verdict_of(points: float, p: float | None, p_same: float | None) -> str:
    """What the corrected p values of a difference and of its smallness say (:attr:`Row.verdict`)."""
    if p is not None and p < ALPHA:
        return MORE if points > 0 else LESS
    return SAME if p_same is not None and p_same < ALPHA else UNKNOWN


def validation_of(runs: Sequence[RunRow]) -> dict[str, float]:
    """Mean validation accuracy of each method, in percent."""
    by_method: dict[str, list[float]] = {}
    for run in runs:
        by_method.setdefault(run.method, []).append(run.val_top1_percent)
    return {method: fmean(values) for method, values in by_method.items()}


def build_rows(
    table: Sequence[table1.Row], runs: Sequence[RunRow], hits: Hits, seed: int, report: Report
) -> list[Row]:
    """Build the study's contrasts, in the order in which they are named.

    Parameters
    ----------
    hits : Hits
        Which test images every classifier got right (:func:`augbench.report.inference.images.read_hits`).
    seed : int
        Seed of the bootstrap samples of the test images.
    report : Report
        The config's contrasts and margin.
    """
    accuracies, margin = accuracies_of(runs), report.margin
    error = error_of(accuracies, report)
    per_run = 1 if error is None else len(accuracies) - 1
    pairs = pairs_of(table, report.contrasts, validation_of(runs))
    found: list[tuple[Pair, Difference]] = []
    for pair in pairs:
        compared = compare(accuracies[pair.row], accuracies[pair.against], margin, error)
        if compared is not None:
            found.append((pair, compared))
    if not found:
        return []
    paired = [paired_hits(hits[pair.row], hits[pair.against]) for pair, _ in found]
    corrected = zip(
        found,
        paired,
        image_intervals(paired, seed),
        holm([difference.p for _, difference in found]),
        holm([difference.p_same for _, difference in found]),
        strict=True,
    )
    labels = {row.method: row.label for row in table}
    n_test = {run.method: run.n_test for run in runs}
    rows = []
    for (pair, compared), by_image, of_images, p_holm, p_same_holm in corrected:
        both = interval_of_both(by_image, error)
        alone, with_holm, needed = _power(compared, margin, len(pairs), per_run)
        rows.append(
            Row(
                name=pair.name,
                kind=pair.kind,
                row=pair.row,
                row_label=labels[pair.row],
                against=pair.against,
                against_label=labels[pair.against],
                n=compared.n,
                n_test=n_test[pair.row],
                points=compared.points,
                sd_points=None if compared.error is None else compared.error.sd,
                df=None if compared.error is None else int(compared.error.df),
                low=compared.low,
                high=compared.high,
                images_low=of_images[0],
                images_high=of_images[1],
                both_low=both[0],
                both_high=both[1],
                p=compared.p,
                p_holm=p_holm,
                p_same=compared.p_same,
                p_same_holm=p_same_holm,
                detectable_alone=alone,
                detectable_holm=with_holm,
                runs_for_margin=needed,
                margin=margin,
                contrasts=len(pairs),
            )
        )
    return rows


def _power(
    compared: Difference, margin: float, contrasts: int, per_run: int
) -> tuple[float | None, float | None, int | None]:
    """Differences detectable alone and with Holm, and runs for the margin; Nones for a single run."""
    if compared.error is None:
        return None, None, None
    sd = compared.error.sd
    return (
        detectable(sd, compared.n, ALPHA, per_run),
        detectable(sd, compared.n, ALPHA / contrasts, per_run),
        runs_needed(margin, sd, ALPHA / contrasts, per_run),
    )


# --- display ------------------------------------------------------------------------------------------------


def margin_name(margin: float) -> str:
    """The margin as text, such as ``1 point``."""
    return f"{margin:g} point{'' if margin == 1 else 's'}"


def _header(margin: float) -> tuple[str, ...]:
    return (
        "Contrast",
        "n",
        "Difference",
        "p",
        "Other test images",
        "Runs and images",
        f"p of less than {margin_name(margin)}",
        "Detectable",
        f"Runs for {margin_name(margin)}",
        "Verdict",
    )


NUMERIC = (False, *[True] * 8, False)


def _notes(rows: Sequence[Row], report: Report, spread: str) -> tuple[str, ...]:
    """Notes on the choice of contrasts, the tests, and their power."""
    if not rows:
        return ("The study has no two rows to compare.",)
    count, margin = rows[0].contrasts, margin_name(rows[0].margin)
    chosen = (
        "each row against the first row without added images; each row against the one with twice the real"
        " images; the first row of retrieval against the best generating row of each family. The best row is"
        " chosen by validation accuracy, never by test accuracy. It is the validation accuracy of the same"
        " classifiers, so a row that was lucky in its runs is chosen more often, to the disadvantage of"
        " retrieval"
        if not report.contrasts
        else "report.contrasts of the config"
    )
    several = f"all {count} contrasts" if count > 1 else "the only contrast"
    return (
        f"Contrasts: {chosen}. They count as tests only if they were fixed before the results were seen.",
        "Difference: accuracy of the first row minus that of the second, in percentage points, paired by"
        " run, with the 95% t interval over runs in brackets. This interval is for one contrast alone. p:"
        f" two-sided paired t test, corrected by Holm's method for {several}. {spread}",
        "Other test images: 95% interval of the difference for these classifiers on other test images, from"
        f" {RESAMPLES:,} bootstrap samples of the test images, the same images for both rows and all runs."
        " Runs and images: 95% interval over other runs and other test images together (two crossed random"
        " factors; half-widths added in squares, Howe 1974).",
        f"p of less than {margin}: equivalence test (TOST), corrected by Holm's method for {several}. A small"
        f" p says that the difference is smaller than {margin}, in either direction.",
        f"Detectable: smallest difference that n runs detect with 80% power, at level {ALPHA:g} as the only"
        f" contrast, then at {ALPHA:g} / {count}, which Holm's method asks of the smallest p. Runs for"
        f" {margin}: runs that detect a difference of {margin} with 80% power at {ALPHA:g} / {count}. Both"
        " take the measured standard deviation of the paired differences as the true one."
        + _known_sd(min(row.df or 0 for row in rows)),
        f"Verdict, at level {ALPHA:g} after correction: {MORE} or {LESS}: the difference is more than chance."
        f" {SAME}: it is smaller than {margin}. {UNKNOWN}: neither; this does not mean that the rows are"
        " equal.",
    )


def _known_sd(df: int) -> str:
    """Say how well a standard deviation is known (95% interval of a normal variable's)."""
    from scipy.stats import chi2

    if df < 1:
        return ""
    low, high = ((df / chi2.ppf(tail, df)) ** 0.5 for tail in (0.975, 0.025))
    return f" With {df} degrees of freedom the true one is {low:.1f} to {high:.1f} times that (95%)."


def p_text(value: float | None) -> str:
    """A p value with three decimals; a dash if there is none."""
    return NONE if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _cells(row: Row) -> tuple[str, ...]:
    alone, corrected = row.detectable_alone, row.detectable_holm
    runs = NONE if row.sd_points is None else row.runs_for_margin or f"> {MOST_RUNS:,}"
    return (
        row.name,
        str(row.n),
        difference(row.points, row.low, row.high),
        p_text(row.p_holm),
        between(row.images_low, row.images_high, "+.1f"),
        between(row.both_low, row.both_high, "+.1f"),
        p_text(row.p_same_holm),
        NONE if alone is None or corrected is None else f"{alone:.1f}, {corrected:.1f}",
        str(runs),
        row.verdict,
    )


def read_rows(path: str | Path) -> list[Row]:
    """Read the rows of ``contrasts.csv``."""
    return read_csv(path, Row)


def write_contrasts(
    study: str,
    table: Sequence[table1.Row],
    runs: Sequence[RunRow],
    hits: Hits,
    seed: int,
    report: Report,
    outs: Mapping[str, str | Path],
) -> list[Row]:
    """Write the contrasts to ``outs``, which maps formats (any of ``csv``, ``md``, ``tex``) to paths.

    ``study`` is the study's name; the other parameters are those of :func:`build_rows`.
    """
    rows = build_rows(table, runs, hits, seed, report)
    accuracies = accuracies_of(runs)
    notes = _notes(rows, report, spread_note(accuracies, error_of(accuracies, report)))
    title = f"Contrasts, study {study}"
    layout = Layout(title, _header(report.margin), NUMERIC, tuple(map(_cells, rows)), notes)
    write_table(
        outs, layout, rows, f"Contrasts between rows of Table 1, study {study}.", f"{study}-contrasts"
    )
    return rows
