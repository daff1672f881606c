"""Run the stages one after another, each in its own process with a share of the time and a hard limit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.day.lines import Line, Lines, last
from benchmarks.day.processes import kill_group, start
from benchmarks.day.stages import COMPLETE, MOST_SECONDS, WITHOUT_COMPILED, Stage

ROOT = Path(__file__).resolve().parents[2]
USUAL_SECONDS = 25.0  # a stage gets at least this if there is so much
LEAST_SECONDS = 10.0  # a stage with less time is left out
GRACE = 0.15  # share of its time after which a stage that does not end is killed, at least GRACE_SECONDS
GRACE_SECONDS = 10.0
SAID = 1500  # characters of the end of a failed stage's log that go into its line


@dataclass(frozen=True)
class Settings:
    """What one call of the command measures, and where.

    Attributes
    ----------
    out : Path
        Folder of the small files to take back.
    scratch : Path
        Folder of large files that stay: kernels, models, unpacked wheels.
    end : float
        Time of ``time.monotonic`` when everything has to be done.
    site : Path, optional
        Folder of packages that this Python lacks.
    """

    out: Path
    scratch: Path
    size: str
    device: str
    compiled: bool
    end: float
    site: Path | None = None

    def left(self) -> float:
        """Seconds left."""
        return self.end - time.monotonic()


def environment(scratch: Path, site: Path | None) -> dict[str, str]:
    """Return the environment of a stage: no network, our modules and packages, the shared kernel cache."""
    paths = [str(path) for path in (ROOT / "src", ROOT, site) if path is not None]
    paths += [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCHINDUCTOR_CACHE_DIR": str(scratch / "kernels"),
    }


def share(stage: Stage, waiting: Sequence[Stage], left: float) -> float:
    """Seconds for a stage: its share among those that wait, from 25 s to 8 minutes, never more than left."""
    part = left * stage.seconds / sum(other.seconds for other in waiting)
    return min(max(part, USUAL_SECONDS), MOST_SECONDS, left)


def is_complete(lines: list[Line], stage: Stage, compiled: bool) -> bool:
    """Whether a stage has everything that it can measure, with or without compiled variants."""
    ended = last(lines, "stage", stage.name)
    return ended is not None and ended["ended"] in ((COMPLETE,) if compiled else (COMPLETE, WITHOUT_COMPILED))


def run_stage(stage: Stage, seconds: float, settings: Settings) -> str:
    """Run a stage within ``seconds``; return how it ended: complete (or so), cut, killed or crashed."""
    lines, limit = Lines(settings.out), seconds - max(GRACE_SECONDS, GRACE * seconds) * (seconds > 40)
    options = {
        "out": str(settings.out),
        "stage": stage.name,
        "module": stage.module,
        "size": settings.size,
        "device": settings.device,
        "end": time.monotonic() + limit,  # the process's imports are part of its time
        "scratch": str(settings.scratch),
        "compiled": settings.compiled,
    }
    log = settings.scratch / f"{stage.name}.log"
    before = len(lines.read())
    begin = time.monotonic()
    with log.open("w") as stream:
        process = start(
            [sys.executable, "-m", "benchmarks.day.stage", json.dumps(options)],
            environment(settings.scratch, settings.site),
            stream,
            own_group=True,
        )
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            code = process.poll()
            kill_group(process)
    ended = last(lines.read()[before:], "stage", stage.name)
    if ended is not None:
        return str(ended["ended"])
    how = "killed" if code is None else "crashed"
    reason = "it did not end in its time" if code is None else f"exit status {code}"
    lines.add(
        "stage",
        stage=stage.name,
        ended=how,
        reason=reason,
        seconds=round(time.monotonic() - begin, 1),
        log=log.read_text(errors="replace")[-SAID:],
    )
    return how


def run_stages(stages: Sequence[Stage], settings: Settings) -> None:
    """Run the stages that are not complete; a crashed one is tried once more, then the next follows."""
    lines = Lines(settings.out)
    waiting = [stage for stage in stages if not is_complete(lines.read(), stage, settings.compiled)]
    while waiting:
        stage = waiting[0]
        for _ in range(2):
            seconds = share(stage, waiting, settings.left())
            if seconds < LEAST_SECONDS:
                lines.add("stage", stage=stage.name, ended="left out", reason=f"{seconds:.0f} s left for it")
                break
            begin = time.monotonic()
            print(f"{stage.name}: {stage.says}: at most {seconds:.0f} s", flush=True)
            how = run_stage(stage, seconds, settings)
            print(f"{stage.name}: {how} after {time.monotonic() - begin:.0f} s", flush=True)
            if how != "crashed":
                break
        waiting = waiting[1:]
