"""Measure the time that Snakemake takes to plan a full study, and to find that nothing is to be done.

Input: a study's config; no data is needed. Output: a Markdown table, and JSON with ``--json``: wall and
processor time, peak memory, and numbers of jobs and declared files, for

- ``snakemake --version``, the minimum cost of any call of Snakemake;
- ``snakemake -n -q rules`` with no file there;
- the same with all files there.

For the last case, the benchmark makes an empty file or folder for each declared target in a temporary
folder (shards are sparse files and take no disk space). Then ``snakemake --touch`` gives them times in the
order of the jobs and writes Snakemake's records of them. That takes longer than the measurement. Each call
is a separate process; the repeats alternate. With ``--calls``, strace counts the system calls that name a
file of the study, with all files there: each takes about half a millisecond on a network disk.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from augbench.config.study import read_yaml
from augbench.plan.load import load_plan
from benchmarks.machine import Neighbours, wait_until_idle
from benchmarks.record import publish, surroundings

Result = dict[str, Any]
PROJECT = Path(__file__).resolve().parents[1]
LINKED = ("Snakefile", "workflow", "src", "resources", "envs", "config", "profiles")
CALL_SECONDS = 0.0005  # of a system call on a network disk
SHARD_BYTES = 20_000_000  # as large as a real one, because Snakemake hashes small files


def snakemake(folder: Path, *arguments: str) -> tuple[str, Result]:
    """Run Snakemake; return its output, and its time and memory."""
    with Neighbours() as neighbours:
        process = subprocess.Popen(
            [sys.executable, "-m", "snakemake", *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        text = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(text[-4000:])
    return text, {
        "seconds": round(neighbours.seconds, 2),
        "processor_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_memory": usage.ru_maxrss * 1024,
        "cores_used_by_others": neighbours.cores,
    }


def make_folder(folder: Path) -> None:
    """Make a working directory without results."""
    folder.mkdir(parents=True)
    for name in LINKED:
        (folder / name).symlink_to(PROJECT / name)


def declared_files(folder: Path, configfile: str) -> list[str]:
    """List every file and folder that a job of the study makes."""
    text, _ = snakemake(folder, "--summary", "--configfile", configfile)
    return [line.partition("\t")[0] for line in text.splitlines() if line.startswith("results/")]


def listed_shards(configfile: str) -> list[str]:
    """Shards that lists stand for, which no job declares."""
    plan = load_plan(read_yaml(PROJECT / configfile), PROJECT).unfolded
    lists = [shards for _, block in plan.generate_jobs for shards in block.lists.values()]
    return [shard for shards in lists for shard in shards]


def make_everything(folder: Path, configfile: str, files: Sequence[str]) -> Result:
    """Make all targets, up to date; return the time and memory that this took."""
    for name in (*listed_shards(configfile), *files):
        path = folder / name
        if not path.suffix:
            path.mkdir(parents=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as stream:
            stream.truncate(SHARD_BYTES if "/shards/" in name and path.suffix == ".parquet" else 0)
    _, took = snakemake(
        folder, "--touch", "--cores", str(os.cpu_count()), "--quiet", "all", "--configfile", configfile
    )
    return took


def count_calls(folder: Path, *arguments: str) -> int:
    """Run Snakemake; return its number of system calls that name a file of the study or a record of it."""
    log = folder.parent / "calls.txt"
    traced = ["strace", "-f", "-qq", "-e", "trace=%file", "-o", str(log)]
    command = [*traced, sys.executable, "-m", "snakemake", *arguments]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with log.open(errors="replace") as lines:
        return sum("results/" in line or ".snakemake/" in line for line in lines)


def measure(folder: Path, options: argparse.Namespace) -> Result:
    """Measure all calls, ``options.repeats`` times in turn."""
    plan = ("-n", "-q", "rules", "--configfile", options.configfile)
    empty, full = folder / "empty", folder / "full"
    make_folder(empty)
    make_folder(full)
    files = declared_files(empty, options.configfile)
    report: Result = {
        "files": len(files),
        "results": {"version": [], "nothing there": [], "everything there": []},
    }
    report["touch"] = make_everything(full, options.configfile, files)
    if options.calls:
        report["calls"] = count_calls(full, *plan)
    for repeat in range(options.repeats):
        calls = {
            "version": (empty, ("--version",)),
            "nothing there": (empty, plan),
            "everything there": (full, plan),
        }
        for name, (where, arguments) in calls.items():
            wait_until_idle(60 * options.wait)
            text, took = snakemake(where, *arguments)
            report["results"][name].append(took)
            print(f"repeat {repeat + 1}: {name}: {took}", file=sys.stderr)
            if name == "nothing there":
                report["jobs"] = int(re.findall(r"^total +(\d+)$", text, re.MULTILINE)[0])
            if name == "everything there" and "Nothing to be done" not in text:
                sys.exit("Snakemake finds jobs to do although all targets are there:\n" + text[-4000:])
    return report


def markdown(report: Result) -> str:
    """Return a table with a row for each call, and the counts below it."""
    lines = [
        "| | seconds: median (least - most) | processor seconds | peak memory, GB |",
        "|---|---|---|---|",
    ]
    names = {
        "version": "`snakemake --version`",
        "nothing there": "`snakemake -n`, nothing there",
        "everything there": "`snakemake -n`, everything there",
    }
    for name, runs in report["results"].items():
        times = sorted(run["seconds"] for run in runs)
        used = statistics.median(run["processor_seconds"] for run in runs)
        memory = max(run["peak_memory"] for run in runs) / 1e9
        spread = f"{statistics.median(times):.1f} ({times[0]:.1f} - {times[-1]:.1f})"
        lines.append(f"| {names[name]} | {spread} | {used:.1f} | {memory:.2f} |")
    machine = report["machine"]
    others = max(run["cores_used_by_others"] for runs in report["results"].values() for run in runs)
    lines.append(
        f"\n{report['jobs']:,} jobs, {report['files']:,} declared files; {machine['processor']}, "
        f"{machine['cores']} cores, {machine['memory_gib']} GiB; "
        f"at most {others} cores used by other processes; "
        f"{len(report['results']['version'])} repeats; {report['date']}; `{report['command']}`"
    )
    if "calls" in report:
        lines.append(
            f"\n{report['calls']:,} system calls name a file of the study, with everything there: "
            f"{report['calls'] / report['files']:.1f} per declared file, "
            f"{report['calls'] * CALL_SECONDS:.0f} s more at {CALL_SECONDS * 1000:g} ms a call"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Make the folders, measure, print the result, remove the folders."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--configfile", default="config/imagenet10.yaml", help="the study, relative to the project"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--calls", action="store_true", help="count system calls, with strace")
    parser.add_argument(
        "--wait",
        type=float,
        default=0,
        help="maximum minutes to wait, before each call, until other processes are idle",
    )
    parser.add_argument(
        "--folder", type=Path, required=True, help="a new folder to work in; it is removed at the end"
    )
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = parser.parse_args(arguments)
    if options.folder.exists():
        parser.error(
            f"--folder {options.folder} exists already and would be removed at the end; give a new one"
        )
    try:
        report = measure(options.folder, options)
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)
    report |= surroundings("benchmarks/plan.py", arguments)
    publish(report, markdown(report), options.json)


if __name__ == "__main__":
    main(sys.argv[1:])
