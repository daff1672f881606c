"""Schedules of training: the learning rate of each step, when to validate, and when to end.

Input: the validation accuracy at each validation. Output: the learning rate of the next steps, and whether
there are any. ``plateau`` is the paper's rule, in epochs. ``steps`` has a fixed number of steps, the same for
every row, so that a larger training set is not also trained for longer. The state is a few plain numbers,
from which an interrupted run resumes. This module imports nothing heavy, because the plan and the report
need it too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from augbench.config.classifier import Classifier
from augbench.errors import UserError

Stopped = Literal["patience", "max_epochs", "steps"]
LR_FACTOR = 0.1  # of each reduction of the learning rate (paper, section 3)


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Number of optimiser steps in one pass over ``images`` images."""
    return -(-images // batch_size)


def smallest_batch(images: int, batch_size: int) -> int:
    """Images in the smallest batch of a pass over ``images`` images, which batches share equally."""
    return images // steps_per_epoch(images, batch_size)


def undersized_parts(what: str, images: int, config: Classifier) -> UserError | None:
    """Problem of a training set with so few images that parts of its batches can't be normalised."""
    smallest, groups = smallest_batch(images, config.batch_size), config.batch_norm_groups
    if groups == 1 or smallest >= 2 * groups:
        return None
    return UserError(
        "classifier.batch_norm_groups",
        f"{groups}, and {what} has batches of {smallest} images",
        f"allowed: at most {max(1, smallest // 2)}, so that each part has two",
    )


class Pass(NamedTuple):
    """Where a step is: the number of its pass (0-based), of its batch in it, and of batches from there on.

    ``real_only``: the pass is over real images alone.
    """

    number: int
    batch: int
    left: int
    real_only: bool


@dataclass(frozen=True)
class Passes:
    """Passes over the training set, and from some step on over its real images alone.

    Attributes
    ----------
    per_epoch : int
        Optimiser steps in a pass over the training set.
    switch : int, optional
        Step (0-based) from which on only real images are seen.
    per_real_epoch : int
        Optimiser steps in a pass over the real images.
    """

    per_epoch: int
    switch: int | None = None
    per_real_epoch: int = 1

    def at(self, step: int) -> Pass:
        """Return where step number ``step`` (0-based) is; passes over real images are counted on."""
        if self.switch is not None and step >= self.switch:
            number, batch = divmod(step - self.switch, self.per_real_epoch)
            return Pass(-(-self.switch // self.per_epoch) + number, batch, self.per_real_epoch - batch, True)
        number, batch = divmod(step, self.per_epoch)
        left = self.per_epoch - batch
        return Pass(number, batch, left if self.switch is None else min(left, self.switch - step), False)


class Schedule(Protocol):
    """State of a schedule; ``epochs`` below are passes over the training set of ``per_epoch`` steps."""

    def steps_done(self, per_epoch: int) -> int:
        """Optimiser steps until now."""

    def next_validation(self, config: Classifier, per_epoch: int) -> int:
        """Number of steps after which the next validation is due, counted from the start of training."""

    def lr_of(self, step: int, config: Classifier) -> float:
        """Learning rate of step number ``step`` (0-based), which is before the next validation."""

    def step(self, top1: float, config: Classifier) -> Schedule:
        """Return the state after the next validation, which reached the accuracy ``top1`` (share)."""

    def finished(self, config: Classifier) -> bool:
        """Whether training ends."""

    def reason(self, config: Classifier) -> Stopped:
        """Why a finished run ended."""

    @property
    def keeps_last(self) -> bool:
        """Whether the weights of the last validation are the ones to keep, until now."""

    def kept_step(self, per_epoch: int) -> int:
        """Number of steps after which the kept weights were validated; 0 before any validation."""

    @property
    def kept_top1(self) -> float:
        """Validation accuracy (share) of the kept weights."""


@dataclass(frozen=True)
class PlateauSchedule:
    """State after ``epochs`` epochs of the paper's rule (paper, section 3).

    The learning rate is lowered, then training stops, when validation accuracy no longer improves.

    Attributes
    ----------
    epochs : int
        Epochs done.
    lr : float
        Learning rate of the next epoch.
    best_epoch : int
        The first epoch (0-based) with the highest validation accuracy so far; -1 before any.
    best_top1 : float
        Its validation accuracy (share); -1 before any epoch.
    waited : int
        Epochs since the last improvement or the last reduction of the learning rate.
    """

    lr: float
    epochs: int = 0
    best_epoch: int = -1
    best_top1: float = -1.0
    waited: int = 0

    def step(self, top1: float, config: Classifier) -> PlateauSchedule:
        """Return the state after one more epoch, which reached ``top1`` on the validation split.

        The learning rate is divided by 10 after ``plateau_patience`` epochs without a better accuracy. The
        count restarts after each reduction.
        """
        if top1 > self.best_top1:
            return PlateauSchedule(self.lr, self.epochs + 1, self.epochs, top1, 0)
        waited, lr = self.waited + 1, self.lr
        if waited >= config.plateau_patience:
            waited, lr = 0, lr / 10
        return PlateauSchedule(lr, self.epochs + 1, self.best_epoch, self.best_top1, waited)

    def steps_done(self, per_epoch: int) -> int:
        """Optimiser steps until now."""
        return self.epochs * per_epoch

    def next_validation(self, config: Classifier, per_epoch: int) -> int:
        """Number of steps at the end of the next epoch."""
        return (self.epochs + 1) * per_epoch

    def lr_of(self, step: int, config: Classifier) -> float:
        """Learning rate of the next epoch, the same in all its steps."""
        return self.lr

    @property
    def keeps_last(self) -> bool:
        """Whether the last epoch is the best one."""
        return self.epochs > 0 and self.best_epoch == self.epochs - 1

    def kept_step(self, per_epoch: int) -> int:
        """Number of steps at the end of the best epoch."""
        return (self.best_epoch + 1) * per_epoch

    @property
    def kept_top1(self) -> float:
        """Validation accuracy (share) of the best epoch."""
        return self.best_top1

    def finished(self, config: Classifier) -> bool:
        """Whether training ends: after ``stop_patience`` epochs without improvement, or ``max_epochs``."""
        return self.epochs >= config.max_epochs or self._waits_too_long(config)

    def reason(self, config: Classifier) -> Stopped:
        """``patience`` if accuracy no longer improved, else ``max_epochs``: the run was cut."""
        return "patience" if self._waits_too_long(config) else "max_epochs"

    def _waits_too_long(self, config: Classifier) -> bool:
        return self.epochs - 1 - self.best_epoch >= config.stop_patience


@dataclass(frozen=True)
class StepSchedule:
    """State after ``steps`` of a fixed number of steps.

    Attributes
    ----------
    steps : int
        Optimiser steps done.
    kept : int
        Number of steps after which the kept weights were validated; 0 before any validation.
    kept_top1 : float
        Their validation accuracy (share); -1 before any validation.
    """

    steps: int = 0
    kept: int = 0
    kept_top1: float = -1.0

    def step(self, top1: float, config: Classifier) -> StepSchedule:
        """Return the state after the next validation; the first of equal accuracies is the best."""
        steps = self.next_validation(config, 0)
        if config.keep == "last" or top1 > self.kept_top1:
            return StepSchedule(steps, steps, top1)
        return StepSchedule(steps, self.kept, self.kept_top1)

    def steps_done(self, per_epoch: int) -> int:
        """Optimiser steps until now."""
        return self.steps

    def next_validation(self, config: Classifier, per_epoch: int) -> int:
        """The next multiple of ``validate_every``, at most the number of steps."""
        every = config.validation_interval
        return min((self.steps // every + 1) * every, config.total_steps)

    def lr_of(self, step: int, config: Classifier) -> float:
        """Learning rate of a step: rising to ``lr``, then lowered at stated steps or along a half cosine."""
        warm = config.warmup_steps
        if step < warm:
            return config.lr * (step + 1) / warm
        if config.decay == "cosine":
            return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / (config.total_steps - warm)))
        return config.lr * LR_FACTOR ** sum(step >= at for at in config.lower_at_steps)

    @property
    def keeps_last(self) -> bool:
        """Whether the weights of the last validation are the ones to keep, until now."""
        return self.steps > 0 and self.kept == self.steps

    def kept_step(self, per_epoch: int) -> int:
        """Number of steps after which the kept weights were validated."""
        return self.kept

    def finished(self, config: Classifier) -> bool:
        """Whether all steps are done."""
        return self.steps >= config.total_steps

    def reason(self, config: Classifier) -> Stopped:
        """Always ``steps``."""
        return "steps"


def first_state(config: Classifier) -> PlateauSchedule | StepSchedule:
    """State of the config's schedule before training."""
    return PlateauSchedule(config.lr) if config.schedule == "plateau" else StepSchedule()


def resumed_state(config: Classifier, values: dict[str, float]) -> PlateauSchedule | StepSchedule:
    """State of the config's schedule from its fields, as a checkpoint has them."""
    kind = type(first_state(config))
    return kind(**values)  # type: ignore[arg-type]
