"""Fine-tuning the miniature on scikit-learn's digits: independent classes, weights, resuming, files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors.numpy import load_file
from sklearn.datasets import load_digits
from torch._dynamo.utils import counters
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from augbench.artifacts.store import Store
from augbench.config.methods import PersonaliseMethod
from augbench.config.study import Study, parse_study
from augbench.data.classes import ClassInfo, read_class_table, write_class_table
from augbench.data.decode import square
from augbench.data.source import ImageSource
from augbench.data.sources import open_source
from augbench.data.splits import make_splits, write_split
from augbench.errors import UserError
from augbench.files import write_json
from augbench.models.folders import fingerprint
from augbench.personalise import fine_tune as parts
from augbench.personalise import train
from augbench.personalise.adam import RowAdam
from augbench.personalise.data import encode_moments
from augbench.personalise.embedding import ConditioningRows, PseudowordRows, token_ids
from augbench.personalise.groups import ClassGroup, Learned, Settings
from augbench.personalise.latents import Encoding, latents_of
from augbench.personalise.objectives import diffusion_target
from augbench.personalise.stage import (
    UNET_FILES,
    choose_lr,
    finetune_classes,
    read_metadata,
    write_vectors,
)
from augbench.personalise.tasks import (
    ClassTask,
    ImageSet,
    check_clusters,
    class_tasks,
    end_of_grid,
    learning_rates,
    read_clusters,
)
from augbench.personalise.train import Trainer
from augbench.plan import recipes
from augbench.runtime.fit import BatchLimit
from augbench.runtime.job import Job

MINI = Path(__file__).resolve().parents[1] / "resources/mini"
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Largest distance between a vector trained with others and the same trained alone, relative to its movement.
# It comes from the order of float32 sums, which Adam amplifies where a gradient is nearly zero. If rows
# shared one step count, it would be 0.1 or more.
TOLERANCE = 0.01
CPU = torch.device("cpu")

METHODS: dict[str, dict[str, Any]] = {
    "conditioning": {"learn": "conditioning", "lr": 0.02},
    "clusters": {"learn": "conditioning", "clusters": 2, "lr": 0.02},
    "imagic": {"learn": "conditioning", "train_unet": True, "unet_lr": 1e-4},
    "pseudoword": {"learn": "pseudoword"},
    "pseudoword_dm": {"learn": "pseudoword", "train_unet": True, "unet_lr": 1e-4},
    "pseudoword_clip": {"learn": "pseudoword", "prompt": {"templates": "clip"}},
    "pseudoword_again": {"learn": "pseudoword", "label": "Another name"},
    "pseudoword_clusters": {"learn": "pseudoword", "clusters": 2},
}
KINDS = ["conditioning", "clusters", "imagic", "pseudoword", "pseudoword_dm"]


@dataclass(frozen=True)
class Inputs:
    """Files of the earlier stages of a study on digits."""

    folder: Path
    root: Path

    @property
    def dataset(self) -> dict[str, Any]:
        """The section of a study on these digits."""
        fractions = {"train_fraction": 0.4, "validation_fraction": 0.2}
        return {"kind": "image_folder", "root": str(self.root), **fractions}

    def study(
        self,
        finetune: Mapping[str, Any] | None = None,
        batch_size: int = 32,
        compiled: bool = False,
        **methods: Mapping[str, Any],
    ) -> Study:
        rows = {
            name: {"mechanism": "personalise", "candidates": ["train_loss", "val_loss", 1], **row}
            for name, row in {**METHODS, **methods}.items()
        }
        return parse_study(
            {
                "study": "digits",
                "dataset": self.dataset,
                "diffusion": {"model": str(MINI / "stable-diffusion"), "resolution": 32, "dtype": "float32"},
                "clip": {"model": str(MINI / "clip")},
                "methods": rows,
                "augmentation": {"images_per_class": 10},
                "finetune": {"max_epochs": 2, "patience": 1, **(finetune or {})},
                "execution": {"batch_size": batch_size, "device": "cpu", "compile": compiled},
            }
        )

    def path(self, name: str) -> Path:
        return self.folder / name

    def tasks(self, study: Study, method: str, class_ids: Sequence[str] = NAMES) -> list[ClassTask]:
        """Tasks whose images alternate between clusters."""
        tasks = class_tasks(
            self.path("train.parquet"),
            self.path("val.parquet"),
            self.path("classes.parquet"),
            None,
            class_ids,
        )
        clusters = row_of(study, method).clusters

        def clustered(images: ImageSet) -> ImageSet:
            return replace(images, clusters=tuple(i % clusters for i in range(len(images))))

        return [
            replace(task, train=clustered(task.train), validation=clustered(task.validation))
            for task in tasks
        ]

    def fine_tune(
        self, study: Study, method: str, folder: Path, class_ids: Sequence[str] = NAMES
    ) -> dict[str, Learned]:
        return parts.fine_tune(
            study,
            method,
            1.0,
            self.tasks(study, method, class_ids),
            self.source(study),
            Store(folder / ".store"),
            "vae",
            folder,
            method,
        )

    def source(self, study: Study) -> ImageSource:
        return open_source(study.dataset, study.seed, study.corpus)

    def trainer(self, study: Study, method: str, folder: Path, class_ids: Sequence[str] = NAMES) -> Trainer:
        """A trainer of the miniature, in the study's precision."""
        row, tasks = row_of(study, method), self.tasks(study, method, class_ids)
        moments = self.latents(study, tasks, Store(folder / ".store"))
        dtype = getattr(torch, study.finetune.dtype)
        settings = parts.settings_of(study, row, 1.0, len(tasks), dtype)
        rows = parts.new_rows(study, row, tasks, CPU)
        weights = torch.float32 if row.train_unet else dtype
        unet = parts.load_part(UNet2DConditionModel, study.diffusion.folder, "unet", weights, CPU)
        scheduler = DDPMScheduler.from_pretrained(study.diffusion.folder, subfolder="scheduler")
        return Trainer(tasks, rows, unet, scheduler, *moments, settings, folder)

    def latents(
        self, study: Study, tasks: Sequence[ClassTask], store: Store
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Latents of training and validation images, from the store or made."""
        encoding = Encoding(study, "vae", self.source(study), CPU, "test")
        return latents_of(encoding, partial(parts.load_vae, encoding), parts.batch_limit(study), store, tasks)

    def stage(
        self,
        study: Study,
        method: str,
        folder: Path,
        class_ids: Sequence[str] = NAMES,
        factor: float = 1.0,
        excluded: Collection[str] = (),
        **others: Path,
    ) -> tuple[Job, list[str], dict[str, str]]:
        """Run the stage on ``class_ids``; its targets are below ``folder``.

        ``others`` replace the class table or the clusters.
        """
        job = Job(study, Store(folder / ".store"), 1)
        place = folder / f"{method}/lr{factor:g}"
        vectors = [str(place / "vectors" / f"{class_id}.safetensors") for class_id in class_ids]
        unets = (
            {name: str(place / "unet" / name) for name in row_of(study, method).candidate_names}
            if row_of(study, method).train_unet
            else {}
        )
        clusters = (
            others.get("clusters")
            if row_of(study, method).clusters == 1
            else others.get("clusters", self.path("k2.parquet"))
        )
        files = [
            self.path("train.parquet"),
            self.path("val.parquet"),
            others.get("classes", self.path("classes.parquet")),
            self.path("diffusion.json"),
        ]
        finetune_classes(job, method, factor, *files, clusters, vectors, unets, excluded)  # type: ignore[arg-type]
        return job, vectors, unets


def row_of(study: Study, method: str) -> PersonaliseMethod:
    row = study.methods[method]
    assert isinstance(row, PersonaliseMethod)
    return row


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Ten classes of 12 to 14 digits, so that epochs differ in length."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("digits")
    digits = load_digits()
    for label, name in enumerate(NAMES):
        (folder / "images" / name).mkdir(parents=True)
        for number, image in enumerate(digits.images[digits.target == label][: 12 + label % 3]):
            picture = Image.fromarray((image / 16 * 255).astype(np.uint8)).resize(
                (32, 32), Image.Resampling.BICUBIC
            )
            picture.save(folder / "images" / name / f"{number:02d}.png")
    made = Inputs(folder, folder / "images")
    study = made.study()
    source = made.source(study)
    classes = source.classes()
    for name, split in make_splits(
        classes, source.scan(), study.dataset, study.seed, {"train", "val"}
    ).items():
        write_split(split, made.path(f"{name}.parquet"))
    write_class_table(classes, made.path("classes.parquet"))
    write_json(made.path("diffusion.json"), fingerprint(study.diffusion.folder))
    write_clusters(made, made.path("k2.parquet"), {})
    return made


def write_clusters(inputs: Inputs, path: Path, moved: Mapping[str, int]) -> None:
    """Write a table of clusters: every other image is in the second one, except ``moved``."""
    ids = [
        image_id
        for name in ("train", "val")
        for image_id in pq.read_table(inputs.path(f"{name}.parquet")).column("image_id").to_pylist()
    ]
    pq.write_table(
        pa.table(
            {
                "image_id": ids,
                "cluster": pa.array([moved.get(name, i % 2) for i, name in enumerate(ids)], pa.int32()),
            }
        ),
        path,
    )


# --- the optimiser --------------------------------------------------------------------------------


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_row_adam_is_adamw_for_every_row_by_itself(weight_decay: float) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn((3, 4, 5), generator=generator)
    stack = torch.nn.Parameter(start.clone())
    together = RowAdam(stack, 0.01, weight_decay)
    rows = [torch.nn.Parameter(row.clone()) for row in start]
    alone = [torch.optim.AdamW([row], 0.01, weight_decay=weight_decay) for row in rows]
    for seen in ([0, 1], [1], [0, 1], [1]):  # row 2 is never seen
        gradient = torch.randn(start.shape, generator=generator)
        stack.grad = torch.zeros_like(stack)
        for row in seen:
            stack.grad[row] = rows[row].grad = gradient[row].clone()
            alone[row].step()
        together.step(seen)
    torch.testing.assert_close(stack[:2], torch.stack(rows[:2]), rtol=1e-6, atol=1e-7)
    assert torch.equal(stack[2], start[2])


def test_row_adam_takes_scaled_gradients_and_keeps_rows_that_overflowed() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn((3, 4, 5), generator=generator)
    plain, scaled = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimisers = [RowAdam(values, 0.01, 0.1) for values in (plain, scaled)]
    scaler = torch.amp.GradScaler("cpu")
    for overflowed in ([], [1], []):
        gradient = torch.randn(start.shape, generator=generator)
        plain.grad, scaled.grad = gradient.clone(), scaler.scale(gradient)
        scaled.grad[overflowed] = math.inf
        optimisers[0].step([row for row in range(3) if row not in overflowed])
        scaler.step(optimisers[1], [0, 1, 2])  # type: ignore[arg-type]
        scaler.update()
    assert torch.equal(plain, scaled) and optimisers[1].steps.tolist() == [3, 2, 3]
    assert scaler.get_scale() == 2**15


# --- classes are independent where the U-Net is frozen --------------------------------------------


@pytest.mark.parametrize("method", ["conditioning", "clusters", "pseudoword"])
def test_ten_classes_in_one_process_equal_ten_separate_runs(
    inputs: Inputs, method: str, tmp_path: Path
) -> None:
    study = inputs.study()
    together = inputs.fine_tune(study, method, tmp_path / "all")
    starts = (
        parts.new_rows(study, row_of(study, method), inputs.tasks(study, method), CPU)
        .values.detach()
        .unflatten(0, (10, -1))
    )
    for class_id, start in zip(NAMES, starts, strict=True):
        alone = inputs.fine_tune(study, method, tmp_path / class_id, [class_id])[class_id]
        assert alone.epochs == together[class_id].epochs
        for key in ("train_loss", "val_loss"):
            ours, theirs = (
                [entry[key] for entry in result.history[1:]] for result in (alone, together[class_id])
            )
            assert ours == pytest.approx(theirs, rel=1e-4)
        for name, vectors in alone.vectors.items():
            way = (vectors - start).norm()
            assert way > 0 and (vectors - together[class_id].vectors[name]).norm() < TOLERANCE * way, (
                class_id,
                name,
            )


@pytest.mark.parametrize("method", ["clusters", "pseudoword_dm"])
def test_the_micro_batch_changes_nothing_but_rounding(inputs: Inputs, method: str, tmp_path: Path) -> None:
    trainers = [
        inputs.trainer(inputs.study(batch_size=size), method, tmp_path, NAMES[:4]) for size in (3, 32)
    ]
    start = trainers[0].rows.values.detach().clone()
    for trainer in trainers:
        for samples in trainer.epoch_steps(trainer.groups, 1):
            trainer.step(samples)
    small, large = (trainer.rows.values.detach() for trainer in trainers)
    assert (small - large).norm() < TOLERANCE * (large - start).norm()
    validation = [trainer.validate(trainer.groups)[0] for trainer in trainers]
    np.testing.assert_allclose(validation[0], validation[1], rtol=1e-4)


@pytest.mark.parametrize(
    ("method", "batch_size", "micro_batch", "whole"), [("clusters", 4, 20, 16), ("pseudoword_dm", 7, 10, 7)]
)
def test_a_compiled_unet_gets_batches_of_one_size_and_learns_the_same(
    inputs: Inputs,
    method: str,
    batch_size: int,
    micro_batch: int,
    whole: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """22 training and 12 validation images make full batches, padded batches and small ones.

    Nothing is compiled here.
    """
    sizes: dict[str, list[int]] = {"compiled": [], "eager": []}
    stance = ["compiled"]

    @contextmanager
    def set_stance(name: str) -> Iterator[None]:
        assert name == "force_eager"
        stance.append("eager")
        yield
        stance.pop()

    monkeypatch.setattr(
        train,
        "compile_network",
        lambda network: network.register_forward_pre_hook(
            lambda _, batch: sizes[stance[-1]].append(len(batch[0]))
        ),
    )
    monkeypatch.setattr(torch.compiler, "set_stance", set_stance)
    plain, compiled = (
        inputs.trainer(
            inputs.study({"batch_size": batch_size}, micro_batch, choice),
            method,
            tmp_path / str(choice),
            NAMES[:4],
        )
        for choice in (False, True)
    )
    start = plain.rows.values.detach().clone()
    compiled.warm_up()
    assert sizes == {"compiled": [whole] * 2, "eager": []}
    assert torch.equal(compiled.rows.values, start) and compiled.rows.values.grad is None
    learned = [trainer.run() for trainer in (plain, compiled)]
    assert set(sizes["compiled"]) == {whole} and sizes["eager"] and max(sizes["eager"]) < whole / 2
    epochs = len(learned[1]["zero"].history) - 1
    assert sum(sizes["compiled"] + sizes["eager"]) > 22 * epochs + 12 * (epochs + 1)  # with copies
    for class_id, ours in learned[1].items():
        assert [entry["val_loss"] for entry in ours.history] == pytest.approx(
            [entry["val_loss"] for entry in learned[0][class_id].history], rel=1e-4
        )
    way = (plain.rows.values - start).norm()
    assert (compiled.rows.values - plain.rows.values).norm() < TOLERANCE * way


@pytest.mark.full
@pytest.mark.parametrize("method", ["conditioning", "imagic"])
def test_a_compiled_unet_has_no_graph_breaks_and_is_compiled_once(
    inputs: Inputs, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graphs of training and validation, without the compiler's last stage (tests/test_compiling.py)."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(
        train,
        "compile_network",
        lambda network: network.compile(fullgraph=True, dynamic=False, backend="aot_eager"),
    )
    plain, compiled = (
        inputs.trainer(inputs.study(batch_size=7, compiled=choice), method, tmp_path / str(choice), NAMES[:4])
        for choice in (False, True)
    )
    start = plain.rows.values.detach().clone()
    compiled.warm_up()
    assert counters["stats"]["unique_graphs"] == 2
    for trainer in (plain, compiled):
        trainer.run()
    assert counters["stats"]["unique_graphs"] == 2 and not counters["graph_break"]
    assert (compiled.rows.values - plain.rows.values).norm() < TOLERANCE * (plain.rows.values - start).norm()
    torch._dynamo.reset()


def test_epochs_differ_and_validation_does_not(inputs: Inputs, tmp_path: Path) -> None:
    trainer = inputs.trainer(inputs.study(), "pseudoword", tmp_path, NAMES[:2])
    first, second = trainer.training_sample(0, 0, 1, 1.0).draw, trainer.training_sample(0, 0, 2, 1.0).draw
    assert not torch.equal(first.noise, second.noise) and not torch.equal(first.posterior, second.posterior)
    assert torch.equal(
        trainer.validation_sample(1, 0, 0).draw.noise, trainer.validation_sample(1, 0, 0).draw.noise
    )
    assert not torch.equal(
        trainer.validation_sample(1, 0, 0).draw.noise, trainer.validation_sample(1, 0, 1).draw.noise
    )
    orders = [
        [sample[:2] for samples in trainer.epoch_samples(trainer.groups, epoch) for sample in samples]
        for epoch in (1, 2)
    ]
    everything = [(number, image) for number in (0, 1) for image in range(len(trainer.moments[number]))]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1]) == everything


# --- latents ---


def test_latents_are_encoded_once_for_all_methods_and_read_from_the_disk(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, store = inputs.study(), Store(tmp_path / ".store", tmp_path)
    tasks = inputs.tasks(study, "conditioning", NAMES[:2])
    first = inputs.latents(study, tasks, store)
    assert [tuple(values.shape[:3]) for part in first for values in part] == [
        *((len(task.train), 2, 2) for task in tasks),
        *((len(task.validation), 1, 2) for task in tasks),
    ]
    files = {path: path.stat().st_ino for path in store.artifacts() if path.suffix == ".npy"}
    assert len(files) == 4 and store.tally.made == 0, "they are not what a job was asked for"
    monkeypatch.setattr(parts, "load_vae", lambda *_: pytest.fail("nothing is to be encoded"))
    again = inputs.latents(study, inputs.tasks(study, "clusters", NAMES[:2]), store)
    for ours, theirs in zip([*first[0], *first[1]], [*again[0], *again[1]], strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(pytest.fail.Exception):  # without mirror images, they are others
        inputs.latents(inputs.study({"flip": 0.0}), inputs.tasks(study, "clusters", NAMES[:1]), store)
    assert {path: path.stat().st_ino for path in files} == files


def test_truncated_latents_are_encoded_again(inputs: Inputs, tmp_path: Path) -> None:
    study, store = inputs.study(), Store(tmp_path / ".store", tmp_path)
    tasks = inputs.tasks(study, "conditioning", NAMES[:1])
    whole = [values.clone() for values in inputs.latents(study, tasks, store)[0]]
    for path in (tmp_path / ".store/latents").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    assert torch.equal(inputs.latents(study, tasks, store)[0][0], whole[0])


def test_encoding_goes_on_with_half_the_images_where_memory_does_not_suffice(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = inputs.study({"micro_batch": 2}), inputs.study({"micro_batch": 4})
    tasks = inputs.tasks(small, "conditioning", NAMES[:2])
    expected = inputs.latents(small, tasks, Store(tmp_path / "a", tmp_path))
    encode = AutoencoderKL.encode
    monkeypatch.setattr(AutoencoderKL, "encode", lambda *given: full_above(2, given[1]) or encode(*given))
    found = inputs.latents(large, tasks, Store(tmp_path / "b", tmp_path))
    for ours, theirs in zip([*found[0], *found[1]], [*expected[0], *expected[1]], strict=True):
        assert torch.equal(ours, theirs)


def test_images_that_overflow_float16_are_encoded_in_float32(inputs: Inputs) -> None:
    vae = parts.load_part(AutoencoderKL, str(MINI / "stable-diffusion"), "vae", torch.float16, CPU)
    images = [Image.open(path).convert("RGB") for path in sorted((inputs.root / "zero").iterdir())[:3]]
    vae.register_to_config(scaling_factor=1e-6)

    def encoded() -> torch.Tensor:
        limit = BatchLimit(8, "micro_batch")
        return torch.cat([*encode_moments(vae, images, 32, False, limit, torch.float32)])

    fine = encoded()
    weight = vae.quant_conv.weight
    with torch.no_grad():
        weight[: len(weight) // 2] *= 2e4
    assert not torch.isfinite(vae.encode(torch.ones(1, 3, 32, 32).half()).latent_dist.mean).all()
    assert encoded().isfinite().all() and encoded().abs().max() > 100 * fine.abs().max()
    assert vae.dtype == torch.float16


# --- memory ---


def full_above(most: int, batch: torch.Tensor) -> None:
    """Stand in for a GPU that has no memory for more than ``most`` images."""
    if len(batch) > most:
        raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("method", ["clusters", "pseudoword_dm"])
def test_a_step_that_does_not_fit_is_taken_again_with_half_the_images(
    inputs: Inputs, method: str, tmp_path: Path
) -> None:
    large, small = (
        inputs.trainer(inputs.study({"micro_batch": size, "batch_size": 11}), method, tmp_path, NAMES[:2])
        for size in (8, 4)
    )
    passed: list[int] = []

    def hook(_: Any, batch: tuple[torch.Tensor, ...]) -> None:
        passed.append(len(batch[0]))
        full_above(8 if len(passed) == 1 else 4, batch[0])  # the first pass leaves gradients behind

    large.unet.register_forward_pre_hook(hook)
    for trainer in (large, small):
        trainer.step(next(trainer.epoch_steps(trainer.groups, 1)))
    assert large.limit.size == 4 and passed[:2] == [6, 5] and max(passed[2:]) == 4
    assert torch.equal(large.rows.values, small.rows.values)
    for ours, theirs in zip(large.unet.parameters(), small.unet.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    large.limit.size = 8
    for ours, theirs in zip(large.validate(large.groups), small.validate(small.groups), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert large.limit.size == 3, "half of the five validation images"


def test_where_not_even_one_image_fits_one_line_says_so(inputs: Inputs, tmp_path: Path) -> None:
    trainer = inputs.trainer(inputs.study(), "conditioning", tmp_path, NAMES[:1])
    trainer.unet.register_forward_pre_hook(lambda _, batch: full_above(0, batch[0]))
    with pytest.raises(UserError, match=r"finetune\.micro_batch: not even one image fits"):
        trainer.step(next(trainer.epoch_steps(trainer.groups, 1)))


def test_the_micro_batch_is_a_key_of_its_own_and_in_no_recipe(inputs: Inputs) -> None:
    study, plain = inputs.study({"micro_batch": 3}, batch_size=7), inputs.study(batch_size=7)
    assert [parts.batch_limit(one).size for one in (study, plain)] == [3, 7]
    assert recipes.finetune_recipe(study, "imagic", 1.0) == recipes.finetune_recipe(plain, "imagic", 1.0)
    assert recipes.table_recipe(study) == recipes.table_recipe(plain)


# --- precision ---


def gradient(inputs: Inputs, dtype: str, folder: Path) -> torch.Tensor:
    """Gradient of two conditionings in one step."""
    trainer = inputs.trainer(inputs.study({"dtype": dtype}), "conditioning", folder / dtype, NAMES[:2])
    trainer._gradients(next(trainer.epoch_steps(trainer.groups, 1)))
    scale = trainer.scaler.get_scale() if trainer.scaler.is_enabled() else 1.0
    assert trainer.rows.values.grad is not None
    return trainer.rows.values.grad / scale


def test_float16s_gradients_are_closer_to_float32s_than_bfloat16s(inputs: Inputs, tmp_path: Path) -> None:
    exact, half, brain = (gradient(inputs, name, tmp_path) for name in ("float32", "float16", "bfloat16"))
    errors = [float((found - exact).norm() / exact.norm()) for found in (half, brain)]
    assert errors[0] < 0.02 and errors[0] < errors[1] < 0.2, errors


@pytest.mark.parametrize("method", ["conditioning", "imagic"])
def test_training_in_float16_survives_an_overflow(inputs: Inputs, method: str, tmp_path: Path) -> None:
    trainer = inputs.trainer(inputs.study({"dtype": "float16"}), method, tmp_path, NAMES[:2])
    steps = trainer.epoch_steps(trainer.groups, 1)
    learned = [trainer.rows.values, *(trainer.unet.parameters() if trainer.weights_optimizer else ())]
    before = [values.detach().clone() for values in learned]
    hooks = [values.register_hook(lambda grad: torch.full_like(grad, math.inf)) for values in learned]
    trainer.step(next(steps))
    assert all(torch.equal(old, new) for old, new in zip(before, learned, strict=True))
    assert trainer.scaler.get_scale() == 2**15
    for hook in hooks:
        hook.remove()
    trainer.step(next(steps))
    assert not torch.equal(before[0], learned[0]) and learned[0].isfinite().all()
    assert trainer.scaler.get_scale() == 2**15
    trainer._save()
    resumed = inputs.trainer(inputs.study({"dtype": "float16"}), method, tmp_path, NAMES[:2])
    resumed._load()
    assert resumed.scaler.state_dict() == trainer.scaler.state_dict()


# --- what trains, and that it learns --------------------------------------------------------------


@dataclass
class Watched:
    """A finished training, and the model parts that it loaded: their tensors when loaded and afterwards."""

    learned: dict[str, Learned]
    before: dict[str, list[torch.Tensor]]
    after: dict[str, list[torch.Tensor]]
    starts: torch.Tensor


@pytest.fixture(scope="module")
def watched(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Watched]:
    """Run a training of each kind, three epochs of four classes."""
    known: dict[str, Watched] = {}

    def get(method: str) -> Watched:
        if method not in known:
            live: dict[str, list[torch.Tensor]] = {}
            before: dict[str, list[torch.Tensor]] = {}
            load_part = parts.load_part

            def load(kind: Any, folder: str, part: str, *rest: Any) -> Any:
                module = load_part(kind, folder, part, *rest)
                live[part] = [*module.parameters(), *module.buffers()]
                before[part] = [tensor.detach().clone() for tensor in live[part]]
                return module

            study = inputs.study({"max_epochs": 3, "patience": 3, "validation_draws": 2})
            starts = parts.new_rows(
                study, row_of(study, method), inputs.tasks(study, method, NAMES[:4]), CPU
            ).values.detach()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(parts, "load_part", load)
                learned = inputs.fine_tune(study, method, tmp_path_factory.mktemp(method), NAMES[:4])
            known[method] = Watched(
                learned,
                before,
                {part: [tensor.detach() for tensor in tensors] for part, tensors in live.items()},
                starts,
            )
        return known[method]

    return get


@pytest.mark.parametrize("method", KINDS)
def test_frozen_parts_are_bit_identical_after_training(
    watched: Callable[[str], Watched], method: str
) -> None:
    run = watched(method)
    assert set(run.before) == {"vae", "text_encoder", "unet"}  # the safety checker is not loaded
    for part in run.before:
        same = all(torch.equal(old, new) for old, new in zip(run.before[part], run.after[part], strict=True))
        assert same == (part != "unet" or not METHODS[method].get("train_unet", False)), part


@pytest.mark.parametrize("method", KINDS)
def test_validation_loss_falls_from_its_start(watched: Callable[[str], Watched], method: str) -> None:
    learned = watched(method).learned.values()
    first = np.mean([result.history[0]["val_loss"] for result in learned])
    best = np.mean([result.history[result.best_epoch]["val_loss"] for result in learned])
    assert best < 0.998 * first
    for result in learned:
        assert [entry["epoch"] for entry in result.history] == [0, 1, 2, 3]
        assert result.history[0]["train_loss"] is None and result.epochs["val_loss"] == result.best_epoch
        assert result.epochs["epoch1"] == 1


def test_all_clusters_start_equal_and_learn_apart(watched: Callable[[str], Watched]) -> None:
    run = watched("clusters")
    assert torch.equal(run.starts[0], run.starts[1])
    first, second = run.learned["zero"].vectors["epoch1"]
    assert first.shape == (77, run.starts.shape[-1]) and not torch.equal(first, second)


@pytest.mark.parametrize("method", ["imagic", "pseudoword_dm"])
def test_a_joint_step_changes_the_unet_and_the_rows_seen(inputs: Inputs, method: str, tmp_path: Path) -> None:
    trainer = inputs.trainer(inputs.study(), method, tmp_path)
    rows, unet = trainer.rows.values.detach().clone(), [p.detach().clone() for p in trainer.unet.parameters()]
    samples = next(trainer.epoch_samples(trainer.groups, 1))
    # a batch of all classes together
    assert len(samples) == 4 and {weight for _, _, weight in samples} == {0.25}
    batch = next(trainer.epoch_steps(trainer.groups, 1))
    trainer.step(batch)
    moved = (trainer.rows.values.detach() != rows).flatten(1).any(1).nonzero().flatten().tolist()
    assert moved == sorted(set(batch.rows)) and len(moved) < 10
    assert any(not torch.equal(old, new) for old, new in zip(unet, trainer.unet.parameters(), strict=True))


def test_a_row_of_yaml_is_a_new_method(inputs: Inputs, tmp_path: Path) -> None:
    study = inputs.study({"max_epochs": 1})
    clip = inputs.fine_tune(study, "pseudoword_clip", tmp_path / "a", NAMES[:2])
    plain = inputs.fine_tune(study, "pseudoword", tmp_path / "b", NAMES[:2])
    assert not torch.equal(clip["zero"].vectors["epoch1"], plain["zero"].vectors["epoch1"])
    assert (
        inputs.fine_tune(study, "pseudoword_clusters", tmp_path / "c", NAMES[:2])["one"]
        .vectors["epoch1"]
        .shape[0]
        == 2
    )


@pytest.mark.parametrize("method", ["imagic", "pseudoword"])
def test_bfloat16_keeps_what_trains_in_float32(inputs: Inputs, method: str, tmp_path: Path) -> None:
    half = inputs.fine_tune(
        inputs.study({"max_epochs": 1, "dtype": "bfloat16"}), method, tmp_path / "half", NAMES[:2]
    )
    full = inputs.fine_tune(inputs.study({"max_epochs": 1}), method, tmp_path / "full", NAMES[:2])
    for class_id in NAMES[:2]:
        assert half[class_id].vectors["epoch1"].dtype == torch.float32
        assert half[class_id].history[1]["val_loss"] == pytest.approx(
            full[class_id].history[1]["val_loss"], rel=0.05
        )
    for folder in (tmp_path / "half").glob("unet_epoch*"):
        assert all(values.dtype == np.float32 for values in load_file(folder / UNET_FILES[1]).values())


# --- where vectors start --------------------------------------------------------------------------


def test_a_pseudo_word_starts_from_the_last_word_of_the_first_lemma(inputs: Inputs) -> None:
    study = inputs.study()
    encoder = parts.load_part(CLIPTextModel, study.diffusion.folder, "text_encoder", torch.float32, CPU)
    table = encoder.get_input_embeddings().weight
    tokenizer = CLIPTokenizer.from_pretrained(study.diffusion.folder, subfolder="tokenizer")
    images = ImageSet(("a",), ("a",), (0,))
    tasks = [
        ClassTask(ClassInfo(name, lemmas), images, images)
        for name, lemmas in (("n1", ("tiger shark", "Galeocerdo cuvieri")), ("n2", ("T-shirt/top",)))
    ]
    values = parts.new_rows(study, row_of(study, "pseudoword"), tasks, CPU).values
    pieces = [
        tokenizer("shark", add_special_tokens=False).input_ids,
        tokenizer("T-shirt/top", add_special_tokens=False).input_ids,
    ]
    assert len(pieces[0]) == 1 and len(pieces[1]) == 5
    for value, ids in zip(values, pieces, strict=True):
        torch.testing.assert_close(value, table[ids].mean(0))


def test_conditioning_starts_from_the_encoded_prompt_without_white_space(inputs: Inputs) -> None:
    study = inputs.study()
    encoder = parts.load_part(CLIPTextModel, study.diffusion.folder, "text_encoder", torch.float32, CPU)
    tokenizer = CLIPTokenizer.from_pretrained(study.diffusion.folder, subfolder="tokenizer")
    images = ImageSet(("a",), ("a",), (0,))
    task = ClassTask(ClassInfo("n1", ("tiger shark", "Galeocerdo cuvieri")), images, images)
    values = parts.new_rows(study, row_of(study, "conditioning"), [task], CPU).values
    states = encoder(token_ids(tokenizer, ["A photo of tigershark,Galeocerdocuvieri."])).last_hidden_state
    torch.testing.assert_close(values, states)


@pytest.mark.parametrize("class_id", ["n01491361", "T-Shirt.top", "001.ak47"])
def test_every_placeholder_is_one_token_wherever_it_stands(inputs: Inputs, class_id: str) -> None:
    study = inputs.study()
    encoder = parts.load_part(CLIPTextModel, study.diffusion.folder, "text_encoder", torch.float32, CPU)
    tokenizer = CLIPTokenizer.from_pretrained(study.diffusion.folder, subfolder="tokenizer")
    first, words = len(tokenizer), [f"<{class_id}:{cluster}>" for cluster in range(11)]
    PseudowordRows(
        encoder, tokenizer, words, torch.zeros(11, encoder.config.hidden_size), lambda row, draw: words[row]
    )
    for row, word in enumerate(words):
        assert (token_ids(tokenizer, [f"a close-up photo of the {word}."]) == first + row).sum() == 1
    with pytest.raises(UserError, match="is a token of the text encoder"):
        PseudowordRows(
            encoder,
            tokenizer,
            words,
            torch.zeros(11, encoder.config.hidden_size),
            lambda row, draw: words[row],
        )


# --- cost -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["conditioning", "pseudoword"])
def test_a_step_calls_no_vae_and_no_needless_text_encoder(
    inputs: Inputs, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = inputs.trainer(inputs.study(batch_size=8), method, tmp_path)
    encoded: list[int] = []
    denoised: list[int] = []
    vae: list[int] = []
    monkeypatch.setattr("diffusers.AutoencoderKL.encode", lambda *_: vae.append(1))
    forward = CLIPTextModel.forward
    monkeypatch.setattr(
        CLIPTextModel,
        "forward",
        lambda self, ids, **rest: encoded.append(len(ids)) or forward(self, ids, **rest),
    )
    trainer.unet.register_forward_hook(lambda module, arguments, output: denoised.append(len(arguments[0])))
    batch = next(trainer.epoch_steps(trainer.groups, 1))
    trainer.step(batch)
    assert sum(denoised) == len(batch) == 40 and max(denoised) == 8 and not vae
    distinct = 0
    for part in train.micro_batches(list(zip(batch.rows, batch.prompts, strict=True)), 8):
        distinct += (
            len({trainer.rows.prompt(*sample) for sample in part})
            if isinstance(trainer.rows, PseudowordRows)
            else 0
        )
    assert sum(encoded) == distinct < 40


def full_size(rows: Any, samples: int) -> Trainer:
    """A trainer of Stable Diffusion v1.4's architecture, without weights, on cached latents of 512 pixels."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    images = ImageSet(tuple(map(str, range(samples))), ("",) * samples, (0,) * samples)
    settings = Settings(0, 1e-3, 1e-6, 1, False, ("val_loss",), samples, 1, 1, 0.5, 1, 0.0, samples)
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    moments = torch.ones(samples, 2, 2, 4, 64, 64)
    return Trainer(
        [ClassTask(ClassInfo("a", ("a",)), images, images)],
        rows,
        unet,
        scheduler,
        [moments],
        [moments[:, :1]],
        settings,
        Path(),
    )


def test_flops_of_a_step_of_stable_diffusions_real_size() -> None:
    """1,669 GFLOP per sample for the U-Net and the gradient to text states; a VAE would add 1,117 each."""
    meta = torch.device("meta")
    trainer = full_size(ConditioningRows(torch.zeros(1, 77, 768, device=meta)), 2)
    batch = next(trainer.epoch_steps(trainer.groups, 1))
    with FlopCounterMode(display=False) as conditioning:
        trainer.losses(batch).sum().backward()
    assert conditioning.get_total_flops() / 2 / 1e9 == pytest.approx(1669, rel=0.005)

    with meta:
        encoder = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
            )
        )
    tokenizer = CLIPTokenizer.from_pretrained(MINI / "stable-diffusion", subfolder="tokenizer")
    words = PseudowordRows(
        encoder.requires_grad_(False),
        tokenizer,
        ["<a>"],
        torch.zeros(1, 768),
        lambda row, draw: "a photo of <a>",
    )
    trainer = full_size(words, 2)
    with FlopCounterMode(display=False) as pseudoword:
        trainer.losses(batch).sum().backward()
    one_prompt = pseudoword.get_total_flops() - conditioning.get_total_flops()
    # forward and gradient to the input, once for both samples
    assert one_prompt / 1e9 == pytest.approx(2 * 13.3, rel=0.02)


