"""Training one classifier: a plain loop with explicit state, resumable after any epoch.

Flows in: real, added and validation images, the ``classifier`` section and a seed. Flows out: the checkpoint with the best validation
accuracy and the history. Test images do not come near this module. Initial weights, order of the images and crops derive from
(seed, epoch), never from what happened before, so an interrupted run goes on as if nothing had happened.

Several processes, one per GPU, train as one would: each takes its part of every global batch, cut as it would be in the whole, batch
normalisation is over the global batch, and gradients are averaged over it. What differs is the order of sums, so float rounding.
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
    """All that changes during a run; what a checkpoint holds. It holds the same for any number of processes."""

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
        """Go on from ``path``, all processes with what the first one reads; a file that can't be read is only a loss of time."""
        state: dict[str, Any] | None = None
        if group.rank == 0 and path.exists():
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
            except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
                logger.warning("%s can't be read (%s): starting anew", path, error)
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
    """bfloat16 where the config says so; by default on CUDA, as float32 is as fast on the CPU."""
    wanted = config.dtype if config.dtype != "auto" else "bfloat16" if device.type == "cuda" else "float32"
    return torch.autocast(device.type, torch.bfloat16) if wanted == "bfloat16" else nullcontext()


def _at_least_single(tensor: torch.Tensor) -> torch.Tensor:
    """Half precision as float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _layout(images: torch.Tensor) -> torch.Tensor:
    """Channels last: 1.5 times as fast as channels first, on CUDA and, for small networks, on the CPU (measured)."""
    return images.contiguous(memory_format=torch.channels_last)


def _batches(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """``order`` in equal batches of at most ``batch_size``: no image is left out, and no last batch is tiny."""
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
    """One pass over all training images; returns the mean loss. ``network`` is the state's, with gradients averaged over the group."""
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
        # processes are averaged as equals; where the batch can't be shared equally, the larger share counts more
        (loss * (len(share) * group.size / len(batch))).backward()
        state.optimizer.step()
        total += loss.detach() * len(share)
    return float(group.sum(total)) / len(labels)


@torch.inference_mode()
def predict(
    model: WidthResNet, pool: ImagePool, config: Classifier, device: torch.device, rows: slice | None = None
) -> torch.Tensor:
    """Logits float32 (N, classes) of every image, or of those in ``rows``, cut as in evaluation; on the CPU."""
    model.eval()
    # About 16 million pixels: large enough to keep a device busy, small enough for 16 GB with a ResNet-50.
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
    """Share of the images whose label is predicted; each process looks at its part of them."""
    rows = compute.group.rows(len(pool))
    hits = torch.zeros((), dtype=torch.int64)
    if rows.stop > rows.start:
        hits = (predict(model, pool, config, compute.device, rows).argmax(dim=1) == truth[rows]).sum()
    return int(compute.group.sum(hits.to(compute.device))) / len(pool)


def _over_processes(model: WidthResNet, compute: Compute) -> nn.Module:
    """``model`` with gradients averaged over the group; all processes start from the first one's weights."""
    if compute.group.size == 1:
        return model
    devices = [compute.device] if compute.device.type == "cuda" else None
    # There are no unused parameters. But without this option gradients are packed anew after the first step, which sums in another order,
    # and a run that goes on after an interruption would differ.
    return nn.parallel.DistributedDataParallel(
        model, device_ids=devices, forward_sync_buffers=False, find_unused_parameters=True, gradient_as_bucket_view=True
    )  # fmt: skip


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
        Number of the resample. The seed derives from it and not from the method, so run r of every method starts from
        the same weights.
    compute : Compute
        Of a group, each process calls this with the same arguments but for its rank.
    checkpoint : Path, optional
        File of the latest state; if it is there, training goes on from it, with any number of processes. It is the caller's to delete.

    Returns
    -------
    RunResult
        The same for the same arguments, device, number of threads and of processes, whether or not the run was interrupted.

    Raises
    ------
    UserError
        Fewer than two training images, no validation images, or batches of fewer images than there are processes.
    """
    device, group = compute.device, compute.group
    seed = classifier_seed(study_seed, run)
    training = [real] if added is None else [real, added]
    if sum(map(len, training)) < 2 or not len(validation):
        raise UserError(
            what,
            f"{sum(map(len, training))} training, {len(validation)} validation images",
            "two and one are the least",
        )
    if (
        smallest := min(map(len, _batches(np.arange(sum(map(len, training))), config.batch_size)))
    ) < group.size:
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
            logger.info("%s: going on after epoch %d", what, state.schedule.epochs)
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
    """One progress line; the time left is the worst case, as training may stop early."""
    logger.info(
        "%s: epoch %d/%d, loss %.3f, val top-1 %.3f (best %.3f at %d), lr %.2g, %.3g s/epoch, ETA at most %s",
        what, schedule.epochs, config.max_epochs, last.train_loss, last.val_top1, schedule.best_top1, schedule.best_epoch + 1,
        last.lr, seconds_per_epoch, clock(seconds_per_epoch * (config.max_epochs - schedule.epochs)),
    )  # fmt: skip
