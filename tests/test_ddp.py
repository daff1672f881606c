"""Several processes train a classifier as one does, report an error once, and end with the job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from augbench.artifacts.store import Store
from augbench.classifier import predict as predicting
from augbench.classifier import train as training
from augbench.classifier.compute import Compute, ProcessGroup, Storage, count_processes
from augbench.classifier.images import LabelledImages
from augbench.classifier.launch import in_processes
from augbench.classifier.model import WidthResNet, build
from augbench.classifier.normalisation import GlobalBatchNorm2d, GroupedBatchNorm2d, normalise_over
from augbench.classifier.stage import _train_together, train_block
from augbench.classifier.state import RunResult
from augbench.classifier.train import train_run
from augbench.config.classifier import Classifier
from augbench.config.stages import Execution
from augbench.config.study import Study, parse_study
from augbench.config.use import CONCATENATED, Use
from augbench.data.classes import ClassInfo, write_class_table
from augbench.data.splits import Split, write_split
from augbench.errors import UserError
from augbench.files import read_json

CPU = torch.device("cpu")
TINY = Classifier(
    arch="resnet18",
    layers=(1, 1, 1, 1),
    base_width=4,
    resolution=16,
    evaluation_resize=16,
    min_crop_area=0.5,
    batch_size=40,
    lr=0.01,
    max_epochs=3,
)
# Relative difference of the loss in any epoch. Sums in another order round differently, and training enlarges
# the difference, most at a high learning rate. In float64 the runs agree so well that only rounding differs.
TOLERANCE, TOLERANCE_IN_DOUBLE = 1e-4, 1e-9


pytestmark = pytest.mark.usefixtures("one_thread")


def photo(label: int, i: int) -> Image.Image:
    """A noisy image of one of several sizes; its brightness usually tells its class."""
    rng = np.random.default_rng([label, i])
    return Image.fromarray(
        (rng.normal(110 + 30 * label, 40, (16 + i % 4, 16 + i % 3, 3)).clip(0, 255)).astype(np.uint8)
    )


def labelled(first: int, count: int) -> LabelledImages:
    labels = np.arange(count) % 2

    def load(rows: slice) -> Iterator[Image.Image]:
        return (photo(int(labels[i]), first + i) for i in range(count)[rows])

    return LabelledImages([f"{first + i}" for i in range(count)], labels, load, "images")


def run_tiny(
    compute: Compute, checkpoint: Path | None = None, use: Use = CONCATENATED, **changes: Any
) -> RunResult:
    """Train with odd numbers of images: neither batches nor the validation split divide equally."""
    config = TINY.model_copy(update=changes)
    sets = labelled(0, 61), labelled(1000, 40), labelled(2000, 53)
    return train_run(config, 2, *sets, 0, 5, compute, checkpoint, use=use)


@contextmanager
def double_precision() -> Iterator[None]:
    """Train in float64, where rounding differences stay small."""
    crop, centre = training.cut, predicting.cut_centre
    torch.set_default_dtype(torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "cut", lambda *given: crop(*given).double())
        patch.setattr(predicting, "cut_centre", lambda *given: centre(*given).double())
        yield
    torch.set_default_dtype(torch.float32)


def run_in_double_precision(compute: Compute, **changes: Any) -> RunResult:
    with double_precision():
        return run_tiny(compute, **changes)


def run_in_turn(compute: Compute, most: int, **changes: Any) -> RunResult:
    """Train in parts, with memory for the activations of ``most`` images."""
    forward = WidthResNet.forward

    def limited(self: WidthResNet, images: torch.Tensor) -> torch.Tensor:
        logits = forward(self, images)
        if self.training and len(images) > most:
            raise torch.OutOfMemoryError
        return logits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WidthResNet, "forward", limited)
        return run_in_double_precision(compute, **IN_PARTS, **changes)


class Stop(Exception):
    """Stops training at the same place in every process."""


# 101 images in batches of 40 are 3 steps per pass; validations lie inside passes
STEPS = {"schedule": "steps", "steps": 8, "validate_every": 2, "max_epochs": 270}
WEIGHED = Use(weight=0.3, mixup=0.8, pairs="across", label_smoothing=0.1)
IN_STAGES = Use(weight=2.0, cutmix=1.0, real_at_end=0.4, head_only=True)  # from step 5 on


def run_and_stop(compute: Compute, checkpoint: Path, after: int, **changes: Any) -> None:
    """Stop before validation ``after``, after the one before it was saved."""
    accuracy, calls = training._accuracy, []

    def counted(*given: Any) -> float:
        calls.append(1)
        if len(calls) > after:
            raise Stop
        return accuracy(*given)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
        patch.setattr(training, "_accuracy", counted)
        run_tiny(compute, checkpoint, **changes)


def stopped_and_resumed(compute: Compute, checkpoint: Path, **changes: Any) -> RunResult:
    """Stop before the last validation and resume."""
    run_and_stop(compute, checkpoint, 3, **changes)
    return run_tiny(compute, checkpoint, **changes)


def batch_norm(module: nn.BatchNorm2d, images: torch.Tensor, part: slice) -> dict[str, torch.Tensor]:
    """Do two forward passes and one backward pass; return output, gradients and statistics."""
    images = images[part].clone().requires_grad_()
    for _ in range(2):
        output = module(images)
    (output * torch.arange(8.0)[part, None, None, None].sin()).square().sum().backward()
    assert images.grad is not None and module.weight.grad is not None and module.bias.grad is not None
    buffers = {"mean": module.running_mean, "var": module.running_var, "steps": module.num_batches_tracked}
    return {
        "output": output.detach(),
        "images": images.grad,
        "weight": module.weight.grad,
        "bias": module.bias.grad,
        **buffers,
    }


def activations() -> torch.Tensor:
    return torch.randn(8, 3, 5, 4, generator=torch.Generator().manual_seed(0)) * 3 + 2


IN_PARTS = {"batch_norm_groups": 4, "batch_size": 38}  # batches of 33 and 34, parts of 8 and 9


def plain_ddp(group: ProcessGroup, parts: int = 1) -> dict[str, torch.Tensor]:
    """Train on random batches of 16, with torch's DistributedDataParallel and its own BatchNorm2d.

    With ``parts``, one process trains with batch normalisation in that many parts instead.
    """
    model = build(TINY, 2, 0)
    normalise_over(model, parts, ProcessGroup(), CPU)
    network = model if group.size == 1 else nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        images = torch.randn(16, 3, 16, 16, generator=generator)
        labels = torch.randint(0, 2, (16,), generator=generator)
        mine = torch.from_numpy(group.share(np.arange(16)))
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images[mine]), labels[mine]).backward()
        optimizer.step()
    return model.state_dict()


def in_a_group(group: ProcessGroup, folder: Path) -> dict[str, Any]:
    """All measurements in one group of processes, because a group takes seconds to start."""
    compute = Compute(CPU, group, Storage("memory", folder))
    normalised = batch_norm(GlobalBatchNorm2d(3), activations(), [slice(0, 5), slice(5, 8)][group.rank])
    whole = run_tiny(compute)
    run_and_stop(compute, folder / "run.pt", 2)
    if group.rank == 0:
        (folder / "two.pt").write_bytes((folder / "run.pt").read_bytes())
    run_and_stop(compute, folder / "steps.pt", 2, **STEPS)
    return {
        "normalised": group.collect(normalised),
        "steps": run_tiny(compute, **STEPS),
        "steps resumed": run_tiny(compute, folder / "steps.pt", **STEPS),
        "whole": whole,
        "streamed": run_tiny(replace(compute, storage=Storage("disk", folder))),
        "resumed": run_tiny(compute, folder / "run.pt"),
        "double": run_in_double_precision(compute),
        "in parts": run_tiny(compute, **IN_PARTS),
        "in turn": run_in_turn(compute, most=[20, 10][group.rank]),
        "plain": plain_ddp(group),
        "weighed": run_in_double_precision(compute, use=WEIGHED),
        "in stages": run_in_double_precision(compute, use=IN_STAGES, **STEPS),
        "stages": run_tiny(compute, use=IN_STAGES, **STEPS),
        "stages resumed": stopped_and_resumed(compute, folder / "stages.pt", use=IN_STAGES, **STEPS),
    }


@pytest.fixture(scope="module")
def alone() -> RunResult:
    torch.set_num_threads(1)
    return run_tiny(Compute(CPU))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def two(scratch: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    return in_processes(2, CPU, in_a_group, scratch)


def assert_close(found: RunResult, expected: RunResult, tolerance: float) -> None:
    assert len(found.history) == len(expected.history)
    for ours, theirs in zip(found.history, expected.history, strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=tolerance)
        assert abs(ours.val_top1 - theirs.val_top1) <= 1 / 53 + 1e-9 and ours.lr == theirs.lr
    for name, weight in expected.state.items():
        assert torch.allclose(found.state[name].double(), weight.double(), rtol=0, atol=tolerance), name


def test_two_processes_give_the_history_of_one(two: dict[str, Any], alone: RunResult) -> None:
    assert_close(two["whole"], alone, TOLERANCE)


def test_two_processes_follow_a_schedule_of_steps_as_one_does(two: dict[str, Any]) -> None:
    assert [point.step for point in two["steps"].history] == [2, 4, 6, 8]
    assert_close(two["steps"], run_tiny(Compute(CPU), **STEPS), TOLERANCE)
    assert two["steps resumed"].history == two["steps"].history
    for name, weight in two["steps"].state.items():
        assert torch.equal(two["steps resumed"].state[name], weight), name


def test_what_differs_is_rounding_alone(two: dict[str, Any]) -> None:
    assert_close(two["double"], run_in_double_precision(Compute(CPU)), TOLERANCE_IN_DOUBLE)


def test_two_processes_that_are_stopped_go_on_as_if_nothing_had_happened(two: dict[str, Any]) -> None:
    assert two["resumed"].history == two["whole"].history
    assert all(torch.equal(two["resumed"].state[name], weight) for name, weight in two["whole"].state.items())


def test_one_process_goes_on_where_two_were_stopped(
    two: dict[str, Any], alone: RunResult, scratch: Path
) -> None:
    resumed = run_tiny(Compute(CPU), scratch / "two.pt")
    assert resumed.history[:2] == two["whole"].history[:2]
    assert_close(resumed, alone, TOLERANCE)


def test_two_processes_that_read_images_from_a_file_train_as_those_with_them_in_memory(
    two: dict[str, Any], scratch: Path
) -> None:
    assert two["streamed"].history == two["whole"].history
    assert {path.name for path in scratch.iterdir()} == {"run.pt", "two.pt", "steps.pt", "stages.pt"}


def test_two_processes_mix_and_weigh_images_as_one_does(two: dict[str, Any]) -> None:
    expected = run_in_double_precision(Compute(CPU), use=WEIGHED)
    assert_close(two["weighed"], expected, TOLERANCE_IN_DOUBLE)
    assert expected.history[-1].train_loss != pytest.approx(two["double"].history[-1].train_loss, rel=0.01)


def test_two_processes_train_the_head_alone_at_the_end_as_one_does(two: dict[str, Any]) -> None:
    expected = run_in_double_precision(Compute(CPU), use=IN_STAGES, **STEPS)
    assert_close(two["in stages"], expected, TOLERANCE_IN_DOUBLE)
    assert two["stages resumed"].history == two["stages"].history
    for name, weight in two["stages"].state.items():
        assert torch.equal(two["stages resumed"].state[name], weight), name


def test_mixed_and_weighed_images_in_parts_that_do_not_fit_together_give_the_same_result() -> None:
    whole = run_in_double_precision(Compute(CPU), use=WEIGHED, **IN_PARTS)
    assert_close(run_in_turn(Compute(CPU), most=10, use=WEIGHED), whole, TOLERANCE_IN_DOUBLE)


def test_normalisation_over_two_processes_is_that_of_the_whole_batch(two: dict[str, Any]) -> None:
    expected = batch_norm(nn.BatchNorm2d(3), activations(), slice(0, 8))
    one, other = two["normalised"]
    for name in ("output", "images"):
        assert torch.allclose(torch.cat([one[name], other[name]]), expected[name], atol=1e-5), name
    for name in ("weight", "bias"):
        assert torch.allclose(one[name] + other[name], expected[name], rtol=1e-4, atol=1e-4), name
    for name in ("mean", "var", "steps"):
        assert torch.equal(one[name], other[name]) and torch.allclose(one[name], expected[name]), name


def test_parts_in_one_process_are_what_plain_distributed_training_does(two: dict[str, Any]) -> None:
    ours = plain_ddp(ProcessGroup(), parts=2)
    for name, theirs in two["plain"].items():  # of the first process, whose running statistics are kept
        assert torch.allclose(ours[name], theirs, rtol=1e-4, atol=1e-5), name
    whole = plain_ddp(ProcessGroup())
    assert not torch.allclose(ours["bn1.running_var"], whole["bn1.running_var"], rtol=1e-3)


def test_batches_in_parts_give_the_same_history_in_one_and_in_two_processes(
    two: dict[str, Any], alone: RunResult
) -> None:
    one = run_tiny(Compute(CPU), **IN_PARTS)
    assert_close(two["in parts"], one, TOLERANCE)
    assert one.history[-1].train_loss != pytest.approx(alone.history[-1].train_loss, rel=TOLERANCE)


def test_parts_of_a_batch_that_do_not_fit_together_run_one_after_another_to_the_same_result(
    two: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    whole, one = run_in_double_precision(Compute(CPU), **IN_PARTS), run_in_turn(Compute(CPU), most=10)
    lines = [record.getMessage() for record in caplog.records]
    assert [line.partition("going on with ")[2].partition(" of a")[0] for line in lines] == [
        "2 of 4 parts",
        "1 of 4 parts",
    ]
    for found in (one, two["in turn"]):  # of two processes, one has too little memory
        assert_close(found, whole, TOLERANCE_IN_DOUBLE)
        assert found.state["bn1.num_batches_tracked"] == whole.state["bn1.num_batches_tracked"]


@pytest.mark.parametrize("images", [8, 7])
def test_each_part_of_a_batch_is_normalised_by_itself(images: int) -> None:
    batch = activations()[:images]
    cut = -(-images // 2)  # the first part has the odd image
    grouped = batch_norm(GroupedBatchNorm2d(2, 3), batch, slice(0, images))
    first, second = (
        batch_norm(nn.BatchNorm2d(3), batch, part) for part in (slice(0, cut), slice(cut, images))
    )
    for name in ("output", "images"):
        assert torch.allclose(grouped[name], torch.cat([first[name], second[name]]), atol=1e-6), name
    for name in ("weight", "bias"):
        assert torch.allclose(grouped[name], first[name] + second[name], rtol=1e-5, atol=1e-5), name
    for name in ("mean", "var", "steps"):
        assert torch.equal(grouped[name], first[name]), name


def test_in_evaluation_parts_are_not_told_apart() -> None:
    module, plain = GroupedBatchNorm2d(4, 3).eval(), nn.BatchNorm2d(3).eval()
    assert torch.equal(module(activations()), plain(activations()))


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_processes_share_a_batch_by_whole_parts(size: int) -> None:
    batch = np.random.default_rng(0).permutation(253)
    parts = np.array_split(batch, 8)
    found = [ProcessGroup(rank, size).share(batch, 8) for rank in range(size)]
    assert np.array_equal(np.concatenate(found), batch)
    cut = [part for share in found for part in torch.from_numpy(share).tensor_split(8 // size)]
    assert [part.tolist() for part in cut] == [part.tolist() for part in parts]


def test_a_batch_in_parts_needs_no_statistics_of_other_processes() -> None:
    """So nothing waits for another process, or on CUDA for the host."""
    for size, kind in ((8, nn.BatchNorm2d), (4, GroupedBatchNorm2d), (1, GroupedBatchNorm2d)):
        model = build(TINY, 2, 0)
        normalise_over(model, 8, ProcessGroup(0, size), torch.device("cuda"))
        assert {type(module) for module in model.modules() if isinstance(module, nn.BatchNorm2d)} == {kind}
        assert not any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())


# --- errors ---------------------------------------------------------------------------------------


def fail_in(group: ProcessGroup, how: str) -> None:
    """Fail in the second process while the first one waits for it."""
    if group.rank == 1:
        if how == "defect":
            raise ZeroDivisionError("a defect")
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise UserError("some.file", "broken", "mend it")
    group.collect(None)


@pytest.mark.full
def test_an_error_of_one_process_is_the_error_of_all() -> None:
    with pytest.raises(UserError, match=r"^some\.file: broken; mend it$"):
        in_processes(2, CPU, fail_in, "user")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.full
def test_a_defect_in_one_process_keeps_its_traceback() -> None:
    with pytest.raises(
        RuntimeError, match=r"(?s)^process 2 of 2:\nTraceback .*in fail_in.*ZeroDivisionError: a defect"
    ):
        in_processes(2, CPU, fail_in, "defect")


@pytest.mark.full
def test_a_process_that_is_killed_is_one_clear_error() -> None:
    with pytest.raises(
        UserError, match=r"^process 2 of 2: ended by SIGKILL; most often there was no memory left; run again"
    ):
        in_processes(2, CPU, fail_in, "killed")


def test_more_processes_than_images_in_a_batch_are_refused() -> None:
    with pytest.raises(
        UserError,
        match=r"^execution\.processes: 34, and classifier has a batch of 33; at most one process per "
        r"image of a batch$",
    ):
        run_tiny(Compute(CPU, ProcessGroup(0, 34)))


def test_parts_of_a_batch_with_one_image_are_refused() -> None:
    with pytest.raises(
        UserError,
        match=r"^classifier\.batch_norm_groups: 20, and classifier has batches of 33 images; allowed: at "
        r"most 16",
    ):
        run_tiny(Compute(CPU), batch_norm_groups=20)


def test_gpus_that_do_not_divide_the_parts_of_a_batch_stay_idle_and_this_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 6)
    cuda = torch.device("cuda")
    assert count_processes(Execution(), cuda, 8) == 4 and "4 of 6 visible GPUs train" in caplog.text
    assert [count_processes(Execution(), device, groups) for device, groups in ((cuda, 1), (CPU, 8))] == [
        6,
        1,
    ]
    assert count_processes(Execution(processes=2), cuda, 8) == 2


def test_the_number_of_processes_is_that_of_the_gpus_unless_the_config_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert count_processes(Execution(), CPU) == 1 and count_processes(Execution(processes=3), CPU) == 3
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    cuda = torch.device("cuda")
    assert count_processes(Execution(), cuda) == 4 and count_processes(Execution(processes=2), cuda) == 2
    with pytest.raises(UserError, match=r"execution\.processes: 5; at most one per visible GPU, here 4"):
        count_processes(Execution(processes=5), cuda)


# --- a block of runs ------------------------------------------------------------------------------


def make_study(root: Path, processes: int) -> Study:
    """Make a study in ``root``: an image folder of two classes, with splits."""
    for name, first in (("train", 0), ("val", 100), ("test", 200)):
        rows = [(f"{'ab'[label]}/{first + i}.png", label) for label in (0, 1) for i in range(20)]
        for source, label in rows:
            path = root / "data" / source
            path.parent.mkdir(parents=True, exist_ok=True)
            photo(label, int(path.stem)).save(path)
        ids = [source for source, _ in rows]
        labels = np.array([label for _, label in rows], dtype=np.int32)
        write_split(Split(ids, [source[0] for source in ids], labels, ids), root / f"{name}.parquet")
    write_class_table([ClassInfo("a", ("a",)), ClassInfo("b", ("b",))], root / "classes.parquet")
    return parse_study(
        {
            "study": "s",
            "dataset": {"kind": "image_folder", "root": str(root / "data")},
            "diffusion": {"model": "none"},
            "clip": {"model": "none"},
            "methods": {"none": {"mechanism": "real"}},
            "augmentation": {"images_per_class": 20, "resamples": 2},
            "classifier": TINY.model_dump(mode="json"),
            "execution": {"device": "cpu", "processes": processes},
        }
    )


def train(root: Path, processes: int) -> tuple[Store, list[Path]]:
    """Train two runs of a baseline."""
    study, store = make_study(root, processes), Store(root / "results/.store")
    folders = [root / f"results/classifiers/none/{run}" for run in (0, 1)]
    paths = [root / f"{name}.parquet" for name in ("train", "val", "test")]
    train_block(study, store, "none", *paths, root / "classes.parquet", [], folders)
    return store, folders


def histories(folders: list[Path]) -> list[list[dict[str, float]]]:
    return [read_json(folder / "history.json")["epochs"] for folder in folders]


def test_a_block_of_runs_trained_by_two_processes_leaves_what_one_leaves(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    _, expected = train(tmp_path / "one", 1)
    store, folders = train(tmp_path / "two", 2)
    for run in range(2):
        names = {path.name for path in expected[run].iterdir()}
        assert {path.name for path in folders[run].iterdir()} == names
        assert read_json(folders[run] / "timing.json")["processes"] == 2
        for ours, theirs in zip(
            *(histories([chosen[run]])[0] for chosen in (folders, expected)), strict=True
        ):
            assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=TOLERANCE)
    # weights, timing and history of each run, and its predictions
    assert (store.tally.made, store.tally.reused) == (2 * 3 + 2, 0)
    before = [
        (path, path.stat().st_ino)
        for folder in folders
        for path in sorted(folder.iterdir())
        if path.name != "result.json"
    ]
    again, _ = train(tmp_path / "two", 1)  # the number of processes is in no recipe
    assert again.tally.made == 0
    assert [(path, path.stat().st_ino) for path, _ in before] == before


# --- kills ----------------------------------------------------------------------------------------

SECONDS_PER_EPOCH = 1.0
JOB = """
import sys
from pathlib import Path

