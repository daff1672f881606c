"""The command for a borrowed GPU: kills, torn lines, time limits, table, preflight, the folder to bring."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import PROJECT

from benchmarks.day import gpu, pack, preflight, rates, runner, table, wheels
from benchmarks.day.lines import Lines, windows
from benchmarks.day.runner import Settings, run_stages, share
from benchmarks.day.stages import COMPLETE, STAGES, WITHOUT_COMPILED, Stage

TOY = """
import time
from benchmarks.day.session import Ready, Variant

def measure(session):
    call = lambda: time.sleep(0.02)
    session.run([Variant(name, lambda: Ready(call, 2), windows=4) for name in ("first", "second", "third")])
"""
FAILING = """
import json, os, subprocess, sys, time
from pathlib import Path
from types import SimpleNamespace

scratch = Path(json.loads(sys.argv[1])["scratch"])
if not (scratch / "tried").exists():
    (scratch / "tried").touch()
    print("the first one crashes", flush=True)
    os._exit(7)
child = subprocess.Popen(["sleep", "600"])
(scratch / "child").write_text(str(child.pid))
time.sleep(600)
"""
DRIVER = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from benchmarks.day.runner import Settings, run_stages
from benchmarks.day.stages import Stage
out = Path(sys.argv[1])
settings = Settings(out, out, "mini", "cpu", False, time.monotonic() + 60)
run_stages([Stage("toy", 1, "toy_stage", "toys")], settings)
"""


