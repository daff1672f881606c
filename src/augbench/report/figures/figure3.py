"""Figure 3: training images before and after a method that starts from them (paper, figure 3: Boomerang).

Input: a training set's manifest of added images, and the training split. Output: the list of images and the
size of each one's change (``figure3.csv``), their thumbnails, and a PDF and a PNG drawn from these.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from augbench.artifacts.pool import read_index
from augbench.data.classes import read_class_table
from augbench.data.splits import read_split
from augbench.errors import UserError
from augbench.files import write_text
from augbench.report.figures.style import WIDTH, open_canvas, place_image, shorten
from augbench.report.pictures import (
    REAL,
    ImageRecord,
    Shown,
    added_pictures,
    choose,
    real_pictures,
    rows_of,
    spread_classes,
    write_pictures,
)
from augbench.report.render import render_csv

if TYPE_CHECKING:
    from augbench.runtime.job import Job

COLUMNS, BANDS = 6, 2
CHANGE = "change"  # panel of the differences
MARGIN, GAP = 0.74, 0.12  # inches: space for the names at the left, and between two bands


@dataclass(frozen=True)
class Row:
    """A training image and the image made from it; ``change`` is their mean absolute difference, of 255."""

    method: str
    label: str
    class_id: str
    class_name: str
    place: int
    training_image: str
    index: int
    seed: int | None
    change: float


def collect(
    job: Job,
    method: str,
    manifest: str | Path,
    train_path: str | Path,
    classes_path: str | Path,
    table: str | Path,
    images: str | Path,
) -> None:
    """Choose images of ``method``, find the training images they started from, and write both and the change.

    Raises
    ------
    UserError
        A shard or a training image is missing, or an added image started from an image outside the training
        split.
    """
    added = read_index(manifest)
    present = set(added.column("class_id").to_pylist())
    classes = [info for info in read_class_table(classes_path) if info.class_id in present]
    shown_classes = spread_classes(classes, COLUMNS * BANDS)
    share, rest = divmod(COLUMNS * BANDS, len(shown_classes))
    chosen = []
    for number, info in enumerate(shown_classes):
        rows = rows_of(added, info.class_id)
        count = share + (number < rest)
        places = choose(rows.num_rows, count, job.study.seed, "3", info.class_id)
        chosen.append(rows.take(pa.array(places, pa.int64())))
    by_id = {info.class_id: info for info in classes}
    results = added_pictures(method, pa.concat_tables(chosen), by_id, job.folder)
    train = read_split(train_path)
    place = {image_id: row for row, image_id in enumerate(train.image_ids)}
    if lost := [picture.source for picture, _ in results if picture.source not in place]:
        raise UserError(
            str(manifest),
            f"started from {lost[0]!r}, which is not in the training split",
            "delete the method's shards and run again",
        )
    originals = real_pictures(
        job, train, [(by_id[picture.class_id], place[str(picture.source)]) for picture, _ in results]
    )
    label = job.study.label(method)
    rows_out: list[Row] = []
    shown: list[Shown] = []
    for (real, original), (picture, image) in zip(originals, results, strict=True):
        before = ImageOps.fit(original, image.size, Image.Resampling.BICUBIC)
        difference = np.asarray(image, dtype=np.int16) - np.asarray(before, dtype=np.int16)
        change = Image.fromarray((127.5 + difference / 2).astype(np.uint8))
        shown += [(real, before), (picture, image), (replace(picture, panel=CHANGE), change)]
        rows_out.append(
            Row(
                method=method,
                label=label,
                class_id=picture.class_id,
                class_name=picture.class_name,
                place=picture.place,
                training_image=real.image,
                index=int(picture.image),
                seed=picture.seed,
                change=float(np.abs(difference).mean()),
            )
        )
    write_pictures(shown, images)
    note = f"{label}: training images chosen at random. change: mean absolute difference of pixels, of 255."
    write_text(table, render_csv(rows_out, (note,)))


def draw(rows: list[Row], pictures: list[tuple[ImageRecord, np.ndarray]]) -> Figure:
    """Draw bands of three rows: training images, images made from them, and the change (mid-grey: none)."""
    label, change = rows[0].label, fmean(row.change for row in rows)
    panels = {
        name: [image for picture, image in pictures if picture.panel == name]
        for name in (REAL, rows[0].method, CHANGE)
    }
    names = {REAL: "Real", rows[0].method: label, CHANGE: "Change"}
    bands = -(-len(rows) // COLUMNS)
    cell = (WIDTH - MARGIN) / COLUMNS
    note = 0.36
    height = bands * 3 * cell + (bands - 1) * GAP + note
    figure = Figure(figsize=(WIDTH, height))
    canvas = open_canvas(figure)
    for band in range(bands):
        for line, (name, images) in enumerate(panels.items()):
            bottom = height - (band * 3 + line + 1) * cell - band * GAP
            foot = (bottom + cell / 2 - 0.04) / height
            figure.text(0, foot, "ABC"[line], weight="bold", va="baseline")
            figure.text(
                0.13 / WIDTH,
                foot,
                textwrap.fill(shorten(names[name], 50), 10),
                va="baseline",
                linespacing=1.0,
            )
            for column, image in enumerate(images[band * COLUMNS : (band + 1) * COLUMNS]):
                place_image(canvas, image, MARGIN + column * cell, bottom, 0.96 * cell)
    figure.text(
        0,
        0.03 / height,
        f"Mid-grey: no change. Mean change: {change:.1f} of 255 levels.\nImages chosen at random.",
        va="bottom",
        linespacing=1.15,
    )
    return figure
