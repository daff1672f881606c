"""Summary of a personalised method's fine-tuning, read from the records of fine-tuning and selection."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow.parquet as pq

from augbench.errors import UserError
from augbench.files import read_json


@dataclass(frozen=True)
class Learning:
    """Summary of a personalised method's fine-tuning; losses and epochs are means over classes.

    Both losses are those at the chosen learning rate: ``val_loss_start`` before training, ``val_loss_best``
    at each class's best epoch (one epoch for all classes if they share what trains).
    """

    val_loss_start: float
    val_loss_best: float
    lr_factor: float
    candidate: str
    candidate_epoch: float


def read_learning(history: str | Path, lr: str | Path, selected: str | Path, together: bool) -> Learning:
    """Read the records of fine-tuning of one method.

    Parameters
    ----------
    history : path
        ``finetune/{method}/history.parquet``: factor, class_id, epoch (0 is before training), train_loss,
        val_loss (null: not finite).
    lr : path
        ``finetune/{method}/lr.json``: ``factor`` is the chosen factor.
    selected : path
        ``selected/{method}.json``: ``selected`` is the chosen candidate.
    together : bool
        Whether the classes train a shared U-Net or adapter. They then share their best epoch: that of the
        mean loss over classes.

    Raises
    ------
    UserError
        The history holds no training at the chosen factor, or the candidate is none of ``train_loss``,
        ``val_loss`` and ``epoch{N}``.
    """
    factor, candidate = float(read_json(lr)["factor"]), str(read_json(selected)["selected"])
    classes: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(pq.read_table(history).to_pylist(), key=lambda row: row["epoch"]):
        if math.isclose(row["factor"], factor, rel_tol=1e-6):
            losses = {
                name: math.inf if row[name] is None else row[name] for name in ("train_loss", "val_loss")
            }
            classes.setdefault(row["class_id"], []).append({"epoch": row["epoch"], **losses})
    if not classes or any(rows[0]["epoch"] != 0 or len(rows) < 2 for rows in classes.values()):
        raise UserError(
            str(history),
            f"no complete history at factor {factor:g}",
            "delete the method's folder in finetune and run again",
        )
    courses = list(classes.values())
    if together:
        courses = [
            [
                {name: fmean(row[name] for row in rows) for name in rows[0]}
                for rows in zip(*courses, strict=True)
            ]
        ]

    def epoch_of(course: list[dict[str, Any]]) -> float:
        if candidate in ("train_loss", "val_loss"):
            return float(min(course[1:], key=lambda row: row[candidate])["epoch"])
        number = candidate.removeprefix("epoch")
        if not number.isdigit():
            raise UserError(
                str(selected),
                f"candidate {candidate!r}",
                "allowed: train_loss, val_loss, epoch1, epoch2, ...",
            )
        return float(number)

    return Learning(
        val_loss_start=fmean(course[0]["val_loss"] for course in courses),
        val_loss_best=fmean(min(row["val_loss"] for row in course[1:]) for course in courses),
        lr_factor=factor,
        candidate=candidate,
        candidate_epoch=fmean(epoch_of(course) for course in courses),
    )
