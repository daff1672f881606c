"""The classifier: network, crops, schedule, training, scoring, and the files of a block of runs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from scipy.stats import ks_2samp
from torchvision.transforms import v2

from augbench.artifacts.pool import build_index
from augbench.artifacts.shards import ShardRow, encode_image, write_shard
from augbench.artifacts.store import Store
from augbench.classifier import crops
from augbench.classifier import images as images_module
from augbench.classifier import train as training
from augbench.classifier.compute import Compute, Storage, compute_of
from augbench.classifier.crops import MEAN, STD, Crops, cut, cut_centre, draw_crops, in_parts
from augbench.classifier.images import ImagePool, LabelledImages, gather, stream
from augbench.classifier.model import SteppedConv2d, WidthResNet, build
from augbench.classifier.packed import Packed
from augbench.classifier.predict import predict
from augbench.classifier.schedule import PlateauSchedule
from augbench.classifier.score import score_test, top1
from augbench.classifier.sizes import training_side
from augbench.classifier.spool import Spool
from augbench.classifier.stage import train_block
from augbench.classifier.state import Point, RunResult, State
from augbench.classifier.step import Gradients
from augbench.classifier.train import train_run
from augbench.config.classifier import Classifier
from augbench.config.stages import Execution
from augbench.config.study import Study, parse_study
from augbench.config.use import CONCATENATED, Use
from augbench.data.classes import ClassInfo, write_class_table
from augbench.data.splits import Split, write_split
from augbench.errors import UserError
from augbench.files import read_json
from augbench.memory import free_memory
from augbench.resample import resample

CPU = torch.device("cpu")
ALONE = Compute(CPU)
TINY = Classifier(
    arch="resnet18",
    layers=(1, 1, 1, 1),
    base_width=4,
    resolution=16,
    evaluation_resize=16,
    min_crop_area=0.5,
    batch_size=16,
    lr=0.05,
    max_epochs=4,
)


pytestmark = pytest.mark.usefixtures("one_thread")


def photo(label: int, i: int, side: int = 16) -> Image.Image:
    """A noisy image whose brightness usually tells its class."""
    rng = np.random.default_rng([label, i])
    return Image.fromarray((rng.normal(110 + 30 * label, 40, (side, side, 3)).clip(0, 255)).astype(np.uint8))


def labelled(first: int, count: int, what: str = "images") -> LabelledImages:
    labels = np.arange(count) % 2

    def load(rows: slice) -> Iterator[Image.Image]:
        return (photo(int(labels[i]), first + i) for i in range(count)[rows])

    return LabelledImages([f"{first + i}" for i in range(count)], labels, load, what)


# --- network --------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_default_network_is_torchvisions(arch: str) -> None:
    ours = build(Classifier(arch=arch), 7, seed=3)
    torch.manual_seed(3)
    theirs = torchvision.models.get_model(arch, num_classes=7)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(ours.state_dict()[name], weight) for name, weight in theirs.state_dict().items())


def test_width_scales_every_stage() -> None:
    wide = {
        name: weight.shape
        for name, weight in torchvision.models.resnet50(num_classes=1000).state_dict().items()
    }
    narrow = {
        name: weight.shape for name, weight in build(Classifier(base_width=16), 1000, 0).state_dict().items()
    }
    assert narrow.keys() == wide.keys()
    for name, shape in narrow.items():
        assert all(theirs in (ours, 4 * ours) for ours, theirs in zip(shape, wide[name], strict=True)), name
    assert narrow["layer4.2.conv3.weight"] == (512, 128, 1, 1)


def test_small_stem_keeps_the_resolution() -> None:
    model = build(Classifier(arch="resnet18", base_width=8, stem="small", layers=(1, 1, 1, 1)), 5, 0)
    assert model.maxpool(model.conv1(torch.zeros(2, 3, 32, 32))).shape == (2, 8, 32, 32)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 5)


def test_a_narrow_network_trains_on_large_images() -> None:
    """With torch's own convolutions of few channels and stride 2, this ended the process."""
    config = TINY.model_copy(update={"resolution": 224, "base_width": 4})
    model = build(config, 2, 0).to(memory_format=torch.channels_last)
    images = torch.zeros(2, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    model(images).sum().backward()
    stepped = [module for module in model.modules() if isinstance(module, SteppedConv2d)]
    assert len(stepped) == 2  # of 4 and 8 channels; that of 16 is torch's own
    plain = torch.nn.functional.conv2d(activations := torch.randn(2, 4, 9, 8), stepped[0].weight, stride=2)
    assert torch.allclose(stepped[0](activations), plain, atol=1e-6)


def test_building_a_network_leaves_the_global_random_state() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    build(TINY, 2, 99)
    assert torch.rand(1) == expected


# --- crops ----------------------------------------------------------------------------------------


def test_crops_are_distributed_as_torchvisions() -> None:
    count, height, width = 3000, 48, 80
    torch.manual_seed(0)
    reference = v2.RandomResizedCrop(32, scale=(0.08, 1.0))
    image = torch.zeros(3, height, width)
    theirs = [reference.make_params([image]) for _ in range(count)]
    ours = draw_crops(np.random.default_rng(0), np.tile([height, width], (count, 1)), 0.08)
    for column, name in enumerate(("top", "left", "height", "width")):
        assert ks_2samp(ours.boxes[:, column], [box[name] for box in theirs]).pvalue > 0.01, name
    assert abs(ours.flips.mean() - 0.5) < 0.03


@pytest.mark.parametrize("size", [(20, 200), (200, 20)])
def test_hopeless_crops_fall_back_to_torchvisions_central_one(size: tuple[int, int]) -> None:
    theirs = v2.RandomResizedCrop(32, scale=(1.0, 1.0)).make_params([torch.zeros(3, *size)])
    (ours,) = draw_crops(np.random.default_rng(0), np.array([size]), 1.0).boxes.tolist()
    assert ours == [theirs[name] for name in ("top", "left", "height", "width")]


def undo_normalisation(images: torch.Tensor) -> torch.Tensor:
    return (images * torch.tensor(STD).view(1, 3, 1, 1) + torch.tensor(MEAN).view(1, 3, 1, 1)) * 255


def test_cutting_equals_torchvisions_resized_crop() -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (3, 3, 40, 50), dtype=torch.uint8)
    boxes = np.array([[3, 5, 30, 44], [20, 10, 9, 7], [0, 0, 40, 50]])  # smaller, larger, the whole image
    ours = undo_normalisation(cut(images, Crops(boxes, np.array([False, True, True])), 16))
    for image, box, flip, got in zip(images, boxes.tolist(), (False, True, True), ours, strict=True):
        expected = v2.functional.resized_crop(image.float(), *box, size=[16, 16], antialias=True)
        assert torch.allclose(got, expected.flip(2) if flip else expected, atol=1e-2)


