"""Snakemake's progress as one line per finished step: ``snakemake --logger augbench``.

Each line on stderr shows the number of finished steps and an estimate of the time left. A failed step shows
the end of its log. The estimate is made kind by kind, because training a classifier takes longer than drawing
a resample.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from logging import ERROR, LogRecord, getLogger
from pathlib import Path
from typing import Any

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent
from snakemake_interface_logger_plugins.settings import LogHandlerSettingsBase

from augbench.progress import clock

# Approximate seconds of a step on one CPU core in the miniature study, by its kind; other kinds count 2. They
# are used until a step of that kind has finished in this run.
WEIGHTS = {
    "pretrain": 2000.0,
    "finetune": 20.0,
    "generate": 40.0,
    "candidates": 40.0,
    "search": 10.0,
    "classify": 40.0,
    "retrieve": 15.0,
    "embed": 90.0,
    "index": 10.0,
    "corpus": 45.0,
    "measure": 200.0,
}
HEAVY = 10.0  # weight from which a kind tells how much longer than the weights other heavy kinds take
FEWEST = 3  # finished steps before an estimate
SEEN = 0.25  # share of all steps' weights whose kinds have finished before an estimate
TARGET = "all"  # rule of no job, which only names what is to be made
LOG_TAIL = 4
CTRL_C = "KeyboardInterrupt"  # last line of Python's traceback
UNSAID = (
    "its log names no error: it was killed or ran out of memory; its finished parts are kept, so run the"
    " same command again"
)
STEP_FAILED = ("RuleException", "Exiting because a job execution failed")  # the FAILED line says more


@dataclass
class LogHandlerSettings(LogHandlerSettingsBase):
    """No settings."""


@dataclass
class _Step:
    rule: str
    message: str
    log: list[str]
    started: float


@dataclass
class _Run:
    """A run, by kind of step (:func:`kind_of`): steps to do, steps done, and the seconds that these took."""

    todo: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)
    failed: bool = False
    began: float = field(default_factory=time.monotonic)
    steps: dict[int, _Step] = field(default_factory=dict)

    def finish(self, rule: str, seconds: float) -> None:
        """Count a finished step."""
        kind = kind_of(rule)
        self.todo[kind] -= 1
        self.done[kind] += 1
        self.seconds[kind] = self.seconds.get(kind, 0.0) + seconds

    def left(self, elapsed: float) -> float | None:
        """Seconds to the end, if as many steps run side by side as in the ``elapsed`` seconds so far.

        Steps of a kind take as long as the finished ones; of a kind that has none, as long as its weight
        says, times what the finished heavy kinds took relative to theirs (a light one tells how fast Python
        starts). None while too little has finished to tell.
        """
        spent = sum(self.seconds.values())
        weights = {kind: weight_of(kind) * (self.todo[kind] + self.done[kind]) for kind in self.todo}
        seen = sum(weights[kind] for kind in self.done)
        if not spent or self.done.total() < FEWEST or seen < SEEN * sum(weights.values()):
            return None
        told = [kind for kind in self.done if weight_of(kind) >= HEAVY] or [*self.done]
        scale = sum(self.seconds[kind] for kind in told) / sum(
            weight_of(kind) * self.done[kind] for kind in told
        )
        means = {kind: seconds / self.done[kind] for kind, seconds in self.seconds.items()}
        work = sum(count * means.get(kind, scale * weight_of(kind)) for kind, count in self.todo.items())
        return elapsed * work / spent


def kind_of(rule: str) -> str:
    """Return the kind of a step: the first word of its rule's name."""
    return rule.split("_")[0]


def weight_of(rule: str) -> float:
    """Return the expected cost of a step of ``rule``, relative to other steps."""
    return WEIGHTS.get(kind_of(rule), 2.0)


class LogHandler(LogHandlerBase):
    """Log handler that writes to stderr in place of Snakemake's default output. Not for dry runs (``-n``)."""

    def __post_init__(self) -> None:
        self.run = _Run()

    def emit(self, record: LogRecord) -> None:
        """Turn an event into at most one line."""
        event: Any = getattr(record, "event", None)
        if event == LogEvent.RUN_INFO:
            self._plan(getattr(record, "stats", {}))
        elif event == LogEvent.JOB_INFO:
            rule = str(getattr(record, "rule_name", ""))
            if rule == TARGET:
                return
            message = str(getattr(record, "rule_msg", None) or rule)
            step = _Step(rule, message, list(getattr(record, "log", []) or []), time.monotonic())
            self.run.steps[int(record.jobid)] = step  # type: ignore[attr-defined]
        elif event == LogEvent.JOB_FINISHED:
            self._finished(int(record.job_id))  # type: ignore[attr-defined]
        elif event == LogEvent.JOB_ERROR:
            self._failed(int(record.jobid))  # type: ignore[attr-defined]
        elif event in (None, LogEvent.ERROR) and record.levelno >= ERROR and not self.run.failed:
            # after a failed step, Snakemake's errors only repeat what its own line has shown
            text = record.getMessage().strip()
            if text and text != "None" and not text.startswith(STEP_FAILED):
                self._say(text)

    def _plan(self, stats: dict[str, int]) -> None:
        self.run = _Run()
        for rule, number in stats.items():
            if rule not in ("total", TARGET):
                self.run.todo[kind_of(rule)] += number
        total = self.run.todo.total()
        self._say(f"{total} steps to do" if total else "nothing to be done")

    def _finished(self, jobid: int) -> None:
        step, run = self.run.steps.pop(jobid, None), self.run
        if step is None:
            return
        now = time.monotonic()
        run.finish(step.rule, now - step.started)
        elapsed, done = now - run.began, run.done.total()
        total = done + run.todo.total()
        left = run.left(elapsed) if done < total else None
        eta = "" if left is None else f", about {clock(left)} left"
        count = f"[{done:>{len(str(total))}}/{total}]"
        self._say(f"{count} {clock(elapsed)} {step.message} ({now - step.started:.0f} s){eta}")

    def _failed(self, jobid: int) -> None:
        step = self.run.steps.pop(jobid, None)
        if step is None:
            return
        self.run.failed = True
        logs = {
            log: Path(log).read_text(encoding="utf-8", errors="replace").splitlines()
            for log in step.log
            if Path(log).is_file()
        }
        if any(lines[-1:] == [CTRL_C] for lines in logs.values()):
            self._say(f"stopped by Ctrl-C: {step.message}")
            return
        self._say(f"FAILED: {step.message}")
        for log, lines in logs.items():
            for line in lines[-LOG_TAIL:]:
                self._say(f"    {line}")
            if not any("ERROR " in line for line in lines):
                self._say(f"    {UNSAID}")
            self._say(f"    the whole log: {log}")

    def _say(self, line: str) -> None:
        try:
            print(line, file=sys.stderr, flush=True)
        except OSError:
            getLogger(__name__).debug("stderr is closed")

    @property
    def writes_to_stream(self) -> bool:
        """True: this handler replaces Snakemake's own stream output."""
        return True

    @property
    def writes_to_file(self) -> bool:
        """False: this handler writes no file."""
        return False

    @property
    def has_filter(self) -> bool:
        """True: this handler selects its events."""
        return True

    @property
    def has_formatter(self) -> bool:
        """True: this handler formats its lines."""
        return True

    @property
    def needs_rulegraph(self) -> bool:
        """False: this handler does not use the rule graph."""
        return False
