"""The figure of a comparison: every row's difference from its study's baseline, over the studies.

Input: ``compare.csv``. Output: a PDF and a PNG, two columns wide; the same bytes for the same table. The
horizontal axis has the studies in the order given, or the number that they vary, if it is one. Bars are 95%
intervals over runs; markers of rows that were cut while still improving are filled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from augbench.commands.compare.tables import Row
from augbench.report.figures.style import (
    COLOURS,
    FONT_SIZE,
    WIDTH,
    legend_label,
    open_axes,
    save,
    styled,
    wrap,
)
from augbench.report.render import read_csv

HEIGHT, LEGEND_LINE = 2.4, 0.14  # inches
GREY = "0.35"  # colour of families without one of their own
MARKERS = "osD^vPX<>*ph"  # rows can be told apart without colour
LINES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
DODGE = 0.06  # of the space between neighbours, by which two rows are apart; all rows take ten times that
LOG_FROM = 8  # ratio of largest to smallest number from which the axis is logarithmic
CUT_NOTE = "filled: training was cut while accuracy was still rising"
LABEL = 44  # characters of a row's label in the legend


def draw(rows: Sequence[Row], key: str = "") -> Figure:
    """Draw the figure.

    Without a baseline in any study, accuracies are drawn in place of differences.

    Parameters
    ----------
    key : str
        Key of the number that the studies vary; for their names on the axis, it may be empty.
    """
    plain = all(row.baseline_points is None for row in rows)
    shown = [row for row in rows if plain or row.baseline_points is not None]
    names = list(dict.fromkeys(row.study for row in rows))
    by_row: dict[str, list[Row]] = {}
    for row in shown:
        by_row.setdefault(row.row, []).append(row)
    height = max(HEIGHT, 0.6 + LEGEND_LINE * len(by_row))
    figure = Figure(figsize=(2 * WIDTH, height), layout="constrained")
    axes = figure.subplots()
    if not plain:
        axes.axhline(0, color="0.5", linestyle=(0, (4, 2)), linewidth=0.8, zorder=1)
    places = _places(axes, rows, names, key)
    families: dict[str, int] = {}
    for number, own in enumerate(by_row.values()):
        style = families[own[0].family] = families.get(own[0].family, -1) + 1
        offset = (number - (len(by_row) - 1) / 2) * min(DODGE, 10 * DODGE / len(by_row))
        _draw_row(axes, own, [places(row.study, offset) for row in own], plain, number, style)
    if any(row.cut for row in shown):
        figure.supxlabel(CUT_NOTE, fontsize=FONT_SIZE)
    axes.set_ylabel("Top-1 (%)" if plain else "Difference from the study's baseline (points)")
    open_axes(axes)
    figure.legend(loc="outside right upper", frameon=False, handlelength=2.6)
    return figure


class _Places:
    """Places of the studies on the axis; ``offset``, in steps between them, keeps markers of rows apart."""

    def __init__(self, values: Mapping[str, float], step: float, logarithmic: bool) -> None:
        self.values, self.step, self.logarithmic = values, step, logarithmic

    def __call__(self, study: str, offset: float) -> float:
        value = self.values[study]
        if self.logarithmic:
            return float(value * self.step**offset)
        return value + offset * self.step


def _places(axes: Axes, rows: Sequence[Row], names: Sequence[str], key: str) -> _Places:
    """Set up the horizontal axis."""
    factors = {row.study: row.factor for row in rows if row.factor is not None}
    if len(factors) < len(names):
        axes.set_xticks(range(len(names)), [wrap(name, max(8, 60 // len(names))) for name in names])
        axes.set_xlim(-0.5, len(names) - 0.5)
        return _Places({name: float(place) for place, name in enumerate(names)}, 1.0, False)
    values = sorted(factors.values())
    logarithmic = values[0] > 0 and values[-1] / values[0] >= LOG_FROM
    if logarithmic:
        axes.set_xscale("log")
        step = min(high / low for low, high in pairwise(values))
    else:
        step = min(high - low for low, high in pairwise(values))
    axes.set_xticks(values, [f"{value:,.10g}" for value in values])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(f"{key}{' (logarithmic)' if logarithmic else ''}")
    return _Places(factors, step, logarithmic)


def _draw_row(
    axes: Axes, rows: Sequence[Row], places: Sequence[float], plain: bool, number: int, style: int
) -> None:
    """Draw a row's line over the studies that have it, with its intervals over runs."""
    colour = COLOURS.get(rows[0].family, GREY)
    points = [row.mean_percent if plain else row.baseline_points or 0.0 for row in rows]
    for row, place in zip(rows, places, strict=True):
        low, high = (row.low_percent, row.high_percent) if plain else (row.baseline_low, row.baseline_high)
        if low is not None and high is not None:
            axes.plot((place, place), (low, high), color=colour, linewidth=0.9, zorder=2)
        if row.cut:
            point = row.mean_percent if plain else row.baseline_points or 0.0
            axes.plot(place, point, MARKERS[number % len(MARKERS)], color=colour, markersize=4, zorder=4)
    order = sorted(range(len(places)), key=places.__getitem__)
    axes.plot(
        [places[place] for place in order],
        [points[place] for place in order],
        color=colour,
        linestyle=LINES[style % len(LINES)],
        marker=MARKERS[number % len(MARKERS)],
        markersize=4,
        markerfacecolor="white",
        linewidth=0.8,
        label=legend_label(rows[0].label, LABEL),
        zorder=3,
    )


def write_figure(table: str | Path, outs: Mapping[str, str | Path], key: str = "") -> None:
    """Draw the figure from ``compare.csv``, to paths by format (``pdf``, ``png``)."""
    with styled():
        save(draw(read_csv(table, Row), key), outs)
