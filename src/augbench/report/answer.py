"""The study's answer in one sentence, made from its contrasts: what the tests show, and no more.

Input: the rows of ``table1.csv`` and ``contrasts.csv``. A difference "adds" or "costs" points only if its p
is below 0.05 after Holm's correction over all contrasts. "Less than 1 point" needs the equivalence test at
the same level. Everything else "can't be told", with the runs that would show a difference of the margin.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from augbench.config.methods import GENERATED
from augbench.report.contrasts import baseline_of, retrieval_of
from augbench.report.inference.power import MOST_RUNS
from augbench.report.tables import contrasts, table1
from augbench.report.tables.contrasts import LESS, MORE, SAME, UNKNOWN, Row, margin_name

NAMED = 3  # at most so many rows are named one by one


def answer_of(table: Sequence[table1.Row], rows: Sequence[Row]) -> str:
    """Say in one sentence what the study shows; a second one warns of rows that had not finished learning.

    Parameters
    ----------
    table : sequence of Row
        Table 1.
    rows : sequence of Row
        The contrasts that were named before the study ran.
    """
    return f"{_sentence(table, rows)}.{_warning(table)}"


def read_answer(table: str | Path, rows: str | Path) -> str:
    """The sentence of a finished study, from its ``table1.csv`` and ``contrasts.csv``."""
    return answer_of(table1.read_rows(table), contrasts.read_rows(rows))


def _sentence(table: Sequence[table1.Row], rows: Sequence[Row]) -> str:
    if not rows:
        return "The study has no two rows to compare"
    baseline, retrieval = baseline_of(table), retrieval_of(table)
    helped = [row for row in against(rows, baseline) if row.row in adding(table)]
    lead = [row for row in helped if row.row == retrieval]
    generated = {entry.method for entry in table if entry.family in GENERATED}
    rivals = [row for row in against(rows, retrieval) if row.row in generated]
    if max(row.n for row in rows) < 2:
        shown = (lead or rows)[0]
        return (
            f"Can't tell: a single run per row shows no spread ({shown.row_label} against"
            f" {shown.against_label}: {points_with_interval(shown)}); at least 2 runs are needed, and 5 are"
            " better"
        )
    parts = []
    if lead:
        brief = lead[0].verdict == UNKNOWN  # the effect then names the runs that are needed
        parts = [_effect(_retrieved(table, lead[0]), lead[0]), *_compared(rivals, lead[0].row_label, brief)]
    elif rivals:
        parts = _compared(rivals, rivals[0].against_label)
    elif helped:
        parts = _effects(helped)
    told = {*map(_rows_of, (*lead, *rivals, *([] if lead or rivals else helped)))}
    left = [row for row in rows if _rows_of(row) not in told and (row.kind == "named" or not parts)]
    plain = [row for row in left if row.verdict != UNKNOWN or not parts][:NAMED]
    parts += map(_plain, plain)
    if more := len(left) - len(plain):
        parts.append(f"{more} more {'contrast is' if more == 1 else 'contrasts are'} in contrasts.md")
    if baseline is None:
        parts.append(
            "the study has no row of the training images alone, so it can't say what added images bring"
        )
    return f"{_start(table)}, {'; '.join(parts)}"


def adding(table: Sequence[table1.Row]) -> set[str]:
    """Methods of the rows that add images."""
    return {entry.method for entry in table if entry.added_per_class > 0}


def _retrieved(table: Sequence[table1.Row], lead: Row) -> str:
    """Name the retrieved images; with the row's label if there are several rows of retrieval."""
    found = [entry for entry in table if entry.family == "retrieval"]
    added = next(entry.added_per_class for entry in found if entry.method == lead.row)
    return f"{_count(added)} retrieved ones{f' ({lead.row_label})' if len(found) > 1 else ''}"


def _start(table: Sequence[table1.Row]) -> str:
    trained = [row.real_per_class for row in table if row.split == "train"]
    return f"With {_count(max(trained, default=table[0].real_per_class))} real images per class"


def _count(images: float) -> str:
    return f"{images:,.0f}" if images >= 1000 else f"{images:.4g}"


def _warning(table: Sequence[table1.Row]) -> str:
    """The sentence on rows whose training was cut; empty without such rows."""
    labels = [row.label for row in table if row.is_cut]
    if not labels:
        return ""
    which = "all rows" if len(labels) == len(table) else joined(labels)
    had = "it had" if len(labels) == 1 else "they had"
    return (
        f" The training of {which} was cut before {had} finished learning; longer training may change the"
        " answer."
    )


# --- contrasts, seen from one of their rows -----------------------------------------------------------------


def against(rows: Sequence[Row], method: str | None) -> list[Row]:
    """The contrasts of ``method``, turned around where needed, so that all are against it."""
    turned = [_turned(row) if row.row == method else row for row in rows]
    return [row for row in turned if row.against == method]


def _rows_of(row: Row) -> frozenset[str]:
    """The two rows that a contrast compares, whichever comes first."""
    return frozenset((row.row, row.against))


def _turned(row: Row) -> Row:
    """The same contrast with its two rows exchanged."""

    def negated(value: float | None) -> float | None:
        return None if value is None else -value

    return replace(
        row,
        row=row.against,
        row_label=row.against_label,
        against=row.row,
        against_label=row.row_label,
        points=-row.points,
        low=negated(row.high),
        high=negated(row.low),
        images_low=-row.images_high,
        images_high=-row.images_low,
        both_low=negated(row.both_high),
        both_high=negated(row.both_low),
    )


# --- phrases ------------------------------------------------------------------------------------------------


class Estimate(Protocol):
    """A difference in points, with its intervals over runs, and over runs and test images."""

    @property
    def points(self) -> float: ...
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...
    @property
    def both_low(self) -> float | None: ...
    @property
    def both_high(self) -> float | None: ...


