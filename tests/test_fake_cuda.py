"""The CUDA code of each stage at full size, without a GPU: devices, waits, memory; and the harness itself."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fake_cuda import FakeGpu, _Backward, fake_gpu, is_fake
from full_size import (
    CLIP,
    CUDA,
    METHODS,
    classified,
    embedded,
    fine_tuned,
    maker,
    published_sizes,
    searched,
    study_of,
)
from PIL import Image
from safetensors.numpy import save_file
from torch import nn

from augbench.classifier import train
from augbench.generate.sampler import Sampler
from augbench.generate.stage import LearnedFiles
from augbench.models.clip import load_clip
from augbench.models.towers import ImageTower
from augbench.personalise.train import Trainer
from augbench.prompts.placeholders import placeholders
from benchmarks import networks


@pytest.fixture
def gpu() -> Iterator[FakeGpu]:
    with fake_gpu() as gpu:
        yield gpu


@pytest.fixture
def full_size(gpu: FakeGpu) -> Iterator[FakeGpu]:
    """The GPU, and networks of the published sizes."""
    with published_sizes():
        yield gpu


def waits_inside(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[Counter[str]]:
    """List that gets what each call of a function waits for."""
    calls: list[Counter[str]] = []
    function = getattr(owner, name)

    def watched(*arguments: Any, **named: Any) -> Any:
        with gpu.counting() as waits:
            result = function(*arguments, **named)
        calls.append(waits)
        return result

    monkeypatch.setattr(owner, name, watched)
    return calls


# --- the harness ---


def test_an_operation_on_two_devices_fails_as_on_a_gpu(gpu: FakeGpu) -> None:
    there = torch.ones(3, device="cuda")
    with pytest.raises(RuntimeError, match="same device"):
        torch.ones(3) + there
    assert (torch.tensor(2.0) * there).device.type == "cuda"  # a single number may be anywhere


def test_each_wait_is_counted_with_its_line(gpu: FakeGpu) -> None:
    there = torch.rand(4, device="cuda")
    waiting: list[Callable[[], Any]] = [
        lambda: there[0].item(),
        lambda: there.cpu(),
        lambda: torch.ones(2).to("cuda"),
        lambda: torch.ones(2).to("cuda", non_blocking=True),  # its memory can be swapped out
        lambda: there[there > 0],
        lambda: there[torch.tensor([0])],
        lambda: there[[0, 1]],
        lambda: torch.nonzero(there),
        lambda: torch.cuda.synchronize(),
        lambda: torch.zeros(4).copy_(there),
    ]
    for number, wait in enumerate(waiting):
        with gpu.counting() as waits:
            wait()
        assert waits.total() == 1, (number, waits)


def test_a_wait_names_the_projects_line_and_the_librarys(full_size: FakeGpu) -> None:
    network = load_clip({"folder": CLIP}, CUDA)
    full_size.blocking.clear()
    network.embed_texts(["a bag"])
    assert all(line.startswith("models/") for line in full_size.blocking)
    assert any("(transformers/" in line for line in full_size.blocking)


def test_pinned_memory_is_copied_without_waiting(gpu: FakeGpu) -> None:
    pinned = torch.ones(4).pin_memory()
    assert pinned.is_pinned() and pinned[1:].is_pinned() and not torch.ones(4).is_pinned()
    with gpu.counting() as waits:
        there = pinned[1:].to("cuda", non_blocking=True)
        torch.empty(4, pin_memory=True).copy_(torch.zeros(4, device="cuda"), non_blocking=True)
        there.sum().to("cuda")
    assert not waits


def test_memory_is_that_of_live_tensors(gpu: FakeGpu) -> None:
    first = torch.zeros(1 << 20, device="cuda")
    second = first[10:].view(-1)
    assert gpu.live == 4 << 20
    del first
    assert gpu.live == 4 << 20
    with torch.inference_mode():
        second = second.half()
    assert gpu.peak > 5 << 20 > gpu.live
    del second
    assert gpu.live == 0


def test_more_than_the_memory_is_an_error_that_leaves_nothing_behind() -> None:
    with fake_gpu(memory=1) as gpu:
        assert torch.cuda.mem_get_info() == (2**30, 2**30)
        with pytest.raises(torch.OutOfMemoryError):
            torch.zeros(2**30, device="cuda")
        assert gpu.live == 0
        torch.zeros(2**27, device="cuda")


def test_work_for_other_threads_is_done_at_once(gpu: FakeGpu) -> None:
    with ThreadPoolExecutor(2) as pool:
        zeros = pool.submit(lambda: torch.ones(3, device="cuda").cpu())
        lost = pool.submit(lambda: torch.ones(3, device="cuda") + torch.ones(3))
    assert gpu.blocking.total() == 1 and zeros.result().tolist() == [0, 0, 0]
    with pytest.raises(RuntimeError, match="device"):
        lost.result()


def test_nothing_stays_when_the_context_ends() -> None:
    before = torch.cuda.is_available(), F.scaled_dot_product_attention, ThreadPoolExecutor.submit
    with fake_gpu(), fake_gpu():
        pass
    assert before == (torch.cuda.is_available(), F.scaled_dot_product_attention, ThreadPoolExecutor.submit)


def test_backward_passes_give_the_gradients_of_torchs_engine() -> None:
    def loss_of(network: nn.Module) -> torch.Tensor:
        values = network(torch.linspace(0, 1, 96).view(2, 3, 4, 4))
        return (values * values.mean() + values.expand(5, *values.shape).sum(0)).square().mean()

    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.SiLU(), nn.Flatten(), nn.Linear(64, 3))
    loss_of(network).backward()
    expected = [parameter.grad for parameter in network.parameters()]
    network.zero_grad()
    engine = _Backward()
    for _ in range(2):  # gradients are added up
        with torch.autograd.graph.saved_tensors_hooks(engine.pack, engine.unpack):
            loss = loss_of(network)
        engine.run([loss], [torch.ones(())])
    for parameter, gradient in zip(network.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad / 2, gradient, rtol=1e-5, atol=1e-8)


def test_a_backward_pass_releases_activations_as_it_goes(gpu: FakeGpu) -> None:
    network = nn.Sequential(*[layer for _ in range(8) for layer in (nn.Linear(64, 64), nn.ReLU())])
    network = network.to("cuda")
    weights, images = gpu.live, torch.randn(1 << 16, 64, device="cuda")
    loss = network(images).sum()
    at_most = gpu.live + 3 * images.nbytes
    gpu.reset_peak()
    loss.backward()
    assert gpu.peak < at_most
    assert gpu.live < 2 * weights + images.nbytes + (1 << 20)
    assert all(is_fake(parameter.grad) for parameter in network.parameters())


def test_an_error_leaves_no_memory_behind(gpu: FakeGpu) -> None:
    layer = nn.Linear(64, 128).to("cuda")
    weights = gpu.live

    def interrupted() -> None:
        layer(torch.randn(1 << 10, 64, device="cuda")).softmax(-1)  # saves its own result
        raise torch.OutOfMemoryError

    with suppress(torch.OutOfMemoryError):
        interrupted()
    gc.collect()
    assert gpu.live == weights


# --- generation ---


def learned(method: str, folder: Path) -> LearnedFiles:
    """What fine-tuning writes for one class; the U-Net's weights are not read."""
    row, path = METHODS[method], folder / "embeddings.safetensors"
    shape = (77, 768) if row["learn"] == "conditioning" else (1, 768)
    save_file({name: np.ones(shape, np.float32) for name in names_of(method)}, path)
    return LearnedFiles(str(path), str(networks.MINIATURE) if row.get("train_unet") else None)


