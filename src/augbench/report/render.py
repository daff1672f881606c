"""Formats of the report's tables: CSV, Markdown, LaTeX and aligned text for a terminal.

CSV has full precision and reads back as the same rows. Markdown reads back as the same displayed table.
"""

from __future__ import annotations

import csv
import re
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from augbench.files import write_text
from augbench.texts import one_line

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    R = TypeVar("R", bound=DataclassInstance)

NONE = "-"
csv.field_size_limit(1 << 30)  # prompts may be longer than the default


def spread(mean: float | None, stderr: float | None) -> str:
    """``62.6 ± 0.1``, with one decimal as in the paper; a dash if there is no value."""
    if mean is None:
        return NONE
    return f"{mean:.1f}" if stderr is None else f"{mean:.1f} ± {stderr:.1f}"


def signed(points: float | None) -> str:
    """A difference in percentage points, with its sign; a dash if there is no value."""
    return NONE if points is None else f"{points:+.1f}"


@dataclass(frozen=True)
class Layout:
    """A table as displayed.

    Attributes
    ----------
    title : str
        First line in the terminal.
    header : tuple of str
    numeric : tuple of bool
        Whether each column is right-aligned.
    cells : tuple of tuple of str
        Lines of as many cells as the header has.
    notes : tuple of str
        The footer, one paragraph each.
    lead : str
        Paragraph above the table; empty for none.
    """

    title: str
    header: tuple[str, ...]
    numeric: tuple[bool, ...]
    cells: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]
    lead: str = ""


def render_csv(
    rows: Sequence[DataclassInstance], notes: Sequence[str] = (), without: Collection[str] = ()
) -> str:
    """Write one line per row in full precision, None as an empty cell, then the notes as lines with ``#``.

    Fields named in ``without`` are left out; they need a default to be read back.
    ``pandas.read_csv(path, comment="#")`` and :func:`read_csv` read it.
    """
    names = [field.name for field in fields(rows[0]) if field.name not in without] if rows else []
    lines = [names] if rows else []
    lines += [[_csv_cell(asdict(row)[name]) for name in names] for row in rows]
    return "".join(f"{','.join(line)}\n" for line in lines) + "".join(
        f"# {one_line(note)}\n" for note in notes
    )


def _csv_cell(value: object) -> str:
    text = repr(float(value)) if isinstance(value, float) else "" if value is None else one_line(str(value))
    # quotes around #, too, which begins a comment
    return '"' + text.replace('"', '""') + '"' if set(text) & set(',"#') else text


def read_csv(path: str | Path, kind: type[R]) -> list[R]:
    """Read the rows, of dataclass ``kind``, of a file that :func:`render_csv` made."""
    kinds = {field.name: str(field.type) for field in fields(kind)}

    def value(name: str, text: str) -> object:
        if not text and "None" in kinds[name]:
            return None
        if kinds[name].startswith("bool"):
            return text == "True"
        if kinds[name].startswith("float"):
            return float(text)
        return int(text) if kinds[name].startswith("int") else text

    lines = [line for line in Path(path).read_text(encoding="utf-8").split("\n") if not line.startswith("#")]
    return [
        kind(**{name: value(name, text) for name, text in line.items()}) for line in csv.DictReader(lines)
    ]


def read_notes(path: str | Path) -> tuple[str, ...]:
    """Read the notes of a file that :func:`render_csv` made."""
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    return tuple(line.removeprefix("# ") for line in lines if line.startswith("# "))


def escape_markdown(text: str) -> str:
    """Escape ``text`` so that Markdown shows it unchanged, also in a table."""
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>|#~$&" else letter for letter in one_line(text))


def render_markdown(layout: Layout) -> str:
    """Render a pipe table, with the lead above it and the footer as a list."""
    lines = [
        *([escape_markdown(layout.lead), ""] if layout.lead else []),
        "| " + " | ".join(layout.header) + " |",
        "|" + "|".join("---:" if numeric else "---" for numeric in layout.numeric) + "|",
        *("| " + " | ".join(map(escape_markdown, line)) + " |" for line in layout.cells),
        "",
        *(f"- {escape_markdown(note)}" for note in layout.notes),
    ]
    return "\n".join(lines) + "\n"


