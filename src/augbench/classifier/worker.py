"""Run one of the processes that :mod:`augbench.classifier.launch` starts; this file is run as a script.

Input: a folder with the pickled task. Output: a pickled result or error report, in the same folder. The
process ends with the process that started it, even if that is killed, so that it neither continues writing
nor holds a GPU.
"""

from __future__ import annotations

import logging
import os
import pickle
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

TASK, RESULT, ERROR = "task", "result", "error-{}"


class Surroundings(NamedTuple):
    """Settings that a worker takes over from the process that started it: import path, threads, device."""

    path: list[str]
    parent: int
    threads: int
    device: str


class ErrorReport(TypedDict):
    """Time, process and traceback of an error; ``user`` has the parts of a ``UserError``, else None."""

    time: float
    rank: int
    user: tuple[str, str, str] | None
    traceback: str


def _end_with(parent: int) -> None:
    """End this process within a second after its parent ends."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _join(device: str) -> Any:
    """Join the other processes, at the address that the launcher has set in the environment."""
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    from augbench.classifier.compute import ProcessGroup

    group = ProcessGroup(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    # decoding can take one process longer than another; a process that fails ends the others at once
    patience = timedelta(hours=2)
    if device == "cuda":
        here = torch.device("cuda", group.rank)
        torch.cuda.set_device(here)
        dist.init_process_group("nccl", timeout=patience, device_id=here)
    else:
        dist.init_process_group("gloo", timeout=patience)
    return group


def main(folder: Path) -> None:
    """Run the task in ``folder`` and write its result or error there."""
    with (folder / TASK).open("rb") as stream:
        here = Surroundings(**pickle.load(stream))
        _end_with(here.parent)
        sys.path[:] = here.path
        from augbench.runtime import network
        from augbench.runtime.job import set_threads

        network.close_as_parent()
        set_threads(here.threads)
        # torch would warn about an option that training sets on purpose
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        rank = int(os.environ["RANK"])
        level = logging.WARNING if rank else logging.INFO
        logging.basicConfig(
            level=level,
            format="%(asctime)s %(levelname)s %(message)s",
            datefmt="%Y-%m-%d %H:%M:%S",
            stream=sys.stderr,
        )
        logging.captureWarnings(True)
        from augbench.errors import UserError

        try:
            group = _join(here.device)
            function, arguments, named = pickle.load(stream)
            result = function(group, *arguments, **named)
        except Exception as error:
            user = (error.where, str(error.found), error.allowed) if isinstance(error, UserError) else None
            report = ErrorReport(time=time.time(), rank=rank, user=user, traceback=traceback.format_exc())
            (folder / ERROR.format(rank)).write_bytes(pickle.dumps(report))
            os._exit(1)  # the launcher ends the other processes at once, and the error is printed only once
    if rank == 0:
        (folder / RESULT).write_bytes(pickle.dumps(result))
    import torch.distributed as dist

    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
