"""Jobs that run now, and jobs of the last run that failed or were stopped, by their logs.

Input: ``results/{study}/logs``. A job holds a lock on its log while it lives (:mod:`augbench.runtime.job`),
and a job that succeeds says so on the log's last line. Jobs on a cluster take part where the shared file
system has locks.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from augbench.runtime.job import ENDED
from augbench.runtime.launcher import LOCKS

RUNNING, FAILED, STOPPED = "running", "failed", "stopped"
ERROR_LINE = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ERROR ", re.MULTILINE)
TAIL = 65_536  # bytes of a log that are read
MOST = 10  # jobs of each state that are listed
LONGEST = 200  # characters of a log's last line


@dataclass(frozen=True)
class LoggedJob:
    """A job that has not succeeded.

    Attributes
    ----------
    name : str
        Its stage and its name there, as in ``logs/``.
    state : str
        ``running``, ``failed``, or ``stopped``: it ended without a word, by a kill or for lack of memory.
    log : str
        Path of its log.
    line : str
        The log's last line; empty if there is none yet.
    """

    name: str
    state: str
    log: str
    line: str


def logged_jobs(study: str) -> list[LoggedJob]:
    """Jobs of a study that run now, or ended in its last run without success, by the names of their logs."""
    lock, logs = LOCKS / study / "run", Path(f"results/{study}/logs")
    if not lock.is_file():
        return []
    began = lock.stat().st_mtime_ns
    paths = sorted(path for path in logs.rglob("*.log") if path.stat().st_mtime_ns >= began)
    return [job for path in paths if (job := _read(path, logs)) is not None]


def _read(path: Path, logs: Path) -> LoggedJob | None:
    """The job of a log; None if it succeeded."""
    with path.open("rb") as stream:
        lives = not _can_lock(stream.fileno())
        stream.seek(max(0, path.stat().st_size - TAIL))
        text = stream.read().decode("utf-8", errors="replace")
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    if lines and ENDED in lines[-1]:
        return None
    state = RUNNING if lives else FAILED if ERROR_LINE.search(text) else STOPPED
    name = path.relative_to(logs).with_suffix("").as_posix()
    return LoggedJob(name, state, str(path), lines[-1] if lines else "")


def _can_lock(file: int) -> bool:
    """Whether no living process holds the lock of an open file, as far as its file system knows."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def described(jobs: Sequence[LoggedJob]) -> Iterator[str]:
    """Yield a heading per state that occurs, and below it two lines per job: its log, and the log's end."""
    headings = {
        RUNNING: "running now",
        FAILED: "failed in the last run; the same command tries again",
        STOPPED: "stopped before their end, by a kill or for lack of memory; the same command resumes them",
    }
    for state, heading in headings.items():
        own = [job for job in jobs if job.state == state]
        if not own:
            continue
        yield f"{len(own):,} job{'s' if len(own) > 1 else ''} {heading}:"
        for job in own[:MOST]:
            yield f"  {job.log}"
            if job.line:
                yield f"    {job.line[:LONGEST]}"
        if len(own) > MOST:
            yield f"  and {len(own) - MOST:,} more in {os.path.commonpath([job.log for job in own])}"
