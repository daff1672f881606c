"""Figure 5A: which classes gain and which lose, with images of the extreme classes (paper, figure 5A).

Input: accuracies per class, Table 1, the training split and the first training set of the methods shown.
Output: every class's change against the baseline (``figure5a.csv``), thumbnails of the classes with the
largest losses and gains, and a PDF and a PNG drawn from these.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator

from augbench.artifacts.parquet import REMAKE
from augbench.artifacts.pool import read_index
from augbench.data.classes import read_class_table
from augbench.data.splits import read_split
from augbench.errors import UserError
from augbench.files import write_text
from augbench.report.contrasts import baseline_of
from augbench.report.figures.style import (
    COLOURS,
    MARKERS,
    WIDTH,
    legend_label,
    open_axes,
    open_canvas,
    place_image,
    shorten,
)
from augbench.report.pictures import (
    REAL,
    ImageRecord,
    Shown,
    added_pictures,
    choose,
    real_pictures,
    rows_of,
    short_name,
    write_pictures,
)
from augbench.report.render import render_csv, signed
from augbench.report.tables import table1
from augbench.report.tables.per_class import ClassAccuracies, read_per_class

if TYPE_CHECKING:
    from augbench.runtime.job import Job

ENDS = 2  # classes shown at each end
PER_CLASS = 2  # real images of each of these classes, and as many added images
MINUS = "\u2212"
FEW = 40  # up to this number of classes, each has its own mark and error bar
PLOT, HEAD, CAPTION, GAP = 2.0, 0.15, 0.24, 0.06  # inches


@dataclass(frozen=True)
class Row:
    """One class of one method; ``rank`` counts from 0, starting with the largest loss.

    ``change_points`` is the accuracy minus the baseline's of the same run, in percentage points, mean over
    runs. ``stderr_points`` is its standard error, None for a single run. One test image is worth 100 /
    ``n_test`` points.
    """

    method: str
    label: str
    family: str
    rank: int
    class_id: str
    class_name: str
    n_test: int
    baseline_percent: float
    top1_percent: float
    change_points: float
    stderr_points: float | None


def changes(own: ClassAccuracies, baseline: ClassAccuracies) -> tuple[np.ndarray, np.ndarray | None]:
    """Mean change of every class against the baseline and its standard error, in points, paired by run.

    Returns
    -------
    mean : ndarray, float (C,)
    stderr : ndarray, float (C,), or None
        None if both have fewer than two runs in common.

    Raises
    ------
    UserError
        The classes differ from the baseline's, or no run is in both.
    """
    runs = sorted(set(own.runs) & set(baseline.runs))
    if own.class_ids != baseline.class_ids or not runs:
        raise UserError(
            "tables/per_class.parquet", "a method and the baseline differ in classes, or share no run", REMAKE
        )
    pairs = [own.top1[own.runs.index(run)] - baseline.top1[baseline.runs.index(run)] for run in runs]
    differences = 100 * np.stack(pairs)
    stderr = differences.std(axis=0, ddof=1) / np.sqrt(len(runs)) if len(runs) > 1 else None
    return differences.mean(axis=0), stderr


def build_rows(
    per_class: Mapping[str, ClassAccuracies],
    table: Sequence[table1.Row],
    methods: Iterable[str],
    names: Mapping[str, str],
) -> list[Row]:
    """Build a row for every class of ``methods``, sorted by change, ties in label order.

    Parameters
    ----------
    names : mapping of str to str
        Class names by class_id.
    """
    baseline = per_class[str(baseline_of(table))]
    rows = []
    entries = {entry.method: entry for entry in table}
    for entry in map(entries.__getitem__, methods):
        own = per_class[entry.method]
        mean, stderr = changes(own, baseline)
        before, after = (100 * accuracies.top1.mean(axis=0) for accuracies in (baseline, own))
        for rank, place in enumerate(np.argsort(mean, kind="stable")):
            class_id = own.class_ids[place]
            rows.append(
                Row(
                    method=entry.method,
                    label=entry.label,
                    family=entry.family,
                    rank=rank,
                    class_id=class_id,
                    class_name=names[class_id],
                    n_test=int(own.n_test[place]),
                    baseline_percent=float(before[place]),
                    top1_percent=float(after[place]),
                    change_points=float(mean[place]),
                    stderr_points=None if stderr is None else float(stderr[place]),
                )
            )
    return rows


def ends(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The classes with the largest losses and with the largest gains of one method; no class is in both.

    Each list starts with the largest change.
    """
    count = min(ENDS, len(rows) // 2)
    ordered = sorted(rows, key=lambda row: row.rank)
    return ordered[:count], ordered[::-1][:count]


def collect(
    job: Job,
    per_class: str | Path,
    table: str | Path,
    manifests: Mapping[str, str | Path],
    train_path: str | Path,
    classes_path: str | Path,
    out: str | Path,
    images: str | Path,
) -> None:
    """Write every class's change, and images of the classes with the largest losses and gains.

    Parameters
    ----------
    per_class, table : path
        ``per_class.parquet`` and ``table1.csv``.
    manifests : mapping of method to path
        ``resamples/{method}/selected/0.parquet`` of the methods shown, in order.

    Raises
    ------
    UserError
        A file is damaged, or a shard or training image is missing.
    """
    by_id = {info.class_id: info for info in read_class_table(classes_path)}
    rows = build_rows(
        read_per_class(per_class),
        table1.read_rows(table),
        manifests,
        {class_id: short_name(info) for class_id, info in by_id.items()},
    )
    train = read_split(train_path)
    shown: list[Shown] = []
    pictured: dict[str, None] = {}
    for method, manifest in manifests.items():
        wanted = [row.class_id for end in ends([row for row in rows if row.method == method]) for row in end]
        pictured.update(dict.fromkeys(wanted))
        pool = read_index(manifest)
        parts = []
        for class_id in wanted:
            own = rows_of(pool, class_id)
            places = choose(own.num_rows, PER_CLASS, job.study.seed, "5A", class_id)
            parts.append(own.take(pa.array(places, pa.int64())))
        shown += added_pictures(method, pa.concat_tables(parts), by_id, job.folder)
    real = []
    for class_id in pictured:
        own_rows = [row for row, name in enumerate(train.class_ids) if name == class_id]
        real += [
            (by_id[class_id], own_rows[place])
            for place in choose(len(own_rows), PER_CLASS, job.study.seed, "5A", REAL, class_id)
        ]
    write_pictures([*real_pictures(job, train, real), *shown], images)
    notes = ("change_points: a class's accuracy minus the baseline's of the same run, mean over runs.",)
    write_text(out, render_csv(rows, notes))


# --- drawing ------------------------------------------------------------------------------------------------


def draw(rows: list[Row], pictures: list[tuple[ImageRecord, np.ndarray]]) -> Figure:
    """Draw the sorted changes of all classes; below, real and added images of the extreme classes."""
    methods = {row.method: [other for other in rows if other.method == row.method] for row in rows}
    images = {(picture.panel, picture.class_id, picture.place): image for picture, image in pictures}
    half = (WIDTH - 2 * GAP) / 2
    cell = half / (2 * PER_CLASS)
    lines = {method: max(map(len, ends(own))) for method, own in methods.items()}
    block = CAPTION + cell + 0.04
    height = PLOT + 0.1 + sum(2 * HEAD + count * block for count in lines.values())
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes(
        (0.42 / WIDTH, 1 - (PLOT - 0.44) / height, 1 - 0.47 / WIDTH, (PLOT - 0.5) / height)
    )
    _draw_changes(axes, methods)
    canvas = open_canvas(figure)
    top = height - PLOT - 0.1
    for method, own in methods.items():
        figure.text(
            0,
            (top - HEAD + 0.04) / height,
            shorten(own[0].label, 60),
            weight="bold",
            color=COLOURS[own[0].family],
            va="baseline",
        )
        top -= HEAD
        for side, (title, end) in enumerate(zip(("Largest losses", "Largest gains"), ends(own), strict=True)):
            left = side * (half + 2 * GAP)
            figure.text(
                left / WIDTH,
                (top - HEAD + 0.05) / height,
                f"{title}: real | added",
                va="baseline",
                style="italic",
            )
            for line, row in enumerate(end):
                foot = top - HEAD - line * block - CAPTION
                text = shorten(row.class_name, 26)
                error = "" if row.stderr_points is None else f" ± {row.stderr_points:.1f}"
                for lift, words in (
                    (0.145, text),
                    (0.04, signed(row.change_points).replace("-", MINUS) + error),
                ):
                    figure.text(left / WIDTH, (foot + lift) / height, words, va="baseline")
                for place in range(2 * PER_CLASS):
                    panel = REAL if place < PER_CLASS else method
                    if (image := images.get((panel, row.class_id, place % PER_CLASS))) is None:
                        continue
                    shift = GAP / 2 if panel == method else 0.0
                    place_image(
                        canvas, image, left + place * (cell - GAP / 8) + shift, foot - cell, 0.94 * cell
                    )
        top -= HEAD + lines[method] * block
    return figure


def _draw_changes(axes: Axes, methods: Mapping[str, Sequence[Row]]) -> None:
    """Draw the classes of each method, sorted by change.

    Few classes are marks with error bars; many are a line with a band.
    """
    axes.axhline(0, color="0.35", linewidth=0.8, linestyle=(0, (4, 2)), zorder=1)
    classes = max(map(len, methods.values()))
    for number, own in enumerate(methods.values()):
        family = own[0].family
        ranks = np.array([row.rank for row in own]) + 1
        means = np.array([row.change_points for row in own])
        errors = np.array([row.stderr_points or 0.0 for row in own])
        up, down = int((means > 0).sum()), int((means < 0).sum())
        label = f"{legend_label(own[0].label, 40)}: {up} up, {down} down"
        if classes <= FEW:
            shift = 0.12 * (2 * number - 1) if len(methods) > 1 else 0.0
            axes.errorbar(
                ranks + shift,
                means,
                yerr=errors,
                color=COLOURS[family],
                marker=MARKERS[family],
                markersize=3,
                linestyle="none",
                capsize=1.5,
                elinewidth=0.7,
                label=label,
            )
        else:
            axes.fill_between(
                ranks, means - errors, means + errors, color=COLOURS[family], alpha=0.25, linewidth=0
            )
            axes.plot(ranks, means, color=COLOURS[family], linestyle=("-", (0, (5, 1)))[number], label=label)
    bars = "bars" if classes <= FEW else "band"
    spread = any(row.stderr_points is not None for own in methods.values() for row in own)
    axes.set_xlabel(
        "Classes, in each method's own order"
        + (f"\n({bars}: standard error of the mean over runs)" if spread else "")
    )
    axes.set_ylabel("Change of accuracy (points)", labelpad=1)
    axes.xaxis.set_major_locator(
        FixedLocator(range(1, classes + 1)) if classes <= 12 else MaxNLocator(nbins=6, integer=True)
    )
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axes.legend(
        loc="upper left", frameon=False, borderpad=0, handlelength=1.2, handletextpad=0.4, labelspacing=0.25
    )
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.12 * (high - low))
    open_axes(axes)
