"""State and result of a training run, and the checkpoint from which an interrupted run resumes."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from augbench.classifier.compute import ProcessGroup
from augbench.classifier.optimiser import new_optimiser
from augbench.classifier.schedule import (
    Passes,
    PlateauSchedule,
    StepSchedule,
    Stopped,
    first_state,
    resumed_state,
)
from augbench.config.classifier import Classifier
from augbench.files import atomic_path

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Epoch:
    """One epoch: number (0-based), learning rate, mean training loss, validation accuracy (share)."""

    epoch: int
    lr: float
    train_loss: float
    val_top1: float


@dataclass(frozen=True)
class Point(Epoch):
    """One validation under ``schedule: steps``.

    ``step`` is the number of steps until then. ``epoch`` is the pass (0-based) of the last of them, ``lr``
    its learning rate. ``train_loss`` is the mean since the validation before.
    """

    step: int


@dataclass(frozen=True)
class RunResult:
    """Result of training.

    Attributes
    ----------
    state : dict of Tensor
        Kept weights, on the CPU: those of the best validation accuracy, or the last ones (``keep: last``).
    history : tuple of Epoch
        All validations; the same with or without an interruption.
    best_epoch : int
        Epoch (0-based) of ``state``.
    val_top1 : float
        Its validation accuracy (share).
    seconds : tuple of float
        Duration until each validation, including those of earlier, interrupted processes.
    steps : int
        Optimiser steps.
    kept_step : int
        Number of steps after which ``state`` was validated.
    stopped : str
        Why training ended.
    """

    state: dict[str, torch.Tensor]
    history: tuple[Epoch, ...]
    best_epoch: int
    val_top1: float
    seconds: tuple[float, ...]
    steps: int
    kept_step: int
    stopped: Stopped


@dataclass
class State:
    """Everything that changes during a run: the content of a checkpoint, for any number of processes."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: PlateauSchedule | StepSchedule
    scaler: torch.amp.GradScaler
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    history: list[Epoch] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @classmethod
    def new(cls, model: nn.Module, config: Classifier, scaler: torch.amp.GradScaler) -> State:
        """Return the state before the first step of ``model``, which is on its device."""
        return cls(model, new_optimiser(model, config), first_state(config), scaler)

    def step(self) -> None:
        """Let the optimiser take a step, unless float16 gradients overflowed."""
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def save(self, path: Path) -> None:
        """Write a checkpoint, atomically."""
        with atomic_path(path) as temporary:
            torch.save(
                {
                    "model": self.model.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "schedule": asdict(self.schedule),
                    "scaler": self.scaler.state_dict(),
                    "best": self.best,
                    "history": [asdict(epoch) for epoch in self.history],
                    "seconds": self.seconds,
                },
                temporary,
            )

    def load(self, path: Path, config: Classifier, group: ProcessGroup) -> None:
        """Resume from ``path``; process 0 reads the file for all.

        A file that cannot be read is ignored, because it costs only time.
        """
        state: dict[str, Any] | None = None
        if group.rank == 0 and path.exists():
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
            except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
                logger.warning("%s cannot be read (%s): training starts from the beginning", path, error)
        state = group.of_first(state)
        if state is None:
            return
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if scaler := state.get("scaler"):  # of float16 only
            self.scaler.load_state_dict(scaler)
        self.schedule = resumed_state(config, state["schedule"])
        self.best = {name: tensor.cpu() for name, tensor in state["best"].items()}
        self.history = [_validation(values) for values in state["history"]]
        self.seconds = state["seconds"]

    def validated(self, loss: float, top1: float, config: Classifier, passes: Passes) -> None:
        """Record a validation and keep the weights if the schedule says so.

        Parameters
        ----------
        loss : float
            Mean training loss since the validation before.
        top1 : float
            Validation accuracy (share).
        passes : Passes
            Passes over the training set.
        """
        done = self.schedule.next_validation(config, passes.per_epoch)
        epoch, lr = passes.at(done - 1).number, self.schedule.lr_of(done - 1, config)
        plain = isinstance(self.schedule, PlateauSchedule)
        self.history.append(Epoch(epoch, lr, loss, top1) if plain else Point(epoch, lr, loss, top1, done))
        self.schedule = self.schedule.step(top1, config)
        if self.schedule.keeps_last:
            self.best = _cpu_copy(self.model)

    def result(self, config: Classifier, passes: Passes) -> RunResult:
        """Return the result of a finished run."""
        kept = self.schedule.kept_step(passes.per_epoch)
        return RunResult(
            state=self.best,
            history=tuple(self.history),
            best_epoch=passes.at(kept - 1).number,
            val_top1=self.schedule.kept_top1,
            seconds=tuple(self.seconds),
            steps=self.schedule.steps_done(passes.per_epoch),
            kept_step=kept,
            stopped=self.schedule.reason(config),
        )


def _validation(values: Mapping[str, Any]) -> Epoch:
    """Make a validation of its fields, as a checkpoint has them."""
    return Point(**values) if "step" in values else Epoch(**values)


def _cpu_copy(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
