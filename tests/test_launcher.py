"""One run per working directory, and nothing that a kill can leave locked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SRC = str(Path(__file__).resolve().parents[1] / "src")
HOLD_RUN = "from augbench import launcher; print(launcher.acquire_run_lock(), flush=True); input()"
HOLD_JOB = "from augbench import launcher; launcher.hold_job_lock(); print('held', flush=True); input()"
TRY_RUN = "from augbench import launcher; launcher.acquire_run_lock(); print('acquired')"


def start(code: str, folder: Path, **environment: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": SRC, **environment},
    )  # fmt: skip
    return process


def held(code: str, folder: Path) -> subprocess.Popen[str]:
    process = start(code, folder)
    assert process.stdout is not None and process.stdout.readline().strip()
    return process


def attempt(code: str, folder: Path, **environment: str) -> tuple[int, str]:
    process = start(code, folder, **environment)
    out, err = process.communicate("\n")
    return process.returncode, out + err


def test_a_second_run_is_refused_in_one_clear_line(tmp_path: Path) -> None:
    first = held(HOLD_RUN, tmp_path)
    try:
        status, text = attempt(TRY_RUN, tmp_path)
        assert status != 0
        assert f"results/.locks/run: a run is under way here (process {first.pid}); wait for it to end, or stop it" in text
    finally:
        first.kill()
        first.communicate()


def test_a_killed_run_leaves_no_lock(tmp_path: Path) -> None:
    first = held(HOLD_RUN, tmp_path)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    assert attempt(TRY_RUN, tmp_path) == (0, "acquired\n")


def test_a_job_that_outlives_its_run_is_named(tmp_path: Path) -> None:
    orphan = held(HOLD_JOB, tmp_path)
    try:
        status, text = attempt(TRY_RUN, tmp_path)
        assert status != 0 and f"jobs of an earlier run are still alive (process {orphan.pid})" in text
    finally:
        orphan.kill()
        orphan.communicate()
    assert attempt(TRY_RUN, tmp_path)[0] == 0


def test_a_job_of_a_replaced_run_does_not_start(tmp_path: Path) -> None:
    assert attempt(TRY_RUN, tmp_path)[0] == 0
    status, text = attempt(HOLD_JOB, tmp_path, AUGBENCH_RUN="of-yesterday")
    assert status != 0 and "the run that started this job has been replaced" in text


@pytest.mark.parametrize("jobs", [2, 5])
def test_jobs_of_one_run_do_not_exclude_each_other(tmp_path: Path, jobs: int) -> None:
    running = [held(HOLD_JOB, tmp_path) for _ in range(jobs)]
    for process in running:
        process.communicate("\n")
        assert process.returncode == 0
