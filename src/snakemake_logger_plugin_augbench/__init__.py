"""Snakemake's progress as one line per finished step: ``snakemake --logger augbench``.

Flows in: Snakemake's log events. Flows out: on stderr, a line per finished step with the share done and an estimate of the
time left, and for a failed step what its log says. Estimates weigh steps by their kind, because training a classifier takes
longer than drawing a resample.
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

# Rough seconds of a step on one CPU core of the miniature study, by the beginning of its rule's name; others count 2.
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
    "its log names no error: it was killed, or had no memory left; what it had finished is kept, run again"
)
STEP_FAILED = ("RuleException", "Exiting because a job execution failed")  # our own line says more


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
    """The expected cost of a step of ``rule``."""
    return next((weight for prefix, weight in WEIGHTS.items() if rule.startswith(prefix)), 2.0)


class LogHandler(LogHandlerBase):
    """Writes to stderr; the default output stays off, ``-n`` excepted, where the caller should not use this plugin."""

    def __post_init__(self) -> None:
        self.run = _Run()

    def emit(self, record: LogRecord) -> None:
        """Turn an event into at most one line."""
        event: Any = getattr(record, "event", None)
        if event == LogEvent.RUN_INFO:
            self._plan(getattr(record, "stats", {}))
        elif event == LogEvent.JOB_INFO:
            rule = str(getattr(record, "rule_name", ""))
            step = _Step(
                rule,
                str(getattr(record, "rule_msg", None) or rule),
                list(getattr(record, "log", []) or []),
                time.monotonic(),
            )
            self.run.steps[int(record.jobid)] = step  # type: ignore[attr-defined]
        elif event == LogEvent.JOB_FINISHED:
            self._finished(int(record.job_id))  # type: ignore[attr-defined]
        elif event == LogEvent.JOB_ERROR:
            self._failed(int(record.jobid))  # type: ignore[attr-defined]
        elif event in (None, LogEvent.ERROR) and record.levelno >= ERROR and not self.run.failed:
            text = record.getMessage().strip()  # a failed step has said it better already
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
        self._say(
            f"[{run.done:>{len(str(run.total))}}/{run.total}] {clock(elapsed)} {step.message} ({now - step.started:.0f} s){eta}"
        )

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
            getLogger(__name__).debug("stderr is gone")

    @property
    def writes_to_stream(self) -> bool:
        """It takes the place of Snakemake's own stream output."""
        return True

    @property
    def writes_to_file(self) -> bool:
        """It writes no file."""
        return False

    @property
    def has_filter(self) -> bool:
        """Events are chosen here."""
        return True

    @property
    def has_formatter(self) -> bool:
        """Lines are formatted here."""
        return True

    @property
    def needs_rulegraph(self) -> bool:
        """No."""
        return False
