"""The process of one stage; :mod:`benchmarks.day.runner` starts it and limits its time."""

from __future__ import annotations

import importlib
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.day.processes import alone


def main(options: dict[str, Any]) -> None:
    """Measure the stage, and write how it ended."""
    module = importlib.import_module(options["module"])
    from benchmarks.day.session import Session

    logging.basicConfig(level=logging.WARNING)
    out = Path(options["out"])
    with alone(out / ".stage.lock", 30):
        session = Session(
            out,
            options["stage"],
            options["size"],
            options["device"],
            options["end"] - time.monotonic(),
            Path(options["scratch"]),
            options["compiled"],
        )
        try:
            module.measure(session)
        finally:
            session.close()
        session.add("stage", ended=session.ended)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
