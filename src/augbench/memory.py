"""Main memory that this process may still use: the smallest bound of machine, container and cluster job.

Linux and Slurm report the bounds. The page cache counts as free, because the system reclaims it when needed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def free_memory(root: Path = Path("/")) -> int:
    """Free main memory, in bytes.

    Parameters
    ----------
    root : Path
        Folder that has ``proc`` and ``sys``.
    """
    bounds = [_available(root), *_cgroups(root)]
    if slurm := os.environ.get("SLURM_MEM_PER_NODE"):  # in MiB; Slurm can limit memory without control groups
        bounds.append(int(slurm) << 20)
    return max(0, min(bounds))


def _available(root: Path) -> int:
    try:
        return _fields(root / "proc/meminfo")["MemAvailable:"] << 10
    except (OSError, KeyError):  # not Linux: half of the installed memory
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _fields(path: Path) -> dict[str, int]:
    return {
        words[0]: int(words[1]) for line in path.read_text().splitlines() if len(words := line.split()) > 1
    }


def _cgroups(root: Path) -> Iterator[int]:
    """Yield the free memory of each control group (version 1 or 2) of this process, in bytes.

    It is the group's limit minus the memory that cannot be reclaimed.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, limit, used = root / "sys/fs/cgroup", "memory.max", "anon"
        elif "memory" in controllers.split(","):
            base, limit, used = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes", "total_rss"
        else:
            continue
        for part in (relative := Path(path.lstrip("/")), *relative.parents):
            try:
                yield int((base / part / limit).read_text()) - _fields(base / part / "memory.stat")[used]
            except (OSError, ValueError, KeyError):  # "max", or a group that this container does not show
                continue
