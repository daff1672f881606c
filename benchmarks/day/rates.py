"""Rates, ratios and shares of the device's limits from the lines of windows."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.day.lines import Line, last, windows

WHOLE_STEPS = {"full": 50, "mini": 10}  # of an image; windows of the exact mode have fewer
# variants whose work per item is that of another one
SAME_WORK = {
    ("classifier", "ours"): ("classifier", "our step, batch ready"),
    ("classifier", "ours, compiled"): ("classifier", "our step, batch ready"),
}


def rate(line: Line, size: str) -> float:
    """Items per second of a window.

    An image of W steps takes the window's seconds per image, plus W minus the window's steps times the
    measured seconds of a step, divided by the images of a step.
    """
    seconds = line["seconds"] / line["items"]
    if line.get("mode") == "exact" and "step_seconds" in line:
        seconds += (WHOLE_STEPS[size] - line["steps"]) * line["step_seconds"] / line["batch"]
    return 1 / seconds


@dataclass(frozen=True)
class Measured:
    """A variant's rates, one per window."""

    stage: str
    variant: str
    lines: Sequence[Line]
    rates: Sequence[float]

    @property
    def median(self) -> float:
        """Median rate."""
        return statistics.median(self.rates)

    def spread(self, convert: Callable[[float], float] = lambda rate: rate) -> str:
        """Format the median, and the least and the most of several windows."""
        values = sorted(map(convert, self.rates))
        middle = f"{statistics.median(values):.4g}"
        return middle if len(values) == 1 else f"{middle} ({values[0]:.4g} to {values[-1]:.4g})"


def measured(lines: list[Line], stage: str, variant: str, size: str) -> Measured | None:
    """Return the rates of a variant; None without windows."""
    found = windows(lines, stage, variant)
    return Measured(stage, variant, found, [rate(line, size) for line in found]) if found else None


def best(lines: list[Line], stage: str, name: str, size: str) -> Measured | None:
    """Return the fastest variant that is called ``name``, or ``name`` with a batch size."""
    names = dict.fromkeys(
        line["variant"]
        for line in lines
        if line["kind"] == "window"
        and line["stage"] == stage
        and (line["variant"] == name or line["variant"].startswith(f"{name}, batches of "))
    )
    found = [measured(lines, stage, variant, size) for variant in names]
    return max((one for one in found if one is not None), key=lambda one: one.median, default=None)


def _work(lines: list[Line], stage: str, variant: str) -> float | None:
    stage, variant = SAME_WORK.get((stage, variant), (stage, variant))
    names = [variant, variant.replace(", compiled", "")]
    if stage.startswith("generation") and "fast" not in variant:
        names += ["ours, eager", "ours, compiled"]
    for name in names:
        fact = last(lines, "fact", stage, name="work", variant=name)
        if fact is not None and isinstance(fact["value"], float | int):
            return float(fact["value"])
    return None


def share_of_products(lines: list[Line], found: Measured) -> float | None:
    """Share of the rate of bare matrix products, measured in the same process or its stage's last one."""
    work = _work(lines, found.stage, found.variant)
    ceiling = last(lines, "fact", found.stage, name="product_rate")
    return None if work is None or ceiling is None else found.median * work / ceiling["value"]


def share_of_copies(lines: list[Line], found: Measured) -> float | None:
    """Share of the rate of copies in memory at which a search goes through its vectors."""
    copies, line = last(lines, "fact", found.stage, name="copy_rate"), found.lines[0]
    if copies is None or "bytes_per_vector" not in line:
        return None
    return found.median / line["queries"] * line["bytes_per_vector"] / copies["value"]
