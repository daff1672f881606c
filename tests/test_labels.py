"""Labels are texts: no character in one is code in a table, a figure, LaTeX, Markdown or HTML."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SMALL_STUDY
from matplotlib.figure import Figure
from test_figures import make_squares, texts_of

from augbench.config.study import merge, parse_study
from augbench.errors import UserError
from augbench.report.figures import figure1, figure3, figure4, figure5a, figure5b, forest, learning_curves
from augbench.report.figures.style import shorten, styled
from augbench.report.html.parts import table_of, templates
from augbench.report.pictures import read_pictures
from augbench.report.render import (
    Layout,
    read_csv,
    read_markdown,
    read_notes,
    render_csv,
    render_latex,
    render_markdown,
    render_terminal,
)
from augbench.report.tables import statistics, table1

LABELS = {
    "two dollars": "$$",
    "prices": "$5 vs $10",
    "broken mathematics": r"$\frac{$",
    "tag": "<b>bold</b> <script>",
    "entity": "cats &amp; dogs & more",
    "underscore first": "_hidden_",
    "percent": "50% of 100%",
    "comment": "# 1",
    "bracket first": "[2pt] row",
    "star first": "*row*",
    "dashes": "a--b---c",
    "backslash": r"\\ \begin{x} ~ ^ {",
    "pipe": "a | b || c",
    "quotes": "a \"b\" `c` 'd'",
    "formula": "=1+1",
    "one long word": "x" * 300,
    "many words": "word " * 60 + "end",
    "accents": "Entraînement à l'été, Größe",
}
ANY_LABEL = pytest.mark.parametrize("label", LABELS.values(), ids=LABELS.keys())


@dataclass(frozen=True)
class Line:
    label: str
    number: float


def layout_of(label: str) -> Layout:
    return Layout(
        "A title", ("Method", "Value"), (False, True), ((label, "1.0"), (label, "2.0")), (label,), label
    )


# --- figures ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Callable[[str], Figure]]:
    """Functions that draw each figure of a small study with a given label in all rows."""
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("squares")
    squares = make_squares(folder)
    patch.chdir(folder)
    modules: dict[str, Any] = {
        "figure3": figure3,
        "figure4": figure4,
        "figure5a": figure5a,
        "figure5b": figure5b,
        "learning_curves": learning_curves,
    }
    found: dict[str, Callable[[str], Figure]] = {}
    for name, module in modules.items():
        files = squares.collect(name)
        rows = read_csv(files["table"], module.Row)
        images = [read_pictures(files["images"])] if "images" in files else []
        column = "series_label" if name == "figure5b" else "label"
        found[name] = lambda label, module=module, rows=rows, images=images, column=column: module.draw(
            [replace(row, **{column: label}) for row in rows], *images
        )
    table = table1.read_rows(squares.plan.table1["csv"])
    hits = {row.method: {run: np.arange(60) < 30 + run for run in (0, 1)} for row in table}
    runs = [
        table1.RunRow(row.method, number, row.top1_percent + number, 50.0, 1, 2, 24, 24, 10, 60)
        for row in table
        for number in (0, 1)
    ]
    out = {"csv": folder / "statistics.csv"}
    statistics.write_statistics("squares", table, runs, hits, 0, squares.job.study.report, out)
    tested = statistics.read_rows(out["csv"])

    def labelled(rows: list[Any], label: str) -> list[Any]:
        return [replace(row, label=label) for row in rows]

    found["figure1"] = lambda label: figure1.draw(labelled(table, label))
    found["forest"] = lambda label: forest.draw(labelled(table, label), labelled(tested, label))
    patch.undo()
    return found


@pytest.mark.parametrize(
    "figure", ["figure1", "figure3", "figure4", "figure5a", "figure5b", "forest", "learning_curves"]
)
@pytest.mark.parametrize(
    "name", ["prices", "broken mathematics", "underscore first", "one long word", "many words"]
)
def test_a_figure_shows_any_label_as_it_is(
    drawings: dict[str, Callable[[str], Figure]], figure: str, name: str
) -> None:
    label = LABELS[name]
    with styled(), warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = drawings[figure](label)
        drawn.savefig(io.BytesIO(), format="png", dpi=30)
        shown = "".join(texts_of(drawn)).replace("\n", "").replace(" ", "")
        assert not any(
            text.get_parse_math() for text in drawn.findobj(lambda artist: hasattr(artist, "get_parse_math"))
        )
    assert label.replace(" ", "")[:15] in shown


def test_a_long_label_is_cut_between_words_and_a_long_word_inside() -> None:
    assert shorten("a short label", 20) == "a short label"
    assert shorten("a label of several words", 15) == "a label of..."
    assert shorten("x" * 30, 10) == "x" * 7 + "..."
    assert shorten("...", 10) == "..."


# --- tables -----------------------------------------------------------------------------------------


@ANY_LABEL
def test_csv_reads_back_any_label(tmp_path: Path, label: str) -> None:
    rows = [Line(label, 1.0), Line(label, 2.0)]
    (tmp_path / "t.csv").write_text(render_csv(rows, [label]), encoding="utf-8")
    assert read_csv(tmp_path / "t.csv", Line) == rows and read_notes(tmp_path / "t.csv") == (label,)
    import pandas

    read = pandas.read_csv(tmp_path / "t.csv", comment="#", keep_default_na=False)
    assert read.label.tolist() == [label, label]


def test_csv_keeps_cells_and_notes_on_their_line_and_reads_long_ones(tmp_path: Path) -> None:
    long = "x" * 200_000
    text = render_csv([Line("a\nb\u2028c", 1.0), Line(long, 2.0)], ["two\nlines"])
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    assert [row.label for row in read_csv(tmp_path / "t.csv", Line)] == ["a b c", long]
    assert read_notes(tmp_path / "t.csv") == ("two lines",)


@ANY_LABEL
def test_markdown_reads_back_any_label(tmp_path: Path, label: str) -> None:
    (tmp_path / "t.md").write_text(render_markdown(layout_of(label)), encoding="utf-8")
    assert read_markdown(tmp_path / "t.md", "A title") == layout_of(label)


@ANY_LABEL
def test_markdown_shows_any_label_as_it_is(label: str) -> None:
    from markdown_it import MarkdownIt

    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(render_markdown(layout_of(label)))
    assert texts_in(page).count(label) == 4


@ANY_LABEL
def test_latex_has_no_code_from_any_label(label: str) -> None:
    lines = render_latex(layout_of(label), label, "a_b").splitlines()
    rows = [line for line in lines if line.endswith(r"1.0 \\") or line.endswith(r"2.0 \\")]
    assert len(rows) == 2 and not any(re.match(r"\s*[\[*]", row) for row in rows)
    plain = re.sub(r"\\(text\w+\{\}|[{}$&#_%])", "", rows[0].removesuffix(r" \\"))
    assert plain.count("&") == 1 and not re.search(r"[$#%~^\\_]|--", plain)
    assert plain.count("{") == plain.count("}")


@ANY_LABEL
def test_the_terminal_has_a_line_per_row(label: str) -> None:
    lines = render_terminal(layout_of(label)).split("\n")
    rows = [line for line in lines if line.startswith(label) and line.endswith(("  1.0", "  2.0"))]
    assert len(rows) == 2


class Texts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.texts, self.tags = [""], set[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.texts.append("")

    def handle_data(self, data: str) -> None:
        self.texts[-1] += data


def texts_in(page: str) -> list[str]:
    reader = Texts()
    reader.feed(page)
    assert not reader.tags & {"b", "script", "em", "strong", "code", "del"}
    return [text.strip() for text in reader.texts]


@ANY_LABEL
def test_the_page_shows_any_label_as_text(tmp_path: Path, label: str) -> None:
    (tmp_path / "t.md").write_text(render_markdown(layout_of(label)), encoding="utf-8")
    table = table_of("table1", read_markdown(tmp_path / "t.md", label))
    page = str(templates().get_template("parts.html").module.sortable(table))
    assert label in texts_in(page)


# --- the config -------------------------------------------------------------------------------------


def test_a_label_of_several_lines_is_shown_on_one_and_an_empty_one_is_the_rows_name() -> None:
    rows = {"none": {"label": "no\nadded  images"}, "simple_prompt": {"label": " "}}
    study = parse_study(merge(SMALL_STUDY, {"methods": rows}))
    assert (study.label("none"), study.label("simple_prompt")) == ("no added images", "simple_prompt")


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"methods": {"none": {"label": "a\0b"}}}, "methods.none.label: 'a\\x00b'"),
        ({"methods": {"none": {"label": "\x1b[31mred"}}}, "methods.none.label: '\\x1b[31mred'"),
        ({"report": {"notes": ["fine", "a\x07"]}}, "report.notes.1: 'a\\x07'"),
        (
            {"report": {"contrasts": [{"row": "none", "against": "simple_prompt", "name": "a\x07"}]}},
            "report.contrasts.0.name: 'a\\x07'",
        ),
    ],
)
def test_control_characters_in_a_label_are_an_error(changes: dict[str, Any], where: str) -> None:
    with pytest.raises(UserError) as raised:
        parse_study(merge(SMALL_STUDY, changes))
    assert str(raised.value) == f"{where}; allowed: a text without control characters"
