"""Tables of a comparison (rows x studies, tests, keys that differ) as CSV, Markdown and text."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from augbench.commands.compare import differences
from augbench.commands.compare.answer import findings
from augbench.commands.compare.configs import Factor, Key
from augbench.commands.compare.differences import ACCURACY, CHANGE, Pair
from augbench.commands.compare.studies import Finished
from augbench.files import write_text
from augbench.report.inference.images import RESAMPLES
from augbench.report.render import NONE, Layout, escape_markdown, render_csv, render_markdown, render_terminal
from augbench.report.tables.contrasts import LESS, MORE, SAME, UNKNOWN, margin_name, p_text
from augbench.report.tables.statistics import between, difference
from augbench.report.tables.table1 import CUT

LINE = 100  # characters of a line of text on the terminal


@dataclass(frozen=True)
class Row:
    """A row of a study: its accuracy in percent and its difference from the study's baseline in points.

    Intervals are the 95% intervals of the study's ``statistics.csv``. ``factor`` is the number that the
    studies vary, if they vary one alone. ``cut`` says whether most runs were cut while still improving.
    """

    row: str
    label: str
    family: str
    study: str
    factor: float | None
    n: int
    n_test: int
    mean_percent: float
    low_percent: float | None
    high_percent: float | None
    baseline_points: float | None
    baseline_low: float | None
    baseline_high: float | None
    baseline_images_low: float | None
    baseline_images_high: float | None
    baseline_both_low: float | None
    baseline_both_high: float | None
    cut: bool


@dataclass(frozen=True)
class KeyRow:
    """The value of a key that differs, in one study."""

    key: str
    study: str
    value: str


def build_rows(studies: Sequence[Finished], factor: Factor | None) -> list[Row]:
    """Rows of all studies: in the order of the first study, then those that only later ones have."""
    found: dict[str, list[Row]] = {}
    for study in studies:
        known = {row.method: row for row in study.statistics}
        for entry in study.table:
            own = known[entry.method]
            found.setdefault(entry.method, []).append(
                Row(
                    row=entry.method,
                    label=entry.label,
                    family=entry.family,
                    study=study.name,
                    factor=None if factor is None else factor.values[study.name],
                    n=own.n,
                    n_test=own.n_test,
                    mean_percent=own.mean_percent,
                    low_percent=own.low_percent,
                    high_percent=own.high_percent,
                    baseline_points=own.baseline_points,
                    baseline_low=own.baseline_low,
                    baseline_high=own.baseline_high,
                    baseline_images_low=own.baseline_images_low,
                    baseline_images_high=own.baseline_images_high,
                    baseline_both_low=own.baseline_both_low,
                    baseline_both_high=own.baseline_both_high,
                    cut=entry.is_cut,
                )
            )
    return [row for rows in found.values() for row in rows]


@dataclass(frozen=True)
class Comparison:
    """All that the tables show."""

    studies: Sequence[Finished]
    keys: Sequence[Key]
    warnings: Sequence[str]
    pairing: Sequence[str]
    rows: Sequence[Row]
    tests: Sequence[differences.Row]
    pairs: Sequence[Pair]
    spreads: Sequence[str]
    answer: Sequence[str]
    made_by: str

    @property
    def names(self) -> list[str]:
        """Names of the studies, in the order given."""
        return [study.name for study in self.studies]


# --- layouts ------------------------------------------------------------------------------------------------


def _keys(found: Comparison) -> Layout:
    cells = tuple((key.key, *(key.values[name] for name in found.names)) for key in found.keys)
    notes = (
        "Keys that only say how a study is computed, stored or shown are left out. A row that a study lacks"
        f" has {NONE}."
        if cells
        else "The configs do not differ in anything that changes results.",
    )
    return Layout("What differs", ("Key", *found.names), (False,) * (1 + len(found.names)), cells, notes)


def _accuracy(row: Row) -> str:
    around = "" if row.low_percent is None else f" [{between(row.low_percent, row.high_percent)}]"
    return f"{row.mean_percent:.1f}{around}{f' {CUT}' if row.cut else ''}"


def _in_study(row: Row | None) -> list[str]:
    """The two cells of a row in a study."""
    if row is None:
        return [NONE, NONE]
    return [_accuracy(row), difference(row.baseline_points, row.baseline_low, row.baseline_high)]


def _rows(found: Comparison) -> Layout:
    by_row: dict[str, dict[str, Row]] = {}
    for row in found.rows:
        by_row.setdefault(row.row, {})[row.study] = row
    cells = []
    for own in by_row.values():
        line = [next(iter(own.values())).label]
        for name in found.names:
            line += _in_study(own.get(name))
        cells.append(tuple(line))
    header = ["Row"]
    for name in found.names:
        header += [f"{name}: top-1 (%)", f"{name}: against its baseline"]
    runs = {name: sorted({row.n for row in found.rows if row.study == name}) for name in found.names}
    listed = ", ".join(f"{' or '.join(map(str, n))} in {name}" for name, n in runs.items())
    notes = [
        "Brackets: 95% t intervals over runs (draws of the training images, if there are several). Number of"
        f" runs: {listed}. Differences are paired by run within a study. They are those of each study's"
        " statistics.md.",
    ]
    if any(row.cut for row in found.rows):
        notes.append(f"{CUT}: most runs were cut while their validation accuracy was still rising.")
    return Layout(
        "Rows by study", tuple(header), (False,) + (True,) * (len(header) - 1), tuple(cells), tuple(notes)
    )


HEADER = ("n", "Difference", "p", "Other test images", "Runs and images")


def _tested(row: differences.Row) -> tuple[str, ...]:
    return (
        str(row.n) if row.n == row.n_reference else f"{row.n_reference}, {row.n}",
        difference(row.points, row.low, row.high),
        p_text(row.p_holm),
        between(row.images_low, row.images_high, "+.1f"),
        between(row.both_low, row.both_high, "+.1f"),
    )


def _accuracies(found: Comparison) -> Layout:
    cells = tuple(
        (row.name, f"{row.study} - {row.reference}", *_tested(row), row.verdict)
        for row in found.tests
        if row.kind == ACCURACY
    )
    header = ("Row", "Studies", *HEADER, "Verdict")
    return Layout("Rows between studies", header, (False, False, *(True,) * 5, False), cells, _notes(found))


def _changes(found: Comparison) -> Layout:
    within = {
        frozenset((pair.row, pair.against)): dict(zip(found.names, cells, strict=True))
        for pair, cells in findings(found.studies, found.pairs)
    }
    cells = []
    for row in found.tests:
        if row.kind != CHANGE:
            continue
        own = within[frozenset((row.row, row.against or ""))]
        cells.append(
            (
                row.name,
                f"{row.study} - {row.reference}",
                own[row.reference],
                own[row.study],
                *_tested(row),
                p_text(row.p_same_holm),
                row.verdict,
            )
        )
    margin = margin_name(found.studies[0].study.report.margin)
    header = (
        "Contrast",
        "Studies",
        "In the first",
        "In the other",
        *HEADER,
        f"p of less than {margin}",
        "Verdict",
    )
    notes = (
        "Contrasts: those of the studies (report.contrasts, or their default ones) whose rows both studies"
        " have. In the first, in the other: the difference between the two rows within the study, and the"
        f" verdict of the study's own contrasts.md; {NONE} if it is no contrast of it. Difference: that of"
        " the other minus that of the first. A contrast that is shown in one study alone does not show that"
        " the studies differ; the verdict of this table does.",
        *found.spreads,
    )
    numeric = (False, False, True, True, *(True,) * 6, False)
    return Layout("Contrasts between studies", header, numeric, tuple(cells), notes)


def _notes(found: Comparison) -> tuple[str, ...]:
    """Notes on the tests between studies."""
    tests = found.tests[0].tests
    margin = margin_name(found.tests[0].margin)
    return (
        f"Every study is compared with the first, {found.names[0]}. Difference: the other minus the first,"
        " in percentage points, with the 95% t interval over runs, for this difference alone. p: two-sided t"
        f" test, corrected by Holm's method for all {tests} tests of this page together, rows and contrasts.",
        *found.pairing,
        f"Other test images: 95% interval from {RESAMPLES:,} bootstrap samples of the test images, with the"
        " trained classifiers as they are; only where both studies have the same ones. Runs and images: 95%"
        " interval over other runs and other test images; only where runs are paired.",
        f"Verdict, at level 0.05 after correction: {MORE} or {LESS}: more than chance. {SAME}: smaller than"
        f" {margin}. {UNKNOWN}: neither, which does not mean equal.",
    )


def layouts(found: Comparison) -> list[Layout]:
    """The tables in the order in which they are shown, without those that have no line, except the first."""
    tables = [_keys(found), _rows(found), _accuracies(found), _changes(found)]
    return [table for place, table in enumerate(tables) if table.cells or place == 0]


# --- files --------------------------------------------------------------------------------------------------


def write_tables(found: Comparison, outs: Mapping[str, Path]) -> None:
    """Write the tables to ``outs``: paths of ``compare``, ``differences``, ``config`` (CSV) and ``md``."""
    keys = [KeyRow(key.key, study, value) for key in found.keys for study, value in key.values.items()]
    notes = (found.made_by, *(f"Warning: {warning}" for warning in found.warnings))
    write_text(outs["compare"], render_csv(found.rows, notes))
    write_text(outs["differences"], render_csv(found.tests, (*notes, *_notes(found), *found.spreads)))
    write_text(outs["config"], render_csv(keys, (found.made_by,)))
    write_text(outs["md"], render_page(found))


def render_page(found: Comparison) -> str:
    """All tables as one page of Markdown, with answer and warnings on top."""
    title = f"# {escape_markdown(', '.join(found.names))}, side by side\n"
    lead = [*found.answer, *(f"Warning: {warning}" for warning in found.warnings)]
    parts = [title, "".join(f"- {escape_markdown(sentence)}\n" for sentence in lead)]
    for table in layouts(found):
        body = render_markdown(table) if table.cells else f"{escape_markdown(table.notes[0])}\n"
        parts.append(f"## {table.title}\n\n{body}")
    return "\n".join([*parts, f"{escape_markdown(found.made_by)}\n"])


def render_text(found: Comparison) -> str:
    """Answer, warnings and tables for a terminal; the notes are in the Markdown page."""
    parts = [
        render_terminal(replace(table, notes=())) if table.cells else f"{table.title}\n\n{table.notes[0]}\n"
        for table in layouts(found)
    ]
    lead = [*found.answer, *(f"Warning: {warning}" for warning in found.warnings)]
    return "\n".join([*parts, *(textwrap.fill(line, LINE, subsequent_indent="  ") for line in lead)]) + "\n"