@pytest.mark.parametrize(("resize", "side"), [(24, 20), (64, 48)])
def test_evaluation_crop_equals_torchvisions(resize: int, side: int) -> None:
    torch.manual_seed(0)
    sizes = np.array([[40, 50], [37, 30]])
    canvas = torch.full((2, 3, 40, 50), 255, dtype=torch.uint8)
    for image, (height, width) in zip(canvas, sizes.tolist(), strict=True):
        image[:, :height, :width] = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    ours = undo_normalisation(cut_centre(canvas, sizes, resize, side))
    reference = v2.Compose([v2.Resize(resize, antialias=True), v2.CenterCrop(side)])
    for image, (height, width), got in zip(canvas, sizes.tolist(), ours, strict=True):
        assert torch.allclose(got, reference(image[:, :height, :width].float()), atol=1e-2)


# --- images ---------------------------------------------------------------------------------------


def test_large_images_are_kept_at_the_size_that_evaluation_needs() -> None:
    pool = ImagePool(iter([Image.new("RGB", (100, 80)), Image.new("L", (10, 12))]), 2, 40, ALONE, "images")
    assert pool.sizes.tolist() == [[40, 50], [12, 10]]


def test_images_as_large_as_their_files_are_not_scaled() -> None:
    assert [training_side(Classifier(decoded_size=size)) for size in (None, 500, "file")] == [256, 500, None]
    pool = ImagePool(iter([Image.new("RGB", (100, 80)), Image.new("L", (10, 12))]), 2, None, ALONE, "images")
    assert pool.sizes.tolist() == [[80, 100], [12, 10]]


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_crops_of_files_equal_torchvisions_in_parts_of_similar_size(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crops, "MOST_PIXELS", 4000)  # a few boxes; the largest is a part of its own
    rng = np.random.default_rng(0)
    sides = [(int(width), int(height)) for width, height in rng.integers(20, 150, (12, 2))]
    photos = [photo(0, i, 150).resize(side) for i, side in enumerate(sides)]
    compute = replace(ALONE, storage=Storage(where, tmp_path))
    pools = [ImagePool(iter(part), len(part), None, compute, "images") for part in (photos[:7], photos[7:])]
    config = TINY.model_copy(update={"decoded_size": "file"})
    gradients = Gradients(build(config, 2, 0), config, ALONE)
    run = training._Training(gradients, pools, np.zeros(12), 0, config, ALONE)
    drawn = draw_crops(rng, np.concatenate([pool.sizes for pool in pools]), 0.08)
    batches = [np.array([11, 0, 5, 5, 8]), np.array([3]), np.arange(12)]
    for batch, found in zip(batches, run._cut(drawn, batches), strict=True):
        for i, got in zip(batch.tolist(), undo_normalisation(found), strict=True):
            image = v2.functional.pil_to_tensor(photos[i]).float()
            expected = v2.functional.resized_crop(image, *drawn.boxes[i].tolist(), [16, 16], antialias=True)
            assert torch.allclose(got, expected.flip(2) if drawn.flips[i] else expected, atol=1e-2)
    assert {len(part) for part in in_parts(drawn.boxes)} >= {1}


def test_parts_of_a_batch_have_bounded_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crops, "MOST_PIXELS", 1000)
    boxes = np.array([[0, 0, 10, 10]] * 25 + [[0, 0, 40, 40], [0, 0, 5, 90]])
    parts = in_parts(boxes)
    assert sorted(np.concatenate(parts).tolist()) == list(range(27))
    assert all(len(part) * boxes[part, 2:].max(axis=0).prod() <= 1000 for part in parts if len(part) > 1)
    assert len(parts) == 5  # ten, ten and five small ones, and the two others


def test_evaluation_does_not_depend_on_the_size_that_crops_are_cut_from() -> None:
    pools, sides = labelled(0, 40), []
    with pytest.MonkeyPatch.context() as patch:
        pool = LabelledImages.pool
        patch.setattr(LabelledImages, "pool", lambda *given: sides.append(given[1]) or pool(*given))
        config = TINY.model_copy(update={"decoded_size": "file", "max_epochs": 1})
        train_run(config, 2, pools, None, labelled(100, 8), 0, 0, ALONE)
    assert sides == [16, None]  # validation, training


