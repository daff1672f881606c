"""The row that a study's statistics support, if they support one.

Input: ``table1.csv``, ``contrasts.csv`` and ``statistics.csv``. Among the rows that add images, placebos
aside, it is the one of the highest mean accuracy that is shown to be better than the baseline after the
correction for all contrasts. Only a row with a contrast against the baseline can be shown to be better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from augbench.plan.paths import Plan
from augbench.report.answer import adding, against
from augbench.report.contrasts import baseline_of
from augbench.report.tables import contrasts, statistics, table1


@dataclass(frozen=True)
class Best:
    """The row, or None; and the reason in one line."""

    row: str | None
    reason: str


def best_of(plan: Plan) -> Best:
    """Choose the row of a finished study (``plan`` has the rows of the config alone)."""
    table = table1.read_rows(plan.table1["csv"])
    study = plan.study
    placebos = {name for name, row in study.methods.items() if row.shuffles_labels}
    names = adding(table) - placebos
    rows = [row for row in table if row.method in names and row.method in study.methods]
    return choose(table, rows, contrasts.read_rows(plan.contrasts["csv"]), plan.statistics["csv"])


def choose(
    table: Sequence[table1.Row],
    rows: Sequence[table1.Row],
    tested: Sequence[contrasts.Row],
    statistics_path: str,
) -> Best:
    """Choose among ``rows`` of Table 1 by the study's contrasts; of equal accuracies, the first row."""
    baseline = baseline_of(table)
    if baseline is None or not rows:
        lacks = "row of the training images alone" if rows else "row that adds images"
        return Best(None, f"the study has no {lacks}, so no row can be shown to be better")
    label = next(row.label for row in table if row.method == baseline)
    tests = {row.row: row for row in against(tested, baseline)}
    ordered = sorted(rows, key=lambda row: -row.top1_percent)
    missing = _missing([row.method for row in ordered if row.method not in tests], baseline, label)
    compared = [row for row in ordered if row.method in tests]
    if not compared:
        return Best(None, f"no row can be shown to be better{missing}")
    found = next((row for row in compared if tests[row.method].verdict == contrasts.MORE), None)
    if found is not None:
        return Best(found.method, f"{_chosen(found, tests[found.method], label)}{missing}")
    leading = compared[0]
    entry = next(row for row in statistics.read_rows(statistics_path) if row.method == leading.method)
    points = entry.baseline_points
    interval = "" if points is None else f", {_points(points, entry.baseline_low, entry.baseline_high)}"
    which = "of the rows that were compared with it, " if missing else ""
    return Best(
        None,
        f"no row is shown to be better than {label} after the correction; {which}{leading.method}"
        f" ({leading.label}) leads with {leading.top1_percent:.2f}%{interval}{missing}",
    )


def _chosen(row: table1.Row, test: contrasts.Row, baseline: str) -> str:
    p = "< 0.001" if test.p_holm is not None and test.p_holm < 0.001 else f"{test.p_holm:.3f}"
    tests = f"{test.contrasts} contrasts" if test.contrasts > 1 else "the only contrast"
    return (
        f"of the rows that are shown to be better than {baseline}, {row.label} has the highest accuracy:"
        f" {row.top1_percent:.2f}%, {_points(test.points, test.low, test.high)} (p {p}, corrected for"
        f" {tests})"
    )


def _missing(methods: Sequence[str], baseline: str, label: str) -> str:
    """Name the rows that were not compared with the baseline, and say what to do; empty if there are none."""
    if not methods:
        return ""
    return (
        f"; without a contrast against {label}: {', '.join(methods)} (name one, as report.contrasts:"
        f" [{{row: {methods[0]}, against: {baseline}}}], or export a row by its name: --row {methods[0]})"
    )


def _points(points: float, low: float | None, high: float | None) -> str:
    around = "a single run, no interval" if low is None or high is None else f"{low:+.2f} to {high:+.2f}"
    return f"{points:+.2f} points [{around}]"