# --- loss, stopping, settings ---------------------------------------------------------------------


def test_the_noise_schedule_is_the_pipelines() -> None:
    ours = DDPMScheduler.from_config(
        DDPMScheduler.load_config(MINI / "stable-diffusion", subfolder="scheduler")
    )
    theirs = PNDMScheduler.from_pretrained(MINI / "stable-diffusion", subfolder="scheduler")
    assert (
        torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod) and ours.config.prediction_type == "epsilon"
    )


def test_the_target_is_the_noise_or_the_velocity_as_the_model_predicts() -> None:
    latents, noise, timesteps = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.tensor([10, 900])
    assert diffusion_target(DDPMScheduler(), latents, noise, timesteps) is noise
    velocity = diffusion_target(DDPMScheduler(prediction_type="v_prediction"), latents, noise, timesteps)
    alpha = DDPMScheduler().alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    torch.testing.assert_close(velocity, alpha.sqrt() * noise - (1 - alpha).sqrt() * latents)
    with pytest.raises(UserError, match="prediction_type is 'sample'"):
        diffusion_target(DDPMScheduler(prediction_type="sample"), latents, noise, timesteps)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_the_loss_is_stable_diffusions_own(inputs: Inputs, flip: float, tmp_path: Path) -> None:
    """Of one training image, computed again by diffusers from the image's pixels."""
    study = inputs.study({"flip": flip})
    trainer = inputs.trainer(study, "conditioning", tmp_path, NAMES[:1])
    sample = trainer.training_sample(0, 3, 2, 1.0)
    assert sample.draw.mirrored == (flip == 1)
    pipeline = StableDiffusionPipeline.from_pretrained(study.diffusion.folder, dtype=torch.float32)
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    with torch.no_grad():
        pixels = np.array(Image.open(inputs.root / trainer.tasks[0].train.sources[3]).convert("RGB"))
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
        posterior = pipeline.vae.encode(image.flip(-1) if flip else image).latent_dist
        latents = posterior.mean + posterior.std * sample.draw.posterior
        latents = latents * pipeline.vae.config.scaling_factor
        timestep, noise = torch.tensor([sample.draw.timestep]), sample.draw.noise[None]
        states, _ = pipeline.encode_prompt("A photo of zero.", CPU, 1, False)
        predicted = pipeline.unet(scheduler.add_noise(latents, noise, timestep), timestep, states).sample
        expected = torch.nn.functional.mse_loss(predicted, noise)
        assert trainer.losses(trainer.prepare([sample], trainer.moments)).item() == pytest.approx(
            expected.item(), rel=1e-3
        )


