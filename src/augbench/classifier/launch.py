"""Start the processes that train together, with torch's elastic launcher (``torchrun``), and end them all.

Input: a function of a :class:`~augbench.classifier.compute.ProcessGroup` and its arguments. Output: its
result in the first process, or one error: the first that a process raised. Workers
(:mod:`augbench.classifier.worker`) are separate processes, not forks. The start methods of
``multiprocessing`` import the main script again, which a Snakemake script does not allow.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import torch

from augbench.classifier import worker
from augbench.classifier.compute import ProcessGroup
from augbench.errors import UserError

logger = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")


def in_processes(
    processes: int,
    device: torch.device,
    function: Callable[Concatenate[ProcessGroup, P], R],
    *arguments: P.args,
    **named: P.kwargs,
) -> R:
    """Call ``function(group, *arguments, **named)`` in several processes; return the first one's result.

    Parameters
    ----------
    device : torch.device
        ``cuda``: process r uses the r-th visible GPU, and processes communicate through NCCL; ``cpu``:
        through gloo.
    function : callable
        A function of a module, so that other processes can import it. The function, its arguments and its
        result must be picklable.

    Raises
    ------
    UserError
        A process raised one, or was killed.
    RuntimeError
        A process raised another exception; the message has its traceback.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # errors are reported below, in one line
    for chatty in ("agent.server.api", "multiprocessing.api"):
        logging.getLogger(f"torch.distributed.elastic.{chatty}").setLevel(logging.CRITICAL)
    handlers = {
        number: signal.getsignal(number) or signal.SIG_DFL
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    }
    with tempfile.TemporaryDirectory(prefix="augbench-") as name:
        folder = Path(name)
        threads = max(1, torch.get_num_threads() // processes)
        with (folder / worker.TASK).open("wb") as stream:
            pickle.dump(worker.Surroundings(sys.path, os.getpid(), threads, device.type)._asdict(), stream)
            pickle.dump((function, arguments, named), stream)
        # seconds; the argument of the same name is too new for envs/cuda12.lock, whose torch waits for 30
        os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "5")
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=name),
        )
        resource = "GPU" if device.type == "cuda" else f"{threads} threads"
        logger.info("starting %d processes, one per %s", processes, resource)
        try:
            elastic_launch(config, sys.executable)("-P", str(Path(worker.__file__)), name)
        except ChildFailedError as error:
            raise _first_error(
                folder, {rank: failure.exitcode for rank, failure in error.failures.items()}, processes
            ) from None
        except SignalException as error:
            logger.info(
                "ended by %s; run again: training resumes from the last checkpoint", error.sigval.name
            )
            raise SystemExit(128 + error.sigval) from None
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        with (folder / worker.RESULT).open("rb") as stream:
            return pickle.load(stream)


def _first_error(folder: Path, exit_codes: dict[int, int], processes: int) -> Exception:
    """Return the error that occurred first; it makes the other processes fail."""
    reports: list[worker.ErrorReport] = sorted(
        (pickle.loads(path.read_bytes()) for path in folder.glob(worker.ERROR.format("*"))),
        key=lambda report: report["time"],
    )
    # a UserError is the only error that never follows from the end of another process
    for report in reports:
        if report["user"] is not None:
            return UserError(*report["user"])
    for rank, code in exit_codes.items():
        if code < 0 and -code != signal.SIGTERM:
            reason = "there was no memory left" if -code == signal.SIGKILL else "the lines above say why"
            ended = f"ended by {signal.Signals(-code).name}"
            return UserError(
                f"process {rank + 1} of {processes}",
                ended,
                f"most often {reason}; run again: training resumes from the last checkpoint",
            )
    if reports:
        return RuntimeError(f"process {reports[0]['rank'] + 1} of {processes}:\n{reports[0]['traceback']}")
    return RuntimeError(f"processes ended with {exit_codes} and reported no error")
