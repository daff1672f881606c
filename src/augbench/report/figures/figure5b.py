"""Figure 5B: accuracy against the number of added images (paper, figure 5B).

Input: Table 1, accuracies per class, the training split and the first training set of every row shown.
Output: one row per series and point (``figure5b.csv``), and a PDF and a PNG drawn from it. Where classes
ran out of images, two marks show the accuracy if those classes were always right, or always wrong: the
paper's estimates for the seven classes that ran out at 1000%. It does not say whether its classifiers were
trained on these classes. Ours are, with the images that there are, and the line shows what they reach.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from augbench.artifacts.pool import read_index
from augbench.config.study import Study
from augbench.data.splits import read_split
from augbench.errors import UserError
from augbench.files import write_text
from augbench.report.contrasts import baseline_of
from augbench.report.figures.style import COLOURS, MARKERS, WIDTH, legend_label, open_axes
from augbench.report.render import render_csv
from augbench.report.tables import table1
from augbench.report.tables.per_class import ClassAccuracies, read_per_class
from augbench.resample import needed_by_class

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from augbench.plan.paths import Plan

HEIGHT = 2.5  # inches
LABEL = 40  # characters of a label in the legend
LineStyle = str | tuple[float, tuple[float, ...]]  # a name, or an offset and lengths of dashes
LINES: tuple[LineStyle, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), "-.")
BASELINE = "real"


@dataclass(frozen=True)
class Row:
    """One point: a training set's size and its accuracy, in percent.

    ``series`` is the row that owns the pool; the baseline is its own series. ``asked_percent`` is the
    requested number of added images, in percent of the real ones. ``added_images`` is the total number in
    the first training set. ``short_classes`` counts the classes with fewer images than requested.
    ``worst_percent`` and ``best_percent`` are the accuracy if these classes were always wrong or always
    right; None if no class ran out.
    """

    series: str
    series_label: str
    family: str
    method: str
    asked_percent: float
    added_images: int
    top1_percent: float
    stderr_percent: float | None
    n: int
    short_classes: int
    worst_percent: float | None
    best_percent: float | None


def bounds(accuracies: ClassAccuracies, short: Sequence[str]) -> tuple[float, float]:
    """Mean accuracy over runs in percent if all test images of the classes ``short`` were wrong, or right."""
    rest = np.array([class_id not in short for class_id in accuracies.class_ids])
    total = accuracies.n_test.sum()
    worst = float((accuracies.top1[:, rest] * accuracies.n_test[rest]).sum(axis=1).mean() / total)
    return 100 * worst, 100 * (worst + float(accuracies.n_test[~rest].sum() / total))


def collect(
    plan: Plan,
    table: str | Path,
    per_class: str | Path,
    train_path: str | Path,
    manifests: Mapping[str, str | Path],
    out: str | Path,
) -> list[Row]:
    """Write the points, by series and size.

    Parameters
    ----------
    table, per_class : path
        ``table1.csv`` and ``per_class.parquet``.
    manifests : mapping of method to path
        ``resamples/{method}/selected/0.parquet`` of the rows of ``plan.scaling``. A class that runs out
        does so in all sets of a row.

    Raises
    ------
    UserError
        A file is damaged.
    """
    entries = {row.method: row for row in table1.read_rows(table)}
    accuracies = read_per_class(per_class)
    sizes = Counter(read_split(train_path).class_ids)
    rows = []
    for method, pool in plan.scaling.items():
        config = plan.study.augmented[method]
        added = Counter(read_index(manifests[method]).column("class_id").to_pylist())
        classes = accuracies[method].class_ids
        needed = needed_by_class(sizes, config.added_per_training_image)
        short = [class_id for class_id in classes if added[class_id] < needed[class_id]]
        family = plan.study.methods[pool].group
        rows.append(
            Row(
                pool,
                _series_label(plan.study, pool),
                "retrieval" if family == "scaling" else family,
                method,
                100 * config.added_per_training_image,
                added.total(),
                entries[method].top1_percent,
                entries[method].stderr_percent,
                entries[method].n,
                len(short),
                *(bounds(accuracies[method], short) if short else (None, None)),
            )
        )
    order = list(dict.fromkeys(row.series for row in rows))
    rows.sort(key=lambda row: (order.index(row.series), row.asked_percent))
    if (name := baseline_of([*entries.values()])) is not None:
        base = entries[name]
        rows.append(
            Row(
                series=BASELINE,
                series_label=base.label,
                family="real",
                method=name,
                asked_percent=0.0,
                added_images=0,
                top1_percent=base.top1_percent,
                stderr_percent=base.stderr_percent,
                n=base.n,
                short_classes=0,
                worst_percent=None,
                best_percent=None,
            )
        )
    notes = (
        "asked_percent: requested number of added images, in percent of the real ones. short_classes:"
        " number of classes with fewer images than that. worst_percent, best_percent: accuracy if these"
        " classes were always wrong, or always right (the paper's estimates). Whether the paper's classifiers"
        " were trained on such classes is not stated; these were, with the images available.",
    )
    write_text(out, render_csv(rows, notes))
    return rows


def _series_label(study: Study, pool: str) -> str:
    """The pool's label without its size."""
    label = study.label(pool)
    return re.sub(r"\s*\(\d+ ?%\)$", "", label)


