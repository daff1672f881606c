"""Compute resources for training and scoring: device, processes, storage of images.

These settings never change results, except for floating-point rounding.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist

from augbench.config.stages import Execution
from augbench.errors import UserError
from augbench.files import expand_path

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train one classifier together; this process is number ``rank`` of ``size``."""

    rank: int = 0
    size: int = 1

    def share(self, batch: np.ndarray, groups: int = 1) -> np.ndarray:
        """Return this process's part of a batch; the parts of all processes, by rank, make the batch.

        It consists of whole groups if the batch is split into a multiple of the number of processes.
        """
        parts = np.array_split(batch, math.lcm(self.size, groups))
        per_process = len(parts) // self.size
        return np.concatenate(parts[self.rank * per_process : (self.rank + 1) * per_process])

    def rows(self, count: int) -> slice:
        """Return this process's contiguous part of ``count`` items."""
        mine = self.share(np.arange(count))
        return slice(int(mine[0]), int(mine[-1]) + 1) if len(mine) else slice(0, 0)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over all processes, in place if there are several; the same bits in each."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def collect(self, value: Any) -> list[Any]:
        """Return the ``value`` of every process, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def copy_first(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite tensors with those of process 0."""
        for tensor in tensors if self.size > 1 else ():
            dist.broadcast(tensor, src=0)

    def of_first(self, value: Any) -> Any:
        """Return the ``value`` of process 0."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]


@dataclass(frozen=True)
class Storage:
    """Where decoded images are kept.

    Attributes
    ----------
    where : str
        ``execution.image_pool``.
    scratch : Path or None
        Folder for a file of images; None: the system's folder for temporary files.
    """

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
    """Return the :class:`Compute` of the config; ``default_scratch`` is used if it names no folder.

    Raises
    ------
    UserError
        ``execution.scratch`` names an environment variable that is not set.
    """
    scratch = default_scratch
    if execution.scratch is not None:
        scratch = expand_path("execution.scratch", execution.scratch)
    return Compute(device, group or ProcessGroup(), Storage(execution.image_pool, scratch), execution.compile)


def count_processes(execution: Execution, device: torch.device, groups: int = 1) -> int:
    """Number of processes that train a classifier: ``execution.processes``, or one per visible GPU.

    If batches are normalised in ``groups``, it is the largest number of GPUs that divides them.

    Raises
    ------
    UserError
        More processes than GPUs.
    """
    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    most = max(1, gpus)
    fitting = next(count for count in range(most, 0, -1) if groups == 1 or groups % count == 0)
    if execution.processes is None and fitting < most:
        logger.warning(
            "%d of %d visible GPUs train: classifier.batch_norm_groups is %d, which they divide",
            fitting, most, groups,
        )  # fmt: skip
    wanted = execution.processes or fitting
    if device.type == "cuda" and wanted > gpus:
        allowed = (
            f"at most one per visible GPU, here {gpus}; default-resources: gpus_per_job gives a job more"
        )
        raise UserError("execution.processes", wanted, allowed)
    return wanted
