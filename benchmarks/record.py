"""What every benchmark leaves: its table on the terminal, its figures as JSON, and beside them the command, the date and the machine.

Flows in: figures and a table of them. Flows out: standard output, and a file where one is asked for.
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
    """The command, the date and the machine, for the record."""
    return {
        "command": " ".join(["python", script, *arguments]),
        "date": datetime.date.today().isoformat(),
        "machine": describe(device),
    }


def surroundings_line(record: Result) -> str:
    """The same as a line below a table."""
    machine = record["machine"]
    device = machine.get("gpu") or f"{machine['processor']}, {machine['cores']} cores"
    return f"{device}, {machine['memory_gib']} GiB; {record['date']}; `{record['command']}`"


def publish(report: Result, table: str, path: Path | None) -> None:
    """Print the table; write all figures to ``path``, if there is one."""
    print(table)
    if path:
        path.write_text(json.dumps(report, indent=2) + "\n")
