"""Publish a benchmark's result: its table on standard output, its figures as JSON if a file is given.

The result includes the command, the date and the machine.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import describe

Result = dict[str, Any]


def surroundings(script: str, arguments: Sequence[str], device: str = "cpu") -> Result:
    """Return the command, the date and the machine."""
    return {
        "command": " ".join(["python", script, *arguments]),
        "date": datetime.date.today().isoformat(),
        "machine": describe(device),
    }


def surroundings_line(record: Result) -> str:
    """Format the machine, the date and the command as a line below a table."""
    machine = record["machine"]
    device = machine.get("gpu") or f"{machine['processor']}, {machine['cores']} cores"
    return f"{device}, {machine['memory_gib']} GiB; {record['date']}; `{record['command']}`"


def publish(report: Result, table: str, path: Path | None) -> None:
    """Print the table; write all figures to ``path`` if it is given."""
    print(table)
    if path:
        path.write_text(json.dumps(report, indent=2) + "\n")
