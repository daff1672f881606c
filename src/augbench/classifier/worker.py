"""One of the processes that :mod:`augbench.classifier.launch` starts; run as a script, it joins the others and does its task.

Flows in: a folder with the pickled task. Flows out: a pickled result or a report of an error, in the same folder. It ends with the process
that started it, even if that is killed: nothing goes on writing, or holds a GPU.
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
    """What a worker shares with the process that started it."""

    path: list[str]
    parent: int
    threads: int
    device: str


class ErrorReport(TypedDict):
    """An error: when, in which process; ``user``: the parts of a ``UserError``."""

    time: float
    rank: int
    user: tuple[str, str, str] | None
    traceback: str


def _end_with(parent: int) -> None:
    """End this process within a second of its parent's end."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _join(device: str) -> Any:
    """Meet the other processes, at the address that the launcher has put into the environment."""
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    from augbench.classifier.compute import ProcessGroup

    group = ProcessGroup(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    patience = timedelta(
        hours=2
    )  # decoding takes one process longer than another; one that fails ends the others at once
    if device == "cuda":
        here = torch.device("cuda", group.rank)
        torch.cuda.set_device(here)
        dist.init_process_group("nccl", timeout=patience, device_id=here)
    else:
        dist.init_process_group("gloo", timeout=patience)
    return group


def main(folder: Path) -> None:
    """Do the task in ``folder``."""
    with (folder / TASK).open("rb") as stream:
        here = Surroundings(**pickle.load(stream))
        _end_with(here.parent)
        sys.path[:] = here.path
        from augbench.runtime import network
        from augbench.runtime.job import set_threads

        network.close_as_parent()
        set_threads(here.threads)
        os.environ.setdefault(
            "TORCH_CPP_LOG_LEVEL", "ERROR"
        )  # it warns of an option that training sets on purpose
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
            os._exit(1)  # the others are told at once, and nothing is said twice
    if rank == 0:
        (folder / RESULT).write_bytes(pickle.dumps(result))
    import torch.distributed as dist

    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
