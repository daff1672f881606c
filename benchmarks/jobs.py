"""Compare one job that searches a corpus exactly with several that share it and run at the same time.

Input: random embeddings in clip-retrieval's layout. Output: a Markdown table, and JSON with ``--json``:
seconds of one job; of the slowest of several jobs, each with as many threads; and of the job that merges.
Each job is a process, whose imports are not counted. The neighbours must be the same, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.machine import Neighbours
from benchmarks.record import publish, surroundings, surroundings_line
from benchmarks.search import make_embeddings

Result = dict[str, Any]


def run_job(options: argparse.Namespace) -> None:
    """Search one block into the store, or all files if none is named; print the seconds."""
    import torch

    from augbench.artifacts.store import Store
    from augbench.retrieval.embedding_files import open_embeddings
    from augbench.retrieval.exact import ExactBackend, ExactSearch

    queries = np.load(options.folder / "queries.npy")[: options.queries]
    store = Store(options.folder / options.store)
    torch.zeros(1)
    start = time.perf_counter()
    files = open_embeddings(options.folder)
    if options.block is not None:
        ExactBackend(files, store).fill(queries, options.k, options.block, options.jobs)
    else:
        hits = ExactSearch(files, queries, options.k, partial=store).hits()
        np.savez(
            options.folder / f"{options.store}.npz", file=hits.file, row=hits.row, similarity=hits.similarity
        )
    print(json.dumps({"seconds": time.perf_counter() - start}))


def seconds_of(commands: Sequence[Sequence[str]], threads: int) -> list[float]:
    """Run some jobs at the same time; return the seconds that each reports."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for command in commands
    ]
    told = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError("a job failed; see above")
    return [float(json.loads(text.splitlines()[-1])["seconds"]) for text in told]


def compare(options: argparse.Namespace, arguments: Sequence[str]) -> Result:
    """Time one job and several in turn, ``options.repeats`` times, each with an empty store."""
    base = [sys.executable, __file__, *arguments]
    rounds: list[Result] = []
    for _ in range(options.repeats):
        for store in ("one", "several"):
            shutil.rmtree(options.folder / store, ignore_errors=True)
        with Neighbours() as neighbours:
            (alone,) = seconds_of([[*base, "--store", "one"]], options.threads)
            blocks = [[*base, "--store", "several", "--block", str(block)] for block in range(options.jobs)]
            shared = seconds_of(blocks, options.threads)
            (merge,) = seconds_of([[*base, "--store", "several"]], options.threads)
        with (
            np.load(options.folder / "one.npz") as one,
            np.load(options.folder / "several.npz") as several,
        ):
            same = all(np.array_equal(one[name], several[name]) for name in one.files)
        if not same:
            raise RuntimeError("several jobs found other neighbours than one")
        rounds.append(
            {
                "one": alone,
                "blocks": shared,
                "merge": merge,
                "share": (max(shared) + merge) / alone,
                "cores_used_by_others": neighbours.cores,
            }
        )
        print(rounds[-1], file=sys.stderr)
    return {**surroundings("benchmarks/jobs.py", arguments), "rounds": rounds}


def markdown(report: Result, options: argparse.Namespace) -> str:
    """Return the table of medians, and the surroundings below it."""

    def median(values: Sequence[float]) -> str:
        return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"

    rounds = report["rounds"]
    others = max(one["cores_used_by_others"] for one in rounds)
    lines = [
        "| | seconds |",
        "|---|---:|",
        f"| one job | {median([one['one'] for one in rounds])} |",
        f"| the slowest of {options.jobs} jobs | {median([max(one['blocks']) for one in rounds])} |",
        f"| merging | {median([one['merge'] for one in rounds])} |",
        f"| share of the time of one job | {median([one['share'] for one in rounds])} |",
        "",
        f"{options.vectors:,} vectors, {options.queries:,} queries, k = {options.k}; {options.threads} "
        "thread "
        f"per job; at most {others} cores used by other processes; {surroundings_line(report)}",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Make the data, compare, print the result, remove the data."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--queries", type=int, default=1000, help="at most 10,000")
    parser.add_argument("--k", type=int, default=182)
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of each job")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, required=True, help="a new folder for the data")
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("--store", help=argparse.SUPPRESS)
    parser.add_argument("--block", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.store:
        run_job(options)
        return
    if options.folder.exists():
        parser.error(f"--folder {options.folder} exists already; give a new one")
    options.folder.mkdir(parents=True)
    try:
        make_embeddings(options.folder, options.vectors, options.dim, options.files)
        report = compare(options, arguments)
    finally:
        shutil.rmtree(options.folder)
    publish(report, markdown(report, options), options.json)


if __name__ == "__main__":
    main(sys.argv[1:])
