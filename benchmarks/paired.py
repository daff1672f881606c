"""Time candidates in turn in one process: A, B, A, B, ...

Other load and the temperature of the machine then affect all of them alike. Input: callables by name, each
with the number of units (images, samples) that one call makes. Output: seconds of every window, rates, the
ratio of each candidate's rate to the baseline's window by window, and the cores that other processes used
meanwhile; as a Markdown table and as plain values for JSON.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.machine import Neighbours

Result = dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """A callable to time.

    Attributes
    ----------
    call : callable
        Does the work once. Its result is ignored. Work that it leaves queued on the device is waited for.
    work : float
        Units (images, samples) that one call makes.
    """

    call: Callable[[], object]
    work: float = 1.0


@dataclass(frozen=True)
class Window:
    """One measurement of one candidate: ``work`` units in ``seconds`` seconds.

    Attributes
    ----------
    processor_seconds : float
        Used by this process and by its children that ended meanwhile.
    cores_used_by_others : float
        Processor cores used by all other processes, on average.
    peak_memory, peak_reserved : int, optional
        Bytes of device memory, in use and taken by torch; None on a CPU.
    device_seconds : float, optional
        Between events on the GPU before the first call and after the last one; None on a CPU.
    """

    work: float
    seconds: float
    processor_seconds: float
    cores_used_by_others: float
    peak_memory: int | None = None
    peak_reserved: int | None = None
    device_seconds: float | None = None

    @property
    def rate(self) -> float:
        """Units per second."""
        return self.work / self.seconds


@dataclass(frozen=True)
class Paired:
    """Windows by candidate, in the order measured; windows with the same index are compared."""

    baseline: str
    windows: dict[str, list[Window]] = field(default_factory=dict)

    def rate(self, name: str) -> float:
        """Median rate of a candidate, units per second."""
        return statistics.median(window.rate for window in self.windows[name])

    def ratios(self, name: str, baseline: str | None = None) -> list[float]:
        """A candidate's rate as a multiple of the baseline's, window by window."""
        return [
            window.rate / base.rate
            for window, base in zip(self.windows[name], self.windows[baseline or self.baseline], strict=True)
        ]

    def summary(self) -> Result:
        """Return rates, ratios to the baseline, processor time, peak memory and windows as plain values."""
        found: Result = {}
        for name, windows in self.windows.items():
            rates, ratios = sorted(window.rate for window in windows), sorted(self.ratios(name))
            peaks = [window.peak_memory for window in windows if window.peak_memory is not None]
            found[name] = {
                "rate": {"median": statistics.median(rates), "least": rates[0], "most": rates[-1]},
                "ratio": {"median": statistics.median(ratios), "least": ratios[0], "most": ratios[-1]},
                "processor_seconds_per_unit": statistics.median(
                    window.processor_seconds / window.work for window in windows
                ),
                "peak_memory": max(peaks, default=None),
                "cores_used_by_others": max(window.cores_used_by_others for window in windows),
                "windows": [vars(window) for window in windows],
            }
        return found

    def markdown(self, unit: str) -> str:
        """Return a table with a row per candidate: medians, with the range of the windows in brackets."""
        lines = [
            f"| | {unit}s per second | times {self.baseline} | processor seconds per {unit} "
            "| peak memory, GB |",
            "|---|---:|---:|---:|---:|",
        ]
        for name, row in self.summary().items():
            rate, ratio = (
                f"{row[key]['median']:.3g} ({row[key]['least']:.3g} to {row[key]['most']:.3g})"
                for key in ("rate", "ratio")
            )
            peak = "" if row["peak_memory"] is None else f"{row['peak_memory'] / 1e9:.1f}"
            lines.append(f"| {name} | {rate} | {ratio} | {row['processor_seconds_per_unit']:.3g} | {peak} |")
        return "\n".join(lines)


def synchronise(device: str) -> None:
    """Wait until the device has finished all queued work."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def time_window(candidate: Candidate, least_seconds: float, device: str) -> Window:
    """Call the candidate at least once, and until ``least_seconds`` have passed."""
    events: list[Any] = []
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    synchronise(device)
    calls = 0
    with Neighbours() as neighbours:
        start = time.perf_counter()
        for event in events[:1]:
            event.record()
        while True:
            candidate.call()
            for event in events[1:]:
                event.record()
            synchronise(device)
            calls += 1
            if time.perf_counter() - start >= least_seconds:
                break
    window = Window(calls * candidate.work, neighbours.seconds, neighbours.own, neighbours.cores)
    if device == "cuda":
        peaks = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        window = replace(
            window,
            peak_memory=peaks[0],
            peak_reserved=peaks[1],
            device_seconds=events[0].elapsed_time(events[1]) / 1000,
        )
    return window


def run_paired(
    candidates: Mapping[str, Candidate],
    device: str = "cpu",
    repeats: int = 5,
    least_seconds: float = 10.0,
    warm_up: int = 1,
    said: Callable[[str], object] = lambda line: None,
) -> Paired:
    """Time the candidates in turn, ``repeats`` windows each; the first one is the baseline.

    Parameters
    ----------
    device : str
        ``cpu`` or ``cuda``: the device to wait for after each call.
    least_seconds : float
        Minimum length of a window.
    warm_up : int
        Calls of each candidate before anything is timed.
    said : callable
        Called with a line for each window, for example ``print``.
    """
    for candidate in candidates.values():
        for _ in range(warm_up):
            candidate.call()
    paired = Paired(next(iter(candidates)), {name: [] for name in candidates})
    for repeat in range(repeats):
        for name, candidate in candidates.items():
            window = time_window(candidate, least_seconds, device)
            paired.windows[name].append(window)
            said(
                f"window {repeat + 1} of {repeats}: {name}: {window.rate:.4g} per second, "
                f"{window.cores_used_by_others} cores used by others"
            )
    return paired
