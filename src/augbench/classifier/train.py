"""Training one classifier: a plain loop with explicit state, resumable after any epoch.

Flows in: real, added and validation images, the ``classifier`` section and a seed. Flows out: the checkpoint with the best validation
accuracy and the history. Test images do not come near this module. Initial weights, order of the images and crops derive from
(seed, epoch), never from what happened before, so an interrupted run goes on as if nothing had happened.
"""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from augbench.classifier.crops import Crops, cut, cut_centre, draw_crops
from augbench.classifier.images import ImagePool, LabelledImages, gather
from augbench.classifier.model import WidthResNet, build
from augbench.classifier.schedule import PlateauSchedule
from augbench.classifier.sizes import evaluation_resize
from augbench.config import Classifier
from augbench.errors import UserError
from augbench.files import atomic_path
from augbench.progress import clock
from augbench.seeds import derive_seed

logger = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 5.0  # an epoch of a tiny study takes less than writing a checkpoint
PROGRESS_SECONDS = 10.0


@dataclass(frozen=True)
class Epoch:
    """One epoch: its number (0-based), the learning rate, the mean training loss, the validation accuracy (share)."""

    epoch: int
    lr: float
    train_loss: float
    val_top1: float


@dataclass(frozen=True)
class RunResult:
    """What training gives.

    Attributes
    ----------
    state : dict of Tensor
        Weights of the epoch with the best validation accuracy, on the CPU.
    history : tuple of Epoch
        Every epoch; the same after an interruption as without one.
    best_epoch : int
        Epoch (0-based) of ``state``.
    val_top1 : float
        Its validation accuracy (share).
    seconds : tuple of float
        Duration of each epoch, in this or an earlier process.
    """

    state: dict[str, torch.Tensor]
    history: tuple[Epoch, ...]
    best_epoch: int
    val_top1: float
    seconds: tuple[float, ...] = ()


@dataclass
class _State:
    """All that changes during a run; what a checkpoint holds."""

    model: WidthResNet
    optimizer: torch.optim.SGD
    schedule: PlateauSchedule
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    history: list[Epoch] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def save(self, path: Path) -> None:
        with atomic_path(path) as temporary:
            torch.save(
                {
                    "model": self.model.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "schedule": asdict(self.schedule),
                    "best": self.best,
                    "history": [asdict(epoch) for epoch in self.history],
                    "seconds": self.seconds,
                },
                temporary,
            )

    def load(self, path: Path, device: torch.device) -> None:
        """Go on from ``path``; a file that can't be read is only a loss of time."""
        try:
            state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            logger.warning("%s can't be read (%s): starting anew", path, error)
            return
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule = PlateauSchedule(**state["schedule"])
        self.best = {name: tensor.cpu() for name, tensor in state["best"].items()}
        self.history = [Epoch(**epoch) for epoch in state["history"]]
        self.seconds = state["seconds"]


