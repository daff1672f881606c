"""The paper's schedule: the learning rate falls, and training stops, when validation accuracy no longer improves.

Flows in: the validation accuracy of each epoch. Flows out: the learning rate of the next one, and whether there is a next one.
The state is four plain numbers, so that an interrupted run goes on from it.
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
        The epoch (0-based) with the highest validation accuracy so far, the first of equals; -1 before any.
    best_top1 : float
        That accuracy.
    waited : int
        Epochs since the last improvement or the last fall of the learning rate.
    """

    lr: float
    epochs: int = 0
    best_epoch: int = -1
    best_top1: float = -1.0
    waited: int = 0

    def step(self, top1: float, config: Classifier) -> PlateauSchedule:
        """The state after one more epoch, which reached ``top1`` on the validation split.

        The learning rate is divided by 10 after ``plateau_patience`` epochs without a better accuracy, counted anew after
        each fall.
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
        """Whether training ends: ``stop_patience`` epochs without a better accuracy, or ``max_epochs`` in all."""
        return self.epochs >= config.max_epochs or self.epochs - 1 - self.best_epoch >= config.stop_patience