sys.path.insert(0, {tests!r})
import test_ddp
from augbench.classifier import stage as classify

classify._train_together = test_ddp.train_slowly
test_ddp.train(Path({root!r}), 2)
"""


def train_slowly(group: ProcessGroup, *arguments: Any) -> int:
    """Train as a worker, so slowly that a test can act between two epochs."""
    accuracy = training._accuracy

    def slow(*given: Any) -> float:
        time.sleep(SECONDS_PER_EPOCH)
        return accuracy(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
        patch.setattr(training, "_accuracy", slow)
        return _train_together(group, *arguments)


def workers(folder: Path) -> list[int]:
    """Ids of the processes that train for the job in ``folder``."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().split(b"\0")
            if (
                any(part.endswith(b"classifier/worker.py") for part in command)
                and (process / "cwd").resolve() == folder.resolve()
            ):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def wait_until(reached: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + 120
    while not reached():
        assert time.monotonic() < end, what
        time.sleep(0.1)


@pytest.fixture
def job(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A job that trains with two processes and has saved an epoch."""
    code = JOB.format(tests=str(Path(__file__).parent), root=str(tmp_path))
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    wait_until(
        lambda: list(tmp_path.glob("results/.work/classifiers/*.pt")) or process.poll(), "no epoch was saved"
    )
    assert process.poll() is None and len(workers(tmp_path)) == 2
    yield process
    process.kill()
    process.wait()
    for pid in workers(tmp_path):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.full
def test_a_job_killed_in_training_leaves_no_process_and_goes_on_to_the_same_history(
    job: subprocess.Popen[str], tmp_path: Path
) -> None:
    job.kill()
    wait_until(lambda: not workers(tmp_path), "processes outlive their job")
    assert list(tmp_path.glob("results/.work/classifiers/*.pt"))
    _, resumed = train(tmp_path, 2)
    (tmp_path / "whole").mkdir()
    _, whole = train(tmp_path / "whole", 2)
    assert histories(resumed) == histories(whole)
    assert all(
        (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
        for ours, theirs in zip(resumed, whole, strict=True)
    )
    assert len(read_json(resumed[0] / "timing.json")["seconds_per_epoch"]) == TINY.max_epochs
    # the first epochs are those of the killed job, which is slow
    assert max(read_json(resumed[0] / "timing.json")["seconds_per_epoch"]) > SECONDS_PER_EPOCH


@pytest.mark.full
def test_a_job_that_is_told_to_end_ends_with_its_processes(
    job: subprocess.Popen[str], tmp_path: Path
) -> None:
    job.terminate()
    _, said = job.communicate()
    assert job.returncode == 128 + signal.SIGTERM and "Traceback" not in said, said
    wait_until(lambda: not workers(tmp_path), "processes outlive their job")


@pytest.mark.full
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_give_the_history_of_one() -> None:
    device = torch.device("cuda")
    assert_close(in_processes(2, device, run_on_gpu), run_tiny(Compute(device), dtype="float32"), 1e-2)


def run_on_gpu(group: ProcessGroup) -> RunResult:
    return run_tiny(Compute(torch.device("cuda", group.rank), group), dtype="float32")


def run_of_three(group: ProcessGroup, folder: Path) -> tuple[RunResult, RunResult]:
    compute = Compute(CPU, group)
    run_and_stop(compute, folder / "run.pt", 2)
    return run_tiny(compute), run_tiny(compute, folder / "run.pt")


@pytest.mark.full
def test_three_processes_that_are_stopped_go_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """With three processes the order of sums matters; with two it does not."""
    whole, resumed = in_processes(3, CPU, run_of_three, tmp_path)
    assert whole.history == resumed.history
    assert all(torch.equal(resumed.state[name], weight) for name, weight in whole.state.items())
