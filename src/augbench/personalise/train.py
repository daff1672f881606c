"""Fine-tune conditionings or pseudo-words, with any number of clusters, the U-Net, or adapters of it.

Input: classes with their images, a diffusion model, settings. Output: per class, the learned vectors of
every candidate and the losses of every epoch; also the U-Net or adapter of every epoch that is a candidate.
Classes that do not share trained weights are groups of their own, each with its own epochs, steps and early
stopping. They learn in one process and end where each would end if it learned alone. Training can resume
after any step, because all random numbers derive from (seed, class, image, epoch).
"""

from __future__ import annotations

import logging
import math
import pickle
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DConditionModel

from augbench.data.decode import in_order
from augbench.files import atomic_path
from augbench.models.folders import to_device
from augbench.personalise.adam import RowAdam
from augbench.personalise.data import Draw, draw_training, draw_validation, epoch_order
from augbench.personalise.embedding import Rows
from augbench.personalise.families import Predict
from augbench.personalise.groups import ClassGroup, Learned, Settings
from augbench.personalise.objectives import objective_of
from augbench.personalise.tasks import ClassTask, ImageSet
from augbench.personalise.weights import Adapter, Weights, WholeUNet
from augbench.progress import Progress
from augbench.runtime.compiling import compile_network, kernels_of, run_filled
from augbench.runtime.fit import BatchLimit

logger = logging.getLogger(__name__)
# least time between checkpoints: an epoch of a tiny study is shorter than writing a checkpoint
CHECKPOINT_SECONDS = 5.0
# largest share of the time that goes into checkpoints within an epoch: a U-Net's has 10 GB
CHECKPOINT_SHARE = 0.02
MICRO_BATCH = "finetune.micro_batch"  # the key that sets it
T = TypeVar("T")


@dataclass(frozen=True)
class _Sample:
    """One image in one step.

    ``number`` is its class's number, ``image`` its position in its class, ``row`` the row of vectors that
    learns from it, ``draw`` its random numbers, ``weight`` its share of the loss.
    """

    number: int
    image: int
    row: int
    draw: Draw
    weight: float = 0.0


@dataclass(frozen=True)
class Batch:
    """Samples as a pass through the networks needs them; a part of it is a batch, too.

    Attributes
    ----------
    numbers, rows, prompts : sequence of int
        Each sample's class, row of vectors, and random number that chooses its prompt.
    values : Tensor
        All that goes to the device, in one tensor, so that it is one copy: float32, a row per sample with
        the latent, the noise, the timestep and the weight. On the CPU; pinned if the device is a GPU.
    shape : sequence of int
        Shape of a latent, ``(channels, height, width)``.
    """

    numbers: Sequence[int]
    rows: Sequence[int]
    prompts: Sequence[int]
    values: torch.Tensor
    shape: Sequence[int]

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, which: Sequence[int]) -> Batch:
        """The samples at ``which``, consecutive positions."""
        cut = slice(which[0], which[-1] + 1)
        return Batch(self.numbers[cut], self.rows[cut], self.prompts[cut], self.values[cut], self.shape)


@dataclass(frozen=True)
class _Begun:
    """An epoch that was interrupted: its finished steps, and each sample's class and loss in them."""

    steps: int
    numbers: list[int]
    losses: list[torch.Tensor]