@pytest.fixture
def with_toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of results; stages of this test can be imported."""
    (tmp_path / "toy_stage.py").write_text(TOY)
    (tmp_path / "failing_stage.py").write_text(FAILING)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{PROJECT}{os.pathsep}{PROJECT / 'src'}")
    out = tmp_path / "out"
    out.mkdir()
    return out


def start_driver(out: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", DRIVER, str(out)], start_new_session=True)


def killed_after(out: Path, count: int) -> None:
    """Run until there are ``count`` windows; then kill the whole process group, as a batch system does."""
    process = start_driver(out)
    end = time.monotonic() + 60
    while sum(line["kind"] == "window" for line in Lines(out).read()) < count:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_run_killed_twice_is_completed_without_doubled_or_torn_windows(with_toys: Path) -> None:
    killed_after(with_toys, 2)
    time.sleep(0.2)
    size = Lines(with_toys).path.stat().st_size
    time.sleep(0.5)
    assert Lines(with_toys).path.stat().st_size == size  # the stage's process died with the command
    with Lines(with_toys).path.open("ab") as stream:
        stream.write(b'{"kind": "window", "stage": "toy", "variant": "first", "win')
    killed_after(with_toys, 6)
    assert start_driver(with_toys).wait(timeout=60) == 0
    lines = [json.loads(text) for text in Lines(with_toys).path.read_text().splitlines()]
    found = Counter((line["variant"], line["window"]) for line in lines if line["kind"] == "window")
    assert found == {(name, number): 1 for name in ("first", "second", "third") for number in range(4)}
    assert lines[-1]["kind"] == "stage" and lines[-1]["ended"] == "complete"
    assert all(line["items"] >= 2 and line["seconds"] >= 0.3 for line in lines if line["kind"] == "window")


def is_running(pid: str) -> bool:
    """Whether a process is there and not only waiting for its parent to notice its end."""
    stat = Path("/proc", pid, "stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] not in "ZX"


def test_a_crash_and_a_hang_cost_only_their_stage_and_leave_no_process(
    with_toys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "LEAST_SECONDS", 0.5)
    settings = Settings(with_toys, with_toys, "mini", "cpu", False, time.monotonic() + 6)
    run_stages([Stage("failing", 1, "failing_stage", "crash, then hang")], settings)
    crashed, killed = [line for line in Lines(with_toys).read() if line["kind"] == "stage"]
    assert crashed["ended"] == "crashed" and crashed["reason"] == "exit status 7"
    assert "the first one crashes" in crashed["log"] and killed["ended"] == "killed"
    assert time.monotonic() < settings.end + 2
    child, patience = (with_toys / "child").read_text(), time.monotonic() + 5
    while is_running(child) and time.monotonic() < patience:  # a killed process ends when it gets a core
        time.sleep(0.05)
    assert not is_running(child)


def test_a_torn_last_line_is_ignored_and_cut_off_by_the_next(tmp_path: Path) -> None:
    lines = Lines(tmp_path)
    lines.add("fact", stage="a", name="x", value=1)
    lines.path.write_bytes(lines.path.read_bytes() + b'{"kind": "window", "sta')
    assert [line["name"] for line in lines.read()] == ["x"]
    lines.add("fact", stage="a", name="y", value=2)
    assert [json.loads(text)["name"] for text in lines.path.read_text().splitlines()] == ["x", "y"]


def test_each_stage_gets_its_share_and_none_more_than_eight_minutes() -> None:
    two = [Stage("a", 60, "", ""), Stage("b", 20, "", "")]
    assert share(two[0], two, 400.0) == 300.0 and share(two[1], two[1:], 400.0) == 400.0
    assert share(two[0], two, 2000.0) == 480.0 and share(two[1], two, 60.0) == 25.0


def test_what_there_is_no_time_for_is_recorded(tmp_path: Path) -> None:
    from benchmarks.day.session import Ready, Session, Variant

    session = Session(tmp_path, "toy", "mini", "cpu", 2.7, tmp_path)
    slow = Ready(lambda: time.sleep(0.5), 1)
    session.run([Variant("some", lambda: slow, windows=9), Variant("none", lambda: slow)])
    lines = session.lines.read()
    outcomes = {line["variant"]: line for line in lines if line["kind"] == "outcome"}
    assert set(outcomes) == {"some", "none"} and not session.complete
    done = len(windows(lines, "toy", "some"))
    assert 1 <= done < 9 and outcomes["some"]["reason"] == f"{done} of 9 windows"
    assert "needs about 2 s" in outcomes["none"]["reason"] and not windows(lines, "toy", "none")


def test_running_out_of_memory_is_a_result_and_an_error_is_tried_again(tmp_path: Path) -> None:
    import torch

    from benchmarks.day.session import Ready, Session, Variant

    calls: list[str] = []

    def make(name: str, error: Exception | None) -> Ready:
        calls.append(name)
        if error is not None:
            raise error
        return Ready(lambda: None, 1)

    variants = [
        Variant("large", lambda: make("large", torch.OutOfMemoryError("140 GiB")), windows=1),
        Variant("wrong", lambda: make("wrong", RuntimeError("no kernel")), windows=1),
        Variant("right", lambda: make("right", None), windows=1),
    ]
    for _ in range(2):
        Session(tmp_path, "toy", "mini", "cpu", 60, tmp_path).run(variants)
    assert calls == ["large", "wrong", "right", "wrong"]
    assert table.missing([*Lines(tmp_path).read()])[:2] == [
        "- toy, large: out of memory: 140 GiB",
        "- toy, wrong: error: RuntimeError: no kernel",
    ]


def window(
    stage: str, variant: str, number: int, items: float, seconds: float, **more: Any
) -> dict[str, Any]:
    values = {"stage": stage, "variant": variant, "window": number, "items": items, "seconds": seconds}
    return {"kind": "window", "batch": None, **values, **more}


def test_a_short_window_is_extended_to_a_whole_image_by_the_time_of_a_step() -> None:
    # 4 images in 8 s with 20 steps of 0.2 s for 2 images: 2 s an image, and 30 more steps take 3 s
    short = window("generation", "ours, eager", 0, 4, 8.0, mode="exact", steps=20, step_seconds=0.2, batch=2)
    assert rates.rate(short, "full") == pytest.approx(1 / 5)
    assert rates.rate({**short, "mode": "fast"}, "full") == pytest.approx(1 / 2)


def golden_lines() -> list[dict[str, Any]]:
    run = {"kind": "run", "time": "2026-11-29T12:00:00", "size": "full", "device": "cuda", "gpu": "GPU X"}
    run |= {"command": "c", "python": "3.12", "versions": {"torch": "2.11"}}
    one, ours = "diffusers' textual inversion, one class", "ours, pseudo-words, batches of "
    memory = {
        "peak_allocated": 2**31,
        "peak_reserved": 2**32,
        "clocks": {"clocks.sm": 1980.0, "power.draw": 700.0},
    }
    return [
        run,
        *(window("personalise", one, number, 10, 1.0) for number in range(2)),
        *(window("personalise", f"{ours}4", number, 50, 1.0) for number in range(2)),
        *(
            window("personalise", f"{ours}64", number, 100, seconds, **memory)
            for number, seconds in enumerate((0.5, 0.4, 1.0))
        ),
        {"kind": "fact", "stage": "personalise", "name": "work", "variant": f"{ours}64", "value": 1e12},
        {"kind": "fact", "stage": "personalise", "name": "product_rate", "dtype": "bfloat16", "value": 8e14},
        {
            "kind": "fact",
            "stage": "personalise",
            "name": "blocking",
            "variant": f"{ours}64",
            "value": {"a:1": 3},
        },
        {"kind": "outcome", "stage": "embed", "variant": "ours", "outcome": "left out", "reason": "1 s left"},
    ]


def test_the_table_has_a_goal_beside_its_baseline_and_says_what_is_missing() -> None:
    rows = table.text(golden_lines()).splitlines()
    # 200, 250 and 100 per second, 10 for the baseline; 200 x 1 TFLOP of 800 TFLOP/s
    assert (
        "| G6 | ours, pseudo-words, batches of 64 | 200 (100 to 250)/s "
        "| diffusers' textual inversion, one class: 10 (10 to 10)/s | 20 | 15 x, 190/s | yes, yes "
        "| 25.0% | 3 | 2 |"
    ) in rows
    assert "| G7 | ours, conditioning and U-Net | not measured |  |  | 2 x, 115/s |  |  |  |  |" in rows
    assert (
        "| personalise | ours, pseudo-words, batches of 64 |  | 200 (100 to 250) | 3 | 25.0% | 2.0, 4.0 | 3 "
        "| 1980 | 700 |"
    ) in rows
    assert "- embed, ours: left out: 1 s left" in rows and "- classifier: not started" in rows


def test_results_of_another_gpu_are_not_mixed_in(tmp_path: Path) -> None:
    from benchmarks.gpu_day import check_same

    lines = Lines(tmp_path)
    lines.add("run", size="full", device="cuda", gpu="GPU X")
    check_same(lines, {"size": "full", "device": "cuda", "gpu": "GPU X"})
    with pytest.raises(SystemExit, match="use another --out"):
        check_same(lines, {"size": "full", "device": "cuda", "gpu": "GPU Y"})


def report(**values: Any) -> dict[str, Any]:
    torch = {
        "version": "2.15",
        "cuda_of_wheel": "13.2",
        "usable": True,
        "capability": [9, 0],
        "name": "GPU X",
    }
    torch |= {"architectures": ["sm_80", "sm_90"], "computes": True}
    usual = {"python": "3.12.3", "processor": "x86_64", "modules": {}, "gpu": {}, "compiler": "/usr/bin/cc"}
    return {**usual, "disk_free_gb": {}, **values, "torch": torch | values.get("torch", {})}


def test_the_preflight_names_a_wheel_without_code_for_the_gpu() -> None:
    assert preflight.problems(report(), "cuda") == []
    (problem,) = preflight.problems(report(torch={"capability": [7, 0]}), "cuda")
    assert problem.startswith("GPU X has compute capability 7.0; torch 2.15 has code for sm_80, sm_90 only")
    # the same major version runs older code; compute_ code is compiled by the driver
    assert preflight.problems(report(torch={"capability": [8, 9]}), "cuda") == []
    newer = {"capability": [12, 0], "architectures": ["sm_90", "compute_90"]}
    assert preflight.problems(report(torch=newer), "cuda") == []


def test_the_preflight_names_an_old_driver_a_missing_compiler_and_other_users() -> None:
    found = preflight.problems(
        report(
            torch={"usable": False},
            gpu={"cuda_of_driver": "12.4", "processes": ["77, python, 900 MiB"]},
            compiler=None,
            disk_free_gb={"/tmp": 3.0},
        ),
        "cuda",
    )
    assert [problem[:40] for problem in found] == [
        "torch 2.15 can't use the GPU: its CUDA i",
        "other processes use the GPU: 77, python,",
        "no C compiler (cc, gcc): compiled varian",
        "/tmp: 3.0 GB free, 8 are needed",
    ]


def test_the_preflight_names_what_cannot_be_imported_and_the_wheels_to_bring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ending.py").write_text("import os; os._exit(3)")
    (tmp_path / "fine.py").write_text("__version__ = '1.2'; print('hello')")
    names = {"fine": "all", "pydantic_is_missing": "all", "ending": "search", "json": "all"}
    monkeypatch.setattr(preflight, "MODULES", names)
    found = preflight.try_imports({**os.environ, "PYTHONPATH": str(tmp_path)})
    assert found["fine"] == {"version": "1.2"} and "error" not in found["json"]
    assert found["ending"]["error"] == "its import ended the process with status 3"
    assert preflight.problems(report(modules=found), "cpu") == [
        "pydantic_is_missing: ModuleNotFoundError: No module named 'pydantic_is_missing' (needed by: all)",
        "ending: its import ended the process with status 3 (needed by: search)",
    ]
    lacking = preflight.bring(report(modules={"pydantic": {"error": "ModuleNotFoundError"}}))
    versions = preflight.locked_versions()
    assert lacking == [
        f"{name}=={versions[name]}, for cp312 on linux x86_64" for name in ("pydantic", "pydantic-core")
    ]


def make_wheel(folder: Path, name: str, module: str, size: int = 10) -> None:
    with zipfile.ZipFile(folder / f"{name}.whl", "w") as archive:
        archive.writestr(f"{module}/__init__.py", f"where = {name!r}")
        archive.writestr(f"{module}/data", os.urandom(size))


def test_missing_packages_are_unpacked_from_wheels_that_fit_this_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    make_wheel(tmp_path, f"lacking_core-1.0-{own}-{own}-manylinux_2_17_x86_64", "lacking_core")
    make_wheel(tmp_path, "lacking_core-1.0-cp36-cp36m-manylinux_2_17_x86_64", "lacking_core")
    make_wheel(tmp_path, "lacking-1.0-py3-none-any", "lacking")
    make_wheel(tmp_path, "pyyaml-9.0-py3-none-any", "yaml")
    groups = ({"lacking": "lacking", "lacking-core": "lacking_core"}, {"pyyaml": "yaml"})
    monkeypatch.setattr(wheels, "GROUPS", groups)
    site = wheels.provide(tmp_path, tmp_path / "scratch")
    assert site is not None and not (site / "yaml").exists()  # this Python has one
    assert own in (site / "lacking_core/__init__.py").read_text() and (site / "lacking").is_dir()


def test_abi3_wheels_fit_newer_pythons_and_foreign_ones_none() -> None:
    stable = wheels.Wheel.of(
        Path("tokenizers-0.22.2-cp39-abi3-manylinux_2_17_x86_64.manylinux2014_x86_64.whl")
    )
    assert stable.fits((3, 14)) and not stable.fits((3, 8)) and not stable.fits((3, 12), "aarch64")
    assert not wheels.Wheel.of(Path("regex-1-cp312-cp312-macosx_11_0_arm64.whl")).fits((3, 12))


def test_the_folder_to_bring_has_code_data_and_fitting_wheels_and_is_small(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    for python in ("cp311", "cp312", "cp310"):
        make_wheel(given, f"pydantic_core-2.5-{python}-{python}-manylinux_2_17_x86_64", "pydantic_core")
    make_wheel(given, "diffusers-0.39.0-py3-none-any", "diffusers")
    make_wheel(given, "unrelated-1.0-py3-none-any", "unrelated")
    size = pack.pack(tmp_path / "bring", ("3.11", "3.12"), given)
    names = {path.name.partition("-manylinux")[0] for path in (tmp_path / "bring/wheels").iterdir()}
    assert names == {
        "diffusers-0.39.0-py3-none-any.whl",
        "pydantic_core-2.5-cp311-cp311",
        "pydantic_core-2.5-cp312-cp312",
    }
    assert size < 15 and "python benchmarks/gpu_day.py --out" in (tmp_path / "bring/README.txt").read_text()
    done = subprocess.run(
        [sys.executable, tmp_path / "bring/benchmarks/gpu_day.py", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "--minutes" in done.stdout
    make_wheel(given, "transformers-5.0-py3-none-any", "transformers", 61_000_000)
    with pytest.raises(SystemExit, match="at most 60"):
        pack.pack(tmp_path / "large", ("3.11", "3.12"), given)
    assert not (tmp_path / "large").exists()


def test_wheels_are_fetched_by_uvs_pip_where_this_python_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(pack, "ROOT", Path("/nothing/here"))
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    assert pack.pip() == ["/bin/uv", "tool", "run", "--quiet", "pip"]
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(SystemExit, match="needs pip or uv"):
        pack.pip()


@pytest.mark.full
def test_all_stages_run_on_the_miniature_and_survive_two_kills(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, str(PROJECT / "benchmarks/gpu_day.py"), "--out", str(out), "--size", "mini"]
    command += ["--device", "cpu", "--minutes", "12", "--scratch", str(tmp_path / "scratch")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for count in (8, 25):
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        while sum(line["kind"] == "window" for line in Lines(out).read()) < count:
            assert process.poll() is None
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, env=environment, check=True, timeout=1200)
    lines = Lines(out).read()
    ended = {line["stage"]: line["ended"] for line in lines if line["kind"] == "stage"}
    assert set(ended) == {stage.name for stage in STAGES} and set(ended.values()) <= {
        COMPLETE,
        WITHOUT_COMPILED,
    }
    found = Counter(
        (line["stage"], line["variant"], line["window"]) for line in lines if line["kind"] == "window"
    )
    assert set(found.values()) == {1}
    written = (out / "table.md").read_text()
    absent = [row for row in written.splitlines() if "not measured" in row]
    assert absent and all("compiled" in row for row in absent)  # compilation is off on a CPU
    left = [line for line in table.missing(lines) if "compilation is off" not in line]
    assert left == []


def test_flash_attention_3_takes_the_place_of_torchs_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from torch.nn import functional

    from benchmarks.day.generation import flash_attention_3

    plain, shapes = functional.scaled_dot_product_attention, []

    def flash(query: Any, key: Any, value: Any, softmax_scale: Any, causal: bool) -> tuple[Any, None]:
        shapes.append(tuple(query.shape))
        found = plain(*(tensor.transpose(1, 2) for tensor in (query, key, value)), scale=softmax_scale)
        return found.transpose(1, 2), None

    monkeypatch.setitem(sys.modules, "flash_attn_interface", SimpleNamespace(flash_attn_func=flash))
    query, key, value = torch.randn(3, 2, 4, 10, 8).bfloat16().unbind()
    with flash_attention_3():
        replaced = functional.scaled_dot_product_attention(query, key, value)
        functional.scaled_dot_product_attention(query.float(), key.float(), value.float())
    assert torch.equal(replaced, plain(query, key, value)) and shapes == [(2, 10, 4, 8)]
    assert functional.scaled_dot_product_attention is plain


SMI = """#!/bin/sh
case "$*" in
*--loop-ms*) while sleep 0.02; do echo "1980, 3201, 512.25, [N/A], 97"; done;;
*--query-gpu=*mig.mode.current*) exit 6;;
*--query-gpu=name*) echo "GPU X";;
*--query-gpu=clocks.sm*) echo "345";;
*--query-compute-apps*) echo "77, python, 900 MiB";;
*--query-gpu=*) exit 6;;
*) echo "| NVIDIA-SMI 580.1   Driver Version: 580.1   CUDA Version: 13.0     |";;
esac
"""


def test_clocks_power_and_users_are_read_and_what_the_driver_lacks_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(SMI)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    known = {
        "name": "GPU X",
        "clocks.sm": "345",
        "cuda_of_driver": "13.0",
        "processes": ["77, python, 900 MiB"],
    }
    assert gpu.state() == known
    watch, begin = gpu.Watch(), time.monotonic()
    while len(watch.samples) < 3:
        time.sleep(0.01)
        assert time.monotonic() < begin + 20
    found = watch.during(begin, time.monotonic())
    watch.close()
    assert found is not None and watch.during(0, begin - 1) is None
    assert (found["clocks.sm"], found["power.draw"], found["temperature.gpu"]) == (1980.0, 512.25, None)
