"""Steps of a study: the cost of one stage of one method, and sums of steps."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

STAGES = (
    "fetch",
    "prepare",
    "search",
    "retrieve",
    "finetune",
    "candidates",
    "generate",
    "select",
    "score",
    "resample",
    "classify",
    "report",
)


@dataclass(frozen=True)
class Step:
    """One stage of one method.

    Attributes
    ----------
    jobs, jobs_done : int
        A job is done when all its files exist.
    files, files_done : int
        Target files.
    images : int
        Images that the step makes, downloads, trains on or reads, each counted once; 0 if images do not
        measure its work.
    gpu_hours : float, optional
        Of the whole step; None if there is no figure for the study's models.
    disk_bytes, download_bytes : float
        Of the whole step.
    measured : bool
        Whether the hours come from this study's own finished jobs.
    training_steps : int
        Optimiser steps of each classifier that the step trains; 0 if it trains none.
    """

    stage: str
    method: str
    jobs: int
    jobs_done: int
    files: int
    files_done: int
    images: int = 0
    gpu_hours: float | None = 0.0
    disk_bytes: float = 0.0
    download_bytes: float = 0.0
    measured: bool = False
    training_steps: int = 0

    @property
    def share_left(self) -> float:
        """Share of the files that do not exist yet."""
        return 1 - self.files_done / self.files if self.files else 0.0

    @property
    def gpu_hours_left(self) -> float | None:
        """GPU-hours of the missing files."""
        return None if self.gpu_hours is None else self.gpu_hours * self.share_left


def total(steps: Iterable[Step], stage: str = "total", method: str = "") -> Step:
    """Sum some steps. Unknown hours are left out."""
    summed: Counter[str] = Counter()
    unknown = True
    steps = list(steps)
    for step in steps:
        for name in ("jobs", "jobs_done", "files", "files_done", "images"):
            summed[name] += getattr(step, name)
        unknown = unknown and step.gpu_hours is None
    hours = None if unknown and steps else sum(step.gpu_hours or 0.0 for step in steps)
    disk = math.fsum(step.disk_bytes for step in steps)
    download = math.fsum(step.download_bytes for step in steps)
    return Step(
        stage,
        method,
        **summed,
        gpu_hours=hours,
        disk_bytes=disk,
        download_bytes=download,
        measured=any(step.measured for step in steps),
    )


def hours_left(steps: Iterable[Step]) -> float:
    """Sum the known GPU-hours of missing files."""
    return math.fsum(step.gpu_hours_left or 0.0 for step in steps)
