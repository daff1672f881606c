"""A stage's process: measure variants in windows, in order of importance, within the stage's time.

First every variant is built and gets one window, the most important first. Then they take turns until each
has its windows or the time is up. Each window is a line on the disk when it ends. Windows that are there from
an earlier call are not measured again. A variant whose measurement ended a process before comes last. What
is left out, and why, is a line too.
"""

from __future__ import annotations

import gc
import os
import platform
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.day.gpu import Watch
from benchmarks.day.lines import Line, Lines, last, windows
from benchmarks.day.stages import COMPLETE, CUT, WITHOUT_COMPILED
from benchmarks.machine import default_type, product_rate
from benchmarks.paired import Candidate, Window, synchronise, time_window

LEAST_SECONDS = {"full": 4.0, "mini": 0.3}  # of a window


@dataclass(frozen=True)
class Ready:
    """A variant that is built.

    Attributes
    ----------
    call : callable
        Does the work once.
    items : float
        Images, samples or queries that one call makes.
    details : callable, optional
        Values to add to a window's line: what was noted since its last call. ``items`` and ``seconds`` among
        them replace the measured ones.
    loop : callable, optional
        Like ``call``, but only the loop in which nothing should wait for the GPU. Default: ``call``.
    work : callable, optional
        Floating-point operations per item.
    kernels : callable, optional
        A short call whose kernels on the GPU are listed.
    extra : mapping
        Values for every line of the variant.
    """

    call: Callable[[], object]
    items: float
    details: Callable[[], dict[str, Any]] | None = None
    loop: Callable[[], object] | None = None
    work: Callable[[], float] | None = None
    kernels: Callable[[], object] | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Variant:
    """Something to measure.

    Attributes
    ----------
    make : callable
        Builds it; compiled ones compile at the first call, which is not timed.
    windows : int
        Windows wanted.
    seconds : float
        Estimated time to build it and measure one window, on a GPU at full size.
    batch : int, optional
    alone : bool
        Whether it takes all its windows at once and is freed then, because it needs much memory.
    warm : bool
        Whether it is called once before its first window.
    """

    name: str
    make: Callable[[], Ready]
    windows: int = 5
    seconds: float = 10.0
    batch: int | None = None
    alone: bool = False
    warm: bool = True


