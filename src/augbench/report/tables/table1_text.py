"""Table 1 as text, with the study's answer above it.

Input: ``table1.csv`` and ``contrasts.csv``. Output: Markdown, LaTeX and plain text for a terminal, with the
same footer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from augbench.report.answer import read_answer
from augbench.report.render import read_notes, write_table
from augbench.report.tables.table1 import layout_of, read_rows


def write_table1_text(
    study: str, table: str | Path, contrasts: str | Path, outs: Mapping[str, str | Path]
) -> None:
    """Write Table 1 to ``outs``, which maps formats (any of ``md``, ``tex``, ``txt``) to paths.

    Parameters
    ----------
    study : str
        The study's name.
    table, contrasts : path
        ``table1.csv`` and ``contrasts.csv``.
    """
    layout = layout_of(study, read_rows(table), read_notes(table), read_answer(table, contrasts))
    caption = f"Top-1 accuracy by added training data, study {study}."
    write_table(outs, layout, caption=caption, label=study)
