"""Measure a whole study from an empty folder to its report, in this checkout and another one in turn.

Input: a configuration, and the checkout to compare with; the last commits of both are copied. Output: a
Markdown table, and JSON with ``--json``: wall and processor seconds of each whole run, seconds of the jobs
by stage from Snakemake's benchmark files, and whether the accuracies agree.

Each run starts in an empty copy, with compiled Python files and a warm page cache. Earlier downloads are
shared; models made by rules are not.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from augbench.plan.jobs import read_seconds
from benchmarks.machine import Neighbours
from benchmarks.record import publish, surroundings, surroundings_line

Result = dict[str, Any]
PROJECT = Path(__file__).resolve().parents[1]
START = [sys.executable, "-c", "from augbench.cli import main; main()", "run", "--configfile"]
SHORT = "all others"


def copied(checkout: Path, folder: Path) -> Path:
    """Copy the checkout's last commit, without results, and compile its Python files.

    Downloads are a link to this checkout's.
    """
    subprocess.run(["git", "clone", "--quiet", checkout, folder], check=True)
    subprocess.run([sys.executable, "-m", "compileall", "-q", folder / "src"], check=True)
    downloads = PROJECT / "results" / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    (folder / "results").mkdir()
    (folder / "results" / "downloads").symlink_to(downloads)
    return folder


def stage_seconds(results: Path) -> dict[str, tuple[int, float]]:
    """Number of jobs and their wall seconds by stage, from the benchmark files of a study."""
    found: dict[str, list[float]] = defaultdict(list)
    folder = results / "benchmarks"
    for path in sorted(folder.rglob("*.tsv")):
        found[path.relative_to(folder).with_suffix("").parts[0]].append(read_seconds(path)[0])
    return {stage: (len(seconds), sum(seconds)) for stage, seconds in found.items()}


def accuracies(results: Path) -> dict[str, tuple[str, str]]:
    """Accuracy and standard error of each row of Table 1, in per cent, with all digits."""
    lines = (results / "tables" / "table1.csv").read_text(encoding="utf-8").splitlines()
    # lines with "#" are the footer; read by column name, because another checkout may have other columns
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    return {row["method"]: (row["top1_percent"], row["stderr_percent"]) for row in rows}


def run_study(checkout: Path, configs: Sequence[str], place: Path) -> Result:
    """Run the study in an empty copy; if it fails, exit with the end of its log."""
    folder = copied(checkout, place)
    environment = {**os.environ, "PYTHONPATH": str(folder / "src")}
    log = folder / "run.log"
    with log.open("wb") as stream, Neighbours() as neighbours:
        start = time.perf_counter()
        done = subprocess.run(
            [*START, *configs],
            cwd=folder,
            env=environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
            check=False,
        )
        seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(log.read_text(errors="replace")[-4000:])
    (results,) = [path.parent for path in (folder / "results").glob("*/tables") if path.is_dir()]
    return {
        "seconds": round(seconds, 1),
        "processor_seconds": round(neighbours.own, 1),
        "cores_used_by_others": neighbours.cores,
        "stages": stage_seconds(results),
        "accuracies": accuracies(results),
    }


def measure(options: argparse.Namespace) -> Result:
    """Measure all runs, in turn."""
    checkouts = (
        {"before": options.against.resolve(), "ours": PROJECT} if options.against else {"ours": PROJECT}
    )
    revisions = {
        name: subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=path, check=True, capture_output=True, text=True
        ).stdout.strip()
        for name, path in checkouts.items()
    }
    runs: dict[str, list[Result]] = {name: [] for name in checkouts}
    for repeat in range(options.repeats):
        for name, checkout in checkouts.items():
            with tempfile.TemporaryDirectory(dir=options.folder) as place:
                runs[name].append(run_study(checkout, options.config, Path(place) / "copy"))
            took = runs[name][-1]
            line = (
                f"run {repeat + 1} of {options.repeats}: {name}: {took['seconds']} s, "
                f"{took['processor_seconds']} processor seconds, "
                f"{took['cores_used_by_others']} cores used by others"
            )
            print(line, file=sys.stderr, flush=True)
    tables = [run["accuracies"] for repeats in runs.values() for run in repeats]
    return {
        "revisions": revisions,
        "runs": runs,
        "same_accuracies": all(table == tables[0] for table in tables),
    }


def _row(name: str, count: int, seconds: dict[str, list[float]]) -> str:
    """Format a row: medians with the range in brackets, and the ratio run by run."""

    def spread(values: Sequence[float], form: str) -> str:
        middle, least, most = (
            format(value, form) for value in (statistics.median(values), min(values), max(values))
        )
        return middle if len(values) == 1 else f"{middle} ({least} to {most})"

    cells = [spread(values, ".0f") for values in seconds.values()]
    if "before" in seconds:
        pairs = zip(seconds["ours"], seconds["before"], strict=True)
        cells.append(spread([ours / before for ours, before in pairs if before], ".2f"))
    return f"| {name} | {count or ''} | {' | '.join(cells)} |"


def markdown(report: Result, least: float = 0.02) -> str:
    """Return a table of the whole run and its stages; stages below ``least`` of the time share one row."""
    runs = report["runs"]
    names = [f"{name} ({report['revisions'][name]})" for name in runs]
    lines = [
        f"| | jobs | {' | '.join(names)} |{' ratio |' if 'before' in runs else ''}",
        "|---|---:|" + "---:|" * (len(runs) + ("before" in runs)),
    ]
    for title, key in (
        ("**the whole run, seconds**", "seconds"),
        ("**its processor seconds**", "processor_seconds"),
    ):
        lines.append(_row(title, 0, {name: [run[key] for run in repeats] for name, repeats in runs.items()}))
    ours = runs["ours"][0]["stages"]
    total = sum(seconds for _, seconds in ours.values())
    stages = sorted(
        (stage for stage in ours if ours[stage][1] >= least * total), key=lambda stage: -ours[stage][1]
    )

    def of(run: Result, stage: str) -> tuple[int, float]:
        if stage != SHORT:
            found: tuple[int, float] = run["stages"].get(stage, (0, 0.0))
            return found
        rest = [value for other, value in run["stages"].items() if other not in stages]
        return sum(count for count, _ in rest), sum(seconds for _, seconds in rest)

    for stage in [*stages, SHORT]:
        seconds = {name: [of(run, stage)[1] for run in repeats] for name, repeats in runs.items()}
        lines.append(_row(stage, of(runs["ours"][0], stage)[0], seconds))
    same = (
        "the same accuracies in every run" if report["same_accuracies"] else "ACCURACIES DIFFER between runs"
    )
    used = max(run["cores_used_by_others"] for repeats in runs.values() for run in repeats)
    return "\n".join(
        [
            *lines,
            "",
            f"Stages: seconds of their jobs; {same}; at most {used} cores used by others; "
            f"{surroundings_line(report)}",
        ]
    )


def main(arguments: Sequence[str]) -> None:
    """Measure and print the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--config",
        nargs="+",
        default=["config/demo.yaml"],
        help="the study's config file, then overlays; paths that both checkouts have",
    )
    parser.add_argument("--against", type=Path, help="another checkout, run in turn with this one")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument(
        "--folder",
        type=Path,
        help="folder for the copies; default: the system's temporary folder",
    )
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = parser.parse_args(arguments)
    report = measure(options) | surroundings("benchmarks/study.py", arguments)
    publish(report, markdown(report), options.json)


if __name__ == "__main__":
    main(sys.argv[1:])
