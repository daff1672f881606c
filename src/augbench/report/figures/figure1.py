"""Figure 1: the best method of each family, as bars with standard errors (paper, figure 1).

Input: ``table1.csv`` only. Output: a PDF and a PNG, one column wide; the same bytes for the same table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from augbench.errors import UserError
from augbench.report.contrasts import upper_bound
from augbench.report.figures.style import COLOURS, WIDTH, open_axes, save, shorten, styled, wrap
from augbench.report.render import spread
from augbench.report.tables.table1 import Row, read_rows

FAMILIES = {
    "real": "No added\nimages",
    "prompting": "Prompting",
    "personalised": "Personalised",
    "retrieval": "Retrieval",
    "hybrid": "Combined",
}
HEIGHT = 2.6  # inches


def best_of_families(rows: Sequence[Row]) -> dict[str, Row]:
    """The row with the highest accuracy of each family of Figure 1; ``real`` is the training split alone.

    Families without a row are left out.
    """
    best: dict[str, Row] = {}
    for family in FAMILIES:
        members = [row for row in rows if row.family == family and row.split == "train"]
        if members:
            best[family] = max(members, key=lambda row: row.top1_percent)
    return best


def axis_start(rows: Sequence[Row]) -> float:
    """Start of the accuracy axis: a round number well below the lowest bar, so that differences can be seen.

    The space below the lowest error bar is half of the bars' range, and at least two points. The axis never
    starts below 0.
    """
    lows = [row.top1_percent - (row.stderr_percent or 0) for row in rows]
    span = max(row.top1_percent + (row.stderr_percent or 0) for row in rows) - min(lows)
    step = 5.0 if span > 8 else 1.0
    return max(0.0, math.floor((min(lows) - max(2.0, span / 2)) / step) * step)


def draw(rows: Sequence[Row]) -> Figure:
    """Draw the figure of a table's rows; families without a row are left out.

    Raises
    ------
    UserError
        No row is of a family that Figure 1 shows.
    """
    best = best_of_families(rows)
    if not best:
        raise UserError(
            "Figure 1",
            "no row of its families",
            f"at least one of {', '.join(FAMILIES)} is needed in the table",
        )
    bound = upper_bound(rows)
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.subplots()
    start = axis_start([*best.values()])
    for place, (family, row) in enumerate(best.items()):
        axes.bar(place, row.top1_percent - start, bottom=start, width=0.68, color=COLOURS[family], zorder=2)
        top = row.top1_percent
        if row.stderr_percent is not None:
            axes.errorbar(
                place,
                top,
                yerr=row.stderr_percent,
                color="black",
                linewidth=0.8,
                capsize=2.5,
                capthick=0.8,
                zorder=3,
            )
            top += row.stderr_percent
        text = axes.annotate(
            spread(row.top1_percent, row.stderr_percent),
            (place, top),
            (0, 2.5),
            textcoords="offset points",
            ha="center",
            va="bottom",
        )
        # readable where the dashed line crosses it
        text.set_bbox({"facecolor": "white", "linewidth": 0, "pad": 0.6})
    highest = max(
        row.top1_percent + (row.stderr_percent or 0) for row in (*best.values(), *([bound] if bound else []))
    )
    axes.set_ylim(start, highest + 0.14 * (highest - start))
    if bound is not None:
        axes.axhline(bound.top1_percent, color="0.35", linestyle=(0, (4, 2)), linewidth=0.8, zorder=2.5)
        axes.annotate(
            f"{shorten(bound.label, 40)}: {bound.top1_percent:.1f}",
            (-0.5, bound.top1_percent),
            (0, 2),
            textcoords="offset points",
            color="0.25",
            va="bottom",
        )
    axes.set_xlim(-0.55, len(best) - 0.45)
    axes.set_xticks(range(len(best)), [_tick(family, row, 46 // len(best)) for family, row in best.items()])
    axes.tick_params(axis="x", length=0)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))
    axes.set_ylabel("Top-1 accuracy (%)" + (f"\naxis starts at {start:g}, not at 0" if start > 0 else ""))
    open_axes(axes)
    if start > 0:
        _break_mark(axes)
    return figure


def _tick(family: str, row: Row, width: int) -> str:
    """The family's name, and below it the method's name if it differs.

    Lines have ``width`` characters.
    """
    name = FAMILIES[family]
    if family == "real" or row.label.lower() == name.lower():
        return name
    return f"{name}\n{wrap(f'({row.label})', width)}"


def _break_mark(axes: Axes) -> None:
    """Draw two short strokes across the lower end of the accuracy axis."""
    for height in (0.012, 0.032):
        axes.plot(
            (-0.018, 0.018),
            (height, height + 0.016),
            transform=axes.transAxes,
            color="black",
            linewidth=0.7,
            clip_on=False,
            zorder=5,
        )


def write_figure1(table: str | Path, outs: Mapping[str, str | Path]) -> None:
    """Draw Figure 1 from ``table1.csv`` and write it to ``outs``: paths by format (``pdf``, ``png``)."""
    with styled():
        save(draw(read_rows(table)), outs)
