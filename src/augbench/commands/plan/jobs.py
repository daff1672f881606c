"""Jobs that run now, and jobs of the last run that failed or were stopped, by their logs.

Input: ``results/{study}/logs``. A job holds a lock on its log while it lives (:mod:`augbench.runtime.job`),
and a job that succeeds says so at the log's end; a library may add lines while the process ends. Where the
file system has no locks, a job without such an end is running or stopped.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from augbench.runtime.job import ENDED
from augbench.runtime.launcher import LOCKS

RUNNING, FAILED, STOPPED, UNKNOWN = "running", "failed", "stopped", "unknown"
ERROR_LINE = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ERROR ", re.MULTILINE)
TAIL = 65_536  # bytes of a log that are read
LAST = 10  # lines of a log among which a job says that it has succeeded
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
        ``running``, ``failed``, ``stopped`` (it ended without a word, by Ctrl-C, a kill, or for lack of
        memory), or ``unknown``: running or stopped.
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
    with _opened(path) as stream:
        lives = _is_locked(stream.fileno())
        stream.seek(max(0, path.stat().st_size - TAIL))
        text = stream.read().decode("utf-8", errors="replace")
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    if any(ENDED in line for line in lines[-LAST:]):
        return None
    if lives:
        state = RUNNING
    elif ERROR_LINE.search(text):
        state = FAILED
    else:
        state = UNKNOWN if lives is None else STOPPED
    name = path.relative_to(logs).with_suffix("").as_posix()
    return LoggedJob(name, state, str(path), lines[-1] if lines else "")


def _opened(path: Path) -> BinaryIO:
    """Open a log for reading, and for writing if that is allowed: NFS locks no other files exclusively."""
    try:
        return path.open("r+b")
    except OSError:  # another user's file, or a disk that is only read
        return path.open("rb")


def _is_locked(file: int) -> bool | None:
    """Whether a living process holds the lock of an open file; None if its file system does not say."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False


def described(jobs: Sequence[LoggedJob]) -> Iterator[str]:
    """Yield a heading per state that occurs, and below it two lines per job: its log, and the log's end."""
    headings = {
        RUNNING: "running now",
        FAILED: "failed in the last run; the same command tries again",
        STOPPED: (
            "stopped before their end, by Ctrl-C (KeyboardInterrupt), a kill, or for lack of memory;"
            " the same command resumes them"
        ),
        UNKNOWN: "running or stopped, which the locks of this file system do not tell",
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
