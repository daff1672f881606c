"""Read the GPU's state through nvidia-smi: nothing is ever set. Without the program, everything is None."""

from __future__ import annotations

import csv
import os
import shutil
import statistics
import subprocess
import threading
import time
from typing import Any

from benchmarks.day.processes import start

Values = dict[str, Any]
STATE = (
    "name",
    "uuid",
    "driver_version",
    "vbios_version",
    "memory.total",
    "memory.used",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "clocks.max.mem",
    "power.draw",
    "power.limit",
    "power.default_limit",
    "temperature.gpu",
    "utilization.gpu",
    "compute_mode",
    "mig.mode.current",
)
SAMPLED = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "utilization.gpu")
INTERVAL_MS = 250


def _which() -> str:
    """Return nvidia-smi's option for the GPU that torch calls the first."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    return f"--id={visible or 0}"


def _command(*arguments: str) -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _query(fields: tuple[str, ...]) -> Values:
    """Values of the first GPU; fields that the driver doesn't know are asked one by one and left out."""
    asked = _command(f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", _which())
    if asked is None:
        return {} if len(fields) == 1 else {k: v for field in fields for k, v in _query((field,)).items()}
    row = next(csv.reader([asked.strip().splitlines()[0]], skipinitialspace=True))
    return dict(zip(fields, row, strict=False))


def state() -> Values | None:
    """Return the GPU's state and the processes on it; None without nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return None
    processes = _command("--query-compute-apps=pid,process_name,used_memory", "--format=csv,noheader")
    head = (_command() or "").splitlines()
    version = next(
        (line.split("CUDA Version:")[1].split()[0] for line in head if "CUDA Version:" in line), None
    )
    return {
        **_query(STATE),
        "cuda_of_driver": version,
        "processes": (processes or "").strip().splitlines(),
    }


class Watch:
    """Samples clocks, power and temperature until :meth:`close`; :meth:`during` summarises a period."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, list[float | None]]] = []
        self.process = None
        if program := shutil.which("nvidia-smi"):
            query = f"--query-gpu={','.join(SAMPLED)}"
            self.process = start(
                [program, query, "--format=csv,noheader,nounits", _which(), f"--loop-ms={INTERVAL_MS}"],
                output=subprocess.PIPE,
            )
            threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process is not None and self.process.stdout is not None
        for line in self.process.stdout:
            row = [_number(cell) for cell in line.split(",")]
            if len(row) == len(SAMPLED):
                self.samples.append((time.monotonic(), row))

    def during(self, begin: float, end: float) -> Values | None:
        """Median of each reading between two times of ``time.monotonic``; None if there is none."""
        rows = [row for moment, row in list(self.samples) if begin <= moment <= end]
        if not rows:
            return None
        columns = ([value for value in column if value is not None] for column in zip(*rows, strict=True))
        return {
            name: statistics.median(values) if values else None
            for name, values in zip(SAMPLED, columns, strict=True)
        }

    def close(self) -> None:
        """End the sampling."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:  # "[N/A]"
        return None
