"""Learning curves: validation accuracy over optimiser steps, one panel per row of Table 1.

Input: the runs' ``result.json``, and ``history.json`` beside each. Output: ``learning_curves.csv``, one line
per validation, and from it alone the figure. Each panel has the single runs, their mean, the reductions of
the learning rate, and the mean of the first row for comparison.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from augbench.classifier.history import history_of, read_result
from augbench.config.study import Study
from augbench.errors import UserError
from augbench.files import write_text
from augbench.report.figures.style import COLOURS, FONT_SIZE, WIDTH, open_axes, shorten
from augbench.report.render import render_csv
from augbench.report.tables.table1 import CUT

COLUMNS, PANEL_HEIGHT = 4, 1.25  # panels side by side; inches
TITLE = 40  # characters of a panel's title
NEVER_BELOW = (
    0.05  # share of the lowest values that the accuracy axis leaves out: the first steps of training
)


@dataclass(frozen=True)
class Row:
    """One validation of one run.

    ``step`` counts optimiser steps, ``lr`` is the learning rate of the last of them. ``stopped`` and
    ``rising`` are those of the whole run (:class:`augbench.classifier.history.History`).
    """

    method: str
    label: str
    family: str
    run: int
    step: int
    lr: float
    val_top1_percent: float
    stopped: str
    rising: bool | None


Curve = list[tuple[int, float]]  # (step, accuracy in percent)


def build_rows(study: Study, results: Iterable[str | Path]) -> list[Row]:
    """Read the validations of all runs, in the order of ``results``.

    Raises
    ------
    UserError
        A history is damaged.
    """
    rows = []
    for path in results:
        value = read_result(study, path)
        method, history = value["method"], history_of(study, path, value)
        rows += [
            Row(
                method=method,
                label=study.label(method),
                family=study.methods[method].group,
                run=value["run"],
                step=validation.step,
                lr=validation.lr,
                val_top1_percent=100 * validation.val_top1,
                stopped=history.stopped,
                rising=history.rising,
            )
            for validation in history.validations
        ]
    return rows


def write_data(study: Study, results: Iterable[str | Path], out: str | Path) -> None:
    """Write the validations of all runs to ``out``, a CSV file."""
    write_text(out, render_csv(build_rows(study, results)))


def by_method(rows: Sequence[Row]) -> dict[str, list[list[Row]]]:
    """Group the validations by method and run, in their order."""
    groups: dict[str, dict[int, list[Row]]] = {}
    for row in rows:
        groups.setdefault(row.method, {}).setdefault(row.run, []).append(row)
    return {method: list(runs.values()) for method, runs in groups.items()}


def mean_curve(runs: Sequence[Sequence[Row]]) -> Curve:
    """Mean accuracy over runs at each validation that all runs have.

    Under ``plateau`` runs end at different epochs, so the mean ends with the shortest run.
    """
    return [
        (points[0].step, fmean(point.val_top1_percent for point in points))
        for points in zip(*runs, strict=False)
    ]


def reductions(run: Sequence[Row]) -> list[Row]:
    """Validations after which the learning rate was divided by 10 (a cosine lowers it in every step)."""
    return [before for before, after in pairwise(run) if after.lr < 0.2 * before.lr]


def is_cut(runs: Sequence[Sequence[Row]]) -> bool:
    """Whether most runs were cut while rising."""
    return 2 * sum(run[-1].rising is True for run in runs) > len(runs)


def draw(rows: Sequence[Row]) -> Figure:
    """Draw a panel per method; the grey curve in each is the mean of the first method.

    Raises
    ------
    UserError
        There are no validations.
    """
    methods = by_method(rows)
    if not methods:
        raise UserError("learning curves", "no validations", "at least one classifier is needed")
    columns = min(COLUMNS, len(methods))
    lines = -(-len(methods) // columns)
    figure = Figure(figsize=(2 * WIDTH, PANEL_HEIGHT * lines + 0.3), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flatten()
    reference = mean_curve(next(iter(methods.values())))
    for panel, runs in zip(panels, methods.values(), strict=False):
        _panel(panel, runs, reference)
    for place, panel in enumerate(panels):
        panel.tick_params(labelbottom=place + columns >= len(methods))
        if place >= len(methods):
            panel.set_axis_off()
    values = sorted(row.val_top1_percent for row in rows)
    low, high = values[int(NEVER_BELOW * len(values))], values[-1]
    margin = 0.05 * (high - low) + 0.5
    panels[0].set_ylim(low - margin, high + margin)
    panels[0].xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    figure.supxlabel("Optimiser steps", fontsize=FONT_SIZE)
    figure.supylabel("Validation top-1 (%)", fontsize=FONT_SIZE)
    return figure


def _panel(axes: Axes, runs: Sequence[Sequence[Row]], reference: Curve) -> None:
    family = runs[0][0].family
    colour = COLOURS["retrieval" if family == "scaling" else family]
    axes.plot(*zip(*reference, strict=True), color="0.7", linewidth=0.8, zorder=1)
    for run in runs:
        axes.plot(
            [row.step for row in run],
            [row.val_top1_percent for row in run],
            color=colour,
            linewidth=0.4,
            alpha=0.5,
            zorder=2,
        )
        lowered = reductions(run)
        axes.plot(
            [row.step for row in lowered],
            [row.val_top1_percent for row in lowered],
            linestyle="none",
            marker="v",
            markersize=2.5,
            color="black",
            markeredgewidth=0,
            zorder=4,
        )
    axes.plot(*zip(*mean_curve(runs), strict=True), color=colour, linewidth=1.1, zorder=3)
    axes.set_title(shorten(runs[0][0].label, TITLE) + (f" {CUT}" if is_cut(runs) else ""), pad=2)
    open_axes(axes)