def test_batches_mix_pools_and_sizes() -> None:
    one = ImagePool((Image.new("RGB", (4, 4), (i, 0, 0)) for i in range(3)), 3, 32, ALONE, "images")
    two = ImagePool((Image.new("RGB", (5 + i, 3), (10 + i, 0, 0)) for i in range(2)), 2, 32, ALONE, "images")
    images, sizes = gather([one, two], np.array([4, 0, 2, 3]), CPU)
    assert images.shape == (4, 3, 4, 6) and images[:, 0, 0, 0].tolist() == [11, 0, 2, 10]
    assert sizes.tolist() == [[3, 6], [4, 4], [4, 4], [3, 5]]


def test_images_of_several_sizes_in_one_tensor_are_those_in_a_list() -> None:
    pool = ImagePool(iter(mixed(0, 40)), 40, 18, ALONE, "images")
    expected = [pool.take(np.array([3, 39, 0, 3])), pool.take(np.arange(40))]
    boxes = np.array([[2, 1, 9, 7], [0, 0, 16, 16], [5, 3, 2, 11]])
    part = pool.take(np.array([7, 8, 20]), boxes=boxes)
    assert pool._moved(CPU) and isinstance(pool.images, Packed)
    assert torch.equal(pool.take(np.array([3, 39, 0, 3])), expected[0])
    assert torch.equal(pool.take(np.arange(40)), expected[1])
    assert torch.equal(pool.take(np.array([7, 8, 20]), boxes=boxes), part)


