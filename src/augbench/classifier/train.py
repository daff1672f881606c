"""Train one classifier: a plain loop with explicit state, resumable after any epoch.

Input: real, added and validation images, the ``classifier`` section and a seed. Output: the checkpoint with
the best validation accuracy and the history. Training never sees test images (guarded test split).
Initial weights, order of the images and crops derive from (seed, epoch) alone, so an interrupted run gives
the same result as an uninterrupted one.

Several processes, one per GPU, train as one process would. Each takes its part of every global batch, with
the same crops. Batch normalisation and the mean of the gradients are over the global batch. Only the order
of sums differs, and so the floating-point rounding.
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
from torch import nn

from augbench.classifier.compute import Compute, ProcessGroup
from augbench.classifier.crops import Crops, cut, cut_centre, draw_crops
from augbench.classifier.images import ImagePool, LabelledImages, stream
from augbench.classifier.model import WidthResNet, build
from augbench.classifier.normalisation import over_the_global_batch
from augbench.classifier.schedule import PlateauSchedule
from augbench.classifier.sizes import evaluation_resize
from augbench.config.stages import Classifier
from augbench.errors import UserError
from augbench.files import atomic_path
from augbench.progress import clock
from augbench.seeds import classifier_seed, derive_seed

logger = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 5.0  # not every epoch: in a tiny study, one takes less time than writing a checkpoint
PROGRESS_SECONDS = 10.0


@dataclass(frozen=True)
class Epoch:
    """One epoch: number (0-based), learning rate, mean training loss, validation accuracy (share)."""

    epoch: int
    lr: float
    train_loss: float
    val_top1: float


@dataclass(frozen=True)
class RunResult:
    """Result of training.

    Attributes
    ----------
    state : dict of Tensor
        Weights of the epoch with the best validation accuracy, on the CPU.
    history : tuple of Epoch
        All epochs; the same with or without an interruption.
    best_epoch : int
        Epoch (0-based) of ``state``.
    val_top1 : float
        Its validation accuracy (share).
    seconds : tuple of float
        Duration of each epoch, including those of earlier, interrupted processes.
    """

    state: dict[str, torch.Tensor]
    history: tuple[Epoch, ...]
    best_epoch: int
    val_top1: float
    seconds: tuple[float, ...] = ()


@dataclass
class _State:
    """Everything that changes during a run: the content of a checkpoint, for any number of processes."""

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

    def load(self, path: Path, group: ProcessGroup) -> None:
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
        self.schedule = PlateauSchedule(**state["schedule"])
        self.best = {name: tensor.cpu() for name, tensor in state["best"].items()}
        self.history = [Epoch(**epoch) for epoch in state["history"]]
        self.seconds = state["seconds"]


def _precision(config: Classifier, device: torch.device) -> AbstractContextManager[Any]:
    """Autocast to the config's precision; ``auto``: bfloat16 on CUDA, float32 on the CPU (as fast there)."""
    wanted = config.dtype if config.dtype != "auto" else "bfloat16" if device.type == "cuda" else "float32"
    return torch.autocast(device.type, torch.bfloat16) if wanted == "bfloat16" else nullcontext()


