"""The stages, in the order in which they run, with their shares of the time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """A stage: one process that measures the variants of one subject.

    Attributes
    ----------
    seconds : float
        Time it takes on an H200 (estimated). The stages share the time in this proportion.
    module : str
        Module with its function ``measure(session)``.
    says : str
        What it measures, for the table.
    """

    name: str
    seconds: float
    module: str
    says: str


# how a stage can end by itself; otherwise it was killed or crashed
COMPLETE, WITHOUT_COMPILED, CUT = "complete", "complete but for compiled variants", "cut"
STAGES = (
    Stage("ceilings", 20, "benchmarks.day.ceilings", "matrix products, copies"),
    Stage("generation", 110, "benchmarks.day.generation", "generation, eager (G1, G2)"),
    Stage(
        "startup", 160, "benchmarks.day.startup", "start to the first step (G8), which fills the kernel cache"
    ),
    Stage("generation_compiled", 90, "benchmarks.day.generation", "generation, compiled (G1, G2)"),
    Stage("classifier", 60, "benchmarks.day.classifier", "ResNet-50 (G3)"),
    Stage(
        "personalise", 90, "benchmarks.day.personalise", "fine-tuning of many classes, and of U-Nets (G6, G7)"
    ),
    Stage("embed", 60, "benchmarks.day.embed", "CLIP's image tower (G4)"),
    Stage("search", 30, "benchmarks.day.search", "exact search (G5)"),
)
BY_NAME = {stage.name: stage for stage in STAGES}
MOST_SECONDS = 480.0  # of one stage
