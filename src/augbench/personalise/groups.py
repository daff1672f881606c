"""Groups of classes that are trained together: their settings, early stopping and results."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Settings:
    """Settings of a fine-tuning, from the study's ``finetune`` section and the method.

    ``micro_batch`` and ``compiled`` come from the ``execution`` section and do not shape the training.

    Attributes
    ----------
    lr, unet_lr : float
        Learning rates of the vectors and of the U-Net's weights or adapters, all factors included.
    clusters : int
        Vectors per class.
    candidates : tuple of str
        ``train_loss``, ``val_loss``, ``epoch1``, ...
    micro_batch : int
        Largest number of samples that go through the U-Net together.
    autocast : dtype, optional
        Precision of the operations with weights that train; these stay float32.
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
        """Largest epoch that is a candidate; no group stops before it."""
        return max(
            (int(name.removeprefix("epoch")) for name in self.candidates if name.startswith("epoch")),
            default=1,
        )


@dataclass
class ClassGroup:
    """Classes (by number) that share their steps, when they stop, and the epoch of each candidate.

    ``best`` and ``best_train`` are the lowest validation loss and training loss after at least one epoch.
    """

    classes: tuple[int, ...]
    best: float = math.inf
    best_epoch: int = 0
    best_train: float = math.inf
    epochs: dict[str, int] = field(default_factory=dict)
    stopped: bool = False

    def record(self, epoch: int, train_loss: float, val_loss: float, settings: Settings) -> list[str]:
        """Record an epoch's losses; returns the candidates that this epoch becomes.

        A loss that is not finite counts as the best only until a finite one comes.
        """
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
    """Result of a class's fine-tuning.

    Attributes
    ----------
    vectors : dict of Tensor
        Learned vectors by candidate, float32 ``(clusters, ...)``, on the CPU. Of Stable Diffusion XL, their
        entries by ``{candidate}.{entry}``; of a class with an adapter of its own, the adapter's tensors by
        ``{candidate}.{name}``.
    epochs : dict of int
        Epoch of each candidate.
    best_epoch : int
        Epoch (from 1) with the lowest validation loss of the class's group.
    history : tuple of dict
        ``epoch``, ``train_loss``, ``val_loss`` of this class; epoch 0 is before training. A loss that is
        not finite is None.
    dtype : str
        Floating-point type that the networks computed in.
    """

    vectors: dict[str, torch.Tensor]
    epochs: dict[str, int]
    best_epoch: int
    history: tuple[dict[str, Any], ...]
    dtype: str = "float32"
