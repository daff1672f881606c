"""Start-up (G8): from the start of a process to the first batch's first step, without and with kernels.

Each window is a process of its own (:mod:`benchmarks.day.first_step`). The compiled ones use the kernel cache
that the other stages use too: the first fills it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.day.generation import BATCH
from benchmarks.day.processes import start
from benchmarks.day.session import Ready, Session, Variant
from benchmarks.networks import RESOLUTION, random_pipeline

EAGER, COLD, WARM = "eager", "compiled, no kernels", "compiled, kernels there"


def save_model(session: Session) -> Path:
    """Write a random pipeline in diffusers' layout, once per machine; return its folder."""
    folder = session.scratch / f"model_{session.size}"
    if not (folder / "model_index.json").exists():
        half = torch.float16 if session.device == "cuda" else torch.float32
        random_pipeline(session.size, session.device).to(dtype=half).save_pretrained(folder)
    return folder


class FirstStep:
    """Runs one process after another, and keeps what each reports."""

    def __init__(self, session: Session, folder: Path, compiled: bool) -> None:
        self.session, self.reported = session, []  # type: ignore[var-annotated]
        options = {
            "folder": str(folder),
            "device": session.device,
            "batch": BATCH[session.size],
            "resolution": RESOLUTION[session.size],
            "compiled": compiled,
        }
        self.command = [sys.executable, "-m", "benchmarks.day.first_step", json.dumps(options)]

    def __call__(self) -> None:
        environment = {**os.environ, "AUGBENCH_STARTED": repr(time.monotonic())}
        process = start(self.command, environment, subprocess.PIPE)
        try:
            said, _ = process.communicate(timeout=max(1.0, self.session.left()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise RuntimeError("its process did not end in the stage's time") from None
        if process.returncode:
            raise RuntimeError(said[-400:])
        self.reported.append(json.loads(said.splitlines()[-1]))

    def details(self) -> dict[str, Any]:
        """Return the seconds to each milestone of the last process."""
        reported, self.reported = self.reported, []
        if not reported:
            return {}
        return {
            "items": len(reported),
            "seconds": sum(found["first_step"] for found in reported),
            "milestones": reported[-1],
        }


def measure(session: Session) -> None:
    """Measure processes without and, if compilation is on, with compiled networks."""
    folder = save_model(session)

    def made(compiled: bool, empty: bool = False) -> Callable[[], Ready]:
        def make() -> Ready:
            if empty:
                shutil.rmtree(os.environ["TORCHINDUCTOR_CACHE_DIR"], ignore_errors=True)
            process = FirstStep(session, folder, compiled)
            return Ready(process, 1, process.details, loop=lambda: None)

        return make

    variants = [
        Variant(COLD, made(True, empty=True), 1, 60, warm=False),
        Variant(EAGER, made(False), 2, 30, warm=False),
        Variant(WARM, made(True), 3, 30, warm=False),
    ]
    if session.compiled:
        session.run(variants)
    else:
        for variant in variants[::2]:
            session.skip_compiled(variant.name)
        session.run(variants[1:2])
