"""GPUs: one that can't be used is an error that says what helps; jobs of one machine share its GPUs out.

The machines here are folders and programs that tell what a machine with GPUs tells.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import LEAST_STUDY

from augbench.cli import main
from augbench.commands.check.gpus import gpu_warnings
from augbench.config.stages import Execution
from augbench.config.study import load_study
from augbench.errors import UserError
from augbench.runtime import gpus
from augbench.runtime.gpus import Card, Gpu, TorchView

PROJECT = Path(__file__).resolve().parents[1]
SRC = str(PROJECT / "src")
V100 = Card("Tesla V100-SXM2-32GB", (7, 0), 34_079_637_504)
H200 = Card("NVIDIA H200", (9, 0), 150_109_880_320)
RTX4090 = Card("NVIDIA GeForce RTX 4090", (8, 9), 25_250_000_000)
CUDA13 = TorchView("2.15.0", "13.2", ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"))
CUDA12 = TorchView("2.10.0", "12.8", ("sm_70", *CUDA13.architectures))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Root folder of a machine with two GPUs and an older driver, without nvidia-smi."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for name in (gpus.VISIBLE, gpus.ORDER, gpus.OFFERED):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / "dev" / name).touch()
    driver = tmp_path / "proc/driver/nvidia"
    for bus, minor in (("0000:81:00.0", 0), ("0000:18:00.0", 1)):
        folder = driver / "gpus" / bus
        folder.mkdir(parents=True)
        (folder / "information").write_text(
            f"Model: \t\t NVIDIA A100-SXM4-80GB\nGPU UUID: \t GPU-of-{bus[5:7]}\nDevice Minor: \t {minor}\n"
        )
    (driver / "version").write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023\n"
        "GCC version:  gcc version 11.4.0\n"
    )
    return tmp_path


def nvidia_smi(root: Path, *lines: str, status: int = 0) -> None:
    (root / "bin").mkdir()
    program = root / "bin/nvidia-smi"
    echoed = "".join(f"echo '{line}'\n" for line in lines)
    program.write_text(f"#!/bin/sh\n{echoed}exit {status}\n")
    program.chmod(0o755)


# --- what is here ---------------------------------------------------------------------------------


def test_a_machine_without_device_files_has_no_gpu_and_one_with_a_driver_alone_neither(
    tmp_path: Path, machine: Path
) -> None:
    assert not gpus.gpu_is_here(tmp_path / "empty")
    for path in (machine / "dev").glob("nvidia?"):
        path.unlink()
    assert not gpus.gpu_is_here(machine) and gpus.visible_gpus(machine) == []


@pytest.mark.parametrize("choice", ["", "-1", "NoDevFiles", " "])
def test_hidden_gpus_are_the_users_choice_of_the_cpu(
    machine: Path, monkeypatch: pytest.MonkeyPatch, choice: str
) -> None:
    assert gpus.gpu_is_here(machine)
    monkeypatch.setenv(gpus.VISIBLE, choice)
    assert not gpus.gpu_is_here(machine)


@pytest.mark.parametrize(
    ("error", "here"), [("EPERM", False), ("ENXIO", False), ("EACCES", True), ("EIO", True)]
)
def test_a_gpu_that_a_scheduler_did_not_grant_is_not_here_but_a_broken_one_is(
    machine: Path, monkeypatch: pytest.MonkeyPatch, error: str, here: bool
) -> None:
    def refused(path: object, flags: int) -> int:
        number = getattr(gpus.errno, error)
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(gpus.os, "open", refused)
    assert gpus.gpu_is_here(machine) is here


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 2023", "535.129.03"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build", "580.65.06"),
        ("something else", None),
    ],
)
def test_the_driver_tells_its_version(machine: Path, line: str, version: str | None) -> None:
    (machine / "proc/driver/nvidia/version").write_text(line)
    assert gpus.driver_version(machine) == version
    assert gpus.driver_version(machine / "nowhere") is None


def test_gpus_are_listed_by_the_driver_in_the_order_of_the_bus(machine: Path) -> None:
    name = "NVIDIA A100-SXM4-80GB"
    assert gpus.visible_gpus(machine) == [Gpu(name, "GPU-of-18"), Gpu(name, "GPU-of-81")]
    path = machine / "proc/driver/nvidia/gpus/0000:81:00.0/information"
    path.write_text(path.read_text().replace("GPU-of-81", "GPU-????????-????"))
    assert [gpu.entry for gpu in gpus.visible_gpus(machine)] == ["GPU-of-18", "1"]


LISTED = ("GPU 0: Tesla V100-SXM2-32GB (UUID: GPU-aa)", "GPU 1: Tesla V100-SXM2-32GB (UUID: GPU-bb)")


@pytest.mark.parametrize(
    ("choice", "entries"),
    [
        (None, ["GPU-aa", "GPU-bb"]),
        ("1", ["GPU-bb"]),
        ("1,0", ["GPU-bb", "GPU-aa"]),
        ("0,-1,1", ["GPU-aa"]),
        ("GPU-b", ["GPU-bb"]),
        ("7", ["7"]),
    ],
)
def test_gpus_are_those_of_nvidia_smi_that_the_user_has_chosen(
    machine: Path, monkeypatch: pytest.MonkeyPatch, choice: str | None, entries: list[str]
) -> None:
    nvidia_smi(machine, *LISTED)
    if choice is not None:
        monkeypatch.setenv(gpus.VISIBLE, choice)
    assert [gpu.entry for gpu in gpus.visible_gpus(machine)] == entries


def test_numbers_stay_numbers_where_gpus_differ_because_cuda_sorts_them_by_speed(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi(machine, LISTED[0], "GPU 1: NVIDIA H200 (UUID: GPU-bb)")
    monkeypatch.setenv(gpus.VISIBLE, "0")
    assert [gpu.entry for gpu in gpus.visible_gpus(machine)] == ["0"]
    monkeypatch.setenv(gpus.ORDER, "PCI_BUS_ID")
    assert [gpu.entry for gpu in gpus.visible_gpus(machine)] == ["GPU-aa"]


def test_instances_stand_for_the_gpu_that_is_cut_into_them(machine: Path) -> None:
    cut = [f"  MIG 3g.20gb     Device  {number}: (UUID: MIG-{number})" for number in (0, 1)]
    nvidia_smi(machine, LISTED[0], *cut, LISTED[1])
    assert [gpu.entry for gpu in gpus.visible_gpus(machine)] == ["MIG-0", "MIG-1", "GPU-bb"]


def test_a_failing_nvidia_smi_is_not_believed(machine: Path) -> None:
    nvidia_smi(machine, "Failed to initialize NVML: Driver/library version mismatch", status=18)
    assert len(gpus.visible_gpus(machine)) == 2


# --- what torch can use ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        ("sm_90", (9, 0), True),
        ("sm_86", (8, 9), True),
        ("sm_86", (8, 0), False),
        ("sm_80", (9, 0), False),
        ("sm_90", (8, 9), False),
        ("compute_80", (9, 0), True),
        ("compute_90", (8, 9), False),
        ("sm_90a", (9, 0), True),
        ("sm_100a", (10, 3), False),
        ("sm_100f", (10, 3), True),
        ("compute_100f", (12, 0), False),
        ("compute_90a", (10, 0), False),
        ("sm_120", (12, 1), True),
        ("sm_70 compute_70", (12, 0), True),
        ("", (7, 0), True),
    ],
)
def test_machine_code_runs_on_later_minor_versions_and_ptx_on_all_later_gpus(
    architectures: str, capability: tuple[int, int], runs: bool
) -> None:
    assert gpus.has_kernels(architectures.split(), capability) is runs


@pytest.mark.parametrize(
    ("view", "driver", "line"),
    [
        (
            replace(CUDA13, cards=(H200, V100)),
            "580.65.06",
            "'auto', but Tesla V100-SXM2-32GB has compute capability 7.0 and torch 2.15.0 has kernels for "
            "sm_75,"
            " sm_80, sm_86, sm_90, sm_100, sm_120; allowed: `make setup CUDA=12` (envs/cuda12.lock), another "
            "GPU"
            " (CUDA_VISIBLE_DEVICES), or `execution.device: cpu`",
        ),
        (
            replace(CUDA12, cards=(replace(V100, name="Tesla P100", capability=(6, 0)),)),
            "535.1",
            "'auto', but Tesla P100 has compute capability 6.0 and torch 2.10.0 has kernels for sm_70, sm_75,"
            " sm_80, sm_86, sm_90, sm_100, sm_120; allowed: another GPU (CUDA_VISIBLE_DEVICES), or"
            " `execution.device: cpu`",
        ),
        (
            CUDA13,
            "535.129.03",
            "'auto', but the GPU's driver is 535.129.03 and torch 2.15.0 is for CUDA 13.2; allowed: driver "
            "580 or"
            " newer, `make setup CUDA=12` (envs/cuda12.lock), or `execution.device: cpu`",
        ),
        (
            CUDA13,
            "470.82.01",
            "'auto', but the GPU's driver is 470.82.01 and torch 2.15.0 is for CUDA 13.2; allowed: driver "
            "580 or"
            " newer or `execution.device: cpu`",
        ),
        (
            replace(CUDA13, error="CUDA unknown error"),
            "580.65.06",
            "'auto', but torch 2.15.0 can't use the GPU that is here, driver 580.65.06: CUDA unknown error;"
            " allowed: a GPU that works, or `execution.device: cpu`",
        ),
        (
            TorchView("2.15.0+cpu", None),
            None,
            "'auto', but torch 2.15.0+cpu was built without CUDA; allowed: `make setup`, or "
            "`execution.device:"
            " cpu`",
        ),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_one_line_that_names_both_and_what_helps(
    monkeypatch: pytest.MonkeyPatch, view: TorchView, driver: str | None, line: str
) -> None:
    monkeypatch.delenv(gpus.VISIBLE, raising=False)
    assert str(gpus.problem("auto", view, driver)) == f"execution.device: {line}"


def test_gpus_with_kernels_are_in_order_even_if_the_driver_seems_too_old_for_them() -> None:
    assert gpus.problem("cuda", replace(CUDA13, cards=(H200, RTX4090)), "535.129.03") is None
    assert gpus.problem("cuda", replace(CUDA12, cards=(V100,)), "535.129.03") is None


def test_a_device_that_is_picked_is_one_that_torch_can_use(monkeypatch: pytest.MonkeyPatch) -> None:
    from augbench.models.folders import pick_device

    monkeypatch.setattr(gpus, "gpu_is_here", lambda: True)
    monkeypatch.setattr(gpus, "torch_view", lambda: replace(CUDA13, cards=(V100,)))
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(device=str))
    gpus._problem_here.cache_clear()
    for wanted in ("auto", "cuda"):
        with pytest.raises(UserError, match=f"'{wanted}', but Tesla V100"):
            pick_device(wanted)
    assert str(pick_device("cpu")) == "cpu"
    gpus._problem_here.cache_clear()


FAKE_TORCH = """
from types import SimpleNamespace
__version__, version = "2.15.0", SimpleNamespace(cuda="13.2")
card = SimpleNamespace(name={name!r}, major={major}, minor={minor}, total_memory={memory})
def init():
    raise RuntimeError("The NVIDIA driver on your system is\\n too old")