class Session:
    """The state of a stage's process.

    Parameters
    ----------
    seconds : float
        Time of the stage, from now on; it should end before.
    scratch : Path
        Folder for large files that are not taken back.
    compiled : bool
        Whether variants that compile are measured.
    """

    def __init__(
        self,
        out: Path,
        stage: str,
        size: str,
        device: str,
        seconds: float,
        scratch: Path,
        compiled: bool = True,
    ) -> None:
        self.lines, self.stage, self.size, self.device = Lines(out), stage, size, device
        self.end, self.scratch, self.compiled = time.monotonic() + seconds, scratch, compiled
        self.watch = Watch() if device == "cuda" else None
        gpu = torch.cuda.get_device_name() if device == "cuda" else None
        self.where = {"gpu": gpu or platform.processor() or platform.machine(), "torch": torch.__version__}
        self.complete = True
        self.skipped = False

    # --- time and lines ---

    def left(self) -> float:
        """Seconds left."""
        return self.end - time.monotonic()

    def add(self, kind: str, **values: Any) -> Line:
        """Append a line of this stage."""
        return self.lines.add(kind, stage=self.stage, **self.where, **values)

    def fact(self, name: str, value: Any, **values: Any) -> None:
        """Append a figure that is no window's."""
        self.add("fact", name=name, value=value, **values)

    def ceiling(self, dtype: str) -> None:
        """Measure the rate of bare matrix products in ``dtype``, once per process."""
        self.fact("product_rate", product_rate(self.device, dtype), dtype=dtype)

    def leave_out(self, variant: str, reason: str, batch: int | None = None) -> None:
        """Record that a variant, or the rest of its windows, is left out of this call."""
        self.complete = False
        self.add("outcome", variant=variant, batch=batch, outcome="left out", reason=reason)

    def skip_compiled(self, variant: str, batch: int | None = None) -> None:
        """Record that a variant is not measured because this call was told to compile nothing."""
        self.skipped = True
        self.add("outcome", variant=variant, batch=batch, outcome="left out", reason="compilation is off")

    @property
    def dtype(self) -> str:
        """The type in which a study computes on this device by default."""
        return default_type(self.device)

    @property
    def ended(self) -> str:
        """How the stage ended: complete, complete but for compiled variants, or cut."""
        return CUT if not self.complete else WITHOUT_COMPILED if self.skipped else COMPLETE

    # --- variants ---

    def missing(self, variant: Variant) -> int:
        """Windows that a variant still needs; none if it ran out of memory before."""
        lines = self.lines.read()
        if last(lines, "outcome", self.stage, variant=variant.name, outcome="out of memory"):
            return 0
        return max(0, variant.windows - len(windows(lines, self.stage, variant.name)))

    def _failures(self, variant: Variant) -> int:
        """Times that building or measuring the variant ended its process or raised an error."""
        key = {"stage": self.stage, "variant": variant.name}
        kinds = [line["kind"] for line in self.lines.read() if key.items() <= line.items()]
        return sum(
            kind == "begun" and (number + 1 == len(kinds) or kinds[number + 1] in ("begun", "error"))
            for number, kind in enumerate(kinds)
        )

    def run(self, variants: Sequence[Variant]) -> None:
        """Measure the variants; the most important first."""
        ready: list[tuple[Variant, Ready]] = []
        for variant in sorted(variants, key=self._failures):
            if not self.missing(variant):
                continue
            built = self._build(variant)
            if built is None:
                continue
            works = self._window(variant, built, first=True)
            while variant.alone and works and self.missing(variant):
                works = self._window(variant, built)
            if works and not variant.alone:
                ready.append((variant, built))
            built = None
            self._free()
        while ready := [
            (variant, built)
            for variant, built in ready
            if self.missing(variant) and self._window(variant, built)
        ]:
            pass

    def _build(self, variant: Variant) -> Ready | None:
        """Build a variant and call it once; None if there is no time, no memory, or an error."""
        estimate = variant.seconds if self.size == "full" and self.device == "cuda" else 2.0
        if self.left() < estimate:
            self.leave_out(
                variant.name, f"needs about {estimate:.0f} s, {max(0, self.left()):.0f} s left", variant.batch
            )
            return None
        self.add("begun", variant=variant.name, batch=variant.batch)
        begin = time.monotonic()
        built = self._guarded(variant, lambda: self._first_call(variant))
        if built is not None:
            self.add("built", variant=variant.name, batch=variant.batch, seconds=time.monotonic() - begin)
        return built

    def _first_call(self, variant: Variant) -> Ready:
        built = variant.make()
        if variant.warm:
            built.call()
            synchronise(self.device)
        return built

    def _window(self, variant: Variant, built: Ready, first: bool = False) -> bool:
        """Measure one window and write its line; False if there is no time or it failed."""
        before = windows(self.lines.read(), self.stage, variant.name)
        expected = 1.2 * before[-1]["wall"] if before and not first else 0.0
        if self.left() < expected:
            self.leave_out(variant.name, f"{len(before)} of {variant.windows} windows", variant.batch)
            return False
        return self._guarded(variant, lambda: self._measured(variant, built, len(before))) is not None

    def _measured(self, variant: Variant, built: Ready, number: int) -> Line:
        if built.details is not None:
            built.details()
        begin = time.monotonic()
        window = time_window(Candidate(built.call, built.items), LEAST_SECONDS[self.size], self.device)
        end = time.monotonic()
        line = self._line(variant, built, window, number, end - begin)
        line["clocks"] = None if self.watch is None else self.watch.during(begin, end)
        written = self.add("window", **line)
        self._once(variant, built)
        return written

    def _line(
        self, variant: Variant, built: Ready, window: Window, number: int, wall: float
    ) -> dict[str, Any]:
        values: dict[str, Any] = {
            "variant": variant.name,
            "batch": variant.batch,
            "window": number,
            "items": window.work,
            "seconds": window.seconds,
            "wall": wall,
            "device_seconds": window.device_seconds,
            "processor_seconds": window.processor_seconds,
            "cores_used_by_others": window.cores_used_by_others,
            "peak_allocated": window.peak_memory,
            "peak_reserved": window.peak_reserved,
            **built.extra,
        }
        return values | (built.details() if built.details else {})

    def _once(self, variant: Variant, built: Ready) -> None:
        """Record once what needs no repetition: blocking copies, work, kernels. Errors lose only these."""
        counts: dict[str, Callable[[], Any] | None] = {"work": built.work}
        if self.device == "cuda":
            counts["blocking"] = partial(count_blocking, built.loop or built.call)
            counts["kernels"] = None if built.kernels is None else partial(list_kernels, built.kernels)
        lines = self.lines.read()
        for name, count in counts.items():
            if count is None or last(lines, "fact", self.stage, name=name, variant=variant.name):
                continue
            try:
                value = count()
            except Exception as error:
                value = f"not counted: {type(error).__name__}: {error}"[:300]
            self.fact(name, value, variant=variant.name)

    def _guarded(self, variant: Variant, action: Callable[[], Any]) -> Any:
        """Run ``action``; out of memory and errors are recorded, and give None."""
        try:
            return action()
        except torch.OutOfMemoryError as error:
            reason = str(error).partition("\n")[0][:300]
            self.add(
                "outcome", variant=variant.name, batch=variant.batch, outcome="out of memory", reason=reason
            )
        except Exception as error:
            traceback.print_exc()
            self.complete = False
            reason = f"{type(error).__name__}: {error}"[:500]
            self.add("error", variant=variant.name, batch=variant.batch, reason=reason)
            if self.device == "cuda" and "CUDA error" in reason:
                raise SystemExit("the GPU's state in this process is lost; another process goes on") from None
        self._free()
        return None

    def _free(self) -> None:
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def close(self) -> None:
        """End the clocks' sampling."""
        if self.watch is not None:
            self.watch.close()


def count_blocking(call: Callable[[], object]) -> dict[str, int]:
    """Count the places where one call waits for the GPU, by file and line, as torch's own debugging finds."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found: dict[str, int] = {}
    for warning in caught:
        if "synchroniz" in str(warning.message):
            place = f"{os.sep.join(Path(warning.filename).parts[-3:])}:{warning.lineno}"
            found[place] = found.get(place, 0) + 1
    return found


def list_kernels(call: Callable[[], object], most: int = 15) -> list[tuple[str, float]]:
    """Names of the kernels that take the longest in one call, and their milliseconds."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        call()
        torch.cuda.synchronize()
    events = sorted(profiled.key_averages(), key=lambda event: -event.device_time_total)
    return [(event.key[:120], round(event.device_time_total / 1000, 3)) for event in events[:most]]
