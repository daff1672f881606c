"""The benchmark of generation: candidates take turns, figures are right, and the benchmark runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROJECT

from benchmarks.machine import default_type
from benchmarks.paired import Candidate, Paired, Window, run_paired


def test_candidates_take_turns_after_their_warm_up() -> None:
    calls: list[str] = []
    candidates = {name: Candidate(lambda name=name: calls.append(name), 2.0) for name in "AB"}
    paired = run_paired(candidates, repeats=3, least_seconds=0.0, warm_up=1)
    assert "".join(calls) == "AB" + "ABABAB"
    assert paired.baseline == "A" and all(
        [window.work for window in windows] == [2.0] * 3 for windows in paired.windows.values()
    )


def test_a_window_lasts_as_long_as_asked_for() -> None:
    (window,) = run_paired({"A": Candidate(lambda: None)}, repeats=1, least_seconds=0.05).windows["A"]
    assert window.seconds >= 0.05 and window.work > 1


def test_ratios_are_between_windows_that_belong_together() -> None:
    # a machine that slows down
    base = [Window(10, 1.0, 1.0, 0.0), Window(10, 2.0, 1.0, 0.0), Window(10, 4.0, 1.0, 0.0)]
    other = [Window(10, 0.5, 0.5, 0.0), Window(10, 1.0, 0.5, 0.0), Window(10, 1.0, 0.5, 0.0)]
    paired = Paired("A", {"A": base, "B": other})
    assert paired.ratios("B") == [2.0, 2.0, 4.0]
    row = paired.summary()["B"]
    assert row["ratio"] == {"median": 2.0, "least": 2.0, "most": 4.0} and row["rate"]["median"] == 10.0
    assert row["processor_seconds_per_unit"] == 0.05
    assert "| B | 10 (10 to 20) | 2 (2 to 4) | 0.05 |" in paired.markdown("image")


def test_benchmarks_compute_in_the_type_that_a_study_takes_on_the_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    capabilities = {0: (7, 5), 1: (9, 0)}
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capabilities[device.index])
    assert [default_type(name) for name in ("cuda:0", "cuda:1", "cpu")] == ["float16", "bfloat16", "float32"]


@pytest.mark.full
def test_the_benchmark_runs_on_the_miniature(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(PROJECT / "benchmarks/generate.py"),
        "--device",
        "cpu",
        "--size",
        "mini",
        "--steps",
        "10",
        "--largest-batch",
        "2",
    ]
    arguments = ["--no-compile", "--repeats", "1", "--seconds", "0", "--json", str(tmp_path / "report.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT / "src")}
    printed = subprocess.run(
        [*command, *arguments], check=True, env=environment, stdout=subprocess.PIPE, text=True, timeout=1800
    ).stdout
    report = json.loads((tmp_path / "report.json").read_text())
    first, *others = report["candidates"]
    assert (
        first == "diffusers, one at a time"
        and len(others) == 3
        and all(f"| {name} |" in printed for name in others)
    )
    work = report["work_per_image"]
    assert work["ours, fast mode"] < 0.5 * work[first]
    plain, batched = (report["errors"][name] for name in ("diffusers, one at a time", "ours, one batch"))
    assert sum(batched) <= 1.5 * sum(plain)  # no more than the error of half precision
