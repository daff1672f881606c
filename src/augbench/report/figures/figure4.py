"""Figure 4: example images of every method, the same classes in every row (paper, figure 4).

Input: the training split and each method's first training set. Output: the list of images shown
(``figure4.csv``: prompt, seed, address, similarity), their thumbnails, and a PDF and a PNG drawn from
these.
"""

from __future__ import annotations

import string
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure

from augbench.artifacts.pool import read_index
from augbench.data.classes import read_class_table
from augbench.data.splits import read_split
from augbench.files import write_text
from augbench.plan.paths import PAPER_FIGURE_4
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

CLASSES, PER_CLASS = 4, 2
# Inches: a line of a class's name, a row's name, the gap between rows and between classes, the note.
LINE, TITLE, GAP, FOOT = 0.11, 0.125, 0.05, 0.26
NAME = 15  # characters per line of a class's name
NOTE = "Images were chosen at random."
SAME_NOISE = "Generated images of one column start from the same noise."


@dataclass(frozen=True)
class Row:
    """One image shown; ``letter`` is its row in the figure, the paper's for the rows of its figure.

    The other fields are those of :class:`augbench.report.pictures.ImageRecord`.
    """

    letter: str
    method: str
    label: str
    class_id: str
    class_name: str
    place: int
    image: str
    source: str | None
    prompt: str | None
    seed: int | None
    similarity: float | None


def collect(
    job: Job,
    manifests: Mapping[str, str | Path],
    train_path: str | Path,
    classes_path: str | Path,
    table: str | Path,
    images: str | Path,
) -> None:
    """Choose images and write them; a class that the study leaves out is not shown.

    Parameters
    ----------
    manifests : mapping of method to path
        ``resamples/{method}/selected/0.parquet``, in the order of the figure's rows.

    Raises
    ------
    UserError
        A shard or a training image is missing or damaged.
    """
    added = {method: read_index(path) for method, path in manifests.items()}
    train = read_split(train_path)
    present = set.intersection(*({*rows.column("class_id").to_pylist()} for rows in added.values()))
    classes = [info for info in read_class_table(classes_path) if info.class_id in present]
    shown_classes, by_id = spread_classes(classes, CLASSES), {info.class_id: info for info in classes}
    wanted = []
    for info in shown_classes:
        own = [row for row, class_id in enumerate(train.class_ids) if class_id == info.class_id]
        wanted += [
            (info, own[place])
            for place in choose(len(own), PER_CLASS, job.study.seed, "4", REAL, info.class_id)
        ]
    shown: list[Shown] = real_pictures(job, train, wanted)
    for method, rows in added.items():
        parts = []
        for info in shown_classes:
            own_rows = rows_of(rows, info.class_id)
            places = choose(own_rows.num_rows, PER_CLASS, job.study.seed, "4", info.class_id)
            parts.append(own_rows.take(pa.array(places, pa.int64())))
        shown += added_pictures(method, pa.concat_tables(parts), by_id, job.folder)
    write_pictures(shown, images)
    labels = {REAL: "Real training images", **{method: job.study.label(method) for method in added}}
    letters = _letters(labels)
    write_text(
        table,
        render_csv([_row(picture, letters[picture.panel], labels[picture.panel]) for picture, _ in shown]),
    )


def _letters(panels: Iterable[str]) -> dict[str, str]:
    """The paper's letters for its rows, also if some of them are missing; the next ones for other rows."""
    alphabet = string.ascii_uppercase
    all_letters = (*alphabet, *(first + second for first in alphabet for second in alphabet))
    paper = (REAL, *PAPER_FIGURE_4)
    others = (panel for panel in panels if panel not in paper)
    return dict(zip((*paper, *others), all_letters, strict=False))


def _row(picture: ImageRecord, letter: str, label: str) -> Row:
    known = {
        name: getattr(picture, name)
        for name in ("class_id", "class_name", "place", "image", "source", "prompt", "seed", "similarity")
    }
    return Row(letter, picture.panel, label, **known)


def same_noise(rows: Sequence[Row]) -> bool:
    """Whether the generated images of each column share a seed.

    They do where they have the same index in their class, since seeds do not depend on the method.
    """
    seeds: dict[tuple[str, int], set[int]] = {}
    for row in rows:
        if row.seed is not None:
            seeds.setdefault((row.class_id, row.place), set()).add(row.seed)
    return bool(seeds) and all(len(found) == 1 for found in seeds.values())


def draw(rows: list[Row], pictures: list[tuple[ImageRecord, np.ndarray]]) -> Figure:
    """Draw one row per method with its name above; images of one class are side by side."""
    images = {(picture.panel, picture.class_id, picture.place): image for picture, image in pictures}
    methods = {row.method: (row.letter, row.label) for row in rows}
    classes = {row.class_id: row.class_name for row in rows}
    names = [textwrap.fill(shorten(name, 2 * NAME), NAME) for name in classes.values()]
    head = 0.09 + LINE * (1 + max(name.count("\n") for name in names))
    cell = (WIDTH - GAP * (len(classes) - 1)) / (len(classes) * PER_CLASS)
    height = head + len(methods) * (TITLE + cell + GAP) + FOOT
    figure = Figure(figsize=(WIDTH, height))
    canvas = open_canvas(figure)
    for column, name in enumerate(names):
        middle = column * (PER_CLASS * cell + GAP) + PER_CLASS * cell / 2
        figure.text(
            middle / WIDTH,
            1 - (head - 0.07) / height,
            name,
            ha="center",
            va="baseline",
            style="italic",
            linespacing=1.0,
        )
    for line, (method, (letter, label)) in enumerate(methods.items()):
        top = height - head - line * (TITLE + cell + GAP)
        figure.text(0, (top - TITLE + 0.025) / height, letter, weight="bold", va="bottom")
        figure.text(0.14 / WIDTH, (top - TITLE + 0.025) / height, shorten(label, 60), va="bottom")
        for column, class_id in enumerate(classes):
            for place in range(PER_CLASS):
                if (image := images.get((method, class_id, place))) is None:
                    continue
                left = column * (PER_CLASS * cell + GAP) + place * cell
                place_image(canvas, image, left, top - TITLE - cell, 0.97 * cell)
    figure.text(
        0, 0.03 / height, f"{SAME_NOISE}\n{NOTE}" if same_noise(rows) else NOTE, va="bottom", linespacing=1.15
    )
    return figure