def test_no_caption_is_dropped(inputs: Inputs, tmp_path: Path) -> None:
    trainer = inputs.trainer(inputs.study(), "pseudoword", tmp_path, NAMES[:1])
    assert isinstance(trainer.rows, PseudowordRows)
    prompts = {trainer.rows.prompt(0, draw) for draw in range(500)}
    assert len(prompts) == 27 and all("<zero>" in prompt for prompt in prompts)


def settings(**changes: Any) -> Settings:
    return replace(
        Settings(
            0, 1e-3, 1e-6, 1, False, ("train_loss", "val_loss", "epoch1", "epoch3"), 4, 10, 2, 0.5, 1, 0.0, 8
        ),
        **changes,
    )


def test_training_stops_when_the_validation_loss_stagnates_but_not_before_the_last_candidate() -> None:
    group, losses = ClassGroup((0,)), {1: 0.5, 2: 0.6, 3: 0.6, 4: 0.4, 5: 0.45, 6: 0.41}
    taken = {}
    for epoch, loss in losses.items():
        assert not group.stopped or epoch == 4
        group.stopped = False
        taken[epoch] = group.record(epoch, 1 / epoch, loss, settings())
        if epoch == 3:
            assert group.stopped  # no improvement for two epochs, and epoch 3 was the last candidate
    assert group.stopped and group.best_epoch == 4
    assert (
        taken[1] == ["train_loss", "val_loss", "epoch1"]
        and taken[2] == ["train_loss"]
        and taken[3] == ["train_loss", "epoch3"]
    )
    assert group.epochs["val_loss"] == 4 and group.epochs["train_loss"] == 6


