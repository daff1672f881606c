"""Benchmark files: what Snakemake leaves of every job below ``results/{study}/benchmarks``.

A file's folder is its stage; where the stage has a job per method, or per method and block of classes, runs or learning rates, the file is named after them.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from augbench.errors import UserError

IN_BLOCKS = frozenset({"retrieve", "finetune", "candidates", "generate", "classify"})
BLOCK = re.compile(r"(?P<method>.+?)_(?P<block>\d{3,}|all)(?:_part(?P<part>\d+))?(?:_lr.+)?")
REMEDY = "delete it: nothing else needs it"


@dataclass(frozen=True)
class JobFile:
    """A benchmark file: the stage and method of its job, and the first part of the shards it made (0 where there are no parts)."""

    path: Path
    stage: str
    method: str
    part: int


def job_file(path: Path) -> JobFile:
    """What the name of a method's benchmark file says.

    Raises
    ------
    UserError
        A file of a stage in blocks whose name has no block.
    """
    stage = path.parent.name
    if stage not in IN_BLOCKS:
        return JobFile(path, stage, path.stem, 0)
    named = BLOCK.fullmatch(path.stem)
    if named is None:
        raise UserError(str(path), "not a benchmark file of a block", REMEDY)
    return JobFile(path, stage, named["method"], int(named["part"] or 0))


def job_files(folder: str | Path, stages: Sequence[str]) -> Iterator[JobFile]:
    """The benchmark files of jobs that belong to one method, sorted within each of ``stages``; raises as :func:`job_file`."""
    for stage in stages:
        yield from map(job_file, sorted((Path(folder) / stage).glob("*.tsv")))


def read_seconds(path: str | Path) -> tuple[float, float]:
    """Wall and CPU seconds of a job, all its repeats; CPU seconds lack jobs that were over before Snakemake measured them.

    Raises
    ------
    UserError
        Another file, or a damaged one.
    """

    def number(text: str | None) -> float:
        return float(text) if text and text not in ("-", "NA") else 0.0

    try:
        with Path(path).open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
        if not rows:
            raise ValueError("no measurement")
        return sum(float(row["s"]) for row in rows), sum(number(row.get("cpu_time")) for row in rows)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise UserError(str(path), f"not a benchmark file ({error})", REMEDY) from None
