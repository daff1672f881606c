"""Jobs: the blocks of work that each one does, the names that its log and benchmark files have, and how to read them back.

A job's files are named after its stage. Where a stage has a job per method, its name is the method's; where it has several per method, the block's number
and, in fine-tuning, the factor of the learning rates follow: ``benchmarks/finetune/imagic_000_lr0.1.tsv``.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from augbench.errors import UserError

IN_BLOCKS = frozenset({"retrieve", "finetune", "candidates", "generate", "classify"})
JOB_NAME = re.compile(r"(?P<method>.+?)_(?P<block>\d{3,}|all)(?:_part(?P<part>\d+))?(?:_lr.+)?")
REMEDY = "delete it: nothing else needs it"


# --- blocks -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """Some classes, or some runs, that one job makes; ``name`` goes into the name of its rule."""

    name: str
    members: tuple[str, ...]


@dataclass(frozen=True)
class ShardBlock(Block):
    """Classes whose shards of these parts one job generates."""

    parts: tuple[str, ...]


@dataclass(frozen=True)
class FolderBlock:
    """Folders that one job fills, each with the files of some classes."""

    name: str
    folders: tuple[Block, ...]


def blocks(members: Sequence[str], size: int) -> list[Block]:
    """Cut ``members`` into blocks of ``size``, named by their number."""
    return [Block(name, part) for name, part in cut(members, size)]


Member = TypeVar("Member")


def cut(members: Sequence[Member], size: int) -> list[tuple[str, tuple[Member, ...]]]:
    """Pieces of ``size`` members, each with its number as three digits."""
    starts = range(0, len(members), size)
    return [(f"{number:03d}", tuple(members[start : start + size])) for number, start in enumerate(starts)]


# --- names ------------------------------------------------------------------------------------------------------------


def job_name(method: str = "", block: str = "", factor: float | None = None) -> str:
    """Name of a job within its stage: method, block and factor of the learning rates, as far as it has them."""
    return "_".join(filter(None, (method, block, "" if factor is None else f"lr{factor:g}")))


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
    named = JOB_NAME.fullmatch(path.stem)
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
