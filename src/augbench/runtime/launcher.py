"""Run Snakemake so that an interrupted run can simply be started again (one run at a time).

Two files in ``results/.locks/{study}`` are locked through the operating system, which releases a lock when
its process dies for whatever reason:

- ``run``: an exclusive lock of the one launcher (or plain ``snakemake``) that works on this study here;
- ``jobs``: a shared lock of every running job. After a ``kill -9`` of Snakemake its jobs may live on and
  write. A new run then fails and names them.

The process that gets both locks knows that nothing else writes the study's results. It may therefore skip
Snakemake's own lock files, which survive a kill, and rerun incomplete jobs. Jobs on a cluster take part: they
inherit the run's id, and network file systems share locks. On a file system without locks a run starts all
the same, and jobs of a replaced run end when they begin.
"""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from augbench.artifacts.claims import NO_LOCKS
from augbench.errors import UserError, ending_in_one_line

if TYPE_CHECKING:
    from augbench.config.study import Study

logger = logging.getLogger(__name__)
LOCKS = Path("results/.locks")
SCHEDULERS = ("--profile", "--executor", "-e")  # arguments that send jobs to other machines
_held: list[IO[str]] = []  # kept open, because closing a file releases its lock


def _open(study: str, name: str) -> IO[str]:
    (LOCKS / study).mkdir(parents=True, exist_ok=True)
    return (LOCKS / study / name).open("a+")


def lock_file(
    stream: IO[str], how: int, otherwise: str = "do not start a second run at the same time"
) -> bool:
    """Lock an open file with ``fcntl.flock`` until it is closed; False if another process holds the lock.

    On a file system without locks, warn with the consequence ``otherwise`` and return True.
    """
    try:
        fcntl.flock(stream, how)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        folder = LOCKS if Path(stream.name).is_relative_to(LOCKS) else Path(stream.name).parent
        _warn_once(folder, error.strerror, otherwise)
    return True


@cache
def _warn_once(folder: Path, reason: str, otherwise: str) -> None:
    logger.warning("%s: this file system does not support locks (%s); %s", folder, reason, otherwise)


def _holders(path: Path) -> list[int]:
    """List the ids of the processes that have ``path`` open, as far as ``/proc`` shows them."""
    target, pids = path.resolve(), []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(Path(os.readlink(link)) == target for link in (process / "fd").iterdir()):
                pids.append(int(process.name))
        except OSError:
            continue
    return sorted(set(pids) - {os.getpid()})


def acquire_run_lock(study: str) -> str:
    """Take the run lock of a study in this folder and return the new run's id.

    Raises
    ------
    UserError
        Another run, or a job of a killed run, is still alive.
    """
    run, locks = _open(study, "run"), LOCKS / study
    if not lock_file(run, fcntl.LOCK_EX | fcntl.LOCK_NB):
        run.seek(0)
        holder = " ".join(run.read().split()[1:]) or "another process"
        raise UserError(
            str(locks / "run"), f"a run is under way here ({holder})", "wait for it to end, or stop it"
        )
    jobs = _open(study, "jobs")
    if not lock_file(jobs, fcntl.LOCK_EX | fcntl.LOCK_NB):
        pids = ", ".join(map(str, _holders(locks / "jobs")))
        where = f"process {pids}" if pids else "on another machine: squeue --me lists those of Slurm"
        raise UserError(
            str(locks / "jobs"),
            f"jobs of an earlier run are still alive ({where})",
            "wait for them to end, or stop them (kill, scancel)",
        )
    jobs.close()
    run_id = uuid.uuid4().hex
    run.seek(0)
    run.truncate()
    run.write(f"{run_id} process {os.getpid()}\n")
    run.flush()
    os.set_inheritable(run.fileno(), True)
    _held.append(run)
    return run_id


def hold_job_lock(study: str) -> None:
    """Hold the shared lock of this job until it ends.

    Raises
    ------
    UserError
        The run that started this job has been replaced by another one.
    """
    jobs = _open(study, "jobs")
    lock_file(jobs, fcntl.LOCK_SH)
    _held.append(jobs)
    _refuse_if_replaced(study)