def names_of(method: str) -> list[str]:
    return placeholders("bag", METHODS[method].get("clusters", 1))


def sample_without_waiting(
    gpu: FakeGpu,
    monkeypatch: pytest.MonkeyPatch,
    sampler: Sampler,
    prompts: Sequence[str],
    starts: Sequence[Image.Image] | None = None,
) -> None:
    """Sample one batch, whose sampling loop must not wait for the GPU."""
    loops = waits_inside(gpu, monkeypatch, Sampler, "_denoise")
    samples = sampler.sample(prompts, [("bag", i) for i in range(len(prompts))], 0, None, starts)
    assert loops == [Counter()]
    assert [sample.image.size for sample in samples] == [(512, 512)] * len(prompts)


def test_guided_prompts_and_the_safety_checker(
    full_size: FakeGpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = maker(study_of("clip_prompts"), tmp_path)
    checks = waits_inside(full_size, monkeypatch, made.pipeline.safety_checker, "forward")
    prompts = ["a photo of a bag.", "a photo of a shoe."] * 4
    sample_without_waiting(full_size, monkeypatch, made.ready(), prompts)
    assert len(checks) == 1
    assert 2.5 < full_size.peak / 2**30 < 8


def test_sampling_from_training_images(
    full_size: FakeGpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sampler = maker(study_of("boomerang"), tmp_path).ready()
    starts = [Image.new("RGB", (600, 500))] * 2
    sample_without_waiting(full_size, monkeypatch, sampler, ["", ""], starts)


@pytest.mark.parametrize("method", ["clusters", "imagic", "pseudoword_dm"])
def test_sampling_with_what_was_learned(
    full_size: FakeGpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, method: str
) -> None:
    sampler = maker(study_of(method), tmp_path).ready(learned(method, tmp_path), ["bag"])
    sample_without_waiting(full_size, monkeypatch, sampler, names_of(method))


def test_images_that_do_not_fit_are_sampled_in_halves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with fake_gpu(memory=6), published_sizes():
        sampler = maker(study_of("clip_prompts", 32), tmp_path).ready()
        samples = sampler.sample(["a photo of a bag."] * 32, [("bag", i) for i in range(32)], 0)
    assert len(samples) == 32
    assert "32 images do not fit into the GPU's memory; going on with 16" in caplog.text


# --- training ---

# a frozen and a trained U-Net in `make test`, everything else in `make test-full`
FINE_TUNING = [
    ("clusters", "bfloat16"),
    ("pseudoword_dm", "bfloat16"),
    *(
        pytest.param(*case, marks=pytest.mark.full)
        for case in [
            *((method, "bfloat16") for method in ("conditioning", "imagic", "pseudoword")),
            *product(("clusters", "pseudoword_dm"), ("float16", "float32")),
        ]
    ),
]


@pytest.mark.parametrize(("method", "dtype"), FINE_TUNING)
def test_a_step_of_fine_tuning_does_not_wait(
    full_size: FakeGpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, method: str, dtype: str
) -> None:
    steps = waits_inside(full_size, monkeypatch, Trainer, "step")
    found = fine_tuned(study_of(method, finetune={"dtype": dtype}), tmp_path)
    assert steps == [Counter()]
    assert len(found.vectors["val_loss"]) == len(names_of(method))


@pytest.mark.full
def test_micro_batches_that_do_not_fit_are_halved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with fake_gpu(memory=14), published_sizes():
        study = study_of("conditioning", 26, finetune={"dtype": "bfloat16", "batch_size": 26})
        fine_tuned(study, tmp_path, images=26)
    assert "26 images do not fit into the GPU's memory; going on with 13" in caplog.text


@pytest.mark.parametrize(
    ("dtype", "waits"), [("bfloat16", 0), pytest.param("float16", 1, marks=pytest.mark.full)]
)
def test_a_step_of_the_classifier_waits_only_for_the_scalers_overflow(
    gpu: FakeGpu,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    dtype: Literal["bfloat16", "float16"],
    waits: int,
) -> None:
    parts = waits_inside(gpu, monkeypatch, train._Training, "_part")
    assert classified(256, tmp_path, dtype).steps == 2
    assert sum(part.total() for part in parts) == 2 * waits, parts
    assert 8 < gpu.peak / 2**30 < 13


# --- CLIP and search ---


def test_the_image_tower_does_not_wait(full_size: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = waits_inside(full_size, monkeypatch, ImageTower, "embed")
    made = embedded(256)
    assert made.shape == (256, 768) and is_fake(made)
    assert batches == [Counter()]


@pytest.mark.full
@pytest.mark.parametrize(
    ("architecture", "width"), [("ViT-L-14-quickgelu", 768), ("ViT-SO400M-14-SigLIP", 1152)]
)
def test_the_image_tower_of_open_clip_does_not_wait(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, architecture: str, width: int
) -> None:
    """A tower of open_clip's own, and one of timm's, at full size in float16."""
    import open_clip

    from augbench.models.open_clip_model import OpenClip, SimpleTokenizer

    with torch.device("meta"):
        model = open_clip.create_model(architecture, device="meta").eval()
    tower = OpenClip(model.to(CUDA), SimpleTokenizer()).image_tower(half=True)
    batches = waits_inside(gpu, monkeypatch, ImageTower, "embed")
    made = tower.embed(torch.zeros(64, 3, 224, 224, dtype=torch.uint8))
    assert made.shape == (64, width) and is_fake(made)
    assert batches == [Counter()]


def test_exact_search(gpu: FakeGpu) -> None:
    gpu.selected = 100_000
    searched(queries=4000, k=182)
    assert gpu.operations > 50 and gpu.peak < 2 * 2**30


@pytest.mark.full
def test_the_table_of_memory(tmp_path: Path) -> None:
    script, out = networks.PROJECT / "benchmarks/fake_memory.py", tmp_path / "peaks.json"
    command = [sys.executable, str(script), "--stages", "search", "classify", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=True)
    peaks = {(peak["stage"], peak["batch"]): peak["gib"] for peak in json.loads(out.read_text())["peaks"]}
    assert peaks["classify", 256] == pytest.approx(11.1, abs=0.5)
    assert peaks["search", 1000] < peaks["search", 16000] < 2
    assert "| classify |  | bfloat16 | 64: " in done.stdout