def joined(words: Sequence[str], last: str = "and") -> str:
    """``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def _are(rows: Sequence[Row]) -> str:
    return f"{joined([row.row_label for row in rows])} {'is' if len(rows) == 1 else 'are'}"


def _size(points: float) -> str:
    return f"{abs(points):.1f}" if abs(points) >= 0.05 else f"{abs(points):.2f}"


def size_with_interval(row: Estimate) -> str:
    """The size of a difference without its sign, as ``2.1 points [1.6 to 2.6]``."""
    around = ""
    if row.low is not None and row.high is not None:
        around = f" [{' to '.join(map(_size, sorted((abs(row.low), abs(row.high)))))}]"
    covers_none = row.both_low is not None and row.both_high is not None and row.both_low < 0 < row.both_high
    return f"{_size(row.points)} points{around}{' on these test images' if covers_none else ''}"


def points_with_interval(row: Estimate) -> str:
    """A difference with its sign, as ``+2.1 points [+1.6 to +2.6]``."""
    around = "" if row.low is None or row.high is None else f" [{row.low:+.1f} to {row.high:+.1f}]"
    return f"{row.points:+.1f} points{around}"


def _would(rows: Iterable[Row]) -> str:
    """Runs that would show a difference of the margin; empty where the runs are enough for that."""
    rows = list(rows)
    counts = [row.runs_for_margin or MOST_RUNS + 1 for row in rows if row.sd_points is not None]
    if not counts or max(counts) <= max(row.n for row in rows):
        return ""
    most = f"more than {MOST_RUNS:,}" if max(counts) > MOST_RUNS else str(max(counts))
    return f"{most} runs would show a difference of {margin_name(rows[0].margin)}"


def _because(rows: Sequence[Row]) -> str:
    """Why rows can't be told apart: the difference of one, the number of runs, and the runs that would do."""
    if all(row.p is None for row in rows):
        return (
            f"the same {'difference' if len(rows) == 1 else 'differences'} in every run, so there is no test"
        )
    shown = (
        f"{points_with_interval(rows[0])} with {rows[0].n} runs"
        if len(rows) == 1
        else f"with {rows[0].n} runs"
    )
    return "; ".join(filter(None, [shown, _would(rows)]))


def _effect(name: str, row: Row) -> str:
    """What added images do, against none."""
    verdict = row.verdict
    if verdict in (MORE, LESS):
        return f"{name} {'add' if verdict == MORE else 'cost'} {size_with_interval(row)}"
    if verdict == SAME:
        return f"{name} change accuracy by less than {margin_name(row.margin)} ({points_with_interval(row)})"
    return f"it can't be told whether {name} help ({_because([row])})"


def _by_verdict(rows: Sequence[Row]) -> dict[str, list[Row]]:
    return {name: [row for row in rows if row.verdict == name] for name in (MORE, LESS, SAME, UNKNOWN)}


def _compared(rivals: Sequence[Row], reference: str, brief: bool = False) -> list[str]:
    """How generating rows compare with ``reference``; empty without such rows. ``brief``: without reasons."""
    groups = _by_verdict(rivals)
    better, worse, same, unknown = groups[MORE], groups[LESS], groups[SAME], groups[UNKNOWN]
    together = not better and len(rivals) > max(1, len(unknown))
    than, as_, it = ("", "", "it") if together else (f" than {reference}", f" as {reference}", reference)
    details = []
    if worse:
        by = f", by {size_with_interval(worse[0])}" if len(rivals) == 1 else ""
        details.append(f"{_are(worse)} worse{than}{by}")
    if same:
        details.append(f"{_are(same)} the same{as_} within {margin_name(same[0].margin)}")
    if unknown:
        names = joined([row.row_label for row in unknown])
        why = "" if brief else f" ({_because(unknown)})"
        details.append(f"{names} can't be told from {it}{why}")
    if together:
        which = "best" if all(row.kind == "family" for row in rivals) else "compared"
        shown = "shown to be " if unknown else ""
        return [f"none of the {which} generated rows is {shown}better than {reference}: {', '.join(details)}"]
    return [*(f"{row.row_label} is better{than}, by {size_with_interval(row)}" for row in better), *details]


def _effects(rows: Sequence[Row]) -> list[str]:
    """What the added images of several rows do, against none, where there is no retrieval."""
    groups = _by_verdict(rows)
    parts = []
    for verdict, verb in ((MORE, "add"), (LESS, "cost")):
        found = groups[verdict]
        parts += [f"images of {row.row_label} {verb} {size_with_interval(row)}" for row in found[:NAMED]]
        if len(found) > NAMED:
            more = len(found) - NAMED
            parts.append(f"those of {more} more {'row' if more == 1 else 'rows'} {verb} some")
    if same := groups[SAME]:
        parts.append(f"{_counted(same)} change accuracy by less than {margin_name(same[0].margin)}")
    if unknown := groups[UNKNOWN]:
        parts.append(f"it can't be told whether {_counted(unknown)} help ({_because(unknown)})")
    return parts


def _counted(rows: Sequence[Row]) -> str:
    if len(rows) > NAMED:
        return f"the images of {len(rows)} rows"
    return f"images of {joined([row.row_label for row in rows])}"


def _plain(row: Row) -> str:
    """A contrast in words."""
    verdict = row.verdict
    if verdict in (MORE, LESS):
        direction = "above" if verdict == MORE else "below"
        return f"{row.row_label}: {size_with_interval(row)} {direction} {row.against_label}"
    if verdict == SAME:
        return f"{row.row_label} and {row.against_label} are the same within {margin_name(row.margin)}"
    return f"{row.row_label} and {row.against_label} can't be told apart ({_because([row])})"