def test_training_ends_at_max_epochs_and_survives_losses_that_are_not_finite() -> None:
    group = ClassGroup((0,))
    group.record(1, math.nan, math.nan, settings(max_epochs=2, candidates=("val_loss",)))
    assert group.best_epoch == 1 and not group.stopped
    group.record(2, 0.5, 0.5, settings(max_epochs=2, candidates=("val_loss",)))
    assert group.best_epoch == 2 and group.stopped and group.best == 0.5


def test_training_ends_at_the_last_candidate_if_all_are_epochs(inputs: Inputs, tmp_path: Path) -> None:
    rows = {"learn": "conditioning", "lr": 0.05}
    study = inputs.study(
        {"max_epochs": 40, "patience": 40},
        epochs={**rows, "candidates": [1, 2]},
        by_loss={**rows, "candidates": ["val_loss", 1, 2]},
        imagic={**rows, "candidates": [*range(1, 9)]},
    )
    ends = {
        name: parts.settings_of(study, row_of(study, name), 1.0, classes=2).max_epochs
        for name in study.methods
    }
    assert (ends["epochs"], ends["by_loss"], ends["imagic"]) == (2, 40, 8)
    longer = inputs.study({"max_epochs": 3, "patience": 3}, by_loss=study.methods["by_loss"].model_dump())
    ours, theirs = (
        inputs.fine_tune(config, name, tmp_path / name, NAMES[:1])["zero"]
        for config, name in ((study, "epochs"), (longer, "by_loss"))
    )
    assert [entry["epoch"] for entry in ours.history] == [0, 1, 2] and len(theirs.history) == 4
    for name in ("epoch1", "epoch2"):  # so finished vectors stay, and recipes need no other version
        assert torch.equal(ours.vectors[name], theirs.vectors[name])