def read_markdown(path: str | Path, title: str) -> Layout:
    """Read the table of a file that :func:`render_markdown` made; its title becomes ``title``."""
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    start = next(place for place, line in enumerate(lines) if line.startswith("| "))
    lead = _unescape_markdown(lines[0]) if start else ""
    head, align, *rest = lines[start:]
    lines = [line for line in rest if line.startswith("|")]
    notes = tuple(_unescape_markdown(line.removeprefix("- ")) for line in rest if line.startswith("- "))
    numeric = tuple(column.endswith(":") for column in align.strip("|").split("|"))
    return Layout(title, _split(head), numeric, tuple(map(_split, lines)), notes, lead)


def _split(line: str) -> tuple[str, ...]:
    return tuple(_unescape_markdown(cell) for cell in line.removeprefix("| ").removesuffix(" |").split(" | "))


def _unescape_markdown(text: str) -> str:
    return re.sub(r"\\([\\`*_\[\]<>|#~$&])", r"\1", text)


LATEX = {
    "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%", "±": r"$\pm$",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "↑": r"$\uparrow$",
}  # fmt: skip


def escape_latex(text: str) -> str:
    r"""Escape ``text`` so that LaTeX shows it unchanged; ± becomes a math symbol.

    A bracket or star at its start would be an argument of ``\\`` before it; two hyphens would be a dash.
    """
    escaped = "".join(LATEX.get(letter, letter) for letter in one_line(text))
    return re.sub(r"^[\[*]", r"{\g<0>}", re.sub("-(?=-)", "-{}", escaped))


def render_latex(layout: Layout, caption: str, label: str) -> str:
    r"""Render a ``table`` with booktabs rules, lead and footer below; needs ``\usepackage{booktabs}``."""
    rows = [" & ".join(map(escape_latex, line)) + r" \\" for line in layout.cells]
    lines = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{escape_latex(caption)}}}",
        rf"  \label{{tab:{label.replace('_', '-')}}}",
        rf"  \begin{{tabular}}{{{''.join('r' if numeric else 'l' for numeric in layout.numeric)}}}",
        r"    \toprule",
        "    " + " & ".join(map(escape_latex, layout.header)) + r" \\",
        r"    \midrule",
        *(f"    {row}" for row in rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        "",
        r"  \medskip",
        r"  \begin{minipage}{\linewidth}\footnotesize",
        *(f"    {escape_latex(note)}\\par" for note in (layout.lead, *layout.notes) if note),
        r"  \end{minipage}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def render_terminal(layout: Layout, width: int = 100) -> str:
    """Render aligned columns for a terminal; lead and footer are wrapped at ``width`` characters."""
    cells = [layout.header, *(tuple(map(one_line, line)) for line in layout.cells)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(layout.header))]

    def aligned(line: Sequence[str]) -> str:
        parts = [
            text.rjust(size) if numeric else text.ljust(size)
            for text, size, numeric in zip(line, widths, layout.numeric, strict=True)
        ]
        return "  ".join(parts).rstrip()

    body = [aligned(line) for line in cells]
    body.insert(1, "-" * max(map(len, body)))
    footer = [
        textwrap.fill(note, width, initial_indent="* ", subsequent_indent="  ") for note in layout.notes
    ]
    lead = [textwrap.fill(layout.lead, width), ""] if layout.lead else []
    return "\n".join([*lead, layout.title, "", *body, "", *footer]) + "\n"


def write_table(
    outs: Mapping[str, str | Path],
    layout: Layout,
    rows: Sequence[DataclassInstance] = (),
    caption: str = "",
    label: str = "",
    width: int = 100,
) -> None:
    """Write a table in the formats that ``outs`` maps to paths.

    Parameters
    ----------
    outs : mapping of str to path
        Any of ``csv`` (of ``rows``), ``md``, ``tex`` (with ``caption`` and ``label``) and ``txt`` (lines of
        ``width`` characters).
    """
    formats: dict[str, Callable[[], str]] = {
        "csv": lambda: render_csv(rows, layout.notes),
        "md": lambda: render_markdown(layout),
        "tex": lambda: render_latex(layout, caption, label),
        "txt": lambda: render_terminal(layout, width),
    }
    for kind, path in outs.items():
        write_text(path, formats[kind]())
