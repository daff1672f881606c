"""The answer of a comparison in plain sentences, made from tests: does a conclusion hold in every study?

What holds within a study is the verdict of its own ``contrasts.csv``. That a difference is shown in one study
and not in another does not show that the studies differ: that is a test of its own
(:mod:`augbench.commands.compare.differences`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from augbench.commands.compare.differences import CHANGE, Pair, Row, tested_in
from augbench.commands.compare.studies import Finished
from augbench.report.answer import NAMED, joined, points_with_interval, size_with_interval
from augbench.report.inference.power import MOST_RUNS
from augbench.report.tables import contrasts
from augbench.report.tables.contrasts import LESS, MORE, SAME, UNKNOWN, margin_name


def answer_of(studies: Sequence[Finished], pairs: Sequence[Pair], rows: Sequence[Row]) -> list[str]:
    """Say of each contrast whether it holds in every study and whether it changes; the first few in full.

    Returns
    -------
    list of str
        A sentence per contrast, those that reverse first; and one on rows whose training was cut.
    """
    if not pairs:
        return [
            "The studies have no contrast in common: no two rows that one of them compares are also in"
            " another (report.contrasts).",
            *cut_warning(studies),
        ]
    ordered = sorted(pairs, key=lambda pair: not _reverses(studies, pair))
    told = [_of_pair(studies, pair, rows) for pair in ordered[:NAMED]]
    if (more := len(ordered) - NAMED) > 0:
        told.append(f"{more} more {'contrast is' if more == 1 else 'contrasts are'} in table.md.")
    return [*told, *cut_warning(studies)]


def cut_warning(studies: Sequence[Finished]) -> list[str]:
    """A sentence on rows whose training was cut while they still improved, if there are any."""
    cut = {study.name: [row.label for row in study.table if row.is_cut] for study in studies}
    named = [
        f"{'all rows' if len(cut[study.name]) == len(study.table) else joined(cut[study.name])} of "
        f"{study.name}"
        for study in studies
        if cut[study.name]
    ]
    if not named:
        return []
    return [
        f"The training of {joined(named)} was cut before it had finished; longer training may change the "
        "answer."
    ]


def _verdicts(studies: Sequence[Finished], pair: Pair) -> dict[str, list[tuple[str, contrasts.Row]]]:
    """The tests of a pair within the studies, each with the study's name, by verdict."""
    found: dict[str, list[tuple[str, contrasts.Row]]] = {MORE: [], LESS: [], SAME: [], UNKNOWN: []}
    for study in studies:
        if (one := tested_in(study, pair)) is not None:
            found[one.verdict].append((study.name, one))
    return found


def _reverses(studies: Sequence[Finished], pair: Pair) -> bool:
    verdicts = _verdicts(studies, pair)
    return bool(verdicts[MORE] and verdicts[LESS])


def _of_pair(studies: Sequence[Finished], pair: Pair, rows: Sequence[Row]) -> str:
    changes = [
        row for row in rows if row.kind == CHANGE and {row.row, row.against} == {pair.row, pair.against}
    ]
    return f"{'; '.join([_holds(studies, pair), *map(_changes, changes)])}."


def _holds(studies: Sequence[Finished], pair: Pair) -> str:
    """Whether the same conclusion is drawn in every study, from the studies' own tests."""
    labels = {key: label for study in reversed(studies) for key, label in study.labels.items()}
    row, against = labels[pair.row], labels[pair.against]
    verdicts = _verdicts(studies, pair)
    names = {verdict: [name for name, _ in found] for verdict, found in verdicts.items()}
    within, several = _margins(verdicts[SAME])
    words = {
        MORE: f"is better than {against}",
        LESS: f"is worse than {against}",
        SAME: f"is the same as {against} within {within}",
    }
    present = [study.name for study in studies if {pair.row, pair.against} <= study.rows.keys()]
    untested = [name for name in present if not any(name in found for found in names.values())]
    tested = len(present) - len(untested)
    parts = [
        words[verdict] if verdict == SAME and several else f"{words[verdict]} in {joined(names[verdict])}"
        for verdict in words
        if names[verdict]
    ]
    unknown = [f"in {name} ({points_with_interval(one)})" for name, one in verdicts[UNKNOWN]]
    if names[MORE] and names[LESS]:
        text = f"The conclusion reverses: {row} {joined(parts, 'but')}"
    elif not parts:
        text = f"Whether {row} or {against} is better can't be told {joined(unknown)}"
        unknown = []
    else:
        verdict = next(verdict for verdict in words if names[verdict])
        if len(names[verdict]) == tested and tested > 1:
            which = "both" if tested == 2 else f"all {tested}"
            text = f"The conclusion that {row} {words[verdict]} holds in {which} studies"
            text += (
                f" ({', '.join(names[verdict])})"
                if len(present) == tested
                else f" that test it ({', '.join(names[verdict])})"
            )
        else:
            text = f"{row} {joined(parts)}"
    if unknown:
        text += f", and can't be told from {against} {joined(unknown)}"
    if untested:
        text += f"; it is no contrast of {joined(untested)} (report.contrasts)"
    lacking = [study.name for study in studies if study.name not in present]
    if lacking:
        text += f"; {joined(lacking)} {'lacks' if len(lacking) == 1 else 'lack'} one of the rows"
    return text


def _margins(same: Sequence[tuple[str, contrasts.Row]]) -> tuple[str, bool]:
    """The margin of tests as text, and whether it names studies because their margins differ."""
    margins = {name: margin_name(one.margin) for name, one in same}
    if len({*margins.values()}) > 1:
        return joined([f"{margin} in {name}" for name, margin in margins.items()]), True
    return next(iter(margins.values()), ""), False


def _changes(row: Row) -> str:
    """Whether a difference is another one in a study than in the first, from the test of the change."""
    where = f"from {row.reference} to {row.study}"
    ends = f"({row.reference_value:+.1f} and {row.value:+.1f} points)"
    if row.verdict in (MORE, LESS):
        verb = "rises" if row.verdict == MORE else "falls"
        return f"{where} the difference {verb} by {size_with_interval(row)} {ends}"
    if row.verdict == SAME:
        return f"{where} the difference stays the same within {margin_name(row.margin)} {ends}"
    return f"whether the difference changes {where} can't be told ({points_with_interval(row)}{_would(row)})"


def _would(row: Row) -> str:
    """Runs that would show a change of the margin, if these are too few."""
    if min(row.n, row.n_reference) < 2:
        return "; a single run per row shows no spread"
    needed = row.runs_for_margin
    if row.p is None or (needed is not None and needed <= min(row.n, row.n_reference)):
        return ""
    runs = f"more than {MOST_RUNS:,}" if needed is None else f"{needed:,}"
    return f"; {runs} runs would show a change of {margin_name(row.margin)}"


def findings(studies: Sequence[Finished], pairs: Sequence[Pair]) -> Iterator[tuple[Pair, list[str]]]:
    """Yield every contrast with its difference and verdict in every study, as text."""
    for pair in pairs:
        cells = []
        for study in studies:
            one = tested_in(study, pair)
            cells.append("-" if one is None else f"{points_with_interval(one)}: {one.verdict}")
        yield pair, cells