def learned(folder: Path, factor: float, losses: Sequence[float], candidates: dict[str, int]) -> list[str]:
    """Files of two classes that learned at ``factor``, with these validation losses after each epoch."""
    history = tuple(
        {"epoch": epoch, "train_loss": 1.0, "val_loss": loss} for epoch, loss in enumerate([2.0, *losses])
    )
    best = 1 + int(np.argmin(losses))
    result = Learned(dict.fromkeys(candidates, torch.full((1, 4), factor)), candidates, best, history)
    paths = [folder / f"lr{factor:g}/{name}.safetensors" for name in ("one", "two")]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        write_vectors(result, {}, path)
    return [str(path) for path in paths]


@pytest.mark.parametrize(
    ("candidates", "factor", "loss"),
    [
        ({"epoch1": 1, "epoch2": 2}, 1.0, 0.5),  # the third epoch of the other rate is no candidate
        ({"epoch1": 1, "epoch3": 3}, 3.0, 0.2),
        ({"val_loss": 3, "epoch1": 1}, 3.0, 0.2),
        ({"train_loss": 2, "epoch1": 1}, 1.0, 0.5),
    ],
)
def test_the_learning_rate_is_chosen_among_the_candidates(
    candidates: dict[str, int], factor: float, loss: float, tmp_path: Path
) -> None:
    names = [int(name[5:]) if name.startswith("epoch") else name for name in candidates]
    row = PersonaliseMethod.model_validate(
        {"mechanism": "personalise", "learn": "conditioning", "candidates": names, "lr_grid": [1.0, 3.0]}
    )
    vectors = {
        1.0: learned(tmp_path, 1.0, [0.6, 0.5, 0.4], candidates),
        3.0: learned(tmp_path, 3.0, [0.9, 0.8, 0.2], candidates),
    }
    targets = {name: str(tmp_path / f"{name}.safetensors") for name in candidates}
    choose_lr(row, vectors, {}, tmp_path / "lr.json", tmp_path / "history.parquet", targets, {})
    record = json.loads((tmp_path / "lr.json").read_text())
    assert record["factor"] == factor and min(entry["val_loss"] for entry in record["factors"]) == loss
    assert load_file(next(iter(targets.values())))["<one>"].ravel()[0] == factor


