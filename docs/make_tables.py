"""Write tables of measured studies into pages, from the studies' own files in docs/measured (`make docs`).

docs/measured/{study} has CSV files that the study wrote to results/{study}/tables. A page asks for a table
with a comment, and the table stands between it and the next comment:

    <!-- table accuracy ROW@STUDY ... against ROW[@STUDY] ... -->   accuracies, and differences paired by draw
    <!-- table contrasts STUDY ... -->                              the contrasts that the config named
    <!-- table images ROW@STUDY ... -->                             diagnostics of the added images
    <!-- table further STUDY -->                                    accuracies on other test sets
    <!-- end of table -->

`*@STUDY` stands for all rows of a study. Differences between rows of one study have the spread of all its
rows; those between studies have their own. Usage: python docs/make_tables.py [--check]
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

from augbench.files import PROJECT
from augbench.report.inference.paired import compare, interval, pooled_error
from augbench.report.render import NONE, read_csv
from augbench.report.tables import contrasts, diagnostics, further_tests, table1
from augbench.report.tables.contrasts import p_text
from augbench.report.tables.statistics import accuracies_of, between, difference
from augbench.report.tables.table1 import RunRow

MEASURED = PROJECT / "docs/measured"
BLOCK = re.compile(r"(<!-- table (.+?) -->\n).*?(?=<!-- end of table -->)", re.DOTALL)
Table = tuple[Sequence[str], list[tuple[str, ...]]]  # header, cells


@cache
def rows_of(study: str) -> dict[str, table1.Row]:
    """Table 1's rows by name."""
    return {row.method: row for row in table1.read_rows(MEASURED / study / "table1.csv")}


@cache
def accuracies(study: str) -> dict[str, dict[int, float]]:
    """Test accuracy in percent, by row and draw."""
    return accuracies_of(read_csv(MEASURED / study / "table1_runs.csv", RunRow))


def named(words: Sequence[str], all_of: Callable[[str], Sequence[str]]) -> list[tuple[str, str]]:
    """Rows and studies of ``ROW@STUDY`` words."""
    pairs = [tuple(word.split("@")) for word in words]
    return [(one, study) for row, study in pairs for one in (all_of(study) if row == "*" else [row])]


def label(row: str, text: str, study: str, pairs: Sequence[tuple[str, str]]) -> str:
    """A row's label, with the study's name where the table has the row of several studies."""
    return text if sum(other == row for other, _ in pairs) == 1 else f"{text}, {study}"


def accuracy(words: Sequence[str]) -> Table:
    """Accuracies of rows with 95% intervals over draws, and paired differences from other rows."""
    shown, _, against = " ".join(words).partition(" against ")
    pairs = named(shown.split(), lambda study: list(rows_of(study)))
    references = against.split()
    header = ["Row", "n", "Top-1 (%) [95%]"]
    for word in references:
        reference, _, study = word.partition("@")
        header.append(f"against {rows_of(study or pairs[0][1])[reference].label}{study and f', {study}'}")
    cells = []
    for row, study in pairs:
        own = accuracies(study)[row]
        low, high = interval([*own.values()])
        mean = sum(own.values()) / len(own)
        line = [label(row, rows_of(study)[row].label, study, pairs), str(len(own))]
        line.append(f"{mean:.1f} [{low:.1f} to {high:.1f}]")
        for word in references:
            name, _, other = word.partition("@")
            theirs = accuracies(other or study)[name]
            error = None if other not in ("", study) else pooled_error(accuracies(study))
            found = None if theirs is own else compare(own, theirs, 1.0, error)
            line.append(NONE if found is None else difference(found.points, found.low, found.high))
        cells.append(tuple(line))
    return header, cells


def tests(words: Sequence[str]) -> Table:
    """The named contrasts of studies, with Holm's correction within each."""
    header = [
        "Contrast",
        "Difference [95%]",
        "p",
        "Other draws and images",
        "p of less than 1 point",
        "Verdict",
    ]
    cells = []
    for study in words:
        for row in contrasts.read_rows(MEASURED / study / "contrasts.csv"):
            name = row.name if len(words) == 1 else f"{row.name}, {study}"
            both = between(row.both_low, row.both_high, "+.1f")
            shown = difference(row.points, row.low, row.high)
            cells.append((name, shown, p_text(row.p_holm), both, p_text(row.p_same_holm), row.verdict))
    return header, cells


def images(words: Sequence[str]) -> Table:
    """Diagnostics of added images."""

    @cache
    def of(study: str) -> dict[str, diagnostics.Row]:
        return {row.method: row for row in diagnostics.read_rows(MEASURED / study / "diagnostics.csv")}

    def show(value: float | None, form: str) -> str:
        return NONE if value is None else format(value, form)

    header = ["Images of", "Judge (%)", "Style", "Diversity", "Precision (%)", "Coverage (%)"]
    pairs = named(words, lambda study: list(of(study)))
    cells = []
    for row, study in pairs:
        one = of(study)[row]
        cells.append(
            (
                label(row, one.label, study, pairs),
                show(one.agreement_judge_percent, ".0f"),
                show(one.style_mmd2, ".2f"),
                show(one.diversity, ".2f"),
                show(one.precision_percent, ".0f"),
                show(one.coverage_percent, ".0f"),
            )
        )
    return header, cells


def further(words: Sequence[str]) -> Table:
    """Accuracies on a study's further test sets, and how much more added images bring there."""
    (study,) = words
    rows = further_tests.read_rows(MEASURED / study / "further_tests.csv")
    baseline = next(row.label for row in rows if row.baseline_points is None)
    header = [
        "Test images",
        "Row",
        "Top-1 (%)",
        f"against {baseline}",
        "more than on the ordinary test images",
    ]
    cells = []
    for row in rows:
        ahead = difference(row.baseline_points, row.baseline_low, row.baseline_high)
        more = difference(row.more_points, row.more_low, row.more_high)
        cells.append((row.test, row.label, f"{row.mean_percent:.1f}", ahead, more))
    return header, cells


KINDS: dict[str, Callable[[Sequence[str]], Table]] = {
    "accuracy": accuracy,
    "contrasts": tests,
    "images": images,
    "further": further,
}


def table(request: str) -> str:
    """The Markdown of a request, such as ``contrasts miniature``."""
    kind, *words = request.split()
    header, cells = KINDS[kind](words)
    lines = [header, ["---", *("---:" for _ in header[1:])], *cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def pages() -> Iterator[tuple[Path, str, str]]:
    """Pages that ask for tables: path, text, and the text with today's tables."""
    for page in sorted(PROJECT.glob("docs/*.md")):
        text = page.read_text(encoding="utf-8")
        if BLOCK.search(text):
            yield page, text, BLOCK.sub(lambda block: block[1] + table(block[2]), text)


def main() -> None:
    """Write the tables into their pages; with --check, fail if a page has other ones."""
    for page, text, wanted in pages():
        if "--check" not in sys.argv:
            page.write_text(wanted, encoding="utf-8")
        elif text != wanted:
            sys.exit(f"{page.relative_to(PROJECT)} has other numbers than docs/measured: run `make docs`")


if __name__ == "__main__":
    main()
