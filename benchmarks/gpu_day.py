"""Measure all goals (G1 to G8) on a GPU that one has for minutes: one command, no network, nothing stays.

Input: minutes. Output, in ``--out``: ``lines.jsonl`` (a line per window), ``table.md`` (each goal beside its
baseline), ``preflight.json`` (the machine) and, on a GPU, ``throughput.yaml`` (for ``augbench plan``). The
networks have the real architectures and random weights. The same command again resumes: windows that are
there are not repeated. ``--pack DIR`` makes the folder to bring to a machine without network.

Each stage is a process of its own with a time limit, so that a crash or a hang loses one stage only.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.day import preflight, table
from benchmarks.day.lines import Lines
from benchmarks.day.pack import PYTHONS, pack
from benchmarks.day.processes import alone
from benchmarks.day.runner import ROOT, Settings, environment, run_stages
from benchmarks.day.stages import BY_NAME, STAGES
from benchmarks.day.wheels import provide

ENDING_SECONDS = 8.0  # kept for the table


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, help="folder of the results; an earlier call's are completed")
    parser.add_argument("--minutes", type=float, default=9.0, help="time of the whole call")
    parser.add_argument(
        "--stage",
        nargs="+",
        choices=["preflight", *BY_NAME, "table"],
        help="only these; the preflight comes first anyway",
    )
    parser.add_argument("--size", choices=["full", "mini"], default="full", help="architectures")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument(
        "--compile",
        choices=["on", "off"],
        help="compiled variants; default: on; off with --size mini, where compilation takes too long",
    )
    parser.add_argument(
        "--scratch", type=Path, help="folder for kernels and models, which stay; default: a temporary folder"
    )
    parser.add_argument(
        "--wheels", type=Path, default=ROOT / "wheels", help="wheels of packages that may lack"
    )
    parser.add_argument("--pack", type=Path, metavar="DIR", help="make the folder to bring, and nothing else")
    parser.add_argument(
        "--pythons", nargs="+", default=PYTHONS, help="with --pack: Pythons to bring wheels for"
    )
    options = parser.parse_args(arguments)
    if (options.out is None) == (options.pack is None):
        parser.error("give --out DIR to measure, or --pack DIR to make the folder to bring")
    if options.minutes <= 0:
        parser.error(f"--minutes {options.minutes:g}: more than 0 needed")
    return options


def check_same(lines: Lines, settings: dict[str, str | None]) -> None:
    """End with one line if the folder has results of another size, device or GPU."""
    for line in lines.read():
        if line["kind"] == "run" and (other := {key: line.get(key) for key in settings}) != settings:
            raise SystemExit(f"{lines.path}: results of {other}, this is {settings}; use another --out")


def measure(options: argparse.Namespace, arguments: Sequence[str], end: float) -> None:
    """Look at the machine, run the stages, write the table."""
    lines = Lines(options.out)
    scratch = options.scratch or Path(tempfile.gettempdir()) / "augbench_gpu_day"
    scratch.mkdir(parents=True, exist_ok=True)
    site = provide(options.wheels, scratch)
    report = preflight.look(options.device, options.out, scratch, site)
    print(preflight.text(report), flush=True)
    (options.out / preflight.NAME).write_text(json.dumps(report, indent=2) + "\n")
    chosen = options.stage or list(BY_NAME)
    stages = [stage for stage in STAGES if stage.name in chosen]
    if not stages:
        return
    torch = report["torch"]
    same = {"size": options.size, "device": options.device, "gpu": torch.get("name")}
    check_same(lines, same)
    command = " ".join(["python", "benchmarks/gpu_day.py", *arguments])
    versions = {name: tried.get("version") for name, tried in report["modules"].items() if "." not in name}
    lines.add("run", **same, command=command, python=report["python"], versions=versions)
    if options.device == "cuda" and not torch.get("usable"):
        raise SystemExit("no stage can run: " + "; ".join(report["problems"]))
    compiled = options.compile == "on" if options.compile else options.size == "full"
    settings = Settings(
        options.out, scratch, options.size, options.device, compiled, end - ENDING_SECONDS, site
    )
    try:
        run_stages(stages, settings)
    finally:
        write_results(options, scratch, site)


def write_results(options: argparse.Namespace, scratch: Path, site: Path | None) -> None:
    """Write the table, and on a GPU the figures for ``augbench plan``."""
    table.write(options.out)
    if options.device == "cuda" and options.size == "full":
        subprocess.run(
            [sys.executable, "-m", "benchmarks.day.figures", str(options.out)],
            env=environment(scratch, site),
            timeout=60,
            check=False,
        )


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    begin = time.monotonic()
    options = parse(arguments)
    if options.pack:
        print(
            f"{options.pack}: {pack(options.pack, options.pythons):.1f} MB; its README.txt says how to go on"
        )
        return
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with alone(options.out / ".lock", 5):
        if options.stage != ["table"]:
            measure(options, arguments, begin + 60 * options.minutes)
        table.write(options.out)
    print((options.out / table.NAME).read_text())


if __name__ == "__main__":
    main(sys.argv[1:])
