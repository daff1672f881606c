"""The file ``lines.jsonl``: one line of JSON per window and event, which no kill can tear or double.

Each line is written at once and synced to the disk. A kill can leave a torn last line: readers ignore it, and
the next writer cuts it off, so its window is measured again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Line = dict[str, Any]
NAME = "lines.jsonl"


class Lines:
    """The lines of an output folder.

    Every line has ``kind``: ``run`` (a call of the command), ``begun``, ``built``, ``window``, ``fact``,
    ``outcome`` (of a variant without all its windows) or ``stage`` (how a stage's process ended).
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME

    def read(self) -> list[Line]:
        """Return all whole lines, in order."""
        return list(self._whole())

    def _whole(self) -> Iterator[Line]:
        if not self.path.exists():
            return
        for text in self.path.read_bytes().split(b"\n")[:-1]:  # what follows the last newline is torn
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and "kind" in line:
                yield line

    def add(self, kind: str, **values: Any) -> Line:
        """Append a line with the time; it is on the disk when this returns."""
        line = {"kind": kind, "time": time.strftime("%Y-%m-%dT%H:%M:%S"), **values}
        self._cut_torn()
        stream = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(stream, (json.dumps(line, default=str) + "\n").encode())
            os.fsync(stream)
        finally:
            os.close(stream)
        return line

    def _cut_torn(self) -> None:
        if self.path.exists() and (whole := self.path.read_bytes()) and not whole.endswith(b"\n"):
            os.truncate(self.path, whole.rfind(b"\n") + 1)


def windows(lines: list[Line], stage: str, variant: str) -> list[Line]:
    """Return the windows of a variant, in order."""
    wanted = ("window", stage, variant)
    return [line for line in lines if (line["kind"], line.get("stage"), line.get("variant")) == wanted]


def last(lines: list[Line], kind: str, stage: str, **values: Any) -> Line | None:
    """Return the last line of a kind and stage that has ``values``."""
    wanted = {"kind": kind, "stage": stage, **values}
    return next((line for line in reversed(lines) if wanted.items() <= line.items()), None)
