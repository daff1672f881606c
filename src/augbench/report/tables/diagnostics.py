"""Diagnostics of added images: agreement with their class, distance in style, diversity and coverage.

Input: the pools of all methods that add images, the real training and validation images, CLIP, a reference
classifier if the config names one, and the records of fine-tuning. Output: ``diagnostics.csv`` (full
precision), Markdown and plain text. Two rows of real images show the best values that can be reached; below
them is one row per method. Test images are not used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from augbench.artifacts.pool import lacks_of, load_images, read_index
from augbench.artifacts.shards import read_shard
from augbench.config.study import Study
from augbench.data.classes import ClassInfo, read_class_table
from augbench.data.source import ImageSource
from augbench.data.sources import open_source
from augbench.data.splits import check_labels, read_split
from augbench.errors import UserError
from augbench.files import read_json
from augbench.measures.distances import (
    NEAREST,
    agreement_percent,
    nearest_sets,
    precision_and_coverage,
    repeated_percent,
    sample_per_class,
    style_distance,
)
from augbench.measures.eyes import Eyes, Seen
from augbench.report.render import NONE, Layout, read_csv, write_table
from augbench.report.tables.learning import read_learning
from augbench.resample import check_same_labels

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

    from augbench.runtime.job import Job

COMPARED = 20_000  # images of a row that are held in memory for the comparison with other rows
REAL = {"train": "real training images", "val": "real validation images"}


@dataclass(frozen=True)
class Row:
    """One method, or the real images of a split; None for missing values.

    For real images, ``method`` is ``real:train`` or ``real:val``. ``pool`` is the number of all images,
    ``images`` the number examined. :func:`style_distance`, :func:`augbench.measures.distances.diversity`,
    :func:`precision_and_coverage` and :func:`repeated_percent` define their measures;
    :func:`nearest_sets` the label of the row whose images are most like these. The last five columns
    are those of :class:`~augbench.report.tables.learning.Learning`.
    """

    method: str
    label: str
    family: str
    pool: int
    images: int
    agreement_clip_percent: float
    agreement_judge_percent: float | None
    style_mmd2: float | None
    style_mmd2_within_class: float | None
    diversity: float | None
    precision_percent: float | None
    coverage_percent: float | None
    repeated_percent: float | None
    refused_per_image: float | None
    nearest_row: str | None = None
    nearest_row_mmd2: float | None = None
    val_loss_start: float | None = None
    val_loss_best: float | None = None
    lr_factor: float | None = None
    candidate: str | None = None
    candidate_epoch: float | None = None


def refused_per_image(index: pa.Table, study_folder: str | Path) -> float:
    """Number of samples that the safety checker refused, also of missing images, per image of the pool.

    Raises
    ------
    UserError
        A shard is missing or damaged.
    """
    refused = sum(
        pc.sum(read_shard(Path(study_folder) / path, ["safety_flags"]).column(0)).as_py()
        for path in pc.unique(index.column("path")).to_pylist()
    )
    given_up = sum(lack.flagged for lack in lacks_of(index).values())
    return (refused + given_up) / index.num_rows


def duplicate_threshold(study: Study) -> float | None:
    """Cosine above which the study's first retrieval row treats two images as duplicates.

    None if no row retrieves, or if that row's filter is off.
    """
    return next((method.duplicate_threshold for method in study.retrieved.values()), None)


@dataclass(frozen=True)
class Diagnosis:
    """Values shared by all rows: the study, its folder, its classes, and the models that examine images."""

    study: Study
    folder: Path
    classes: list[ClassInfo]
    eyes: Eyes

    def _chosen(self, labels: np.ndarray) -> np.ndarray:
        ids = [info.class_id for info in self.classes]
        return sample_per_class(labels, ids, self.study.report.diagnosed_images_per_class, self.study.seed)

    def real(self, path: str | Path, source: ImageSource, what: str) -> tuple[int, Seen]:
        """The number of images in a split, and the results for its examined images."""
        split = read_split(path)
        check_labels(split, self.classes, str(path))
        chosen = self._chosen(split.labels)
        images = source.load_unchanged([split.sources[i] for i in chosen], split.stamps_at(chosen))
        return len(split), self.eyes.look(images, split.labels[chosen], what)

    def added(self, index: pa.Table, where: str, what: str) -> Seen:
        """The results for the examined images of a pool."""
        check_same_labels(index, {info.class_id: label for label, info in enumerate(self.classes)}, where)
        if not index.num_rows:
            raise UserError(where, "a pool without images", "run the rule that makes it again")
        chosen = self._chosen(index.column("label").to_numpy())
        rows = index.take(chosen)
        return self.eyes.look(load_images(rows, self.folder), rows.column("label").to_numpy(), what)

    def compared(self, seen: Seen) -> tuple[torch.Tensor, np.ndarray]:
        """Embeddings and labels of the images that are compared with those of other rows."""
        import torch

        ids, most = [info.class_id for info in self.classes], max(2, COMPARED // len(self.classes))
        chosen = sample_per_class(seen.labels, ids, most, self.study.seed)
        return seen.embeddings[torch.from_numpy(chosen)], seen.labels[chosen]

    def row(self, method: str, pool: int, seen: Seen, train: Seen | None, **others: Any) -> Row:
        """Measure one set of images; ``train`` holds the real training images to compare with, or None."""
        from augbench.measures.distances import diversity

        spread = diversity(seen.embeddings, seen.labels)
        sets = None if train is None else (seen.embeddings, seen.labels, train.embeddings, train.labels)
        style = None if sets is None else style_distance(*sets)
        overlap = None if sets is None else precision_and_coverage(*sets)
        threshold = duplicate_threshold(self.study)
        return Row(
            method=method,
            pool=pool,
            images=len(seen.labels),
            agreement_clip_percent=agreement_percent(seen.clip, seen.labels),
            agreement_judge_percent=None
            if seen.judge is None
            else agreement_percent(seen.judge, seen.labels),
            style_mmd2=None if style is None else style.mixed,
            style_mmd2_within_class=None if style is None else style.within_class,
            diversity=None if math.isnan(spread) else spread,
            precision_percent=None if overlap is None else overlap.precision_percent,
            coverage_percent=None if overlap is None else overlap.coverage_percent,
            repeated_percent=None
            if threshold is None
            else repeated_percent(seen.embeddings, seen.labels, threshold),
            **others,
        )


def write_diagnostics(
    job: Job,
    indexes: Mapping[str, str | Path],
    train_path: str | Path,
    val_path: str | Path,
    classes_path: str | Path,
    clip_path: str | Path,
    histories: Mapping[str, str | Path],
    lrs: Mapping[str, str | Path],
    selected: Mapping[str, str | Path],
    outs: Mapping[str, str | Path],
) -> None:
    """Examine the added images of all methods and write the table.

    Parameters
    ----------
    indexes : mapping of method to path
        Index of every method's pool that is examined, or the manifest of a mixture's first set.
    train_path, val_path, classes_path : path
        Split manifests and ``classes.parquet``.
    clip_path : path
        ``models/clip.json``.
    histories, lrs, selected : mapping of method to path
        Records of fine-tuning (:func:`read_learning`) of the personalised methods.
    outs : mapping of str to path
        Where to write, by format: ``csv``, ``md``, ``txt``.

    Raises
    ------
    UserError
        A file is damaged, sources disagree about the classes, or the judge does not know a class.
    """
    from augbench.models.folders import pick_device

    study = job.study
    classes = read_class_table(classes_path)
    eyes = Eyes(read_json(clip_path), study.report.judge, classes, pick_device(study.execution.device))
    diagnosis = Diagnosis(study, job.folder, classes, eyes)
    source = open_source(study.dataset, study.seed, study.corpus)
    train_size, train = diagnosis.real(train_path, source, REAL["train"])
    val_size, val = diagnosis.real(val_path, source, REAL["val"])
    real: dict[str, Any] = {"family": "real", "refused_per_image": None}
    rows = [
        diagnosis.row("real:train", train_size, train, None, label=REAL["train"], **real),
        diagnosis.row("real:val", val_size, val, train, label=REAL["val"], **real),
    ]
    compared: dict[str, tuple[torch.Tensor, np.ndarray]] = {}
    for name, method in study.methods.items():
        if name not in indexes:
            continue
        index = read_index(indexes[name])
        seen = diagnosis.added(index, str(indexes[name]), name)
        compared[name] = diagnosis.compared(seen)
        unknown = method.retrieves_images or method.is_composed
        refused = None if unknown else refused_per_image(index, diagnosis.folder)
        learning = {}
        if personalised := study.personalised.get(name):
            learning = asdict(
                read_learning(
                    histories[name], lrs[name], selected[name], together=personalised.shares_weights
                )
            )
        rows.append(
            diagnosis.row(
                method=name,
                pool=index.num_rows,
                seen=seen,
                train=train,
                label=study.label(name),
                family=method.group,
                refused_per_image=refused,
                **learning,
            )
        )
    nearest = nearest_sets(compared)
    for place, row in enumerate(rows):
        if row.method in nearest:
            name, distance = nearest[row.method]
            rows[place] = replace(row, nearest_row=study.label(name), nearest_row_mmd2=distance)
    _write(study, rows, outs)


HEADER = (
    "Images of",
    "Seen",
    "CLIP (%)",
    "Judge (%)",
    "Style",
    "In class",
    "Diversity",
    "Precision (%)",
    "Coverage (%)",
    "Repeated (%)",
    "Refused",
    "Nearest row",
    "Validation loss",
    "lr x",
    "Candidate",
)

NUMERIC = (False, *[True] * 10, False, True, True, False)


def _cells(row: Row) -> tuple[str, ...]:
    def number(value: float | None, form: str) -> str:
        return NONE if value is None else format(value, form)

    return (
        row.label,
        f"{row.images:,} of {row.pool:,}" if row.images < row.pool else f"{row.pool:,}",
        number(row.agreement_clip_percent, ".1f"),
        number(row.agreement_judge_percent, ".1f"),
        number(row.style_mmd2, ".4f"),
        number(row.style_mmd2_within_class, ".4f"),
        number(row.diversity, ".3f"),
        number(row.precision_percent, ".1f"),
        number(row.coverage_percent, ".1f"),
        number(row.repeated_percent, ".1f"),
        number(row.refused_per_image, ".3g"),
        NONE if row.nearest_row is None else f"{row.nearest_row} ({row.nearest_row_mmd2:.4f})",
        NONE
        if row.val_loss_start is None
        else f"{row.val_loss_start:.4f} to {number(row.val_loss_best, '.4f')}",
        number(row.lr_factor, "g"),
        NONE if row.candidate is None else f"{row.candidate} (epoch {number(row.candidate_epoch, '.3g')})",
    )


def _notes(study: Study, rows: Sequence[Row]) -> tuple[str, ...]:
    """Notes on each column: its definition, and how to read it."""
    judge, threshold = study.report.judge, duplicate_threshold(study)
    notes = [
        f"Seen: number of images examined, at most {study.report.diagnosed_images_per_class} per class,"
        " drawn at random from the method's pool or from the split.",
        "CLIP: share of images whose own class is the nearest text in CLIP's space (zero-shot"
        " classification). A class is the mean of CLIP's 80 prompts with its lemmas. The share for real"
        " images shows what can be reached.",
        f"Judge: share of images that the reference classifier in {judge} assigns to their own class, among"
        " the study's classes. The share for real validation images shows what can be reached."
        if judge is not None
        else "Judge: share of images that a reference classifier assigns to their own class; report.judge"
        " names no classifier in this study.",
        "Style: distance between the images and the real training images in CLIP's image space. It is the"
        " squared maximum mean discrepancy (MMD) between the mixtures of all classes in equal shares. An"
        " image that shows another class counts only to the extent that it changes the mixture of classes."
        " The kernel is that of KID (Binkowski et al., 2018), (x . y / d + 1)^3, on"
        " embeddings scaled to length sqrt(d), which equals (cos + 1)^3. The estimate is unbiased, so"
        " values near 0 may be negative. The distance of real validation images shows what can be reached.",
        "In class: the same distance between the images and the real training images of one class, averaged"
        " over classes. It grows with the difference in style, and also if images show another class:"
        " compare it with the columns CLIP and Judge.",
        "Diversity: mean distance between two images of a class, as unit embeddings in CLIP's space,"
        " averaged over classes (the first 300 images seen of each class).",
        "Precision: share of images that lie in the ball of a real training image of their class, averaged"
        f" over classes. The ball reaches to that image's {NEAREST}th nearest neighbour among the real"
        " training images seen, in CLIP's space (Kynkäänniemi et al., 2019). Images that start from"
        " training images are near them by construction.",
        "Coverage: share of the real training images of a class whose ball contains at least one of the"
        " images (Naeem et al., 2020), averaged over classes. It grows with the number of images, so"
        " compare rows with equal numbers of images seen. Precision and coverage of the real validation"
        f" images show what can be reached. Classes with at most {NEAREST} real training images seen are"
        " left out of both.",
        "Repeated: share of the images seen that retrieval's duplicate filter would remove: an earlier image"
        f" of the class has a cosine above {threshold:g} in CLIP's space, directly or through other images"
        " (duplicate_threshold of the first row that retrieves)."
        if threshold is not None
        else "Repeated: share of images that retrieval's duplicate filter would remove; no row of this study"
        " has such a filter.",
        "Refused: number of samples that the safety checker refused and that were replaced, per image of"
        " the whole pool. Retrieval leaves out marked neighbours instead; its ledger counts them.",
    ]
    if any(row.nearest_row is not None for row in rows):
        notes.append(
            "Nearest row: the row whose images are most like these, and their distance, measured as in the"
            " column In class. Near 0: the two rows add the same kind of images."
        )
    if any(method.shares for method in study.drawn.values()):
        notes.append(
            "Of a mixture, the images of its first training set are examined, which have its shares."
        )
    if any(row.candidate is not None for row in rows):
        notes += [
            "Validation loss: fine-tuning loss at the chosen learning rate, before training and at each"
            " class's best epoch (one epoch for all classes if the U-Net trains); mean over classes."
            " Compare losses only within a method.",
            "lr x: factor on the learning rate, chosen by validation loss. Candidate: checkpoint selected"
            " by validation accuracy, and its epoch (mean over classes).",
        ]
    return tuple(notes)


def _write(study: Study, rows: Sequence[Row], outs: Mapping[str, str | Path]) -> None:
    notes = _notes(study, rows)
    layout = Layout(
        f"Diagnostics of added images, study {study.study}", HEADER, NUMERIC, tuple(map(_cells, rows)), notes
    )
    write_table(outs, layout, rows)


def read_rows(path: str | Path) -> list[Row]:
    """Read the rows of ``diagnostics.csv``."""
    return read_csv(path, Row)
