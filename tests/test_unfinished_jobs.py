"""``augbench plan`` names jobs that run, failed or were stopped, by their logs."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from augbench.cli import EXAMPLES, parser
from augbench.commands.plan.jobs import MOST, described, logged_jobs
from augbench.runtime.job import _send_output
from augbench.runtime.launcher import LOCKS

BEFORE, BEGAN, AFTER = 1000, 2000, 3000  # seconds since 1970
INFO = "2026-11-30 10:00:00 INFO 7 of 9 images"
ERROR = "2026-11-30 10:00:01 ERROR failed:\nTraceback (most recent call last):\nValueError: no luck"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory in which a run of the study ``s`` has begun."""
    monkeypatch.chdir(tmp_path)
    (LOCKS / "s").mkdir(parents=True)
    (LOCKS / "s/run").write_text("id process 1\n")
    os.utime(LOCKS / "s/run", (BEGAN, BEGAN))
    return tmp_path


def write(name: str, *lines: str, at: float = AFTER) -> Path:
    path = Path(f"results/s/logs/{name}.log")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    os.utime(path, (at, at))
    return path


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a log as its job does."""
    with path.open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_SH)
        yield


def test_jobs_are_told_apart_by_the_end_of_their_logs_and_by_who_holds_them() -> None:
    write("generate/a_000", INFO, "2026-11-30 10:00:01 INFO ended; torch imported")
    write("generate/a_001", INFO, ERROR)
    write("generate/a_002", INFO)
    write("table1", ERROR, at=BEFORE)  # of an earlier run
    running, silent = write("classify/b_000", INFO), write("classify/b_001")
    with held(running), held(silent):
        found = {job.name: (job.state, job.line) for job in logged_jobs("s")}
    assert found == {
        "generate/a_001": ("failed", "ValueError: no luck"),
        "generate/a_002": ("stopped", INFO),
        "classify/b_000": ("running", INFO),
        "classify/b_001": ("running", ""),
    }
    assert [job.state for job in logged_jobs("s") if job.name == "classify/b_000"] == ["stopped"]


def test_a_failed_job_that_runs_again_runs() -> None:
    with held(write("classify/b_000", ERROR)):
        assert [job.state for job in logged_jobs("s")] == ["running"]


def test_lines_after_the_word_of_success_do_not_undo_it() -> None:
    ended = "2026-11-30 10:00:01 INFO ended; torch imported; 12.3 s of processor time"
    write("generate/a_000", INFO, ended, "a library says goodbye", "and again")
    assert logged_jobs("s") == []


@pytest.mark.parametrize("code", [errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_a_job_is_running_or_stopped(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def flock(file: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    write("classify/b_000", INFO)
    write("generate/a_000", ERROR)
    found = logged_jobs("s")
    assert {job.name: job.state for job in found} == {
        "classify/b_000": "unknown",
        "generate/a_000": "failed",
    }
    assert list(described(found))[3] == (
        "1 job running or stopped, which the locks of this file system do not tell:"
    )


def test_locks_are_asked_for_as_a_network_file_system_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS needs a readable file for a shared lock and a writable one for an exclusive one."""
    modes, flock = {}, fcntl.flock

    def noted(file: Any, operation: int) -> None:
        number = file if isinstance(file, int) else file.fileno()
        access = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE
        modes[operation & ~fcntl.LOCK_NB] = access
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", noted)
    monkeypatch.setattr(os, "dup2", lambda old, new: None)
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    monkeypatch.setattr(logging, "captureWarnings", lambda _: None)
    path = write("classify/b_000", INFO)
    _send_output(path)
    os.utime(path, (AFTER, AFTER))
    assert [job.state for job in logged_jobs("s")] == ["stopped"]
    assert modes == {fcntl.LOCK_SH: os.O_RDWR, fcntl.LOCK_EX: os.O_RDWR}


def test_a_study_that_never_ran_has_no_jobs() -> None:
    assert logged_jobs("another") == [] and list(described([])) == []


def test_each_job_is_told_with_its_log_and_the_logs_last_line() -> None:
    write("generate/a_001", INFO, ERROR)
    for number in range(MOST + 2):
        write(f"retrieve/r_{number:03d}", INFO)
    lines = list(described(logged_jobs("s")))
    assert lines[:3] == [
        "1 job failed in the last run; the same command tries again:",
        "  results/s/logs/generate/a_001.log",
        "    ValueError: no luck",
    ]
    assert lines[3].startswith("12 jobs stopped before their end, by Ctrl-C (KeyboardInterrupt), a kill, or")
    assert lines[4:6] == ["  results/s/logs/retrieve/r_000.log", f"    {INFO}"]
    assert lines[-1] == "  and 2 more in results/s/logs/retrieve"


def test_a_job_holds_its_log_while_it_lives(folder: Path) -> None:
    path = write("table1")
    code = (
        "from pathlib import Path; from augbench.runtime.job import _send_output;"
        f" _send_output(Path({str(path)!r})); print('begun', flush=True); input()"
    )
    source = str(Path(__file__).resolve().parents[1] / "src")
    job = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, env={**os.environ, "PYTHONPATH": source}
    )
    while not path.read_text():
        assert job.poll() is None
    assert [(one.state, one.line) for one in logged_jobs("s")] == [("running", "begun")]
    job.kill()
    job.communicate()
    assert [one.state for one in logged_jobs("s")] == ["stopped"]


def test_the_help_of_every_command_has_examples_that_parse(capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in EXAMPLES.items():
        with pytest.raises(SystemExit):
            parser().parse_args([name, "--help"])
        assert text in capsys.readouterr().out
        commands = [line.split("#")[0].split("|")[0].split() for line in text.splitlines()]
        own = [words[1:] for words in commands if words[:1] == ["augbench"]]
        assert own and all(parser().parse_args(words).command == name for words in own)
    assert f"{{{','.join(EXAMPLES)}}}" in parser().format_help()
