"""Jobs: their blocks of work, and the names of their log and benchmark files, written and parsed.

A job's files are in a folder named after its stage. If a stage has one job per method, the method is the
job's name. If it has several per method, the block's number follows and, in fine-tuning, the factor of the
learning rates: ``benchmarks/finetune/imagic_000_lr0.1.tsv``.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from augbench.errors import UserError

IN_BLOCKS = frozenset({"search_block", "retrieve", "finetune", "candidates", "generate", "classify"})
JOB_NAME = re.compile(r"(?P<method>.+?)_(?P<block>\d{3,}|all)(?:_part(?P<part>\d+))?(?:_lr.+)?")
REMEDY = "delete it: nothing else needs it"


# --- blocks -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """Classes or runs that one job handles; ``name`` becomes part of the name of its rule."""

    name: str
    members: tuple[str, ...]


@dataclass(frozen=True)
class ShardBlock(Block):
    """Classes and parts whose shards one job generates.

    Attributes
    ----------
    targets : mapping of str to tuple of str
        Shards by the target that stands for them: a list of several shards, or the shard itself.
    """

    parts: tuple[str, ...]
    targets: Mapping[str, tuple[str, ...]]

    @property
    def lists(self) -> dict[str, tuple[str, ...]]:
        """The targets that are lists of shards, with their shards."""
        return {path: shards for path, shards in self.targets.items() if shards != (path,)}


@dataclass(frozen=True)
class FolderBlock:
    """Folders that one job fills, each with the files of a few classes."""

    name: str
    folders: tuple[Block, ...]


def blocks(members: Sequence[str], size: int) -> list[Block]:
    """Cut ``members`` into blocks of ``size``, each named by its number."""
    return [Block(name, part) for name, part in cut(members, size)]


Member = TypeVar("Member")


def numbers(jobs: int) -> list[str]:
    """Names of the jobs that share some work, their numbers as three digits; none if one job does it all."""
    return [f"{number:03d}" for number in range(jobs)] if jobs > 1 else []


def cut(members: Sequence[Member], size: int) -> list[tuple[str, tuple[Member, ...]]]:
    """Cut ``members`` into pieces of ``size``, each with its number as three digits."""
    starts = range(0, len(members), size)
    return [(f"{number:03d}", tuple(members[start : start + size])) for number, start in enumerate(starts)]


# --- names --------------------------------------------------------------------------------------------------


def job_name(method: str = "", block: str = "", factor: float | None = None) -> str:
    """Name of a job within its stage: method, block and factor of the learning rates, if it has them."""
    return "_".join(filter(None, (method, block, "" if factor is None else f"lr{factor:g}")))


@dataclass(frozen=True)
class JobFile:
    """A benchmark file, with its job's stage, method and first part of shards (0 if the job has no parts)."""

    path: Path
    stage: str
    method: str
    part: int


def job_file(path: Path) -> JobFile:
    """Parse the name of a benchmark file of a method's job.

    Raises
    ------
    UserError
        The stage works in blocks, but the file name has none.
    """
    stage = path.parent.name
    if stage not in IN_BLOCKS:
        return JobFile(path, stage, path.stem, 0)
    named = JOB_NAME.fullmatch(path.stem)
    if named is None:
        raise UserError(str(path), "not a benchmark file of a block", REMEDY)
    return JobFile(path, stage, named["method"], int(named["part"] or 0))


def job_files(folder: str | Path, stages: Sequence[str]) -> Iterator[JobFile]:
    """Yield the benchmark files of ``stages``, sorted within each stage; raises as :func:`job_file`."""
    for stage in stages:
        yield from map(job_file, sorted((Path(folder) / stage).glob("*.tsv")))


def read_seconds(path: str | Path) -> tuple[float, float]:
    """Read the wall and CPU seconds of a job, summed over its repeats.

    CPU seconds are those in the job's log, if it has any: what Snakemake measures is a process that waits, if
    the job was a fork (:mod:`augbench.runtime.warm`). Without them, they are 0 for jobs that ended before
    Snakemake measured them.

    Raises
    ------
    UserError
        The file is damaged, or not a benchmark file.
    """

    def number(text: str | None) -> float:
        return float(text) if text and text not in ("-", "NA") else 0.0

    try:
        with Path(path).open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
        if not rows:
            raise ValueError("no measurement")
        told = _told_by_log(Path(path))
        cpu = sum(number(row.get("cpu_time")) for row in rows) if told is None else told
        return sum(float(row["s"]) for row in rows), cpu
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise UserError(str(path), f"not a benchmark file ({error})", REMEDY) from None


def _told_by_log(benchmark: Path) -> float | None:
    """CPU seconds that the log of a benchmark file's job ends with; None if it has none."""
    before, found_folder, name = str(benchmark.with_suffix(".log")).rpartition("benchmarks/")
    log = Path(f"{before}logs/{name}")
    if not found_folder or not log.is_file():
        return None
    found = re.findall(r"([\d.]+) s of processor time$", log.read_text(errors="replace"), re.MULTILINE)
    return float(found[-1]) if found else None
