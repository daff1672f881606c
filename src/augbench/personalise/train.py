"""Fine-tune conditionings or pseudo-words, with any number of clusters and a frozen or trained U-Net.

Input: classes with their images, a diffusion model, settings. Output: per class, the learned vectors of
every candidate and the losses of every epoch; also the U-Net of every epoch that is a candidate. Classes
that do not share a trained U-Net are groups of their own, each with its own epochs, steps and early
stopping. They learn in one process and end where each would end if it learned alone. Training can resume
after any epoch, because all random numbers derive from (seed, class, image, epoch).
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
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from safetensors.torch import save_file

from augbench.batches import in_batches
from augbench.errors import UserError
from augbench.files import atomic_path
from augbench.models.folders import to_device
from augbench.personalise.adam import RowAdam
from augbench.personalise.data import Draw, draw_training, draw_validation, epoch_order
from augbench.personalise.embedding import Rows
from augbench.personalise.groups import ClassGroup, Learned, Settings
from augbench.personalise.tasks import ClassTask, ImageSet
from augbench.progress import Progress
from augbench.runtime.compiling import compile_network, copies_to_fill, kernels_of

logger = logging.getLogger(__name__)
# least time between checkpoints: an epoch of a tiny study is shorter than writing a checkpoint
CHECKPOINT_SECONDS = 5.0
UNET_WEIGHTS = "diffusion_pytorch_model.safetensors"  # name that diffusers expects
T = TypeVar("T")


@dataclass(frozen=True)
class _Sample:
    """One image in one step.

    ``number`` is its class's number, ``moments`` its position in the cached moments, ``row`` the row of
    vectors that learns from it, ``draw`` its random numbers, ``weight`` its share of the loss.
    """

    number: int
    moments: int
    row: int
    draw: Draw
    weight: float = 0.0


def micro_batches(samples: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield pieces of at most ``size`` samples, whose lengths differ by at most one."""
    ends = np.linspace(0, len(samples), -(-len(samples) // size) + 1).round().astype(int).tolist()
    for start, end in pairwise(ends):
        yield samples[start:end]


def diffusion_target(
    scheduler: DDPMScheduler, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """Target of the U-Net's prediction: the noise, or the velocity if the model was trained with it.

    Stable Diffusion 2.x was trained with the velocity.

    Raises
    ------
    UserError
        The model predicts something else.
    """
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)
    raise UserError(
        "diffusion.model", f"its scheduler's prediction_type is {kind!r}", "allowed: epsilon, v_prediction"
    )


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
        On its device; float32 if it trains.
    scheduler : DDPMScheduler
        The model's noise schedule.
    moments, validation_moments : Tensor
        As :func:`~augbench.personalise.data.cache_moments` returns them, class by class.
    folder : Path
        Folder for the checkpoint and the U-Nets of candidates.
    what : str
        Prefix of the progress lines.
    """

    def __init__(
        self,
        tasks: Sequence[ClassTask],
        rows: Rows,
        unet: UNet2DConditionModel,
        scheduler: DDPMScheduler,
        moments: torch.Tensor,
        validation_moments: torch.Tensor,
        settings: Settings,
        folder: Path,
        what: str = "fine-tune",
    ) -> None:
        self.tasks, self.rows, self.unet = tasks, rows, unet
        self.scheduler, self.settings = scheduler, settings
        self.moments, self.validation_moments = moments, validation_moments
        self.folder, self.what = folder, what
        self.first = np.cumsum([0, *(len(task.train) for task in tasks)]).tolist()
        self.first_validation = np.cumsum([0, *(len(task.validation) for task in tasks)]).tolist()
        self.device = rows.values.device
        self.optimizer = RowAdam(rows.values, settings.lr, settings.weight_decay)
        if self.device.type == "cuda":
            # the layout that tensor cores work in; with another one, every convolution converts
            unet.to(memory_format=torch.channels_last)
        unet.requires_grad_(settings.train_unet)
        self.unet_optimizer = None
        if settings.train_unet:
            # fused: reads and writes all values once, not once per operation
            fused = True if self.device.type == "cuda" else None
            self.unet_optimizer = torch.optim.AdamW(
                unet.parameters(), lr=settings.unet_lr, weight_decay=settings.weight_decay, fused=fused
            )
        numbers = tuple(range(len(tasks)))
        self.groups = (
            [ClassGroup(numbers)] if settings.train_unet else [ClassGroup((number,)) for number in numbers]
        )
        self.micro_batch = self._compiled_batch() if settings.compiled else settings.micro_batch
        if settings.compiled:
            compile_network(unet)
        self.snapshots = {name: torch.zeros(rows.values.shape) for name in settings.candidates}
        self.histories: list[list[dict[str, Any]]] = [[] for _ in tasks]
        self.epoch = 0
        self._saved = time.monotonic()

    # --- compilation ---

    def _compiled_batch(self) -> int:
        """Size of the equal micro-batches of a step of all groups; the U-Net is compiled only for it."""
        images = [sum(len(self.tasks[number].train) for number in group.classes) for group in self.groups]
        step = sum(min(count, self.settings.batch_size) for count in images)
        return math.ceil(step / math.ceil(step / self.settings.micro_batch))

    def compiled_for(self) -> dict[str, Any]:
        """Properties that determine the kernels that :meth:`warm_up` compiles."""
        trained = [self.settings.train_unet, str(self.settings.autocast)]
        return kernels_of(self.unet, latents=[self.micro_batch, *self.moments.shape[-3:]], trained=trained)

    def warm_up(self) -> None:
        """Compile the U-Net by running a micro-batch for training and for validation; results are dropped."""
        samples = [self.training_sample(0, 0, 1, 0.0)] * self.micro_batch
        self.losses(samples, self.moments).sum().backward()
        self.rows.values.grad = None
        self.unet.zero_grad(set_to_none=True)
        with torch.no_grad():
            self.losses(samples, self.moments)

    def _parts(self, samples: Sequence[T]) -> Iterator[Sequence[T]]:
        """Micro-batches: whole ones and a remainder for a compiled U-Net, otherwise equal ones."""
        return (
            in_batches(samples, self.micro_batch)
            if self.settings.compiled
            else micro_batches(samples, self.micro_batch)
        )

    def _predicted(self, noisy: torch.Tensor, timesteps: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """Prediction of the U-Net, ``(N, 4, h, w)``.

        A compiled U-Net gets whole micro-batches. One that is at least half full is filled up with
        copies, whose predictions are dropped. A smaller one runs uncompiled.
        """
        copies = copies_to_fill(len(noisy), self.micro_batch) if self.settings.compiled else 0
        if copies is None:
            with torch.compiler.set_stance("force_eager"):
                return self.unet(noisy, timesteps, states).sample
        if not copies:
            return self.unet(noisy, timesteps, states).sample
        filled = [
            torch.cat([values, values[-1:].expand(copies, *values.shape[1:])])
            for values in (noisy, timesteps, states)
        ]
        return self.unet(*filled).sample[: len(noisy)]

    # --- one sample ---

    def _row(self, number: int, images: ImageSet, image: int) -> int:
        return number * self.settings.clusters + images.clusters[image]

    def training_sample(self, number: int, image: int, epoch: int, weight: float) -> _Sample:
        """Sample of training image ``image`` of class ``number`` in ``epoch``."""
        task = self.tasks[number]
        shape, timesteps = self.moments.shape[-3:], self.scheduler.config.num_train_timesteps
        draw = draw_training(
            self.settings.seed,
            class_id=task.info.class_id,
            image_id=task.train.image_ids[image],
            epoch=epoch,
            shape=shape,
            flip=self.settings.flip,
            timesteps=timesteps,
        )
        return _Sample(number, self.first[number] + image, self._row(number, task.train, image), draw, weight)

    def validation_sample(self, number: int, image: int, repeat: int) -> _Sample:
        """Sample of validation image ``image`` of class ``number``, with its fixed draw ``repeat``."""
        task = self.tasks[number]
        shape, timesteps = self.moments.shape[-3:], self.scheduler.config.num_train_timesteps
        draw = draw_validation(
            self.settings.seed,
            class_id=task.info.class_id,
            image_id=task.validation.image_ids[image],
            number=repeat,
            shape=shape,
            timesteps=timesteps,
        )
        return _Sample(
            number, self.first_validation[number] + image, self._row(number, task.validation, image), draw
        )

    def losses(self, samples: Sequence[_Sample], moments: torch.Tensor) -> torch.Tensor:
        """Stable Diffusion's own loss per sample: mean squared error of the prediction, float32 ``(N,)``."""
        draws = [sample.draw for sample in samples]
        # mean and standard deviation of each image's posterior, mirrored or not: (N, 2, 4, h, w)
        chosen = torch.stack(
            [moments[sample.moments, int(sample.draw.mirrored)] for sample in samples]
        ).float()
        mean, deviation = chosen[:, 0], chosen[:, 1]  # (N, 4, h, w) each
        latents = to_device(mean + deviation * torch.stack([draw.posterior for draw in draws]), self.device)
        noise = to_device(torch.stack([draw.noise for draw in draws]), self.device)  # (N, 4, h, w)
        timesteps = to_device(torch.tensor([draw.timestep for draw in draws]), self.device)  # (N,)
        noisy = self.scheduler.add_noise(latents, noise, timesteps)  # (N, 4, h, w)
        states = self.rows.states([sample.row for sample in samples], [draw.prompt for draw in draws])
        with self._precision():  # states: (N, 77, D)
            predicted = self._predicted(noisy.to(self.unet.dtype), timesteps, states.to(self.unet.dtype))
        target = diffusion_target(self.scheduler, latents, noise, timesteps)  # (N, 4, h, w)
        return (predicted.float() - target).square().mean((1, 2, 3))  # (N,)

    def _precision(self) -> AbstractContextManager[Any]:
        return (
            nullcontext()
            if self.settings.autocast is None
            else torch.autocast(self.device.type, self.settings.autocast)
        )

    # --- one epoch ---

    def epoch_steps(self, active: Sequence[ClassGroup], epoch: int) -> Iterator[list[_Sample]]:
        """Yield the samples of every step: one batch of every group that has one left.

        The losses of a group's batch are averaged.
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
            yield [
                self.training_sample(number, image, epoch, 1 / len(batch))
                for batch in due
                for number, image in batch
            ]

    def step(self, samples: Sequence[_Sample]) -> torch.Tensor:
        """Take one step of both optimisers; returns the losses ``(N,)`` before it."""
        losses = []
        for part in self._parts(samples):
            loss = self.losses(part, self.moments)
            (loss * to_device(torch.tensor([sample.weight for sample in part]), self.device)).sum().backward()
            losses.append(loss.detach())
        self.optimizer.step(sorted({sample.row for sample in samples}))
        if self.unet_optimizer is not None:
            self.unet_optimizer.step()
            self.unet_optimizer.zero_grad(set_to_none=True)
        return torch.cat(losses)

    def _by_class(
        self, numbers: Sequence[int], losses: Sequence[torch.Tensor]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Sum of losses and number of samples of each class."""
        values = torch.cat(list(losses)).double().cpu().numpy()
        size = len(self.tasks)
        return np.bincount(numbers, values, size), np.bincount(numbers, minlength=size)

    def _train_epoch(self, active: Sequence[ClassGroup], progress: Progress) -> tuple[np.ndarray, np.ndarray]:
        numbers: list[int] = []
        losses = []
        for samples in self.epoch_steps(active, self.epoch):
            losses.append(self.step(samples))
            numbers += [sample.number for sample in samples]
            progress.update(len(samples))
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
        losses = [
            self.losses([self.validation_sample(*item) for item in part], self.validation_moments)
            for part in self._parts(wanted)
        ]
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
            self._keep_unets()
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
        vectors = {name: values[rows].clone() for name, values in self.snapshots.items()}
        epochs = {name: group.epochs[name] for name in self.settings.candidates}
        return Learned(vectors, epochs, group.best_epoch, tuple(self.histories[number]))

    # --- files ---

    def unet_folder(self, epoch: int) -> Path:
        """Folder of the U-Net of a candidate's epoch."""
        return self.folder / f"unet_epoch{epoch}"

    def _candidate_epochs(self) -> set[int]:
        return {
            group.epochs[name]
            for group in self.groups
            for name in self.settings.candidates
            if name in group.epochs
        }

    def _keep_unets(self) -> None:
        """Write the U-Net if this epoch is a candidate."""
        if self.settings.train_unet and self.epoch in self._candidate_epochs():
            folder = self.unet_folder(self.epoch)
            folder.mkdir(parents=True, exist_ok=True)
            self.unet.save_config(folder)
            state = {name: tensor.cpu().contiguous() for name, tensor in self.unet.state_dict().items()}
            with atomic_path(folder / UNET_WEIGHTS) as temporary:
                save_file(state, temporary, {"format": "pt"})

    def _drop_unets(self) -> None:
        """Remove the U-Nets of epochs that are no longer candidates."""
        kept = {self.unet_folder(epoch) for epoch in self._candidate_epochs()}
        for folder in set(self.folder.glob("unet_epoch*")) - kept:
            shutil.rmtree(folder)

    def _save(self) -> None:
        """Write the checkpoint, then remove the U-Nets that only an earlier checkpoint needs."""
        state: dict[str, Any] = {
            "classes": [task.info.class_id for task in self.tasks],
            "epoch": self.epoch,
            "values": self.rows.values.detach(),
            "optimizer": self.optimizer.state_dict(),
            "snapshots": self.snapshots,
            "histories": self.histories,
            "groups": [vars(group) for group in self.groups],
        }
        if self.unet_optimizer is not None:
            state |= {"unet": self.unet.state_dict(), "unet_optimizer": self.unet_optimizer.state_dict()}
        with atomic_path(checkpoint_path(self.folder)) as temporary:
            torch.save(state, temporary)
        self._drop_unets()
        self._saved = time.monotonic()

    def _load(self) -> None:
        state = read_checkpoint(self.folder)
        if state is None or state["classes"] != [task.info.class_id for task in self.tasks]:
            return
        with torch.no_grad():
            self.rows.values.copy_(state["values"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.unet_optimizer is not None:
            self.unet.load_state_dict(state["unet"])
            self.unet_optimizer.load_state_dict(state["unet_optimizer"])
        self.snapshots = {name: values.clone() for name, values in state["snapshots"].items()}
        self.histories, self.epoch = state["histories"], state["epoch"]
        self.groups = [ClassGroup(**group) for group in state["groups"]]
        logger.info("%s: resuming after epoch %d", self.what, self.epoch)


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