def _refuse_if_replaced(study: str) -> None:
    expected, lock = os.environ.get("AUGBENCH_RUN"), LOCKS / study / "run"
    text = lock.read_text().split() if lock.exists() else []
    if expected and text and text[0] != expected:
        raise UserError(
            str(lock),
            "the run that started this job has been replaced",
            "nothing to do: the new run makes the missing files",
        )


def guard_job(study: str) -> None:
    """End a job of a replaced run before Snakemake removes its outputs.

    The Snakefile calls this. Such a job may have waited in a cluster's queue.
    """
    with ending_in_one_line():
        _refuse_if_replaced(study)


def lift_rate_limit(scheduler: Any) -> None:
    """Let Snakemake's scheduler look for jobs to start when a job has finished, and at no other time.

    Under its default limit of 100 jobs per second, Snakemake 9.27 repeats every look at the waiting jobs once
    per second, to the end of the run. Every finished job adds one more look per second; after 160 jobs, they
    took half of a core. A limit that the user sets stays.

    Parameters
    ----------
    scheduler : snakemake.scheduling.job_scheduler.JobScheduler
    """
    limit = scheduler.job_rate_limiter
    if limit is not None and (limit.max_jobs, limit.timespan) == (100, 1):
        scheduler.job_rate_limiter = None


def prepare(study: Study) -> None:
    """Take the run lock, unless our launcher holds it, and open the store; an earlier one is adopted.

    Raises
    ------
    UserError
        Another run of the study, or a job of a killed one, is still alive; or the store is not writable.
    """
    from augbench.artifacts.adopt import adopt
    from augbench.artifacts.store import open_store

    if "AUGBENCH_RUN" not in os.environ:
        os.environ["AUGBENCH_RUN"] = acquire_run_lock(study.study)
    store = open_store(study)
    store.enter()
    adopt(store)


def restore_times(study: Study) -> None:
    """Undo what other studies did to the time stamps of files that they share with this one.

    The Snakefile calls this before Snakemake plans. Where other users' records can't be read, nothing
    happens.
    """
    from augbench.artifacts.store import open_store

    with ending_in_one_line(), suppress(OSError):
        open_store(study).uses.restore_times()


def begin_run(study: Study, local: bool) -> None:
    """Prepare a run of Snakemake; the Snakefile calls this in ``onstart:``.

    Parameters
    ----------
    local : bool
        Whether jobs run on this machine. They then share out its GPUs, or start from a warm process.
    """
    from augbench.runtime import warm
    from augbench.runtime.gpus import offer_gpus

    with ending_in_one_line():
        prepare(study)
        if local and not (study.execution.device != "cpu" and offer_gpus()):
            warm.start()


def cache_folder() -> dict[str, str]:
    """Environment with a folder for Snakemake's cache, if the user's own can't be written."""
    own = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    try:
        own.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=own):
            return {}
    except OSError:
        return {"XDG_CACHE_HOME": os.path.abspath("results/.cache")}


def run(
    study: str, configfiles: Sequence[str], targets: Sequence[str], cores: int, extra: Sequence[str]
) -> int:
    """Run the workflow and return Snakemake's exit status.

    Parameters
    ----------
    study : str
        Name of the study.
    configfiles : sequence of str
        Study and overlays. Default: the demo.
    targets : sequence of str
        Files or named targets. Default: everything.
    cores : int
        Cores to use on this machine. Ignored if a profile or an executor sends jobs to other machines.
    extra : sequence of str
        Further arguments of Snakemake.
    """
    run_id = acquire_run_lock(study)
    # targets come first: options that take several values would swallow them
    command = [
        sys.executable,
        "-m",
        "snakemake",
        *targets,
        "--nolock",
        "--rerun-incomplete",
        "--logger",
        "augbench",
        *extra,
    ]
    if not any(argument.partition("=")[0] in SCHEDULERS for argument in extra):
        command += ["--cores", str(cores)]
    if configfiles:
        command += ["--configfile", *configfiles]
    environment = {**os.environ, **cache_folder(), "AUGBENCH_RUN": run_id}
    fd = _held[-1].fileno()
    return subprocess.run(command, env=environment, pass_fds=(fd,)).returncode
