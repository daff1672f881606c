"""How much main memory this process may still take: the machine's, a container's or a cluster job's, whichever ends first.

Flows in: what Linux and Slurm tell. Flows out: bytes. The page cache counts as free, as it gives way.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that are free.

    Parameters
    ----------
    root : Path
        Where ``proc`` and ``sys`` are.
    """
    bounds = [_available(root), *_cgroups(root)]
    if slurm := os.environ.get("SLURM_MEM_PER_NODE"):  # in MiB; Slurm can watch memory without control groups
        bounds.append(int(slurm) << 20)
    return max(0, min(bounds))


def _available(root: Path) -> int:
    try:
        return _fields(root / "proc/meminfo")["MemAvailable:"] << 10
    except (OSError, KeyError):  # no Linux: half of what is built in
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _fields(path: Path) -> dict[str, int]:
    return {
        words[0]: int(words[1]) for line in path.read_text().splitlines() if len(words := line.split()) > 1
    }


def _cgroups(root: Path) -> Iterator[int]:
    """What each control group (version 2 or 1) above this process leaves: its limit less what can't be given back."""
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
            except (OSError, ValueError, KeyError):  # "max", or a group that is not shown in this container
                continue
