"""Snakemake's progress as one line per finished step: ``snakemake --logger augbench``.

Each line on stderr shows the number of finished steps and an estimate of the time left. A failed step shows
the end of its log. Estimates weigh steps by their rule, because training a classifier takes longer than
drawing a resample.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from logging import ERROR, LogRecord, getLogger
from pathlib import Path
from typing import Any

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent
from snakemake_interface_logger_plugins.settings import LogHandlerSettingsBase

from augbench.progress import clock

# Approximate seconds of a step on one CPU core in the miniature study, by the beginning of its rule's name.
# Other rules count 2.
WEIGHTS = {
    "pretrain_": 2000.0,
    "generate": 40.0,
    "classify": 60.0,
    "retrieve": 15.0,
    "embed_corpus": 90.0,
    "index_corpus": 10.0,
    "corpus": 45.0,
    "measure": 200.0,
}
LOG_TAIL = 4
UNSAID = (
    "its log names no error: it was killed or ran out of memory; "
    "its finished parts are kept, so run the same command again"
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
    total: int = 0
    done: int = 0
    weight_total: float = 0.0
    weight_done: float = 0.0
    failed: bool = False
    began: float = field(default_factory=time.monotonic)
    steps: dict[int, _Step] = field(default_factory=dict)


def weight_of(rule: str) -> float:
    """Return the expected cost of a step of ``rule``, relative to other steps."""
    return next((weight for prefix, weight in WEIGHTS.items() if rule.startswith(prefix)), 2.0)


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
        counts = {rule: number for rule, number in stats.items() if rule != "total"}
        self.run = _Run(
            total=sum(counts.values()),
            weight_total=sum(weight_of(rule) * number for rule, number in counts.items()),
        )
        self._say(f"{self.run.total} steps to do" if self.run.total else "nothing to be done")

    def _finished(self, jobid: int) -> None:
        step, run = self.run.steps.pop(jobid, None), self.run
        if step is None:
            return
        now = time.monotonic()
        run.done += 1
        run.weight_done += weight_of(step.rule)
        elapsed = now - run.began
        left = elapsed * (run.weight_total - run.weight_done) / run.weight_done
        eta = f", about {clock(left)} left" if run.done < run.total else ""
        count = f"[{run.done:>{len(str(run.total))}}/{run.total}]"
        self._say(f"{count} {clock(elapsed)} {step.message} ({now - step.started:.0f} s){eta}")

    def _failed(self, jobid: int) -> None:
        step = self.run.steps.pop(jobid, None)
        if step is None:
            return
        self.run.failed = True
        self._say(f"FAILED: {step.message}")
        for log in step.log:
            if Path(log).is_file():
                lines = Path(log).read_text(encoding="utf-8", errors="replace").splitlines()
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
