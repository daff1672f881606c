"""Processes that can't outlive the one that starts them, and locks on the output folder."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def _die_with(parent: int) -> None:
    """Let the kernel kill this process when ``parent`` ends, however it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the call
        os._exit(1)


def start(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    output: IO[Any] | int | None = None,
    own_group: bool = False,
) -> subprocess.Popen[str]:
    """Start a process that dies with this one; call it from the main thread.

    Parameters
    ----------
    output : file or ``subprocess.PIPE``, optional
        Where standard output and standard error go.
    own_group : bool
        Whether it leads a process group, so that :func:`kill_group` reaches its children too.
    """
    parent = os.getpid()
    return subprocess.Popen(
        list(command),
        env=None if environment is None else dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=None if output is None else subprocess.STDOUT,
        text=True,
        start_new_session=own_group,
        preexec_fn=lambda: _die_with(parent),
    )


def kill_group(process: subprocess.Popen[str]) -> None:
    """Kill a process that leads a group, with the whole group, and wait for it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def alone(path: Path, seconds: float) -> Iterator[None]:
    """Hold the lock ``path``; wait up to ``seconds`` for another holder to end.

    Raises
    ------
    SystemExit
        Somebody else holds it all the time.
    """
    end = time.monotonic() + seconds
    with path.open("a") as stream:
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > end:
                    raise SystemExit(
                        f"{path.parent}: another gpu_day.py works there; wait, or use another --out"
                    ) from None
                time.sleep(0.1)
        yield
