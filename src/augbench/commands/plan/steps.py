"""Steps of a study: what one stage of one method takes, and sums of several."""

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
        A job is done when all its files are there.
    files, files_done : int
        Targets.
    images : int
        Images that it makes, downloads, trains on or looks at, each once; 0 where images are not the measure.
    gpu_hours : float, optional
        Of all of it; None where there is no figure for the study's models.
    disk_bytes, download_bytes : float
        Of all of it.
    measured : bool
        The hours come from this study's own finished jobs.
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

    @property
    def share_left(self) -> float:
        """Share of the files that are not there."""
        return 1 - self.files_done / self.files if self.files else 0.0

    @property
    def gpu_hours_left(self) -> float | None:
        """GPU-hours of what is not there."""
        return None if self.gpu_hours is None else self.gpu_hours * self.share_left


def total(steps: Iterable[Step], stage: str = "total", method: str = "") -> Step:
    """The sum of some steps; hours that are not known are left out."""
    summed: Counter[str] = Counter()
    unknown = True
    steps = list(steps)
    for step in steps:
        for name in ("jobs", "jobs_done", "files", "files_done", "images"):
            summed[name] += getattr(step, name)
        unknown = unknown and step.gpu_hours is None
    hours = None if unknown and steps else sum(step.gpu_hours or 0.0 for step in steps)
    disk, download = (
        math.fsum(getattr(step, name) for step in steps) for name in ("disk_bytes", "download_bytes")
    )
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
    """GPU-hours of what is not there, as far as they are known."""
    return math.fsum(step.gpu_hours_left or 0.0 for step in steps)
