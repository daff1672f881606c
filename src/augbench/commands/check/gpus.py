"""Checks of this machine's GPUs: torch can use them, and batches fit into their memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from augbench.commands.plan.memory import shortages
from augbench.config.study import Study
from augbench.runtime.gpus import ask_torch, driver_version, gpu_is_here, problem


def gpu_warnings(study: Study, root: Path = Path("/")) -> Iterator[str]:
    """Yield a warning for each batch that does not fit the GPU that is here.

    Torch is asked in a process of its own, and only where there is a GPU.

    Parameters
    ----------
    root : Path
        Folder that has ``dev`` and ``proc``.

    Raises
    ------
    UserError
        Torch can't use the GPU, or can't be imported.
    """
    if study.execution.device == "cpu" or not gpu_is_here(root):
        return
    view = ask_torch()
    if found := problem(study.execution.device, view, driver_version(root)):
        raise found
    smallest = min(view.cards, key=lambda card: card.memory)
    for line in shortages(study, smallest.name, smallest.memory / 2**30):
        yield f"warning: {line}"