def micro_batches(samples: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield pieces of at most ``size`` samples, whose lengths differ by at most one."""
    ends = np.linspace(0, len(samples), -(-len(samples) // size) + 1).round().astype(int).tolist()
    for start, end in pairwise(ends):
        yield samples[start:end]


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


class Trainer:
    """Fine-tuning of several classes, with all of its state.

    Parameters
    ----------
    tasks : sequence of ClassTask
        The classes to learn.
    rows : Rows
        Row ``number x clusters + cluster`` belongs to that cluster of class ``number``.
    unet : UNet2DConditionModel
        On its device; float32 if all of it trains.
    scheduler : DDPMScheduler or FlowMatchEulerDiscreteScheduler
        The model's noise schedule.
    moments, validation_moments : sequence of Tensor
        For each class, as :func:`~augbench.personalise.data.encode_moments` yields them.
    folder : Path
        Folder for the checkpoint and the trained weights of candidates.
    what : str
        Prefix of the progress lines.
    adapter : Adapter, optional
        Adapter of the U-Net that trains, which all classes share.
    predict : callable, optional
        Function from noisy latents, timesteps and text states to the prediction of ``unet``, which may be a
        transformer. Default: Stable Diffusion's.
    """

    def __init__(
        self,
        tasks: Sequence[ClassTask],
        rows: Rows,
        unet: UNet2DConditionModel,
        scheduler: DDPMScheduler | FlowMatchEulerDiscreteScheduler,
        moments: Sequence[torch.Tensor],
        validation_moments: Sequence[torch.Tensor],
        settings: Settings,
        folder: Path,
        what: str = "fine-tune",
        adapter: Adapter | None = None,
        predict: Predict | None = None,
    ) -> None:
        self.tasks, self.rows, self.unet = tasks, rows, unet
        self.objective, self.settings = objective_of(scheduler), settings
        self.predict: Predict = predict or (lambda *inputs: unet(*inputs).sample)
        self.moments, self.validation_moments = moments, validation_moments
        self.folder, self.what = folder, what
        # what all classes train together
        self.weights: Weights | None = WholeUNet(unet) if settings.train_unet else adapter
        self.device = rows.values.device
        learns_vectors = rows.values.numel() > 0
        self.optimizer = RowAdam(rows.values, settings.lr, settings.weight_decay) if learns_vectors else None
        if self.device.type == "cuda":
            # the layout that tensor cores work in; with another one, every convolution converts
            unet.to(memory_format=torch.channels_last)
        unet.requires_grad_(False)
        self.weights_optimizer = None
        if self.weights is not None:
            trained = [parameter.requires_grad_() for parameter in self.weights.parameters()]
            # fused: reads and writes all values once, not once per operation
            fused = True if self.device.type == "cuda" else None
            self.weights_optimizer = torch.optim.AdamW(
                trained, lr=settings.unet_lr, weight_decay=settings.weight_decay, fused=fused
            )
        numbers = tuple(range(len(tasks)))
        self.groups = (
            [ClassGroup(numbers)]
            if self.weights is not None
            else [ClassGroup((number,)) for number in numbers]
        )
        # float16 has few exponents: small gradients vanish unless they are scaled
        self.dtype = settings.autocast or unet.dtype
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        size = self._compiled_batch() if settings.compiled else settings.micro_batch
        self.limit = BatchLimit(size, MICRO_BATCH)
        if settings.compiled and unet._compiled_call_impl is None:  # an earlier class's training did it
            compile_network(unet)
        self.snapshots = {name: torch.zeros(rows.values.shape) for name in settings.candidates}
        self.histories: list[list[dict[str, Any]]] = [[] for _ in tasks]
        self.epoch = 0
        self._begun = _Begun(0, [], [])
        self._saved, self._saving = time.monotonic(), 0.0

    # --- compilation ---

    def _compiled_batch(self) -> int:
        """Size of the equal micro-batches of a step of all groups; the U-Net is compiled only for it."""
        images = [sum(len(self.tasks[number].train) for number in group.classes) for group in self.groups]
        step = sum(min(count, self.settings.batch_size) for count in images)
        return math.ceil(step / math.ceil(step / self.settings.micro_batch))

    def compiled_for(self) -> dict[str, Any]:
        """Properties that determine the kernels that :meth:`warm_up` compiles."""
        trained: list[Any] = [self.settings.train_unet, str(self.settings.autocast)]
        if isinstance(self.weights, Adapter):
            trained.append([list(values.shape) for values in self.weights.parameters()])
        return kernels_of(self.unet, latents=[self.limit.size, *self._shape], trained=trained)

    def warm_up(self) -> None:
        """Compile the U-Net by running a micro-batch for training and for validation; results are dropped."""

        def run() -> None:
            batch = self.prepare([self.training_sample(0, 0, 1, 0.0)] * self.limit.size, self.moments)
            self.losses(batch).sum().backward()
            self._clear_gradients()
            with torch.no_grad():
                self.losses(batch)

        self.limit.restart(run, self.limit.size)

    def _parts(self, samples: int) -> Iterator[Sequence[int]]:
        """Micro-batches: whole ones and a remainder for a compiled U-Net, otherwise equal ones."""
        size, everything = self.limit.size, range(samples)
        if self.settings.compiled:
            return (everything[start : start + size] for start in range(0, samples, size))
        return micro_batches(everything, size)

    def _predicted(self, noisy: torch.Tensor, timesteps: torch.Tensor, *states: torch.Tensor) -> torch.Tensor:
        """Prediction of the U-Net, ``(N, 4, h, w)``; a compiled one gets whole micro-batches."""
        if self.settings.compiled:
            return run_filled(self.predict, self.limit.size, noisy, timesteps, *states)
        return self.predict(noisy, timesteps, *states)

    # --- samples ---

    @property
    def _shape(self) -> Sequence[int]:
        """Shape of a latent."""
        return self.moments[0].shape[-3:]

    def _row(self, number: int, images: ImageSet, image: int) -> int:
        return number * self.settings.clusters + images.clusters[image]

    def training_sample(self, number: int, image: int, epoch: int, weight: float) -> _Sample:
        """Sample of training image ``image`` of class ``number`` in ``epoch``."""
        task = self.tasks[number]
        draw = draw_training(
            self.settings.seed,
            class_id=task.info.class_id,
            image_id=task.train.image_ids[image],
            epoch=epoch,
            shape=self._shape,
            flip=self.settings.flip,
            timesteps=self.objective.timesteps,
        )
        return _Sample(number, image, self._row(number, task.train, image), draw, weight)

    def validation_sample(self, number: int, image: int, repeat: int) -> _Sample:
        """Sample of validation image ``image`` of class ``number``, with its fixed draw ``repeat``."""
        task = self.tasks[number]
        draw = draw_validation(
            self.settings.seed,
            class_id=task.info.class_id,
            image_id=task.validation.image_ids[image],
            number=repeat,
            shape=self._shape,
            timesteps=self.objective.timesteps,
        )
        return _Sample(number, image, self._row(number, task.validation, image), draw)

    def prepare(self, samples: Sequence[_Sample], moments: Sequence[torch.Tensor]) -> Batch:
        """Read the latents of samples and sample their posteriors, on the CPU."""
        draws = [sample.draw for sample in samples]
        # mean and standard deviation of each image's posterior, mirrored or not: (N, 2, 4, h, w)
        chosen = torch.stack(
            [moments[one.number][one.image, int(one.draw.mirrored)] for one in samples]
        ).float()
        mean, deviation = chosen[:, 0], chosen[:, 1]  # (N, 4, h, w) each
        latents = mean + deviation * torch.stack([draw.posterior for draw in draws])
        noise = torch.stack([draw.noise for draw in draws])  # (N, 4, h, w)
        others = torch.tensor([(one.draw.timestep, one.weight) for one in samples])
        values = torch.cat([latents.flatten(1), noise.flatten(1), others], 1)
        return Batch(
            numbers=[sample.number for sample in samples],
            rows=[sample.row for sample in samples],
            prompts=[draw.prompt for draw in draws],
            values=values.pin_memory() if self.device.type == "cuda" else values,
            shape=self._shape,
        )

    def losses(self, batch: Batch) -> torch.Tensor:
        """Stable Diffusion's own loss per sample: mean squared error of the prediction, float32 ``(N,)``."""
        return self._weighted(batch)[0]

    def _losses_at(self, batch: Batch, part: Sequence[int]) -> torch.Tensor:
        return self.losses(batch.part(part))

    def _weighted(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss per sample, and weight per sample, on the device."""
        values = to_device(batch.values, self.device)
        latents, noise = values[:, :-2].unflatten(1, (2, *batch.shape)).unbind(1)  # (N, 4, h, w) each
        timesteps, weights = values[:, -2].long(), values[:, -1]  # (N,) each
        noisy, times, target = self.objective.pose(latents, noise, timesteps)  # (N, 4, h, w), (N,), as noisy
        given = self.rows.states(batch.rows, batch.prompts)  # (N, 77, D), or several tensors
        states = [values.to(self.unet.dtype) for values in (given if isinstance(given, tuple) else (given,))]
        with self._precision():
            predicted = self._predicted(noisy.to(self.unet.dtype), times, *states)
        return (predicted.float() - target).square().mean((1, 2, 3)), weights

    def _precision(self) -> AbstractContextManager[Any]:
        return (
            nullcontext()
            if self.settings.autocast is None
            else torch.autocast(self.device.type, self.settings.autocast)
        )

    # --- one epoch ---

    def epoch_samples(
        self, active: Sequence[ClassGroup], epoch: int
    ) -> Iterator[list[tuple[int, int, float]]]:
        """Yield class, image and weight of the samples of every step.

        A step has one batch of every group that has one left. The losses of a group's batch are averaged.
        """
        batches = []
        for group in active:
            images = [
                (number, image) for number in group.classes for image in range(len(self.tasks[number].train))
            ]
            class_ids = [self.tasks[number].info.class_id for number in group.classes]
            order = epoch_order(self.settings.seed, class_ids, epoch, len(images)).tolist()
            batches.append(
                [
                    [images[i] for i in order[start : start + self.settings.batch_size]]
                    for start in range(0, len(order), self.settings.batch_size)
                ]
            )
        for step in range(max(map(len, batches))):
            due = [group[step] for group in batches if step < len(group)]
            yield [(number, image, 1 / len(batch)) for batch in due for number, image in batch]

    def epoch_steps(self, active: Sequence[ClassGroup], epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batch of every step from ``start`` on; a thread prepares the next ones."""

        def prepared(samples: list[tuple[int, int, float]]) -> Batch:
            drawn = [self.training_sample(number, image, epoch, weight) for number, image, weight in samples]
            return self.prepare(drawn, self.moments)

        return in_order(prepared, islice(self.epoch_samples(active, epoch), start, None), threads=1)

    def step(self, batch: Batch) -> torch.Tensor:
        """Take one step of both optimisers; returns the losses ``(N,)`` before it.

        Where a micro-batch does not fit into memory, the step starts again with smaller ones.
        """
        losses = self.limit.restart(lambda: self._gradients(batch), len(batch))
        self.limit.restart(lambda: self._update(batch), 1)
        return losses

    def _gradients(self, batch: Batch) -> torch.Tensor:
        """Sum the gradients of all micro-batches; returns the losses ``(N,)``."""
        self._clear_gradients()
        losses = []
        for part in self._parts(len(batch)):
            loss, weights = self._weighted(batch.part(part))
            self.scaler.scale((loss * weights).sum()).backward()
            losses.append(loss.detach())
        return torch.cat(losses)

    def _update(self, batch: Batch) -> None:
        """Take a step of both optimisers; with a scaler, what overflowed is not updated."""
        if self.optimizer is not None:
            # RowAdam has what the scaler needs of an optimiser
            self.scaler.step(self.optimizer, sorted(set(batch.rows)))  # type: ignore[arg-type]
        if self.weights_optimizer is not None:
            self.scaler.step(self.weights_optimizer)
        self.scaler.update()
        self._clear_gradients()

    def _clear_gradients(self) -> None:
        self.rows.values.grad = None
        self.unet.zero_grad(set_to_none=True)

    def _by_class(
        self, numbers: Sequence[int], losses: Sequence[torch.Tensor]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Sum of losses and number of samples of each class."""
        values = torch.cat(list(losses)).double().cpu().numpy()
        size = len(self.tasks)
        return np.bincount(numbers, values, size), np.bincount(numbers, minlength=size)

    def _train_epoch(self, active: Sequence[ClassGroup], progress: Progress) -> tuple[np.ndarray, np.ndarray]:
        begun, self._begun = self._begun, _Begun(0, [], [])
        numbers, losses = begun.numbers, begun.losses
        progress.update(len(numbers))
        for step, batch in enumerate(self.epoch_steps(active, self.epoch, begun.steps), begun.steps + 1):
            losses.append(self.step(batch))
            numbers += batch.numbers
            progress.update(len(batch))
            pause = max(CHECKPOINT_SECONDS, self._saving / CHECKPOINT_SHARE)
            if time.monotonic() - self._saved >= pause:
                self._save(_Begun(step, numbers, losses))
        return self._by_class(numbers, losses)

    @torch.no_grad()
    def validate(self, active: Sequence[ClassGroup]) -> tuple[np.ndarray, np.ndarray]:
        """Sum of validation losses and number of samples of each class."""
        wanted = [
            (number, image, repeat)
            for group in active
            for number in group.classes
            for image in range(len(self.tasks[number].validation))
            for repeat in range(self.settings.validation_draws)
        ]

        def prepared(part: Sequence[int]) -> Batch:
            samples = [self.validation_sample(*wanted[place]) for place in part]
            return self.prepare(samples, self.validation_moments)

        losses: list[torch.Tensor] = []
        for batch in in_order(prepared, self._parts(len(wanted)), threads=1):
            losses += self.limit.run(partial(self._losses_at, batch), range(len(batch)))
        return self._by_class([number for number, _, _ in wanted], losses)

    def _record(
        self,
        active: Sequence[ClassGroup],
        train: tuple[np.ndarray, np.ndarray] | None,
        validation: tuple[np.ndarray, np.ndarray],
    ) -> None:
        """Add the epoch to the histories of the active groups' classes; keep new candidates' vectors."""
        values = self.rows.values.detach()
        for group in active:
            classes = list(group.classes)
            for number in classes:
                train_loss = None if train is None else _finite(train[0][number] / train[1][number])
                val_loss = _finite(validation[0][number] / validation[1][number])
                self.histories[number].append(
                    {"epoch": self.epoch, "train_loss": train_loss, "val_loss": val_loss}
                )
            if train is not None:
                train_mean, val_mean = (
                    float(sums[classes].sum()) / int(counts[classes].sum())
                    for sums, counts in (train, validation)
                )
                rows = [
                    row
                    for number in classes
                    for row in range(number * self.settings.clusters, (number + 1) * self.settings.clusters)
                ]
                for name in group.record(self.epoch, train_mean, val_mean, self.settings):
                    self.snapshots[name][rows] = values[rows].cpu()

    def run(self) -> dict[str, Learned]:
        """Train to the end, from the last checkpoint if there is one; returns the results by class_id."""
        self._load()
        if not any(self.histories):
            self._record(self.groups, None, self.validate(self.groups))
        while active := [group for group in self.groups if not group.stopped]:
            self.epoch += 1
            classes = [number for group in active for number in group.classes]
            images = sum(
                len(self.tasks[number].train)
                + len(self.tasks[number].validation) * self.settings.validation_draws
                for number in classes
            )
            progress = Progress(
                f"{self.what}, epoch {self.epoch} of at most {self.settings.max_epochs}", images, "image"
            )
            train = self._train_epoch(active, progress)
            validation = self.validate(active)
            self._record(active, train, validation)
            means = [float(sums.sum()) / int(counts.sum()) for sums, counts in (train, validation)]
            progress.update(
                int(validation[1].sum()),
                f"{len(classes)} classes, training loss {means[0]:.4f}, validation loss {means[1]:.4f}",
            )
            self._keep_weights()
            if (
                any(not group.stopped for group in self.groups)
                and time.monotonic() - self._saved >= CHECKPOINT_SECONDS
            ):
                self._save()
        self._save()
        return {
            self.tasks[number].info.class_id: self._learned(group, number)
            for group in self.groups
            for number in group.classes
        }

    def _learned(self, group: ClassGroup, number: int) -> Learned:
        rows = slice(number * self.settings.clusters, (number + 1) * self.settings.clusters)
        vectors = {
            f"{name}{ending}": entry.clone()
            for name, values in self.snapshots.items()
            for ending, entry in self.rows.entries(values[rows]).items()
        }
        epochs = {name: group.epochs[name] for name in self.settings.candidates}
        dtype = str(self.dtype).removeprefix("torch.")
        return Learned(vectors, epochs, group.best_epoch, tuple(self.histories[number]), dtype)

    # --- files ---

    def weights_folder(self, epoch: int) -> Path:
        """Folder of the weights of a candidate's epoch."""
        assert self.weights is not None
        return weights_folder(self.folder, self.weights.name, epoch)

    def _candidate_epochs(self) -> set[int]:
        return {
            group.epochs[name]
            for group in self.groups
            for name in self.settings.candidates
            if name in group.epochs
        }

    def _keep_weights(self) -> None:
        """Write the weights that train if this epoch is a candidate."""
        if self.weights is not None and self.epoch in self._candidate_epochs():
            folder = self.weights_folder(self.epoch)
            folder.mkdir(parents=True, exist_ok=True)
            self.weights.save(folder)

    def _drop_weights(self) -> None:
        """Remove the weights of epochs that are no longer candidates."""
        if self.weights is None:
            return
        kept = {self.weights_folder(epoch) for epoch in self._candidate_epochs()}
        for folder in set(self.folder.glob(f"{self.weights.name}_epoch*")) - kept:
            shutil.rmtree(folder)

    def _save(self, begun: _Begun | None = None) -> None:
        """Write the checkpoint, then remove the weights that only an earlier checkpoint needs.

        Within an epoch, ``begun`` says what of it is done.
        """
        start = time.monotonic()
        state: dict[str, Any] = {
            "classes": [task.info.class_id for task in self.tasks],
            "epoch": self.epoch - (begun is not None),
            "values": self.rows.values.detach(),
            "optimizer": None if self.optimizer is None else self.optimizer.state_dict(),
            "snapshots": self.snapshots,
            "histories": self.histories,
            "groups": [vars(group) for group in self.groups],
            "scaler": self.scaler.state_dict(),
        }
        if begun is not None:
            state["begun"] = {**vars(begun), "losses": [torch.cat(begun.losses)]}
        if self.weights is not None and self.weights_optimizer is not None:
            trained = {
                "unet": self.weights.state_dict(),
                "unet_optimizer": self.weights_optimizer.state_dict(),
            }
            state |= trained
        with atomic_path(checkpoint_path(self.folder)) as temporary:
            torch.save(state, temporary)
        self._drop_weights()
        self._saved = time.monotonic()
        self._saving = self._saved - start

    def _load(self) -> None:
        state = read_checkpoint(self.folder)
        if state is None or state["classes"] != [task.info.class_id for task in self.tasks]:
            return
        with torch.no_grad():
            self.rows.values.copy_(state["values"])
        if self.optimizer is not None:
            self.optimizer.load_state_dict(state["optimizer"])
        if self.weights is not None and self.weights_optimizer is not None:
            self.weights.load_state_dict(state["unet"])
            self.weights_optimizer.load_state_dict(state["unet_optimizer"])
        self.snapshots = {name: values.clone() for name, values in state["snapshots"].items()}
        self.histories, self.epoch = state["histories"], state["epoch"]
        self.groups = [ClassGroup(**group) for group in state["groups"]]
        if self.scaler.is_enabled() and state["scaler"]:  # a GPU with bfloat16 has left it empty
            self.scaler.load_state_dict(state["scaler"])
        if "begun" in state:
            begun = state["begun"]
            losses = [values.to(self.device) for values in begun["losses"]]
            self._begun = _Begun(begun["steps"], begun["numbers"], losses)
        logger.info("%s: resuming after epoch %d, step %d", self.what, self.epoch, self._begun.steps)


def weights_folder(folder: Path, name: str, epoch: int) -> Path:
    """Folder of the weights ``name`` (``unet``, ``adapter``) of an epoch, in a working folder."""
    return folder / f"{name}_epoch{epoch}"


def checkpoint_path(folder: Path) -> Path:
    """Path of the checkpoint in a working folder."""
    return folder / "checkpoint.pt"


def read_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Read the state of an interrupted training; None if there is none or it can't be read.

    An unreadable file only costs time. Tensors are read when they are used.
    """
    path = checkpoint_path(folder)
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        logger.warning("%s can't be read (%s): starting from the beginning", path, reason)
        return None