def test_only_a_choice_that_may_come_out_differently_has_another_recipe(inputs: Inputs) -> None:
    rows = {"learn": "conditioning", "candidates": [1, 2]}
    study = inputs.study(one=rows, grid={**rows, "lr_grid": [1.0, 3.0]})
    assert recipes.choose_lr_recipe(study, "grid") == {"version": 2}
    for name in ("one", "imagic"):
        assert recipes.choose_lr_recipe(study, name) == {}
    assert recipes.finetune_recipe(study, "grid", 1.0)["version"] == 1


@pytest.mark.parametrize(
    ("factors", "chosen", "end"),
    [
        ([0.3, 1.0, 3.0], 3.0, "highest"),
        ([1.0, 0.3, 3.0], 0.3, "lowest"),
        ([0.3, 1.0, 3.0], 1.0, None),
        ([1.0], 1.0, None),
    ],
)
def test_a_rate_at_an_end_of_its_grid_is_known(factors: list[float], chosen: float, end: str | None) -> None:
    record = {"factor": chosen, "factors": [{"factor": factor, "val_loss": 1.0} for factor in factors]}
    assert end_of_grid(record) == end


def test_learning_rates_scale_with_the_square_root_of_the_batch(inputs: Inputs) -> None:
    study = inputs.study(
        {"batch_size": 16},
        plain={"learn": "conditioning"},
        given={"learn": "pseudoword", "lr": 0.1, "lr_batch_size": 1},
    )
    assert learning_rates(study, row_of(study, "plain"), 1.0, 10) == pytest.approx((1e-3 * 4, 2e-6 * 4))
    assert learning_rates(study, row_of(study, "pseudoword"), 0.5, 10) == pytest.approx(
        (5e-3 * 2 * 0.5, 2e-6 * 4 * 0.5)
    )
    assert learning_rates(study, row_of(study, "given"), 1.0, 10)[0] == pytest.approx(0.4)


