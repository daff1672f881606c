"""The paper's schedule: lower the learning rate, then stop, when validation accuracy no longer improves.

Input: the validation accuracy of each epoch. Output: the learning rate of the next epoch, and whether there
is one. The state is a few plain numbers, from which an interrupted run resumes.
"""

from __future__ import annotations

from dataclasses import dataclass

from augbench.config.stages import Classifier


@dataclass(frozen=True)
class PlateauSchedule:
    """State after ``epochs`` epochs (paper, section 3).

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

    @property
    def improved(self) -> bool:
        """Whether the last epoch is the best one."""
        return self.epochs > 0 and self.best_epoch == self.epochs - 1

    def finished(self, config: Classifier) -> bool:
        """Whether training ends: after ``stop_patience`` epochs without improvement, or ``max_epochs``."""
        return self.epochs >= config.max_epochs or self.epochs - 1 - self.best_epoch >= config.stop_patience