cuda = SimpleNamespace(
    is_available=lambda: {seen}, init=init, device_count=lambda: 1, get_device_properties=lambda _: card,
    get_arch_list=lambda: ["sm_75", "sm_90"],
)
"""


def fake_torch(folder: Path, monkeypatch: pytest.MonkeyPatch, card: Card, seen: bool = True) -> None:
    """Let other processes import a torch that sees ``card``, or none."""
    major, minor = card.capability
    text = FAKE_TORCH.format(name=card.name, major=major, minor=minor, memory=card.memory, seen=seen)
    (folder / "torch").mkdir()
    (folder / "torch/__init__.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{SRC}")


IMAGENET = load_study([PROJECT / "config/imagenet10.yaml"])


def test_check_asks_torch_elsewhere_and_names_batches_that_do_not_fit(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_torch(machine, monkeypatch, replace(H200, memory=20 << 30))
    lines = list(gpu_warnings(IMAGENET, machine))
    assert [re.sub(r"\d+\.\d", "_", line) for line in lines] == [
        "warning: finetune_vectors: about _ GiB with finetune.micro_batch: 26, but NVIDIA H200 has _; set"
        " finetune.micro_batch to at most 22",
        "warning: finetune_unet: about _ GiB with finetune.micro_batch: 26, but NVIDIA H200 has _; set"
        " finetune.micro_batch to at most 5",
    ]


def test_check_says_why_a_gpu_that_is_here_is_not_used(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_torch(machine, monkeypatch, H200, seen=False)
    with pytest.raises(UserError, match=r"driver is 535\.129\.03 and torch 2\.15\.0 is for CUDA 13\.2"):
        list(gpu_warnings(IMAGENET, machine))
    (machine / "proc/driver/nvidia/version").write_text("580.65.06")
    with pytest.raises(UserError, match=r"driver 580\.65\.06: The NVIDIA driver on your system is too old"):
        list(gpu_warnings(IMAGENET, machine))


def test_check_does_not_ask_where_there_is_no_gpu_or_the_cpu_is_wanted(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("augbench.commands.check.gpus.ask_torch", lambda: pytest.fail("asked"))
    on_cpu = IMAGENET.model_copy(update={"execution": Execution(device="cpu")})
    assert list(gpu_warnings(on_cpu, machine)) == list(gpu_warnings(IMAGENET, machine / "empty")) == []


def test_a_torch_that_cannot_be_imported_is_one_line(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (machine / "torch.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", f"{machine}:{SRC}")
    with pytest.raises(UserError) as caught:
        list(gpu_warnings(IMAGENET, machine))
    assert str(caught.value) == (
        "torch: ImportError: libcudart.so.13: cannot open shared object file; `make setup` installs it again"
    )


# --- shares of a run ------------------------------------------------------------------------------


def arguments(cores: int = 16, given: tuple[str, ...] = (), **execution: Any) -> list[str]:
    return gpus.snakemake_arguments(Execution(**execution), cores, given)


def test_as_many_gpu_jobs_run_as_there_are_gpus_each_with_its_share_of_the_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpus, "visible_gpus", lambda: [Gpu("V100", "GPU-a"), Gpu("V100", "GPU-b")])
    two, threads = ["--resources", "gpu=2"], ["--default-resources", "threads_per_gpu=7"]
    assert arguments() == [*two, *threads]
    assert arguments(cores=1)[-1] == "threads_per_gpu=1" and arguments(cores=64)[-1] == "threads_per_gpu=8"
    assert arguments(processes=2) == [*two, *threads, "gpus_per_job=2"]
    assert arguments(processes=9)[-1] == "gpus_per_job=2"
    assert arguments(given=("--resources", "gpu=1")) == threads
    assert arguments(given=("--default-resources=threads_per_gpu=3",)) == two
    assert arguments(given=("--profile", "slurm")) == arguments(device="cpu") == []


def test_nothing_is_limited_without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "visible_gpus", lambda: [])
    assert arguments() == []
    gpus.offer_gpus()
    assert gpus.OFFERED not in os.environ


TAKE = """
import os, sys
from augbench.runtime import gpus
gpus.take_gpus({count})
print(os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
sys.stdin.read()
"""


def job(folder: Path, offered: str, count: int = 1, before: str = "") -> subprocess.Popen[str]:
    """A job that holds its GPUs until its input is closed."""
    return subprocess.Popen(
        [sys.executable, "-c", before + TAKE.format(count=count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": SRC, "TMPDIR": str(folder), gpus.OFFERED: offered},
    )


def taken(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_jobs_never_hold_the_same_gpu_and_that_of_a_killed_job_is_free_at_once(tmp_path: Path) -> None:
    holders = {}
    for _ in range(2):
        process = job(tmp_path, "GPU-a GPU-b")
        holders[taken(process)] = process
    assert set(holders) == {"GPU-a", "GPU-b"}
    third = job(tmp_path, "GPU-a GPU-b")
    holders["GPU-b"].send_signal(signal.SIGKILL)
    assert taken(third) == "GPU-b"
    for process in (*holders.values(), third):
        process.communicate()


def test_a_job_takes_as_many_gpus_as_it_asked_for_and_at_most_all(tmp_path: Path) -> None:
    both = job(tmp_path, "GPU-a GPU-b", count=3)
    assert taken(both) == "GPU-a,GPU-b"
    other, next_one = job(tmp_path, "GPU-b GPU-c"), job(tmp_path, "GPU-a GPU-c", count=2)
    assert taken(other) == "GPU-c"
    other.communicate()
    both.communicate()
    assert taken(next_one) == "GPU-a,GPU-c"
    next_one.communicate()


@pytest.mark.parametrize(("offered", "count"), [("", 1), ("GPU-a", 0)])
def test_nothing_is_taken_by_jobs_without_gpus_or_of_a_scheduler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offered: str, count: int
) -> None:
    monkeypatch.setenv(gpus.OFFERED, offered)
    monkeypatch.setenv(gpus.VISIBLE, "the scheduler's")
    monkeypatch.setattr(gpus.tempfile, "gettempdir", lambda: str(tmp_path))
    gpus.take_gpus(count)
    assert os.environ[gpus.VISIBLE] == "the scheduler's" and list(tmp_path.iterdir()) == []


def test_a_disk_without_locks_is_named(tmp_path: Path) -> None:
    without = "import errno, fcntl\ndef flock(*_): raise OSError(errno.ENOLCK, 'No locks available')\n"
    process = job(tmp_path, "GPU-a GPU-b", before=f"{without}fcntl.flock = flock\n")
    out, err = process.communicate()
    assert out == "GPU-a\n"
    assert err == (
        f"{tmp_path}/augbench-gpus-{os.getuid()}: this file system does not support locks (No locks "
        "available);"
        " all jobs use the same GPU; set TMPDIR\n"
    )


RUN = """
import json, os, sys
from types import SimpleNamespace
from augbench.runtime.job import running
from augbench.runtime import gpus
config, resources, log = json.loads(sys.argv[1]), json.loads(sys.argv[2]), ["results/s/logs/job.log"]
gpus.gpu_is_here = lambda: True
gpus.torch_view = lambda: gpus.TorchView("2.15.0", "13.2", ["sm_90"], [gpus.Card("Tesla V100", (7, 0), 1)])
with running(SimpleNamespace(threads=1, resources=resources, log=log, config=config, rule="job")):
    open("began", "w").write(os.environ.get("CUDA_VISIBLE_DEVICES", "unset"))
"""


@pytest.mark.parametrize(
    ("resources", "device", "began"),
    [({"gpu": 1}, "auto", None), ({"gpu": 1}, "cpu", "unset"), ({}, "auto", "unset")],
)
def test_a_job_takes_its_gpu_and_fails_at_its_beginning_if_torch_cannot_use_it(
    tmp_path: Path, resources: dict[str, int], device: str, began: str | None
) -> None:
    config = {**LEAST_STUDY, "execution": {"device": device}}
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(config), json.dumps(resources)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": SRC, "TMPDIR": str(tmp_path), gpus.OFFERED: "GPU-a"},
    )
    log, path = (tmp_path / "results/s/logs/job.log").read_text(), tmp_path / "began"
    assert done.returncode == (began is None) and (path.read_text() if path.exists() else None) == began
    assert ("GPU GPU-a" in log and "but Tesla V100 has compute capability 7.0" in log) is (began is None)
    assert "Traceback" not in log


FULL = """
import json, sys
from types import SimpleNamespace
from augbench.runtime.job import running
given = {"threads": 1, "resources": {}, "log": ["results/s/logs/job.log"], "config": json.loads(sys.argv[1])}
with running(SimpleNamespace(**given, rule="job")):
    import torch
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
"""


def test_a_model_that_does_not_fit_into_the_gpu_is_one_line_of_the_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL, json.dumps(LEAST_STUDY)]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": SRC})
    last = (tmp_path / "results/s/logs/job.log").read_text().splitlines()[-1]
    assert done.returncode == 1 and last.endswith(
        " ERROR execution.device: this job's model does not fit into the GPU's memory; a GPU with more "
        "memory, "
        "or one that no other program uses, is needed"
    )


# --- plan -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["0", "-1", "two", "1.5"])
def test_a_number_of_gpus_is_at_least_1(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", f"--gpus={number}"])
    assert f"argument --gpus: {number!r}; allowed: a whole number, at least 1" in capsys.readouterr().err