def draw(rows: Sequence[Row]) -> Figure:
    """Draw one line per series; bars are standard errors, triangles the best and the worst case.

    Raises
    ------
    UserError
        There is no point to draw.
    """
    series: dict[str, list[Row]] = {}
    for row in rows:
        if row.series != BASELINE:
            series.setdefault(row.series, []).append(row)
    if not series:
        raise UserError("Figure 5B", "no row to draw", "rows with mechanism draw give the sizes")
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.subplots()
    ticks = sorted({row.asked_percent for own in series.values() for row in own})
    for number, own in enumerate(series.values()):
        # a hundredth of the logarithmic axis, so that error bars do not hide each other
        shift = (ticks[-1] / ticks[0]) ** (0.01 * (number - (len(series) - 1) / 2))
        _draw_series(axes, own, shift, LINES[number % len(LINES)])
    for row in rows:
        if row.series == BASELINE:
            _draw_baseline(axes, row)
    if any(row.worst_percent is not None for row in rows):
        # one entry each in the legend
        _triangle(axes, "v", label="best case: short classes all right")
        _triangle(axes, "^", label="worst case: all wrong")
    _label_axes(axes, rows, ticks)
    _legend(figure, axes, first=[legend_label(own[0].series_label, LABEL) for own in series.values()])
    return figure


def _draw_series(axes: Axes, own: Sequence[Row], shift: float, line: LineStyle) -> None:
    """Draw a line through the sizes of one series, and its best and worst cases."""
    family, places = own[0].family, [row.asked_percent * shift for row in own]
    axes.errorbar(
        places,
        [row.top1_percent for row in own],
        yerr=[row.stderr_percent or 0.0 for row in own],
        color=COLOURS[family],
        marker=MARKERS[family],
        markersize=3.5,
        linestyle=line,
        capsize=2,
        elinewidth=0.8,
        label=legend_label(own[0].series_label, LABEL),
        zorder=3,
    )
    for row, place in zip(own, places, strict=True):
        if row.worst_percent is not None and row.best_percent is not None:
            cases, colour = [row.worst_percent, row.best_percent], COLOURS[family]
            axes.plot([place] * 2, cases, color=colour, linewidth=0.6, linestyle=":", zorder=2)
            _triangle(axes, "v", [place], [row.best_percent], color=colour)
            _triangle(axes, "^", [place], [row.worst_percent], color=colour)


def _triangle(
    axes: Axes,
    marker: str,
    x: Sequence[float] = (),
    y: Sequence[float] = (),
    color: str = "0.3",
    label: str = "",
) -> None:
    """Draw an open triangle; without a place it is in the legend only."""
    axes.plot(
        x,
        y,
        marker=marker,
        markersize=4,
        color=color,
        markerfacecolor="white",
        linestyle="none",
        label=label,
        zorder=4,
    )


def _draw_baseline(axes: Axes, row: Row) -> None:
    """Draw a horizontal line at the baseline's accuracy, in a band of its standard error."""
    colour, line = COLOURS["real"], (0, (4, 2))
    axes.axhline(
        row.top1_percent,
        color=colour,
        linewidth=0.8,
        linestyle=line,
        zorder=1,
        label=legend_label(row.series_label, LABEL),
    )
    if row.stderr_percent is not None:
        low, high = row.top1_percent - row.stderr_percent, row.top1_percent + row.stderr_percent
        axes.axhspan(low, high, color=colour, alpha=0.15, linewidth=0, zorder=0)


def _label_axes(axes: Axes, rows: Sequence[Row], ticks: Sequence[float]) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(ticks, [f"{tick:g}%\n{_count(rows, tick)}" for tick in ticks])
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axes.set_xlabel("Added images: in % of the real ones, and number")
    bars = f"\nbars: standard error, n = {min(row.n for row in rows)}"
    spread = any(row.stderr_percent is not None for row in rows)
    axes.set_ylabel("Top-1 accuracy (%)" + (bars if spread else ""))
    open_axes(axes)


def _legend(figure: Figure, axes: Axes, first: Sequence[str]) -> None:
    """Draw a legend above the axes: the labels of the series ``first``, then the others."""
    handles, labels = axes.get_legend_handles_labels()
    entries = dict(zip(labels, handles, strict=True))
    texts = list(dict.fromkeys([*first, *labels]))
    figure.legend(
        [entries[text] for text in texts],
        texts,
        loc="outside upper left",
        ncols=2,
        frameon=False,
        handlelength=1.8,
        columnspacing=1.0,
        labelspacing=0.25,
    )


def _count(rows: Sequence[Row], tick: float) -> str:
    """Number of images of a size: the mean over the series that have it and did not run out."""
    sizes = [row for row in rows if row.asked_percent == tick and row.series != BASELINE]
    whole = [row.added_images for row in sizes if not row.short_classes]
    images = fmean(whole or [row.added_images for row in sizes])
    if images < 10_000:
        return f"{images:,.0f}"
    return f"{images / 1000:,.0f}k" if images < 1_000_000 else f"{images / 1_000_000:.1f}M"
