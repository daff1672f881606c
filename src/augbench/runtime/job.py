"""Surroundings of every workflow script: log, threads, network guard, lock, clear errors, provenance.

A script opens :func:`running` with Snakemake's object and calls one function of the package inside. Import
this module before torch, because it sets the number of threads through the environment.
"""

from __future__ import annotations

import atexit
import fcntl
import gc
import logging
import os
import resource
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from augbench.config.study import Study, parse_study
from augbench.errors import UserError, naming_files
from augbench.runtime import warm

if TYPE_CHECKING:
    from augbench.artifacts.store import Store
    from augbench.plan.paths import Plan

logger = logging.getLogger("augbench")
ENDED = "ended; torch "  # at the end of a log whose job has succeeded
ON_TERMINAL = "AUGBENCH_ON_TERMINAL"  # set by `augbench debug`: output and exceptions stay where they are
# New objects between two runs of the garbage collector. At Python's own 700, it walks each library many times
# while it is imported.
COLLECT_AFTER = 50_000


@dataclass(frozen=True)
class Job:
    """A running job: the study, its store, and the number of threads it may use."""

    study: Study
    store: Store
    threads: int

    @property
    def folder(self) -> Path:
        """Folder of the study's results."""
        return self.store.study

    @property
    def plan(self) -> Plan:
        """Paths of the study without class ids; most scripts get their files from the rule."""
        from augbench.plan.paths import Plan

        return Plan(self.study, ())

    def plan_of(self, classes_path: str | Path) -> Plan:
        """Paths of the study with the classes of ``classes.parquet``."""
        from augbench.data.classes import read_class_table
        from augbench.plan.paths import Plan

        return Plan(self.study, tuple(info.class_id for info in read_class_table(classes_path)))


def set_threads(threads: int) -> None:
    """Let every library of this process use ``threads`` threads; oversubscribed cores cost a multiple."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
        os.environ[name] = str(threads)
    if (torch := warm.in_memory("torch")) is not None:
        torch.set_num_threads(threads)
    if threads > 1 and warm.is_fork():  # numpy's libraries have read the environment already
        from threadpoolctl import threadpool_limits

        threadpool_limits(threads)


def _processor_seconds() -> float:
    """Processor time of this process and of those that it has waited for."""
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def _send_output(log: Path | None) -> None:
    """Send all output of this process and its libraries to ``log``; None leaves it on the terminal.

    The log is locked while the process, or a child that writes to it, lives. ``augbench plan`` looks at that.
    """
    if log is not None:
        with log.open("a+") as stream:  # NFS gives this lock only for files that can be read
            with suppress(OSError):  # some file systems have no locks
                fcntl.flock(stream, fcntl.LOCK_SH)
            for number in (1, 2):
                os.dup2(stream.fileno(), number)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)


def leave(finished: list[bool]) -> None:
    """End the process at once if its work is done.

    Python would take 1.5 s to take torch and diffusers apart, object by object.
    """
    if finished and not hasattr(sys, "last_value"):  # Python leaves an uncaught exception there
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _full_gpu(error: Exception) -> UserError | None:
    """Return a line for a lack of the GPU's memory that no smaller batch mends, as for a model's weights."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(error, torch.OutOfMemoryError):
        return None
    from augbench.runtime.fit import advice

    return UserError("execution.device", "this job's model does not fit into the GPU's memory", advice())


@contextmanager
def running(snakemake: Any, unfolded: bool = False) -> Iterator[Job]:
    """Set up a script's surroundings and yield its :class:`Job`, with the study or the unfolded study.

    All output goes to the rule's log; Snakemake shows its end when the job fails. A :class:`UserError` is one
    line there. The network is off, except for the rules of :func:`augbench.plan.uses_network.uses_network`.
    Under ``augbench debug`` output stays on the terminal and exceptions pass.
    """
    from augbench.artifacts.store import open_store
    from augbench.runtime import gpus, network
    from augbench.runtime.compiling import share_cache
    from augbench.runtime.launcher import hold_job_lock

    gc.set_threshold(COLLECT_AFTER)
    on_terminal = ON_TERMINAL in os.environ
    finished: list[bool] = []
    if not on_terminal:
        # before libraries register anything: called in reverse order, this is the last
        atexit.register(leave, finished)
    set_threads(snakemake.threads)
    log = Path(snakemake.log[0])
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("")
    _send_output(None if on_terminal else log)
    try:
        study = parse_study(snakemake.config)
        hold_job_lock(study.study)
        network.restrict(snakemake.rule, study)
        store, folder = open_store(study), Path(f"results/{study.study}")
        store.enter()
        if study.execution.compile:
            share_cache(folder / ".work/compiled")
        with naming_files():
            wanted, count = study.execution.device, snakemake.resources.get("gpu", 0)
            if wanted != "cpu" and count:
                gpus.take_gpus(count)
                gpus.require_usable(wanted)
            yield Job(study.unfolded if unfolded else study, store, snakemake.threads)
        if store.tally.made or store.tally.reused:
            logger.info("done: %s", store.tally)
        if "torch" in sys.modules and (store.tally.made or not store.tally.reused):
            from augbench.runtime.provenance import record_surroundings

            record_surroundings(folder, log)
        imported = "imported" if "torch" in sys.modules else "not imported"
        logger.info("%s%s; %.2f s of processor time", ENDED, imported, _processor_seconds())
        finished.append(True)
    except Exception as error:
        if on_terminal:
            raise
        if (said := error if isinstance(error, UserError) else _full_gpu(error)) is not None:
            logger.error("%s", said)
        else:
            logger.error("failed:\n%s", traceback.format_exc())
        sys.exit(1)
