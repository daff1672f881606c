"""What classifiers are trained with: device, processes, where images are kept. None of it changes a result but in float rounding.

Flows in: the ``execution`` section and, in a process of a group, its rank. Flows out: a :class:`Compute`, handed to training and scoring.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist

from augbench.config.stages import Execution
from augbench.errors import UserError


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train one classifier together; this one is number ``rank`` of ``size``."""

    rank: int = 0
    size: int = 1

    def share(self, batch: np.ndarray) -> np.ndarray:
        """What this process does of a batch; the parts of all processes, laid end to end, are the batch."""
        return np.array_split(batch, self.size)[self.rank]

    def rows(self, count: int) -> slice:
        """Which of ``count`` things this process does, a contiguous part."""
        mine = self.share(np.arange(count))
        return slice(int(mine[0]), int(mine[-1]) + 1) if len(mine) else slice(0, 0)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, the same bits in each."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def collect(self, value: Any) -> list[Any]:
        """``value`` of every process, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def of_first(self, value: Any) -> Any:
        """``value`` of process 0."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]


@dataclass(frozen=True)
class Storage:
    """Where decoded images are kept: ``execution.image_pool``, and the folder for a file of them (None: the system's)."""

    where: Literal["auto", "device", "memory", "disk"] = "auto"
    scratch: Path | None = None


@dataclass(frozen=True)
class Compute:
    """Device, processes, storage, and whether the network is compiled."""

    device: torch.device
    group: ProcessGroup = ProcessGroup()
    storage: Storage = Storage()
    compiled: bool = False


def compute_of(
    execution: Execution, device: torch.device, default_scratch: Path, group: ProcessGroup | None = None
) -> Compute:
    """What the config says.

    Raises
    ------
    UserError
        ``execution.scratch`` names an environment variable that is not set.
    """
    scratch = default_scratch
    if execution.scratch is not None:
        expanded = os.path.expandvars(execution.scratch)
        if "$" in expanded:
            raise UserError(
                "execution.scratch",
                f"{execution.scratch!r}, and there is no such environment variable here",
                "allowed: a folder, or null",
            )
        scratch = Path(expanded).expanduser()
    return Compute(device, group or ProcessGroup(), Storage(execution.image_pool, scratch), execution.compile)


def count_processes(execution: Execution, device: torch.device) -> int:
    """Processes that train one classifier: ``execution.processes``, by default one per visible GPU.

    Raises
    ------
    UserError
        More processes than GPUs.
    """
    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    wanted = execution.processes or max(1, gpus)
    if device.type == "cuda" and wanted > gpus:
        raise UserError("execution.processes", wanted, f"at most one per visible GPU, here {gpus}")
    return wanted
