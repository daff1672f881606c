"""Draw one of Figures 3 to 5B or the learning curves from its data."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from augbench.report.figures.style import save, styled
from augbench.report.pictures import read_pictures
from augbench.report.render import read_csv


def write_figure(
    name: str, table: str | Path, outs: Mapping[str, str | Path], images: str | Path | None = None
) -> None:
    """Draw the figure of module ``name`` and write it to ``outs``: paths by format (``pdf``, ``png``).

    The module has the class ``Row`` of a line of ``table``, and ``draw``, which takes the rows and, if the
    figure shows images, those of the file ``images``.
    """
    figure = import_module(f"augbench.report.figures.{name}")
    data = [read_csv(table, figure.Row), *([] if images is None else [read_pictures(images)])]
    with styled():
        save(figure.draw(*data), outs)