def test_vectors_can_be_scaled_by_the_images_that_they_learn_from(inputs: Inputs) -> None:
    study = inputs.study({"batch_size": 4, "lr_counts": "own"})
    base = inputs.study({"batch_size": 4})
    # alone, a class has all images of its batch; two clusters share it: 2 / (1 - 1/16) where there is one
    assert learning_rates(study, row_of(study, "pseudoword"), 1.0, 1000)[0] == pytest.approx(5e-3)
    own = learning_rates(study, row_of(study, "clusters"), 1.0, 1000)[0]
    assert own == pytest.approx(0.02 * math.sqrt(2 / (1 - 1 / 16)))
    # with 1000 classes in the batch, a vector sees one image, and so its rate is not that of a batch of four
    joint = learning_rates(study, row_of(study, "pseudoword_dm"), 1.0, 1000)
    assert joint[0] == pytest.approx(5e-3 * math.sqrt(1 / 4), rel=1e-3)
    assert learning_rates(base, row_of(base, "pseudoword_dm"), 1.0, 1000) == pytest.approx((5e-3, joint[1]))


def test_classes_that_are_left_out_do_not_train_the_shared_unet_and_keep_their_start(
    inputs: Inputs, tmp_path: Path
) -> None:
    study = inputs.study({"max_epochs": 1, "excluded_classes": "leave_out"})
    folders = [tmp_path / name for name in ("with", "without")]
    _, vectors, unets = inputs.stage(study, "imagic", folders[0], NAMES[:3], excluded={NAMES[1]})
    _, alone, unets_alone = inputs.stage(study, "imagic", folders[1], [NAMES[0], NAMES[2]])
    weights = [Path(found["epoch1"]) / UNET_FILES[1] for found in (unets, unets_alone)]
    assert weights[0].read_bytes() == weights[1].read_bytes(), "the U-Net never saw the class"
    learned, left_out, last = (load_file(path) for path in vectors)
    assert np.array_equal(learned["epoch1"], load_file(alone[0])["epoch1"])
    assert np.array_equal(last["epoch1"], load_file(alone[1])["epoch1"])
    task = inputs.tasks(study, "imagic", [NAMES[1]])
    start = parts.new_rows(study, row_of(study, "imagic"), task, CPU).values.detach()
    assert np.array_equal(left_out["epoch1"], start.numpy()) and read_metadata(vectors[1])["history"] == []
    choose_lr(
        row_of(study, "imagic"),
        {1.0: vectors},
        {1.0: unets},
        tmp_path / "lr.json",
        tmp_path / "history.parquet",
        {"epoch1": str(tmp_path / "embeddings.safetensors")},
        {},
    )
    assert set(pq.read_table(tmp_path / "history.parquet").column("class_id").to_pylist()) == {
        NAMES[0],
        NAMES[2],
    }
    # run again, all comes from the store
    job, *_ = inputs.stage(study, "imagic", folders[0], NAMES[:3], excluded={NAMES[1]})
    assert job.store.tally.made == 0


def test_images_are_scaled_by_their_shorter_side_and_cut_from_the_centre() -> None:
    wide = Image.new("RGB", (80, 40), "black")
    wide.paste("white", (20, 0, 60, 40))
    assert square(wide, 20).size == (20, 20) and np.asarray(square(wide, 20)).min() > 200
    assert square(wide.resize((33, 67)), 32).size == (32, 32)


def test_fewer_images_than_clusters_are_named() -> None:
    assert check_clusters("methods.k5.clusters", 5, {"cat": 5, "dog": 9}) == []
    (problem,) = check_clusters("methods.k5.clusters", 5, {"cat": 4, "dog": 9, "eel": 3})
    assert str(problem) == "methods.k5.clusters: 5, and class 'eel' has 3 training images; allowed: at most 3"


# --- the stage: store, resuming, files ------------------------------------------------------------


class Interrupted(Exception):
    """Simulates a kill."""


