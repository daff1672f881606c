"""The course of a training run: its steps, why it ended, and whether accuracy was still rising then.

Input: a run's ``history.json`` (also one of earlier versions, which lacks steps and reason) and the number of
images in one pass. Output: a :class:`History`. This module imports nothing heavy, because the report reads
all histories.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from augbench.classifier.schedule import Stopped, steps_per_epoch
from augbench.config.classifier import Classifier
from augbench.config.study import Study
from augbench.config.use import CONCATENATED, Use
from augbench.errors import UserError
from augbench.files import read_json

ALPHA = 0.01  # level of the one-sided test, per run; a study has many rows
LEAST_POINTS = 6  # with fewer, only an unbroken rise would reach this level
COSINE_TAIL = 0.1  # of a cosine decay, the test uses validations with lr below this share of the first


@dataclass(frozen=True)
class Validation:
    """One validation.

    Attributes
    ----------
    step : int
        Optimiser steps until then.
    epoch : int
        Pass over the training set (0-based) of the last of these steps.
    lr : float
        Learning rate of that step.
    train_loss : float
        Mean training loss since the validation before.
    val_top1 : float
        Validation accuracy (share).
    """

    step: int
    epoch: int
    lr: float
    train_loss: float
    val_top1: float


@dataclass(frozen=True)
class History:
    """Course of a run.

    Attributes
    ----------
    validations : tuple of Validation
    steps : int
        Optimiser steps.
    epochs : int
        Passes over the training set that were begun.
    stopped : str
        Why training ended: ``patience`` (accuracy no longer improved), ``max_epochs`` or ``steps``.
    rising : bool or None
        Whether validation accuracy was still rising then (:func:`is_rising`).
    kept_step : int
        Number of steps after which the kept weights were validated.
    """

    validations: tuple[Validation, ...]
    steps: int
    epochs: int
    stopped: Stopped
    rising: bool | None
    kept_step: int


def read_result(study: Study, path: str | Path) -> dict[str, Any]:
    """Read a run's ``result.json`` as tables show it.

    A run of a further draw of the training images gets the name of its row in the config, and a number after
    those of the draws before.
    """
    value: dict[str, Any] = read_json(path)
    method, draw = study.row_and_draw(value["method"])
    return {**value, "method": method, "run": draw * study.augmentation.resamples + value["run"]}


def history_of(study: Study, result: str | Path, values: Mapping[str, Any]) -> History:
    """Read the history of the run whose ``result.json`` is ``result`` and has ``values``; it lies beside it.

    Raises
    ------
    UserError
        The file is damaged.
    """
    row = study.methods[values["method"]]
    images = row.real_repeats * values["n_real"] + values["n_added"]
    return read_history(Path(result).with_name("history.json"), images, study.classifier, row.use)


def read_history(path: str | Path, images: int, config: Classifier, use: Use = CONCATENATED) -> History:
    """Read a run's ``history.json``; derive what files of earlier versions lack.

    Parameters
    ----------
    images : int
        Images in one pass over the training set, repetitions included.

    Raises
    ------
    UserError
        The file is damaged.
    """
    try:
        return _history(read_json(path), steps_per_epoch(images, config.batch_size), config, use)
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        raise UserError(
            str(path),
            f"not a classifier's history ({error!r})",
            "delete the classifier's folder and run again",
        ) from None


def _history(values: Mapping[str, Any], per_epoch: int, config: Classifier, use: Use) -> History:
    validations = tuple(
        Validation(
            point.get("step", (point["epoch"] + 1) * per_epoch),
            *(point[name] for name in ("epoch", "lr", "train_loss", "val_top1")),
        )
        for point in values.get("validations") or values["epochs"]
    )
    last = validations[-1]
    waited = last.epoch - values["best_epoch"]
    derived: Stopped = "patience" if waited >= config.stop_patience else "max_epochs"
    stopped = values.get("stopped", derived)
    return History(
        validations=validations,
        steps=last.step,
        epochs=last.epoch + 1,
        stopped=stopped,
        rising=is_rising(validations, stopped, config, use),
        kept_step=values.get("kept_step", (values["best_epoch"] + 1) * per_epoch),
    )


def is_rising(
    validations: Sequence[Validation], stopped: Stopped, config: Classifier, use: Use = CONCATENATED
) -> bool | None:
    """Whether validation accuracy was still rising when a run was cut; None if it cannot be told.

    A run that ended by ``patience`` was not cut: its accuracy had stopped rising by the schedule's own rule.
    A run that was cut at ``max_epochs`` before the learning rate was ever lowered had not even met the
    plateau that the rule waits for; it counts as rising. Otherwise, Kendall's rank correlation of accuracy
    and time is tested against none, one-sided, at level :data:`ALPHA`. It uses the last half of the
    validations, and of these only those after the last reduction of the learning rate: the jump that
    a reduction brings is no sign that more steps would help; nor is one from the first step on that sees real
    images alone (``use.real_at_end``). Ranks make the test insensitive to single bad
    epochs. ``tests/test_history.py`` simulates how often it raises a false alarm.
    """
    if stopped == "patience":
        return False
    if stopped == "max_epochs" and validations[-1].lr == validations[0].lr:
        return True
    tail = tested(validations, config, use)
    if len(tail) < LEAST_POINTS:
        return None
    from scipy.stats import kendalltau

    accuracies = [validation.val_top1 for validation in tail]
    if len(set(accuracies)) == 1:
        return False
    p = kendalltau(range(len(tail)), accuracies, alternative="greater").pvalue
    return bool(p < ALPHA)


def tested(
    validations: Sequence[Validation], config: Classifier, use: Use = CONCATENATED
) -> Sequence[Validation]:
    """Return the validations that :func:`is_rising` tests: the last half, after the last reduction of lr."""
    half = validations[len(validations) // 2 :]
    if use.real_at_end:
        switch = config.total_steps - use.end_steps(config.total_steps)
        half = [point for point in half if point.step > switch]
    if config.schedule == "steps" and config.decay == "cosine":
        return [point for point in half if point.lr <= COSINE_TAIL * config.lr]
    lowest = half[-1].lr
    return [point for point in half if math.isclose(point.lr, lowest, rel_tol=1e-6)]