@pytest.mark.parametrize(
    ("free", "fails"), [(1000, False), (10**9, True)], ids=["too large", "while filling"]
)
def test_images_that_do_not_fit_on_the_gpu_stay_in_memory_and_this_is_said_once(
    free: int, fails: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*given: Any) -> None:
        assert fails
        raise torch.OutOfMemoryError

    monkeypatch.setattr(images_module, "_free_on", lambda device: free)
    monkeypatch.setattr(Packed, "__init__", full)
    expected = ImagePool(iter(mixed(0, 10)), 10, 18, ALONE, "images")
    for where in ("device", "auto"):
        compute = Compute(torch.device("cuda"), storage=Storage(where))
        pool = ImagePool(iter(mixed(0, 10)), 10, 18, compute, "real images")
        assert torch.equal(pool.take(np.arange(10)), expected.take(np.arange(10)))
    (line,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert line == (
        "execution.image_pool: device, but the pixels of real images, 9.12e-06 GB, do not fit into the"
        f" {free / 1e9:.3g} GB that are free on the GPU"
    )


def test_memory_that_torch_keeps_of_an_earlier_run_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    free, kept = 10, [4]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", kept.clear)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free - sum(kept), 20))
    assert images_module._free_on(torch.device("cuda")) == 10


def mixed(first: int, count: int) -> list[Image.Image]:
    """Images of various sizes."""
    return [photo(i % 2, first + i).resize((16 + i % 5, 16 + i % 3)) for i in range(count)]


@pytest.mark.parametrize(
    "images", [mixed(0, 40), [photo(0, i) for i in range(40)]], ids=["of several sizes", "of one size"]
)
def test_images_in_a_file_are_those_in_memory(images: list[Image.Image], tmp_path: Path) -> None:
    memory, disk = (
        ImagePool(iter(images), 40, 18, replace(ALONE, storage=Storage(where, tmp_path)), "images")
        for where in ("memory", "disk")
    )
    assert isinstance(disk.images, Spool) and not isinstance(memory.images, Spool)
    assert (memory.sizes == disk.sizes).all()
    batches = [np.array([3, 39, 0, 3]), np.array([7]), np.arange(40)]
    for (expected, sizes), (found, again) in zip(
        stream([memory], batches, CPU), stream([disk], batches, CPU), strict=True
    ):
        assert torch.equal(expected, found) and (sizes == again).all()
    for (expected, _), (found, _) in zip(
        stream([memory, memory], batches, CPU), stream([memory, disk], batches, CPU), strict=True
    ):
        assert torch.equal(expected, found)
    assert list(tmp_path.iterdir()) == []  # the temporary file is unnamed


@pytest.mark.parametrize(
    "images", [mixed(0, 40), [photo(0, i) for i in range(40)]], ids=["of several sizes", "of one size"]
)
def test_images_that_outgrow_the_memory_go_on_in_a_file(
    images: list[Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = replace(ALONE, storage=Storage("auto", tmp_path))
    monkeypatch.setattr("augbench.classifier.images.free_memory", lambda: 2 * 3 * 16 * 16 * 10)
    small = ImagePool(iter(images), 40, 18, compute, "images")
    monkeypatch.undo()
    large = ImagePool(iter(images), 40, 18, compute, "images")
    assert isinstance(small.images, Spool) and not isinstance(large.images, Spool)
    assert torch.equal(gather([small], np.arange(40), CPU)[0], gather([large], np.arange(40), CPU)[0])


def test_a_full_disk_names_the_key_that_helps(tmp_path: Path) -> None:
    compute = replace(ALONE, storage=Storage("disk", Path("/dev/full/no/folder")))
    with pytest.raises(UserError, match=r"execution\.scratch: Not a directory"):
        ImagePool(iter(mixed(0, 3)), 3, 16, compute, "images")
    spool = Spool(tmp_path)
    with (
        Path("/dev/full").open("wb", buffering=0) as full,
        pytest.raises(UserError, match=r"execution\.scratch: No space left on device in .*more space"),
    ):
        spool.files = [full]
        spool.append(torch.zeros(3, 4, 4, dtype=torch.uint8))


@pytest.mark.parametrize("where", ["disk", "auto"])
def test_a_disk_too_small_for_all_images_is_an_error_before_they_are_written(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = replace(ALONE, storage=Storage(where, tmp_path))
    monkeypatch.setattr(images_module, "CHECK_EVERY", 8)
    monkeypatch.setattr(images_module, "free_memory", lambda: 2 * 3 * 16 * 16 * 12)  # 12 images
    free = 3 * 16 * 16 * 40
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=free))
    ImagePool((photo(0, i) for i in range(40)), 40, 16, compute, "images")
    with pytest.raises(UserError) as raised:
        ImagePool((photo(0, i) for i in range(60)), 60, 16, compute, "images")
    left = 52 if where == "disk" else 60  # 8 images are written when the disk is looked at first
    assert str(raised.value) == (
        f"execution.scratch: decoded images need about {left * 768 / 1e9:.3g} GB in '{tmp_path}', and"
        f" {free / 1e9:.3g} GB are free; name a folder with more space, or a smaller classifier.decoded_size"
    )


def test_scratch_may_name_an_environment_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAST_DISK", str(tmp_path))
    assert (
        compute_of(Execution(scratch="$FAST_DISK/pools"), CPU, Path("work")).storage.scratch
        == tmp_path / "pools"
    )
    assert compute_of(Execution(), CPU, Path("work")).storage.scratch == Path("work")
    with pytest.raises(UserError, match=r"execution\.scratch: '\$NO_SUCH_DISK'"):
        compute_of(Execution(scratch="$NO_SUCH_DISK"), CPU, Path("work"))


GIB = 1 << 30


@pytest.mark.parametrize(
    ("files", "slurm", "expected"),
    [
        ({}, None, 64 * GIB),
        (
            {
                "proc/self/cgroup": "0::/slurm/job_1/step_0",
                "sys/fs/cgroup/slurm/job_1/memory.max": f"{8 * GIB}",
                "sys/fs/cgroup/slurm/job_1/memory.stat": f"anon {GIB}\nfile {5 * GIB}",
            },
            None,
            7 * GIB,
        ),
        (
            {
                "proc/self/cgroup": "0::/slurm/job_1",
                "sys/fs/cgroup/slurm/job_1/memory.max": "max",
                "sys/fs/cgroup/slurm/job_1/memory.stat": "anon 5",
            },
            None,
            64 * GIB,
        ),
        (
            {
                "proc/self/cgroup": "7:cpu:/\n4:memory:/job",
                "sys/fs/cgroup/memory/job/memory.limit_in_bytes": f"{4 * GIB}",
                "sys/fs/cgroup/memory/job/memory.stat": f"total_rss {GIB}",
            },
            None,
            3 * GIB,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/elsewhere",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}",
                "sys/fs/cgroup/memory/memory.stat": f"total_rss {3 * GIB}",
            },
            None,
            0,
        ),
        ({}, "1024", GIB),
    ],
    ids=["machine", "cgroup 2", "cgroup 2 without limit", "cgroup 1", "container", "Slurm without cgroups"],
)
def test_free_memory_is_what_the_job_may_take(
    files: dict[str, str], slurm: str | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_MEM_PER_NODE", raising=False)
    if slurm is not None:
        monkeypatch.setenv("SLURM_MEM_PER_NODE", slurm)
    for name, text in {
        "proc/meminfo": f"MemTotal: {1 << 27} kB\nMemAvailable: {64 << 20} kB",
        **files,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert free_memory(tmp_path) == expected


def test_free_memory_of_this_machine_is_some() -> None:
    assert 1 << 20 < free_memory() < 1 << 50


def test_a_missing_image_is_an_error() -> None:
    with pytest.raises(UserError, match="2 images read; 3 are listed"):
        ImagePool((photo(0, i) for i in range(2)), 3, 16, ALONE, "images")


# --- schedule -------------------------------------------------------------------------------------


def test_schedule_follows_a_sequence_of_accuracies() -> None:
    config = Classifier(lr=1.0, plateau_patience=2, stop_patience=4, max_epochs=20)
    state, rates = PlateauSchedule(config.lr), []
    for top1_value in (0.1, 0.3, 0.3, 0.2, 0.4, 0.3, 0.4, 0.2, 0.1):
        assert not state.finished(config)
        rates.append(state.lr)
        state = state.step(top1_value, config)
    # epochs 2 and 3 do not improve: lr falls before 4, which improves; 5 and 6 do not, nor 7 and 8: stop
    assert rates == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01])
    assert state.finished(config) and (state.best_epoch, state.best_top1) == (4, 0.4)


def test_schedule_ends_at_the_most_epochs() -> None:
    state, config = PlateauSchedule(0.1), Classifier(max_epochs=3)
    for top1_value in (0.1, 0.2, 0.3):
        assert not state.finished(config)
        state = state.step(top1_value, config)
    assert state.finished(config) and state.keeps_last


def test_the_optimiser_is_torchs_sgd_over_all_weights() -> None:
    model = build(TINY, 2, 0)
    optimizer = State.new(model, Classifier(), torch.amp.GradScaler(enabled=False)).optimizer
    (group,) = optimizer.param_groups
    assert type(optimizer) is torch.optim.SGD and len(group["params"]) == len([*model.parameters()])
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.1, 0.9, 1e-4)
    assert not group["nesterov"] and group["dampening"] == 0


