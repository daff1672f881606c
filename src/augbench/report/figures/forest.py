"""Forest plot: every row's difference from the baseline, with its intervals.

Input: ``table1.csv`` and ``statistics.csv``. Output: a PDF and a PNG, one column wide; the same bytes for the
same tables. Thick bars are 95% intervals over runs, thin ones over test images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from augbench.errors import UserError
from augbench.report.figures.style import COLOURS, FONT_SIZE, WIDTH, open_axes, save, styled, wrap
from augbench.report.render import signed
from augbench.report.tables import statistics, table1

ROW, FRAME = 0.19, 0.75  # inches: height of a row, and of what is above and below the rows
LINE = 0.12  # inches: height of a further line below the rows
THICK, THIN = 2.2, 0.7  # points: lines of the intervals over runs, and over test images
GREY = "0.35"  # colour of families without one of their own
MINUS = "\u2212"


class OfFamily(Protocol):
    """A row of the study, and its family."""

    @property
    def method(self) -> str: ...
    @property
    def family(self) -> str: ...


def compared(rows: Sequence[statistics.Row]) -> list[statistics.Row]:
    """The rows that have a difference from the baseline."""
    return [row for row in rows if row.baseline_points is not None]


def draw(
    table: Sequence[OfFamily],
    rows: Sequence[statistics.Row],
    test: str = "",
    ordinary: Mapping[str, float | None] | None = None,
) -> Figure:
    """Draw the figure, the first row on top.

    Parameters
    ----------
    test : str
        Name of the test set, if it is not the ordinary one.
    ordinary : mapping of method to float, optional
        Differences on the ordinary test images, shown as crosses.

    Raises
    ------
    UserError
        No row has a difference from the baseline.
    """
    shown = compared(rows)
    if not shown:
        raise UserError(
            "forest plot", "no difference from a baseline", "a baseline and another row are needed"
        )
    families = {row.method: row.family for row in table}
    figure = Figure(figsize=(WIDTH, FRAME + ROW * len(shown)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color="0.5", linestyle=(0, (4, 2)), linewidth=0.8, zorder=1)
    for place, row in enumerate(shown):
        _draw_row(axes, place, row, COLOURS.get(families[row.method], GREY))
        if ordinary is not None and (points := ordinary[row.method]) is not None:
            axes.plot((points,), (place,), "x", color="0.2", markersize=4, markeredgewidth=0.8, zorder=4)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_yticks(range(len(shown)), [wrap(row.label, 34) for row in shown])
    axes.tick_params(axis="y", length=0)
    values = axes.secondary_yaxis("right")
    values.set_yticks(range(len(shown)), [signed(row.baseline_points).replace("-", MINUS) for row in shown])
    values.tick_params(axis="y", length=0)
    values.spines["right"].set_visible(False)
    where = [wrap(f"on {test}; crosses: on the ordinary test", 60)] if test else []
    note = ["Difference from training without added images (points)", *where, _legend(shown)]
    figure.supxlabel("\n".join(note), fontsize=FONT_SIZE)
    figure.set_figheight(figure.get_figheight() + LINE * len("".join(where).splitlines()))
    open_axes(axes)
    axes.spines["left"].set_visible(False)
    return figure


def _draw_row(axes: Axes, place: int, row: statistics.Row, colour: str) -> None:
    """Draw one row's point, and its intervals as far as it has them."""
    assert row.baseline_points is not None
    if row.baseline_low is not None and row.baseline_high is not None:
        ends = (row.baseline_low, row.baseline_high)
        axes.plot(ends, (place, place), color=colour, linewidth=THICK, solid_capstyle="butt", zorder=2)
    if row.baseline_images_low is not None and row.baseline_images_high is not None:
        ends = (row.baseline_images_low, row.baseline_images_high)
        axes.plot(ends, (place + 0.28, place + 0.28), color=colour, linewidth=THIN, zorder=2)
    axes.plot(
        (row.baseline_points,), (place,), "o", color="white", markeredgecolor=colour, markersize=4, zorder=3
    )


def _legend(rows: Sequence[statistics.Row]) -> str:
    thin = "thin: 95% over test images"
    return f"thick: 95% over runs; {thin}" if any(row.baseline_low is not None for row in rows) else thin


def write_forest(table: str | Path, rows: str | Path, outs: Mapping[str, str | Path]) -> None:
    """Draw the figure from ``table1.csv`` and ``statistics.csv``, to paths by format (``pdf``, ``png``)."""
    with styled():
        save(draw(table1.read_rows(table), statistics.read_rows(rows)), outs)
