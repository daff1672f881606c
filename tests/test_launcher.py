"""One run per working directory; a kill leaves no lock behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SRC = str(Path(__file__).resolve().parents[1] / "src")
HOLD_RUN = "from augbench.runtime import launcher; print(launcher.acquire_run_lock('s'), flush=True); input()"
HOLD_JOB = (
    "from augbench.runtime import launcher; launcher.hold_job_lock('s'); print('held', flush=True); input()"
)
TRY_RUN = "from augbench.runtime import launcher; launcher.acquire_run_lock('s'); print('acquired')"
BEGIN_JOB = "from augbench.runtime import launcher; launcher.guard_job('s'); print('begun')"
CURRENT = (
    "import os; from augbench.runtime import launcher; "
    "os.environ['AUGBENCH_RUN'] = launcher.acquire_run_lock('s'); "
)
# the error of the system on a disk that is mounted without locks
WITHOUT_LOCKS = """
import errno, fcntl, os
def flock(stream, how):
    raise OSError(errno.{error}, os.strerror(errno.{error}))
fcntl.flock = flock
"""


def start(code: str, folder: Path, **environment: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": SRC, **environment},
    )
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
        assert (
            f"results/.locks/s/run: a run is under way here (process {first.pid}); "
            f"wait for it to end, or stop it"
        ) in text
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


def test_a_job_of_a_replaced_run_ends_before_snakemake_touches_its_outputs(tmp_path: Path) -> None:
    assert attempt(TRY_RUN, tmp_path)[0] == 0
    line = (
        "augbench: results/.locks/s/run: the run that started this job has been replaced; "
        "nothing to do: the new run makes the missing files\n"
    )
    assert attempt(BEGIN_JOB, tmp_path, AUGBENCH_RUN="of-yesterday") == (1, line)


def test_jobs_of_the_run_that_is_alive_and_of_none_begin(tmp_path: Path) -> None:
    assert attempt(CURRENT + BEGIN_JOB, tmp_path) == (0, "begun\n")
    assert attempt(BEGIN_JOB, tmp_path) == (0, "begun\n"), (
        "plain Snakemake reads its rules before it is a run"
    )


@pytest.mark.parametrize("error", ["ENOSYS", "ENOLCK", "EOPNOTSUPP"])
def test_a_disk_without_locks_refuses_no_run_and_is_named(tmp_path: Path, error: str) -> None:
    status, text = attempt(WITHOUT_LOCKS.format(error=error) + TRY_RUN, tmp_path)
    assert status == 0 and text.startswith("acquired\n")
    assert (
        text.count("results/.locks: this file system does not support locks") == 1
        and "do not start a second run at the same time" in text
    )


def test_jobs_of_a_replaced_run_are_found_on_a_disk_without_locks(tmp_path: Path) -> None:
    without = WITHOUT_LOCKS.format(error="ENOLCK")
    assert attempt(without + TRY_RUN, tmp_path)[0] == 0
    status, text = attempt(without + HOLD_JOB, tmp_path, AUGBENCH_RUN="of-yesterday")
    assert status != 0 and "the run that started this job has been replaced" in text


def test_another_failure_to_lock_is_not_passed_over(tmp_path: Path) -> None:
    status, text = attempt(WITHOUT_LOCKS.format(error="EIO") + TRY_RUN, tmp_path)
    assert status != 0 and "Input/output error" in text


@pytest.mark.parametrize(
    ("extra", "cores"),
    [
        ([], True),
        (["-n"], True),
        (["--profile", "slurm"], False),
        (["--executor=slurm"], False),
        (["-e", "slurm"], False),
    ],
)
def test_cores_are_for_runs_on_this_machine(tmp_path: Path, extra: list[str], cores: bool) -> None:
    (tmp_path / "snakemake.py").write_text("import sys; print(sys.argv[1:])")
    status, text = attempt(
        f"from augbench.runtime import launcher; launcher.run('s', ['study.yaml'], [], 2, {extra!r})",
        tmp_path,
        PYTHONPATH=f"{tmp_path}:{SRC}",
    )
    assert status == 0 and ("'--cores', '2'" in text) is cores


COUNTING = """
import atexit, sys
sys.path.insert(0, {src!r})
from snakemake.scheduling.job_scheduler import JobScheduler
from augbench.runtime.launcher import lift_rate_limit

looks, select = [], JobScheduler.job_selector
def counted(self, jobs):
    looks.append(len(jobs))
    return select(self, jobs)
JobScheduler.job_selector = counted
atexit.register(lambda: print("looks", len(looks)))

rule all:
    input: "0", "1", "2"

rule job:
    output: "{{name}}"
    shell: "sleep 1.1; touch {{output}}"

onstart:
    lift_rate_limit(workflow.scheduler)
"""


def test_snakemake_looks_for_jobs_when_one_has_finished_and_at_no_other_time(tmp_path: Path) -> None:
    def looks(name: str, *options: str) -> int:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "Snakefile").write_text(COUNTING.format(src=SRC))
        command = [sys.executable, "-m", "snakemake", "--cores", "1", "--scheduler", "greedy", *options]
        ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        return int(ended.stdout.rsplit("looks", 1)[1])

    assert looks("default") <= 4, "one at the start, one per job"
    assert looks("limited", "--max-jobs-per-timespan", "99/1s") > 4, "the user's own limit stays"