@pytest.mark.parametrize("method", ["conditioning", "pseudoword_dm"])
def test_interrupted_and_resumed_equals_uninterrupted(
    inputs: Inputs, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = inputs.study({"max_epochs": 3, "patience": 3})
    _, expected, expected_unets = inputs.stage(study, method, tmp_path / "whole", NAMES[:3])
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", 0)
    validate, epochs = Trainer.validate, []

    def validate_twice(self: Trainer, active: Sequence[ClassGroup]) -> Any:
        if self.epoch == 3:
            raise Interrupted
        epochs.append(self.epoch)
        return validate(self, active)

    monkeypatch.setattr(Trainer, "validate", validate_twice)
    with pytest.raises(Interrupted):
        inputs.stage(study, method, tmp_path / "cut", NAMES[:3])
    assert epochs == [0, 1, 2] and not list((tmp_path / "cut" / method).rglob("*.safetensors"))
    monkeypatch.setattr(
        Trainer, "validate", lambda self, active: epochs.append(self.epoch) or validate(self, active)
    )
    _, vectors, unets = inputs.stage(study, method, tmp_path / "cut", NAMES[:3])
    assert epochs == [0, 1, 2, 3]
    for ours, theirs in zip(vectors, expected, strict=True):
        assert Path(ours).read_bytes()[:8] and read_metadata(ours) == read_metadata(theirs)
        assert all(
            np.array_equal(values, load_file(theirs)[name]) for name, values in load_file(ours).items()
        )
    for name, folder in unets.items():
        mine, whole = (Path(place) / UNET_FILES[1] for place in (folder, expected_unets[name]))
        assert mine.read_bytes() == whole.read_bytes()
    assert not list((tmp_path / "cut/.work").rglob("*.*"))


@pytest.mark.parametrize("method", ["conditioning", "pseudoword_dm"])
def test_killed_within_an_epoch_and_resumed_equals_uninterrupted(
    inputs: Inputs, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = inputs.study({"max_epochs": 2, "patience": 2, "batch_size": 2})
    steps: list[int] = []
    step = Trainer.step

    def counted(self: Trainer, batch: train.Batch) -> torch.Tensor:
        if len(steps) == killed_after:
            raise Interrupted
        steps.append(self.epoch)
        return step(self, batch)

    monkeypatch.setattr(Trainer, "step", counted)
    killed_after = -1
    _, expected, expected_unets = inputs.stage(study, method, tmp_path / "whole", NAMES[:2])
    whole, each = len(steps), steps.count(1)
    assert each >= 3
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(train, "CHECKPOINT_SHARE", math.inf)
    steps.clear()
    killed_after = each + 2
    with pytest.raises(Interrupted):
        inputs.stage(study, method, tmp_path / "cut", NAMES[:2])
    killed_after = -1
    _, vectors, unets = inputs.stage(study, method, tmp_path / "cut", NAMES[:2])
    assert len(steps) == whole, "no step is taken twice"
    for ours, theirs in zip(vectors, expected, strict=True):
        assert read_metadata(ours) == read_metadata(theirs)
        mine, other = load_file(ours), load_file(theirs)
        assert all(np.array_equal(mine[name], other[name]) for name in other)
    for name, folder in unets.items():
        weights = [Path(place) / UNET_FILES[1] for place in (folder, expected_unets[name])]
        assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_damaged_checkpoint_is_only_a_loss_of_time(inputs: Inputs, tmp_path: Path) -> None:
    study = inputs.study({"max_epochs": 1})
    trainer = inputs.trainer(study, "pseudoword", tmp_path, NAMES[:2])
    trainer.run()
    path = train.checkpoint_path(tmp_path)
    path.write_bytes(path.read_bytes()[:-2000])
    assert train.read_checkpoint(tmp_path) is None


def test_what_is_known_is_not_learned_again(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = inputs.study({"max_epochs": 1})
    job, vectors, _ = inputs.stage(study, "pseudoword", tmp_path, NAMES[:2])
    assert (job.store.tally.made, job.store.tally.reused) == (2, 0)
    job, vectors, _ = inputs.stage(study, "pseudoword", tmp_path, NAMES[:3])  # another block of classes
    assert (job.store.tally.made, job.store.tally.reused) == (1, 2)
    monkeypatch.setattr(parts, "fine_tune", lambda *_: pytest.fail("nothing is to be learned"))
    Path(vectors[0]).unlink()
    job, _, _ = inputs.stage(study, "pseudoword", tmp_path, NAMES[:3])
    assert (job.store.tally.made, job.store.tally.reused) == (0, 3) and Path(vectors[0]).exists()
    # a method's name is in no recipe
    job, _, _ = inputs.stage(study, "pseudoword_again", tmp_path, NAMES[:3])
    assert job.store.tally.made == 0
    metadata = read_metadata(vectors[0])
    assert metadata["recipe"]["class_id"] == "zero" and "pseudoword_again" not in json.dumps(
        metadata["recipe"]
    )


def test_an_edited_class_or_cluster_concerns_its_class_alone(inputs: Inputs, tmp_path: Path) -> None:
    study = inputs.study({"max_epochs": 1})
    _, vectors, _ = inputs.stage(study, "clusters", tmp_path, NAMES[:2])
    assert all(len(values) == 2 for values in load_file(vectors[0]).values())
    classes = read_class_table(inputs.path("classes.parquet"))
    renamed = [replace(info, lemmas=("nought",)) if info.class_id == "zero" else info for info in classes]
    write_class_table(renamed, tmp_path / "classes.parquet")
    job, _, _ = inputs.stage(study, "clusters", tmp_path, NAMES[:2], classes=tmp_path / "classes.parquet")
    assert (job.store.tally.made, job.store.tally.reused) == (1, 1)
    first = next(
        task.train.image_ids[0] for task in inputs.tasks(study, "clusters") if task.info.class_id == "one"
    )
    known = read_clusters(inputs.path("k2.parquet"))
    write_clusters(inputs, tmp_path / "moved.parquet", {first: 1 - known[first]})
    job, _, _ = inputs.stage(study, "clusters", tmp_path, NAMES[:2], clusters=tmp_path / "moved.parquet")
    assert (job.store.tally.made, job.store.tally.reused) == (1, 1)


def test_a_trained_unet_is_a_diffusers_folder_that_is_not_made_twice(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = inputs.study({"max_epochs": 1})
    _, _, unets = inputs.stage(study, "imagic", tmp_path, NAMES[:2])
    assert set(unets) == {"train_loss", "val_loss", "epoch1"}
    trained = UNet2DConditionModel.from_pretrained(unets["epoch1"])
    original = UNet2DConditionModel.from_pretrained(study.diffusion.folder, subfolder="unet")
    changes = [
        (a.float() - b.float()).abs().max()
        for a, b in zip(trained.parameters(), original.parameters(), strict=True)
    ]
    assert 0 < max(changes) < 0.01
    monkeypatch.setattr(parts, "fine_tune", lambda *_: pytest.fail("nothing is to be learned"))
    (Path(unets["val_loss"]) / "config.json").unlink()
    inputs.stage(study, "imagic", tmp_path, NAMES[:2])
    UNet2DConditionModel.from_pretrained(unets["val_loss"])


def test_a_class_without_validation_images_is_named(inputs: Inputs, tmp_path: Path) -> None:
    study = inputs.study()
    split = pq.read_table(inputs.path("val.parquet"))
    pq.write_table(
        split.filter(np.array(split.column("class_id").to_pylist()) != "two"), tmp_path / "val.parquet"
    )
    with pytest.raises(UserError, match="no image of class 'two'"):
        class_tasks(
            inputs.path("train.parquet"),
            tmp_path / "val.parquet",
            inputs.path("classes.parquet"),
            None,
            NAMES,
        )
    assert study.finetune.validation_draws == 1


def chosen(
    inputs: Inputs, study: Study, method: str, folder: Path, class_ids: Sequence[str]
) -> dict[str, Path]:
    """Fine-tune at every factor and choose; return the files by kind."""
    row = row_of(study, method)
    runs = {factor: inputs.stage(study, method, folder, class_ids, factor) for factor in row.lr_grid}
    embeddings = {name: folder / method / name / "embeddings.safetensors" for name in row.candidate_names}
    unets = {name: folder / method / name / "unet" for name in row.candidate_names} if row.train_unet else {}
    vectors, folders = (
        {factor: run[1] for factor, run in runs.items()},
        {factor: run[2] for factor, run in runs.items()},
    )
    texts = ({name: str(path) for name, path in group.items()} for group in (embeddings, unets))
    choose_lr(row, vectors, folders, folder / "lr.json", folder / "history.parquet", *texts)
    return {
        "lr": folder / "lr.json",
        "history": folder / "history.parquet",
        **embeddings,
        **{f"unet_{name}": path for name, path in unets.items()},
    }


def test_the_learning_rate_with_the_lowest_validation_loss_is_chosen(inputs: Inputs, tmp_path: Path) -> None:
    study = inputs.study(
        {"max_epochs": 1},
        row={
            "learn": "conditioning",
            "train_unet": True,
            "lr": 0.01,
            "unet_lr": 5e-5,
            "lr_grid": [1.0, 0.001],
        },
    )
    files = chosen(inputs, study, "row", tmp_path, NAMES[:2])
    choice = json.loads(files["lr"].read_text())
    assert choice["factor"] == 1.0 and [entry["factor"] for entry in choice["factors"]] == [1.0, 0.001]
    history = pq.read_table(files["history"]).to_pandas()
    assert (
        list(history.columns) == ["factor", "class_id", "epoch", "train_loss", "val_loss"]
        and len(history) == 2 * 2 * 2
    )
    for entry in choice["factors"]:
        rows = history[(history.factor == entry["factor"]) & (history.epoch == 1)]
        assert rows.val_loss.mean() == pytest.approx(entry["val_loss"])
    vectors = load_file(files["val_loss"])
    assert list(vectors) == sorted(["<zero>", "<one>"]) and vectors["<one>"].shape[0] == 77
    linked = files["unet_val_loss"] / UNET_FILES[1]
    assert linked.samefile(tmp_path / "row/lr1/unet/val_loss" / UNET_FILES[1])


def test_learned_words_work_in_plain_diffusers(inputs: Inputs, tmp_path: Path) -> None:
    study = inputs.study({"max_epochs": 1})
    files = chosen(inputs, study, "pseudoword_clusters", tmp_path, NAMES[:2])
    vectors = {name: torch.from_numpy(value) for name, value in load_file(files["val_loss"]).items()}
    assert set(vectors) == {"<zero:0>", "<zero:1>", "<one:0>", "<one:1>"} and vectors["<one:0>"].shape[0] == 1
    pipeline = StableDiffusionPipeline.from_pretrained(study.diffusion.folder, dtype=torch.float32)
    before, _ = pipeline.encode_prompt("a photo of a <one:1>", CPU, 1, False)
    pipeline.load_textual_inversion([{name: vector} for name, vector in vectors.items()])
    after, _ = pipeline.encode_prompt("a photo of a <one:1>", CPU, 1, False)
    rows = parts.new_rows(
        study,
        row_of(study, "pseudoword_clusters"),
        inputs.tasks(study, "pseudoword_clusters", NAMES[:2]),
        CPU,
    )
    assert isinstance(rows, PseudowordRows)
    rows.values.data = torch.cat([vectors[name] for name in ("<zero:0>", "<zero:1>", "<one:0>", "<one:1>")])
    rows.text_encoder.get_input_embeddings().values = rows.values
    rows.prompt = lambda row, draw: "a photo of a <one:1>"
    torch.testing.assert_close(after, rows.states([3], [0]))
    assert (before - after).abs().max() > 0.1