# --- training -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sets() -> tuple[LabelledImages, LabelledImages, LabelledImages]:
    return labelled(0, 60), labelled(1000, 40), labelled(2000, 50)


def run_tiny(
    sets: tuple[LabelledImages, LabelledImages, LabelledImages],
    run: int = 0,
    checkpoint: Path | None = None,
    compute: Compute = ALONE,
    use: Use = CONCATENATED,
    **changes: Any,
) -> RunResult:
    real, added, validation = sets
    config = TINY.model_copy(update=changes)
    return train_run(config, 2, real, added, validation, run, 5, compute, checkpoint, use=use)


# 100 images in batches of 16 are 7 steps per pass, so validations every 5 steps lie inside passes
SCHEDULES: dict[str, dict[str, Any]] = {
    "plateau": {},
    "steps": {"schedule": "steps", "steps": 23, "validate_every": 5, "max_epochs": 270},
    "cosine": {
        "schedule": "steps", "steps": 18, "validate_every": 5, "decay": "cosine", "keep": "last",
        "max_epochs": 270,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(sets: tuple[LabelledImages, LabelledImages, LabelledImages]) -> RunResult:
    torch.set_num_threads(1)
    return run_tiny(sets)


@pytest.fixture(scope="module", params=SCHEDULES)
def schedule(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def whole(sets: tuple[LabelledImages, LabelledImages, LabelledImages], schedule: str) -> RunResult:
    """A run of each schedule that nothing interrupted."""
    torch.set_num_threads(1)
    return run_tiny(sets, **SCHEDULES[schedule])


def assert_same(found: RunResult, expected: RunResult) -> None:
    assert found.history == expected.history
    assert all(torch.equal(found.state[name], weight) for name, weight in expected.state.items())


def test_training_learns(finished: RunResult) -> None:
    assert finished.val_top1 > 0.8
    assert finished.history[-1].train_loss < finished.history[0].train_loss


def test_validations_know_their_step_and_pass(
    sets: tuple[LabelledImages, LabelledImages, LabelledImages],
) -> None:
    result = run_tiny(sets, **SCHEDULES["steps"])
    # lr is lowered from steps 12 (half of 23, rounded) and 17 on
    found = [(point.step, point.epoch, point.lr) for point in result.history if isinstance(point, Point)]
    assert [entry[:2] for entry in found] == [(5, 0), (10, 1), (15, 2), (20, 2), (23, 3)]
    assert [entry[2] for entry in found] == pytest.approx([0.05, 0.05, 0.005, 0.0005, 0.0005])
    assert (result.steps, result.stopped) == (23, "steps")


def test_progress_lines_count_steps_and_the_time_left(
    sets: tuple[LabelledImages, LabelledImages, LabelledImages],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(training, "PROGRESS_SECONDS", 0.0)
    with caplog.at_level("INFO"):
        run_tiny(sets, **SCHEDULES["steps"])
        run_tiny(sets, max_epochs=2)
    lines = [record.getMessage() for record in caplog.records if "val top-1" in record.getMessage()]
    counted = [re.search(r": (step|epoch) (\d+)/(\d+), .* ETA( at most)?", line) for line in lines]
    assert [found.groups() for found in counted if found] == [
        *(("step", str(step), "23", None) for step in (5, 10, 15, 20, 23)),
        *(("epoch", str(epoch), "2", " at most") for epoch in (1, 2)),
    ]
    assert lines[4].endswith("ETA 0:00")


def test_a_validation_does_not_change_the_training_around_it(
    sets: tuple[LabelledImages, LabelledImages, LabelledImages],
) -> None:
    often = run_tiny(sets, **{**SCHEDULES["cosine"], "validate_every": 2})
    seldom = run_tiny(sets, **{**SCHEDULES["cosine"], "validate_every": 18})
    assert len(often.history) == 9 and len(seldom.history) == 1
    assert all(torch.equal(often.state[name], weight) for name, weight in seldom.state.items())


def test_a_steps_schedule_of_whole_passes_trains_as_the_plateau_rule_does_until_the_rate_falls(
    sets: tuple[LabelledImages, LabelledImages, LabelledImages], finished: RunResult
) -> None:
    steps = run_tiny(sets, schedule="steps", steps=28, validate_every=7, lower_at=(), keep="best")
    assert [entry.val_top1 for entry in steps.history] == [entry.val_top1 for entry in finished.history]
    assert all(torch.equal(steps.state[name], weight) for name, weight in finished.state.items())


def test_repeated_images_appear_so_often_per_pass_with_another_crop_each_time(
    sets: tuple[LabelledImages, LabelledImages, LabelledImages],
) -> None:
    real, _, validation = sets

    def train(images: LabelledImages, repeats: int) -> RunResult:
        config = TINY.model_copy(update={"max_epochs": 2})
        return train_run(config, 2, images, None, validation, 0, 5, ALONE, repeats=repeats)

    twice = train(real, 2)
    assert twice.steps == 2 * 8  # 120 images in batches of 16
    # the same images listed twice
    listed = LabelledImages(
        real.ids * 2,
        np.tile(real.labels, 2),
        lambda rows: iter([*real.load(slice(None)), *real.load(slice(None))][rows]),
        "listed twice",
    )
    assert_same(twice, train(listed, 1))


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    sets: tuple[LabelledImages, LabelledImages, LabelledImages],
    schedule: str,
    whole: RunResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    save = State.save

    def save_and_stop(self: Any, path: Path) -> None:
        save(self, path)
        if len(self.history) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(State, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(sets, checkpoint=tmp_path / "run.pt", **SCHEDULES[schedule])
    resumed = run_tiny(sets, checkpoint=tmp_path / "run.pt", **SCHEDULES[schedule])
    assert_same(resumed, whole)
    assert len(resumed.seconds) == len(resumed.history)


def test_an_unreadable_checkpoint_costs_time_only(
    sets: tuple[LabelledImages, LabelledImages, LabelledImages], finished: RunResult, tmp_path: Path
) -> None:
    (tmp_path / "run.pt").write_bytes(b"not a checkpoint")
    assert run_tiny(sets, checkpoint=tmp_path / "run.pt").history == finished.history


def test_streaming_from_a_file_trains_as_images_in_memory_do(
    sets: tuple[LabelledImages, LabelledImages, LabelledImages],
    schedule: str,
    whole: RunResult,
    tmp_path: Path,
) -> None:
    apart = labelled(0, 60), labelled(1000, 40), labelled(2000, 50)
    streamed = run_tiny(
        apart, compute=replace(ALONE, storage=Storage("disk", tmp_path)), **SCHEDULES[schedule]
    )
    assert isinstance(apart[0].pool(16, ALONE).images, Spool) and not isinstance(
        sets[0].pool(16, ALONE).images, Spool
    )
    assert_same(streamed, whole)


def test_half_precision_is_a_choice_that_recipes_know(
    sets: tuple[LabelledImages, LabelledImages, LabelledImages], finished: RunResult
) -> None:
    half = run_tiny(sets, dtype="bfloat16", max_epochs=1).history[0]
    assert half.train_loss != finished.history[0].train_loss and half.train_loss == pytest.approx(
        finished.history[0].train_loss, rel=0.2
    )
    assert (
        TINY.model_dump()["dtype"] == "auto"
        and TINY.model_copy(update={"dtype": "bfloat16"}).model_dump()["dtype"] == "bfloat16"
    )


def test_float16_survives_a_step_whose_gradients_overflow(
    sets: tuple[LabelledImages, LabelledImages, LabelledImages],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = run_tiny(sets, dtype="float16", max_epochs=3)
    backward, scales = Gradients._backward, []

    def overflows(self: Gradients, *given: Any) -> torch.Tensor:
        loss = backward(self, *given)
        if len(scales) == 8:  # the first step of the second pass
            self.model.fc.bias.grad[0] = float("inf")
        before = self.model.fc.bias.detach().clone()
        scales.append((self.scaler.get_scale(), before))
        return loss

    monkeypatch.setattr(Gradients, "_backward", overflows)
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    found = run_tiny(sets, dtype="float16", max_epochs=3, checkpoint=tmp_path / "run.pt")
    assert found.history[0] == whole.history[0] and found.history[1] != whole.history[1]
    assert scales[9][0] == scales[8][0] / 2 and scales[10][0] == scales[9][0]
    assert torch.equal(scales[9][1], scales[8][1]) and not torch.equal(scales[10][1], scales[9][1])
    assert all(weight.isfinite().all() for weight in found.state.values())
    saved = torch.load(tmp_path / "run.pt")["scaler"]
    assert saved["scale"] == scales[-1][0] == 2.0**15


def test_gpus_without_bfloat16_train_in_float16_with_a_scaled_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    scaled: list[bool] = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (device.index, 0))
    monkeypatch.setattr(torch.amp, "GradScaler", lambda kind, enabled: scaled.append(enabled))
    model = build(TINY, 2, 0)
    for config, capability in ((TINY, 7), (TINY, 8), (TINY.model_copy(update={"dtype": "float32"}), 7)):
        Gradients(model, config, Compute(torch.device("cuda", capability)))
    Gradients(model, TINY, ALONE)
    assert scaled == [True, False, False, False]


@pytest.mark.parametrize("exact", [True, False])
def test_deterministic_kernels_are_a_choice_that_recipes_know_once_it_is_made(
    exact: bool,
    sets: tuple[LabelledImages, LabelledImages, LabelledImages],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flags, seen = torch.backends.cudnn.flags, []

    def noted(**given: bool) -> Any:
        seen.append(given)
        return flags(**given)

    monkeypatch.setattr(torch.backends.cudnn, "flags", noted)
    run_tiny(sets, deterministic=exact, max_epochs=1)
    assert seen == [{"enabled": True, "benchmark": not exact, "deterministic": exact}]
    dumped = TINY.model_copy(update={"deterministic": exact}).model_dump()
    assert ("deterministic" in dumped) is not exact


@pytest.mark.full
def test_a_compiled_network_trains_as_one_that_is_not(
    sets: tuple[LabelledImages, LabelledImages, LabelledImages], schedule: str, whole: RunResult
) -> None:
    compiled = run_tiny(sets, compute=replace(ALONE, compiled=True), **SCHEDULES[schedule])
    assert compiled.history[0].train_loss == pytest.approx(whole.history[0].train_loss, rel=1e-4)
    assert compiled.state.keys() == whole.state.keys()


def test_the_weights_kept_are_those_of_the_best_epoch(
    sets: tuple[LabelledImages, LabelledImages, LabelledImages],
) -> None:
    # a high learning rate makes accuracy fluctuate; take a run whose last epoch is not its best
    results = ((run, run_tiny(sets, run=run, lr=0.5, max_epochs=6)) for run in range(20))
    run, result = next((run, result) for run, result in results if result.best_epoch < 5)
    accuracies = [epoch.val_top1 for epoch in result.history]
    assert result.best_epoch == int(np.argmax(accuracies)) and result.val_top1 == max(accuracies)
    stopped_there = run_tiny(sets, run=run, lr=0.5, max_epochs=result.best_epoch + 1)
    assert all(torch.equal(result.state[name], weight) for name, weight in stopped_there.state.items())
    model = build(TINY, 2, 0)
    model.load_state_dict(result.state)
    logits = predict(model, sets[2].pool(16, ALONE), TINY, CPU)
    assert float((logits.argmax(1).numpy() == sets[2].labels).mean()) == pytest.approx(result.val_top1)


def test_another_run_starts_from_other_weights(
    sets: tuple[LabelledImages, LabelledImages, LabelledImages], finished: RunResult
) -> None:
    assert run_tiny(sets, run=1, max_epochs=1).history[0] != finished.history[0]


def test_the_first_epochs_do_not_depend_on_how_many_follow(
    sets: tuple[LabelledImages, LabelledImages, LabelledImages], finished: RunResult
) -> None:
    assert run_tiny(sets, max_epochs=2).history == finished.history[:2]


def test_images_that_do_not_fit_together_are_classified_in_halves(
    sets: tuple[LabelledImages, LabelledImages, LabelledImages],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, pool = build(TINY, 2, 0), sets[2].pool(16, ALONE)
    expected, forward = predict(model, pool, TINY, CPU), model.forward

    def limited(images: torch.Tensor) -> torch.Tensor:
        if len(images) > 30:
            raise torch.OutOfMemoryError
        return forward(images)

    monkeypatch.setattr(model, "forward", limited)
    assert torch.equal(predict(model, pool, TINY, CPU), expected)
    assert [record.getMessage() for record in caplog.records] == [
        "classifying images: 50 images do not fit into the GPU's memory; going on with 25"
    ]


@pytest.mark.parametrize(("groups", "helps"), [(1, "batch_norm_groups above 1"), (4, "execution.processes")])
def test_a_step_that_does_not_fit_at_all_is_one_line(
    groups: int,
    helps: str,
    sets: tuple[LabelledImages, LabelledImages, LabelledImages],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*given: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(WidthResNet, "forward", full)
    with pytest.raises(
        UserError, match=rf"^classifier\.batch_size: 16 images on 1 GPU do not fit into memory; .*{helps}"
    ):
        run_tiny(sets, batch_norm_groups=groups)


def test_predictions_give_the_probability_of_the_true_label(
    sets: tuple[LabelledImages, LabelledImages, LabelledImages], finished: RunResult
) -> None:
    test = labelled(3000, 30)
    predictions = score_test(finished.state, TINY, np.arange(2), test, ALONE)
    assert predictions.column("image_id").to_pylist() == test.ids
    hit = [row["label"] == row["predicted"] for row in predictions.to_pylist()]
    assert hit == [row["probability"] > 0.5 for row in predictions.to_pylist()]  # two classes
    assert top1(predictions) == pytest.approx(sum(hit) / 30)


def test_the_key_of_a_set_depends_on_ids_labels_and_order() -> None:
    def images(ids: list[str], labels: list[int]) -> str:
        return LabelledImages(ids, labels, lambda rows: iter(()), "images").key

    assert images(["a", "b"], [0, 1]) == images(["a", "b"], [0, 1])
    assert len({images(["a", "b"], [0, 1]), images(["b", "a"], [0, 1]), images(["a", "b"], [1, 0])}) == 3


# --- blocks of runs -------------------------------------------------------------------------------


class Project:
    """A study on disk: an image folder of two classes, its splits, a pool of shards, two sets from it."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder = root, root / "results/s"
        self.study: Study = parse_study(
            {
                "study": "s",
                "dataset": {"kind": "image_folder", "root": str(root / "data")},
                "diffusion": {"model": "none"},
                "clip": {"model": "none"},
                "methods": {"none": {"mechanism": "real"}, "m": {"mechanism": "sample"}},
                "augmentation": {"images_per_class": 20, "resamples": 2},
                "classifier": {**json.loads(TINY.model_dump_json()), "max_epochs": 2},
                "execution": {"device": "cpu"},
            }
        )
        for split, first in (("train", 0), ("val", 100), ("test", 200)):
            self._split(split, first)
        write_class_table([ClassInfo("a", ("a",)), ClassInfo("b", ("b",))], self.folder / "classes.parquet")
        self.make_shards()

    def _split(self, name: str, first: int) -> None:
        rows = [(f"{'ab'[label]}/{first + i}.png", label) for label in (0, 1) for i in range(12)]
        for source, label in rows:
            path = self.root / "data" / source
            path.parent.mkdir(parents=True, exist_ok=True)
            photo(label, int(path.stem)).save(path)
        ids = [source for source, _ in rows]
        write_split(
            Split(
                ids,
                [source[0] for source in ids],
                np.array([label for _, label in rows], dtype=np.int32),
                ids,
            ),
            self.split(name),
        )

    def make_shards(self) -> None:
        paths = []
        for label, class_id in enumerate("ab"):
            paths.append(self.folder / f"shards/m/selected/{class_id}/0.parquet")
            rows = [
                ShardRow(encode_image(photo(label, 500 + i), "png", 95), label, class_id, i, "p", "model")
                for i in range(20)
            ]
            write_shard(paths[-1], rows, {})
        build_index(paths, self.folder, self.folder / "index.parquet")
        resample(self.folder / "index.parquet", self.split("train"), self.manifests, 0)

    def split(self, name: str) -> Path:
        return self.folder / f"splits/{name}.parquet"

    @property
    def manifests(self) -> list[Path]:
        return [self.folder / f"resamples/m/selected/{run}.parquet" for run in (0, 1)]

    def train(self, method: str = "m", test: bool = True) -> tuple[Store, list[Path]]:
        store = Store(self.folder / ".store")
        folders = [self.folder / f"classifiers/{method}/selected/{run}" for run in (0, 1)]
        manifests = self.manifests if method == "m" else []
        train_block(
            self.study,
            store,
            method,
            self.split("train"),
            self.split("val"),
            self.split("test") if test else None,
            self.folder / "classes.parquet",
            manifests,
            folders,
        )
        return store, folders


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, list[Path]]:
    torch.set_num_threads(1)
    project = Project(tmp_path_factory.mktemp("project"))
    return project, project.train()[1]


def contents(folders: list[Path]) -> dict[Path, bytes]:
    return {path: path.read_bytes() for folder in folders for path in sorted(folder.iterdir())}


def test_a_run_leaves_checkpoint_history_predictions_and_result(trained: tuple[Project, list[Path]]) -> None:
    project, folders = trained
    result, history = read_json(folders[1] / "result.json"), read_json(folders[1] / "history.json")
    timing = read_json(folders[1] / "timing.json")
    assert result["dtype"] == timing["dtype"] == "float32"
    counts = {"classes": 2, "n_real": 24, "n_added": 24, "n_val": 24, "n_test": 24}
    # 48 images in batches of 16 are 3 steps per epoch; the rate was never lowered
    expected = {"run": 1, **counts, "epochs": 2, "steps": 6, "stopped": "max_epochs", "rising": True}
    assert (history["steps"], history["stopped"]) == (6, "max_epochs")
    assert {name: result[name] for name in expected} == expected
    assert (
        result["val_top1"]
        == history["epochs"][result["best_epoch"]]["val_top1"]
        == max(epoch["val_top1"] for epoch in history["epochs"])
    )
    assert set(history["epochs"][0]) == {"epoch", "lr", "train_loss", "val_top1"}
    predictions = pq.read_table(folders[1] / "predictions.parquet")
    assert result["test_top1"] == top1(predictions) and predictions.num_rows == 24
    model = build(project.study.classifier, 2, 0)
    model.load_state_dict(load_file(folders[1] / "model.safetensors"))


def test_a_rerun_takes_finished_runs_from_the_store(trained: tuple[Project, list[Path]]) -> None:
    project, folders = trained
    before = contents(folders)
    for path in before:
        path.unlink()
    store, _ = project.train()
    assert store.tally.made == 0 and contents(folders) == before


def test_shards_remade_with_the_same_images_train_nothing(trained: tuple[Project, list[Path]]) -> None:
    project, _ = trained
    project.make_shards()
    assert project.train()[0].tally.made == 0


def test_a_damaged_checkpoint_in_the_store_is_trained_anew(trained: tuple[Project, list[Path]]) -> None:
    project, folders = trained
    before = contents(folders)
    with (folders[0] / "model.safetensors").open("r+b") as stream:  # a hard link to the file in the store
        stream.seek(-1, 2)
        stream.write(b"\x55")
    project.train()
    without_time = {path: data for path, data in contents(folders).items() if path.name != "timing.json"}
    assert without_time == {path: data for path, data in before.items() if path.name != "timing.json"}


def test_another_learning_rate_trains_anew(trained: tuple[Project, list[Path]]) -> None:
    project, _ = trained
    other = Project.__new__(Project)
    other.__dict__.update(project.__dict__)
    other.study = project.study.model_copy(
        update={"classifier": project.study.classifier.model_copy(update={"lr": 0.01})}
    )
    assert other.train()[0].tally.made > 0


def test_candidates_are_trained_without_a_look_at_test_images(tmp_path: Path) -> None:
    project = Project(tmp_path)
    for path in (tmp_path / "data").glob("*/2??.png"):
        path.unlink()
    _, folders = project.train("none", test=False)
    assert read_json(folders[0] / "result.json")["test_top1"] is None
    assert not (folders[0] / "predictions.parquet").exists()
    with pytest.raises(UserError, match=r"2\d\d.png"):
        project.train("none")


def test_manifests_of_another_run_are_refused(trained: tuple[Project, list[Path]]) -> None:
    project, folders = trained
    paths = [project.split(name) for name in ("train", "val", "test")]
    with pytest.raises(ValueError, match="run 1 is given the added images of run 0"):
        train_block(
            project.study,
            Store(project.folder / ".store"),
            "m",
            *paths,
            project.folder / "classes.parquet",
            project.manifests[:1],
            folders[1:],
        )


def test_flips_mirror_the_crop() -> None:
    images = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    plain = Crops(np.array([[0, 0, 16, 16]]), np.array([False]))
    assert torch.allclose(
        cut(images, plain, 16).flip(3), cut(images, replace(plain, flips=np.array([True])), 16), atol=1e-5
    )
