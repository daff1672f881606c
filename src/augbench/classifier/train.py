"""Train one classifier: a plain loop with explicit state, resumable after any validation.

Input: real, added and validation images, how the row uses them, the ``classifier`` section and a seed.
Output: the kept weights (by default those of the best validation accuracy) and the history. Training never
sees test images (guarded test split).
Initial weights, order of the images and crops derive from (seed, epoch) alone, and what images are mixed with
from (seed, step), so an interrupted run gives the same result as an uninterrupted one.

Several processes, one per GPU, train as one process would. Each takes its part of every global batch, with
the same crops, and reads partners from others' parts. Batch normalisation is over the global batch or stated
parts of it, the mean of the gradients over the global batch. Only the order of sums differs, and so the
floating-point rounding.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from augbench.classifier.compute import Compute, ProcessGroup
from augbench.classifier.crops import Crops, at_origin, cut, draw_crops, in_parts, send
from augbench.classifier.features import FeaturePool, logits_on
from augbench.classifier.images import ImagePool, LabelledImages, stream
from augbench.classifier.mixing import Share, draw_mix
from augbench.classifier.networks import build, build_head
from augbench.classifier.normalisation import normalise_over
from augbench.classifier.optimiser import set_rate
from augbench.classifier.predict import in_equal_batches
from augbench.classifier.schedule import Pass, Passes, smallest_batch, steps_per_epoch, undersized_parts
from augbench.classifier.sizes import evaluation_resize, training_side
from augbench.classifier.start import Start
from augbench.classifier.state import RunResult, State
from augbench.classifier.step import Gradients, memory_in_one_line
from augbench.config.classifier import RESNETS, Classifier
from augbench.config.use import CONCATENATED, Use
from augbench.errors import UserError
from augbench.progress import clock
from augbench.seeds import classifier_seed, derive_seed

logger = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 5.0  # not every epoch: in a tiny study, one takes less time than writing a checkpoint
PROGRESS_SECONDS = 10.0


@dataclass(frozen=True)
class _Training:
    """What the steps of a run share.

    Attributes
    ----------
    gradients : Gradients
        Of the state's model.
    pools : sequence of ImagePool
        Real images, once per repetition, then added ones.
    labels : ndarray, int (N,)
        Of all images in ``pools``.
    seed : int
        Seed of the run.
    use : Use
        How the row uses its images.
    real : ndarray, int, optional
        Real images in ``pools`` that are trained on. Default: all images.
    added : ndarray, int, optional
        Added images in ``pools``.
    """

    gradients: Gradients
    pools: Sequence[ImagePool]
    labels: np.ndarray
    seed: int
    config: Classifier
    compute: Compute
    use: Use = CONCATENATED
    real: np.ndarray | None = None
    added: np.ndarray | None = None

    @cached_property
    def real_rows(self) -> np.ndarray:
        """Real images that are trained on."""
        return np.arange(len(self.labels)) if self.real is None else self.real

    @cached_property
    def rows(self) -> np.ndarray:
        """All images that are trained on."""
        return self.real_rows if self.added is None else np.concatenate([self.real_rows, self.added])

    @cached_property
    def is_added(self) -> np.ndarray:
        """Whether each image in ``pools`` is an added one."""
        added = np.zeros(len(self.labels), dtype=bool)
        if self.added is not None:
            added[self.added] = True
        return added

    @cached_property
    def passes(self) -> Passes:
        """Passes over the images."""
        config, per_epoch = self.config, steps_per_epoch(len(self.rows), self.config.batch_size)
        if not self.use.real_at_end:
            return Passes(per_epoch)
        switch = config.total_steps - self.use.end_steps(config.total_steps)
        return Passes(per_epoch, switch, steps_per_epoch(len(self.real_rows), config.batch_size))

    def to_next_validation(self, state: State) -> float:
        """Train until the next validation is due; return the (weighted) mean loss over the images seen.

        Order and crops of an epoch derive from (seed, epoch) alone, so training can start and end in the
        middle of one.
        """
        step, end = (
            state.schedule.steps_done(self.passes.per_epoch),
            state.schedule.next_validation(self.config, self.passes.per_epoch),
        )
        total, weight = torch.zeros((), device=self.compute.device), 0.0
        state.model.train()
        while step < end:
            place = self.passes.at(step)
            if self.config.train == "head" or (place.real_only and self.use.head_only):
                self.gradients.train_head_only(self.images_of_a_share(self.real_rows))
            steps = min(end - step, place.left)
            rates = [state.schedule.lr_of(step + ahead, self.config) for ahead in range(steps)]
            loss, weights = self._part(state, place, step, rates)
            total, weight, step = total + loss, weight + weights, step + steps
        return float(self.compute.group.sum(total)) / weight

    def images_of_a_share(self, rows: np.ndarray) -> int:
        """Number of images in a process's share of a batch of ``rows``, at most."""
        return -(-min(self.config.batch_size, len(rows)) // self.compute.group.size)

    def _part(
        self, state: State, place: Pass, step: int, rates: Sequence[float]
    ) -> tuple[torch.Tensor, float]:
        """Train on consecutive batches of a pass from ``place`` and ``step`` on, one per learning rate.

        Returns
        -------
        loss : Tensor, float32 ()
            Sum of weight x loss of this process's images.
        weight : float
            Sum of the weights of the images of all processes.
        """
        config, device = self.config, self.compute.device
        rng = np.random.default_rng(derive_seed(self.seed, "epoch", place.number))
        rows = self.real_rows if place.real_only else self.rows
        order = rows[rng.permutation(len(rows))]
        batches = in_equal_batches(order, config.batch_size)[place.batch : place.batch + len(rates)]
        shares = [self._share(batch, number) for number, batch in enumerate(batches, step)]
        read = [batch[share.read] for batch, share in zip(batches, shares, strict=True)]
        total = torch.zeros((), device=device)
        for lr, batch, share, images in zip(rates, batches, shares, self._inputs(rng, read), strict=True):
            set_rate(state.optimizer, lr)
            mixed, targets = share.mixed(images, self.labels[batch])
            total += self.gradients(mixed, targets, share.total)
            state.step()
        return total, sum(share.total for share in shares)

    def _share(self, batch: np.ndarray, step: int) -> Share:
        """Return this process's share of the batch of a step."""
        added = self.is_added[batch]
        mix = draw_mix(self.use, added, self.config.resolution, derive_seed(self.seed, "mix", step))
        places = self.compute.group.share(np.arange(len(batch)), self.config.batch_norm_groups)
        return Share.of(places, added, mix, self.use)

    def _inputs(self, rng: np.random.Generator, batches: Sequence[np.ndarray]) -> Iterator[torch.Tensor]:
        """Yield what the network sees of each batch: random crops that ``rng`` draws."""
        sizes = np.concatenate([pool.sizes for pool in self.pools])
        return self._cut(draw_crops(rng, sizes, self.config.min_crop_area), batches)

    def _cut(self, crops: Crops, batches: Sequence[np.ndarray]) -> Iterator[torch.Tensor]:
        """Yield the crops of each batch, float32 (N, 3, resolution, resolution).

        Of images as large as their files only the boxes are read, those of similar size together.
        """
        resolution, device = self.config.resolution, self.compute.device
        if self.config.decoded_size is None:
            for batch, (images, _) in zip(batches, stream(self.pools, batches, device), strict=True):
                yield cut(images, Crops(crops.boxes[batch], crops.flips[batch]), resolution)
            return
        orders = [in_parts(crops.boxes[batch]) for batch in batches]
        parts = [batch[places] for batch, order in zip(batches, orders, strict=True) for places in order]
        reading = stream(self.pools, parts, device, [crops.boxes[part] for part in parts])
        pieces = (
            cut(images, Crops(at_origin(sizes), crops.flips[part]), resolution)
            for part, (images, sizes) in zip(parts, reading, strict=True)
        )
        for order in orders:
            (back,) = send([np.argsort(np.concatenate(order))], device)
            yield torch.cat([next(pieces) for _ in order])[back]


class _ProbeTraining(_Training):
    """The steps of a probe, whose pools are :class:`~augbench.classifier.features.FeaturePool`."""

    @cached_property
    def _features(self) -> torch.Tensor:
        """Features of all images in the pools, float32 (N, D)."""
        return torch.cat([pool.features for pool in self.pools])  # type: ignore[attr-defined]

    def _inputs(self, rng: np.random.Generator, batches: Sequence[np.ndarray]) -> Iterator[torch.Tensor]:
        """Yield the features of each batch."""
        for batch in batches:
            yield self._features.index_select(0, *send([batch], self.compute.device))


def _accuracy(
    model: nn.Module, pool: ImagePool | FeaturePool, truth: torch.Tensor, config: Classifier, compute: Compute
) -> float:
    """Share of images whose label is predicted; each process scores its part of them."""
    rows = compute.group.rows(len(pool))
    hits = torch.zeros((), dtype=torch.int64)
    if rows.stop > rows.start:
        hits = (logits_on(model, pool, config, compute.device, rows).argmax(dim=1) == truth[rows]).sum()
    return int(compute.group.sum(hits.to(compute.device))) / len(pool)


@dataclass(frozen=True)
class _TrainingSet:
    """The sets of a run, real images once per repetition, then added ones, and which of all are trained on.

    Attributes
    ----------
    real, added : ndarray, int
        Places of the real and of the added images that are trained on, in ``sets`` put together.
    """

    sets: Sequence[LabelledImages]
    real: np.ndarray
    added: np.ndarray

    @classmethod
    def of(
        cls, real: LabelledImages, added: LabelledImages | None, repeats: int, stays: np.ndarray | None
    ) -> _TrainingSet:
        """Put the sets together; arguments as in :func:`train_run`."""
        sets = [real] * repeats + ([] if added is None else [added])
        chosen = np.arange(len(real)) if stays is None else stays
        return cls(
            sets,
            np.concatenate([chosen + repeat * len(real) for repeat in range(repeats)]),
            np.arange(repeats * len(real), sum(map(len, sets))),
        )

    @property
    def labels(self) -> np.ndarray:
        """Labels of all images, also of those that are not trained on."""
        return np.concatenate([images.labels for images in self.sets])


class _Upkeep:
    """Saves checkpoints, unless ``checkpoint`` is None, and logs progress, each after its seconds.

    ``resumed`` is the number of steps that were done before this process.
    """

    def __init__(
        self, what: str, config: Classifier, per_epoch: int, checkpoint: Path | None, resumed: int
    ) -> None:
        self.what, self.config, self.per_epoch = what, config, per_epoch
        self.checkpoint, self.resumed = checkpoint, resumed
        self.begun = self.saved = self.logged = time.monotonic()

    def after_validation(self, state: State) -> None:
        """Save and log if it is time."""
        now = time.monotonic()
        if self.checkpoint is not None and now - self.saved >= CHECKPOINT_SECONDS:
            state.save(self.checkpoint)
            self.saved = now
        if now - self.logged >= PROGRESS_SECONDS:
            self.logged = now
            done = state.schedule.steps_done(self.per_epoch)
            self._log(state, (now - self.begun) / (done - self.resumed))

    def _log(self, state: State, seconds_per_step: float) -> None:
        """Log progress; under ``plateau``, the time left is the worst case: training may stop early."""
        config, per_epoch = self.config, self.per_epoch
        schedule, last = state.schedule, state.history[-1]
        done, kept = schedule.steps_done(per_epoch), schedule.kept_step(per_epoch)
        if config.schedule == "steps":
            total, left = config.total_steps, "ETA"
            progress = f"step {done}/{total}"
            best = f"kept {schedule.kept_top1:.3f} of step {kept}"
        else:
            total, left = config.max_epochs * per_epoch, "ETA at most"
            progress = f"epoch {done // per_epoch}/{config.max_epochs}"
            best = f"best {schedule.kept_top1:.3f} at {kept // per_epoch}"
        logger.info(
            "%s: %s, loss %.3f, val top-1 %.3f (%s), lr %.2g, %.3g s/step, %s %s",
            self.what, progress, last.train_loss, last.val_top1, best, last.lr, seconds_per_step, left,
            clock(seconds_per_step * (total - done)),
        )  # fmt: skip


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
    repeats: int = 1,
    use: Use = CONCATENATED,
    stays: np.ndarray | None = None,
    start: Start | None = None,
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
    repeats : int
        How often each real image appears in one pass, with another crop each time.
    use : Use
        How the row uses its images.
    stays : ndarray, int, optional
        The images of ``real`` that are trained on (``use.replace``). Default: all.
    start : Start, optional
        What the network begins with. Default: random weights.

    Returns
    -------
    RunResult
        Identical for the same arguments, device, number of threads and number of processes, whether or not
        the run was interrupted.

    Raises
    ------
    UserError
        There are fewer than two training images, no validation images, more processes than images in a
        batch, or parts of a batch with fewer than two images.
    """
    if config.train == "probe":  # its features have been computed in config.dtype; one layer costs nothing
        config = config.model_copy(update={"dtype": "float32"})
    seed = classifier_seed(study_seed, run)
    images = _TrainingSet.of(real, added, repeats, stays)
    _check_sizes(what, len(images.real) + len(images.added), len(validation), config, compute.group)
    if use.real_at_end:
        name = f"{what}, real images alone"
        _check_sizes(name, len(images.real), len(validation), config, compute.group)
    # first, so that each run's pools find the same
    held_out = validation.pool(evaluation_resize(config), compute)
    pools = [each.pool(training_side(config), compute) for each in images.sets]

    model = _new_model(config, classes, derive_seed(seed, "weights"), start, compute)
    gradients = Gradients(model, config, compute)
    state = State.new(model, config, gradients.scaler)
    if checkpoint is not None:
        state.load(checkpoint, config, compute.group)
    kind = _ProbeTraining if config.train == "probe" else _Training
    training = kind(gradients, pools, images.labels, seed, config, compute, use, images.real, images.added)
    _fit(training, state, held_out, torch.from_numpy(validation.labels), what, checkpoint)
    return state.result(config, training.passes)


def _fit(
    training: _Training,
    state: State,
    held_out: ImagePool | FeaturePool,
    truth: torch.Tensor,
    what: str,
    checkpoint: Path | None,
) -> None:
    """Train until the schedule ends, and validate with images of the labels ``truth``; process 0 saves."""
    config, compute, group = training.config, training.compute, training.compute.group
    per_epoch = training.passes.per_epoch
    if resumed := state.schedule.steps_done(per_epoch):
        logger.info("%s: resuming after step %d", what, resumed)
    upkeep = _Upkeep(what, config, per_epoch, checkpoint if group.rank == 0 else None, resumed)
    exact = config.deterministic
    with (
        memory_in_one_line(config, compute),
        torch.backends.cudnn.flags(enabled=True, benchmark=not exact, deterministic=exact),
        _attention(config, compute.device),
    ):
        if group.size > 1 and config.train == "all":
            training.gradients.over_processes(training.images_of_a_share(training.rows))
        while not state.schedule.finished(config):
            begun = time.monotonic()
            loss = training.to_next_validation(state)
            if config.batch_norm_groups > 1:
                group.copy_first(state.model.buffers())
            top1 = _accuracy(state.model, held_out, truth, config, compute)
            state.validated(loss, top1, config, training.passes)
            state.seconds.append(time.monotonic() - begun)
            upkeep.after_validation(state)


def _attention(config: Classifier, device: torch.device) -> AbstractContextManager[None]:
    """Context without fused attention where it matters: its gradients are not deterministic on a GPU."""
    if not config.deterministic or device.type != "cuda" or config.arch in RESNETS:
        return nullcontext()
    plain: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
    return plain


def _new_model(
    config: Classifier, classes: int, seed: int, start: Start | None, compute: Compute
) -> nn.Module:
    """Return what is trained, on the device: the network, or for a probe its last layer."""
    if config.train == "probe":
        return build_head(config, classes, seed, start).to(compute.device)
    model = build(config, classes, seed, start)
    normalise_over(model, config.batch_norm_groups, compute.group, compute.device)
    model = model.to(compute.device).to(memory_format=torch.channels_last)
    if compute.compiled:
        model.compile(options={"deterministic": config.deterministic})
    return model


def _check_sizes(what: str, images: int, held_out: int, config: Classifier, group: ProcessGroup) -> None:
    """Check that there are enough images for training, validation and the group's processes."""
    if images < 2 or not held_out:
        raise UserError(
            what, f"{images} training, {held_out} validation images", "at least two and one are needed"
        )
    if problem := undersized_parts(what, images, config):
        raise problem
    if (smallest := smallest_batch(images, config.batch_size)) < group.size:
        raise UserError(
            "execution.processes",
            f"{group.size}, and {what} has a batch of {smallest}",
            "at most one process per image of a batch",
        )
