"""Classes that are trained together: the settings they share, when they stop, what they learned."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Settings:
    """What shapes the training (the ``finetune`` section and the method's row), and the size of a micro-batch and compilation, which do not.

    Attributes
    ----------
    lr, unet_lr : float
        Learning rates of the vectors and of the U-Net, all factors included.
    clusters : int
        Vectors per class.
    candidates : tuple of str
        ``train_loss``, ``val_loss``, ``epoch1``, ...
    micro_batch : int
        Samples that go through the U-Net together, at most.
    autocast : dtype, optional
        Precision of a trained U-Net's operations; its weights stay float32.
    compiled : bool
        Whether the U-Net is compiled, for micro-batches of one size.
    """

    seed: int
    lr: float
    unet_lr: float
    clusters: int
    train_unet: bool
    candidates: tuple[str, ...]
    batch_size: int
    max_epochs: int
    patience: int
    flip: float
    validation_draws: int
    weight_decay: float
    micro_batch: int
    autocast: torch.dtype | None = None
    compiled: bool = False

    @property
    def least_epochs(self) -> int:
        """The largest epoch that is a candidate: nothing stops before it."""
        return max(
            (int(name.removeprefix("epoch")) for name in self.candidates if name.startswith("epoch")),
            default=1,
        )


@dataclass
class ClassGroup:
    """Classes that share their steps, by their number; when they stop, and which epoch is which candidate.

    ``best`` and ``best_train`` are the lowest losses (validation, training) after at least one epoch.
    """

    classes: tuple[int, ...]
    best: float = math.inf
    best_epoch: int = 0
    best_train: float = math.inf
    epochs: dict[str, int] = field(default_factory=dict)
    stopped: bool = False

    def record(self, epoch: int, train_loss: float, val_loss: float, settings: Settings) -> list[str]:
        """Take note of an epoch; returns the candidates that it becomes. A loss that is not finite is never the best, but for want of another."""
        taken = []
        if "train_loss" not in self.epochs or train_loss < self.best_train:
            self.best_train = train_loss if math.isfinite(train_loss) else math.inf
            taken.append("train_loss")
        if self.best_epoch == 0 or val_loss < self.best:
            self.best, self.best_epoch = val_loss if math.isfinite(val_loss) else math.inf, epoch
            taken.append("val_loss")
        taken.append(f"epoch{epoch}")
        self.epochs.update(dict.fromkeys(taken, epoch))
        self.stopped = epoch >= settings.max_epochs or (
            epoch >= settings.least_epochs and epoch - self.best_epoch >= settings.patience
        )
        return [name for name in taken if name in settings.candidates]


@dataclass(frozen=True)
class Learned:
    """What a class has learned.

    Attributes
    ----------
    vectors : dict of Tensor
        By candidate, float32 ``(clusters, ...)``, on the CPU.
    epochs : dict of int
        The epoch of every candidate.
    best_epoch : int
        Epoch (from 1) with the lowest validation loss of the class's group.
    history : tuple of dict
        ``epoch``, ``train_loss``, ``val_loss`` of this class; epoch 0 is before training. Losses that are not finite are None.
    """

    vectors: dict[str, torch.Tensor]
    epochs: dict[str, int]
    best_epoch: int
    history: tuple[dict[str, Any], ...]
