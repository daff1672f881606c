"""Log the progress of long work as plain lines: steps done, rate, time spent and time left.

One line is logged every few seconds, and one at the end.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

logger = logging.getLogger(__name__)
T = TypeVar("T")


def clock(seconds: float) -> str:
    """Seconds as ``m:ss`` or ``h:mm:ss``."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


class Progress:
    """Count steps and log a line at most every ``interval`` seconds.

    Parameters
    ----------
    what : str
        Name of the work; begins each line.
    total : int
        Total number of steps.
    unit : str
        Name of a step ("image").
    done : int
        Steps done before this process (in a resumed run); the rate excludes them.
    interval : float
        Seconds between lines.
    """

    def __init__(
        self, what: str, total: int, unit: str = "step", done: int = 0, interval: float = 10.0
    ) -> None:
        self.what, self.total, self.unit, self.done, self.interval = what, total, unit, done, interval
        self.first = done
        self.start = self.last = time.monotonic()

    def update(self, steps: int = 1, note: str = "") -> None:
        """Count ``steps`` more; log a line with ``note`` at its end if one is due."""
        self.done += steps
        now = time.monotonic()
        if now - self.last < self.interval and self.done < self.total:
            return
        self.last = now
        elapsed = now - self.start
        rate = (self.done - self.first) / elapsed if elapsed > 0 else 0.0
        left = f", ETA {clock((self.total - self.done) / rate)}" if rate and self.done < self.total else ""
        ending = f"{left}; {note}" if note else left
        logger.info(
            "%s: %d/%d %ss, %.3g %ss/s, %s%s",
            self.what, self.done, self.total, self.unit, rate, self.unit, clock(elapsed), ending,
        )  # fmt: skip


def track(
    items: Iterable[T], what: str, unit: str = "item", total: int | None = None, done: int = 0
) -> Iterator[T]:
    """Yield ``items`` and log their progress (:class:`Progress`); ``total`` includes the first ``done``."""
    if total is None:
        assert isinstance(items, Sized)
        total = len(items)
    progress = Progress(what, total, unit, done)
    for item in items:
        yield item
        progress.update()