def _at_least_single(tensor: torch.Tensor) -> torch.Tensor:
    """Convert half precision to float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _layout(images: torch.Tensor) -> torch.Tensor:
    """Convert to channels last.

    This is 1.5 times as fast as channels first, on CUDA and, for small networks, on the CPU (measured).
    """
    return images.contiguous(memory_format=torch.channels_last)


def _batches(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Split ``order`` into batches of nearly equal size, at most ``batch_size``, so that none is tiny."""
    return np.array_split(order, -(-len(order) // batch_size))


def _train_epoch(
    state: _State,
    network: nn.Module,
    pools: Sequence[ImagePool],
    labels: torch.Tensor,
    seed: int,
    config: Classifier,
    group: ProcessGroup,
) -> float:
    """Train for one pass over all training images; return the mean loss.

    ``network`` is the state's model, with gradients averaged over the group.
    """
    rng = np.random.default_rng(derive_seed(seed, "epoch", state.schedule.epochs))
    order = rng.permutation(len(labels))
    crops = draw_crops(rng, np.concatenate([pool.sizes for pool in pools]), config.min_crop_area)
    for parameters in state.optimizer.param_groups:
        parameters["lr"] = state.schedule.lr
    state.model.train()
    device = labels.device
    total = torch.zeros((), device=device)
    batches = _batches(order, config.batch_size)
    shares = [group.share(batch) for batch in batches]
    for batch, share, (images, _) in zip(batches, shares, stream(pools, shares, device), strict=True):
        chosen = labels[torch.from_numpy(share).to(device)]
        with _precision(config, device):
            logits = network(
                _layout(cut(images, Crops(crops.boxes[share], crops.flips[share]), config.resolution))
            )
            loss = F.cross_entropy(_at_least_single(logits), chosen)
        state.optimizer.zero_grad(set_to_none=True)
        # gradients are averaged over processes with equal weights; this factor corrects for unequal shares
        (loss * (len(share) * group.size / len(batch))).backward()
        state.optimizer.step()
        total += loss.detach() * len(share)
    return float(group.sum(total)) / len(labels)


@torch.inference_mode()
def predict(
    model: WidthResNet, pool: ImagePool, config: Classifier, device: torch.device, rows: slice | None = None
) -> torch.Tensor:
    """Compute logits, float32 (N, classes) on the CPU, of all images or those in ``rows``.

    Images are cropped as in evaluation.
    """
    model.eval()
    # On CUDA about 16 million pixels: they keep a device busy and need less than 16 GB with a ResNet-50.
    size = max(1, min(1024, 2**24 // config.resolution**2)) if device.type == "cuda" else 250
    resize, logits = evaluation_resize(config), []
    batches = _batches(np.arange(len(pool))[rows or slice(None)], size)
    for images, sizes in stream([pool], batches, device):
        with _precision(config, device):
            logits.append(model(_layout(cut_centre(images, sizes, resize, config.resolution))).float())
    return torch.cat(logits).cpu()


def _accuracy(
    model: WidthResNet, pool: ImagePool, truth: torch.Tensor, config: Classifier, compute: Compute
) -> float:
    """Share of images whose label is predicted; each process scores its part of them."""
    rows = compute.group.rows(len(pool))
    hits = torch.zeros((), dtype=torch.int64)
    if rows.stop > rows.start:
        hits = (predict(model, pool, config, compute.device, rows).argmax(dim=1) == truth[rows]).sum()
    return int(compute.group.sum(hits.to(compute.device))) / len(pool)


def _over_processes(model: WidthResNet, compute: Compute) -> nn.Module:
    """Wrap ``model`` so that gradients are averaged over the group.

    All processes start with the first one's weights.
    """
    if compute.group.size == 1:
        return model
    devices = [compute.device] if compute.device.type == "cuda" else None
    # There are no unused parameters. But without find_unused_parameters, gradients are packed differently
    # after the first step. They would then be summed in another order, and a resumed run would differ.
    return nn.parallel.DistributedDataParallel(
        model,
        device_ids=devices,
        forward_sync_buffers=False,
        find_unused_parameters=True,
        gradient_as_bucket_view=True,
    )


def _cpu_copy(model: WidthResNet) -> dict[str, torch.Tensor]:
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }


def train_run(
    config: Classifier,
    classes: int,
    real: LabelledImages,
    added: LabelledImages | None,
    validation: LabelledImages,
    run: int,
    study_seed: int,
    compute: Compute,
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
        Number of the resample. The seed derives from it and not from the method, so run r of every method
        starts with the same weights.
    compute : Compute
        In a group, each process calls this function with the same arguments, except for its rank.
    checkpoint : Path, optional
        File of the latest state. If it exists, training resumes from it, with any number of processes. The
        caller deletes it.

    Returns
    -------
    RunResult
        Identical for the same arguments, device, number of threads and number of processes, whether or not
        the run was interrupted.

    Raises
    ------
    UserError
        There are fewer than two training images, no validation images, or more processes than images in a
        batch.
    """
    device, group = compute.device, compute.group
    seed = classifier_seed(study_seed, run)
    training = [real] if added is None else [real, added]
    if sum(map(len, training)) < 2 or not len(validation):
        raise UserError(
            what,
            f"{sum(map(len, training))} training, {len(validation)} validation images",
            "at least two and one are needed",
        )
    batches = _batches(np.arange(sum(map(len, training))), config.batch_size)
    if (smallest := min(map(len, batches))) < group.size:
        raise UserError(
            "execution.processes",
            f"{group.size}, and {what} has a batch of {smallest}",
            "at most one process per image of a batch",
        )
    side = evaluation_resize(config)
    pools = [images.pool(side, compute) for images in training]
    held_out = validation.pool(side, compute)
    labels = torch.from_numpy(np.concatenate([images.labels for images in training])).to(device)
    truth = torch.from_numpy(validation.labels)

    model = build(config, classes, derive_seed(seed, "weights"))
    if group.size > 1:
        over_the_global_batch(model, device)
    model = model.to(device, memory_format=torch.channels_last)
    if compute.compiled:
        model.compile(options={"deterministic": True})
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        foreach=True,
    )
    state = _State(model, optimizer, PlateauSchedule(config.lr))
    if checkpoint is not None:
        state.load(checkpoint, group)
        if state.schedule.epochs:
            logger.info("%s: resuming after epoch %d", what, state.schedule.epochs)
    network = _over_processes(model, compute)

    resumed, start = state.schedule.epochs, time.monotonic()
    saved = logged = start
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        while not state.schedule.finished(config):
            begun, lr = time.monotonic(), state.schedule.lr
            loss = _train_epoch(
                state=state,
                network=network,
                pools=pools,
                labels=labels,
                seed=seed,
                config=config,
                group=group,
            )
            top1 = _accuracy(model, held_out, truth, config, compute)
            state.history.append(Epoch(state.schedule.epochs, lr, loss, top1))
            state.schedule = state.schedule.step(top1, config)
            if state.schedule.improved:
                state.best = _cpu_copy(model)
            now = time.monotonic()
            state.seconds.append(now - begun)
            if checkpoint is not None and group.rank == 0 and now - saved >= CHECKPOINT_SECONDS:
                state.save(checkpoint)
                saved = now
            if now - logged >= PROGRESS_SECONDS:
                logged = now
                _log(
                    what,
                    state.schedule,
                    state.history[-1],
                    config,
                    (now - start) / (state.schedule.epochs - resumed),
                )
    return RunResult(
        state.best,
        tuple(state.history),
        state.schedule.best_epoch,
        state.schedule.best_top1,
        tuple(state.seconds),
    )


def _log(
    what: str, schedule: PlateauSchedule, last: Epoch, config: Classifier, seconds_per_epoch: float
) -> None:
    """Log a progress line; its time left is the worst case, because training may stop early."""
    logger.info(
        "%s: epoch %d/%d, loss %.3f, val top-1 %.3f (best %.3f at %d), lr %.2g, %.3g s/epoch, ETA at most %s",
        what, schedule.epochs, config.max_epochs, last.train_loss, last.val_top1, schedule.best_top1,
        schedule.best_epoch + 1, last.lr, seconds_per_epoch,
        clock(seconds_per_epoch * (config.max_epochs - schedule.epochs)),
    )  # fmt: skip