def _precision(device: torch.device) -> AbstractContextManager[Any]:
    """bfloat16 on CUDA; float32 elsewhere, where it is as fast."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


def _layout(images: torch.Tensor) -> torch.Tensor:
    """Channels last: 1.5 times as fast as channels first, on CUDA and, for small networks, on the CPU (measured)."""
    return images.contiguous(memory_format=torch.channels_last)


def _batches(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """``order`` in equal batches of at most ``batch_size``: no image is left out, and no last batch is tiny."""
    return np.array_split(order, -(-len(order) // batch_size))


def _train_epoch(state: _State, pools: Sequence[ImagePool], labels: torch.Tensor, seed: int, config: Classifier) -> float:
    """One pass over all training images; returns the mean loss."""
    rng = np.random.default_rng(derive_seed(seed, "epoch", state.schedule.epochs))
    order = rng.permutation(len(labels))
    crops = draw_crops(rng, np.concatenate([pool.sizes for pool in pools]), config.min_crop_area)
    for group in state.optimizer.param_groups:
        group["lr"] = state.schedule.lr
    state.model.train()
    device = labels.device
    total = torch.zeros((), device=device)
    for batch in _batches(order, config.batch_size):
        images, _ = gather(pools, batch, device)
        chosen = labels[torch.from_numpy(batch).to(device)]
        with _precision(device):
            logits = state.model(_layout(cut(images, Crops(crops.boxes[batch], crops.flips[batch]), config.resolution)))
            loss = F.cross_entropy(logits, chosen)
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        state.optimizer.step()
        total += loss.detach() * len(batch)
    return float(total) / len(labels)


@torch.inference_mode()
def predict(model: WidthResNet, pool: ImagePool, config: Classifier, device: torch.device) -> torch.Tensor:
    """Logits float32 (N, classes) of every image, cut as in evaluation; on the CPU."""
    model.eval()
    # About 16 million pixels: large enough to keep a device busy, small enough for 16 GB with a ResNet-50.
    size = max(1, min(1024, 2**24 // config.resolution**2)) if device.type == "cuda" else 250
    resize, logits = evaluation_resize(config), []
    for batch in _batches(np.arange(len(pool)), size):
        images, sizes = gather([pool], batch, device)
        with _precision(device):
            logits.append(model(_layout(cut_centre(images, sizes, resize, config.resolution))).float())
    return torch.cat(logits).cpu()


def _cpu_copy(model: WidthResNet) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in model.state_dict().items()}


def train_run(
    config: Classifier,
    classes: int,
    real: LabelledImages,
    added: LabelledImages | None,
    validation: LabelledImages,
    run: int,
    study_seed: int,
    device: torch.device,
    checkpoint: Path | None = None,
    what: str = "classifier",
) -> RunResult:
    """Train one classifier on ``real`` and ``added`` images (paper, section 3).

    Parameters
    ----------
    classes : int
        Number of classes; labels are 0 .. classes - 1.
    added : LabelledImages, optional
        Added images; None for a baseline.
    run : int
        Number of the resample. The seed derives from it and not from the method, so run r of every method starts from
        the same weights.
    checkpoint : Path, optional
        File of the latest state; if it is there, training goes on from it. It is the caller's to delete.

    Returns
    -------
    RunResult
        The same for the same arguments, device and number of threads, whether or not the run was interrupted.

    Raises
    ------
    UserError
        Fewer than two training images, or no validation images.
    """
    seed = derive_seed(study_seed, "classifier", run)
    training = [real] if added is None else [real, added]
    if sum(map(len, training)) < 2 or not len(validation):
        raise UserError(what, f"{sum(map(len, training))} training, {len(validation)} validation images", "two and one are the least")
    side = evaluation_resize(config)
    pools = [images.pool(side, device) for images in training]
    held_out = validation.pool(side, device)
    labels = torch.from_numpy(np.concatenate([images.labels for images in training])).to(device)
    truth = torch.from_numpy(validation.labels)

    model = build(config, classes, derive_seed(seed, "weights")).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, foreach=True)
    state = _State(model, optimizer, PlateauSchedule(config.lr))
    if checkpoint is not None and checkpoint.exists():
        state.load(checkpoint, device)
        logger.info("%s: going on after epoch %d", what, state.schedule.epochs)

    resumed, start = state.schedule.epochs, time.monotonic()
    saved = logged = start
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        while not state.schedule.finished(config):
            begun, lr = time.monotonic(), state.schedule.lr
            loss = _train_epoch(state, pools, labels, seed, config)
            top1 = float((predict(model, held_out, config, device).argmax(dim=1) == truth).double().mean())
            state.history.append(Epoch(state.schedule.epochs, lr, loss, top1))
            state.schedule = state.schedule.step(top1, config)
            if state.schedule.improved:
                state.best = _cpu_copy(model)
            now = time.monotonic()
            state.seconds.append(now - begun)
            if checkpoint is not None and now - saved >= CHECKPOINT_SECONDS:
                state.save(checkpoint)
                saved = now
            if now - logged >= PROGRESS_SECONDS:
                logged = now
                _log(what, state.schedule, state.history[-1], config, (now - start) / (state.schedule.epochs - resumed))
    return RunResult(state.best, tuple(state.history), state.schedule.best_epoch, state.schedule.best_top1, tuple(state.seconds))


def _log(what: str, schedule: PlateauSchedule, last: Epoch, config: Classifier, seconds_per_epoch: float) -> None:
    """One progress line; the time left is the worst case, as training may stop early."""
    logger.info(
        "%s: epoch %d/%d, loss %.3f, val top-1 %.3f (best %.3f at %d), lr %.2g, %.3g s/epoch, ETA at most %s",
        what, schedule.epochs, config.max_epochs, last.train_loss, last.val_top1, schedule.best_top1, schedule.best_epoch + 1,
        last.lr, seconds_per_epoch, clock(seconds_per_epoch * (config.max_epochs - schedule.epochs)),
    )  # fmt: skip
