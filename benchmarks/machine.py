"""Measure the machine's limits: reading files, copying memory, matrix products.

Every benchmark compares itself with these.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

PIECE = 16 << 20  # bytes read at a time
SIDES = {"cpu": 1024, "cuda": 8192}  # sides of square matrices, large enough to be limited by arithmetic
SECONDS = 2.0  # time of the measured products
COPIED = {"cpu": 1 << 27, "cuda": 1 << 31}  # bytes of a copy, more than a cache holds


def describe(device: str = "cpu") -> dict[str, Any]:
    """Describe the machine: processor, cores, memory (GiB) and, for "cuda", the GPU."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    processor = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found: dict[str, Any] = {
        "processor": processor,
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "device": device,
    }
    if device == "cuda":
        import torch

        found["gpu"] = torch.cuda.get_device_name()
    return found


def available_memory() -> int:
    """Bytes of memory that are available without swapping."""
    (line,) = [
        line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable")
    ]
    return int(line.split()[1]) * 1024


def peak_memory() -> int:
    """Peak resident set size of this process in bytes, including pages of mapped files."""
    (line,) = [
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    ]
    return int(line.split()[1]) * 1024


def busy_seconds() -> float:
    """Processor seconds used by all processes and the kernel since the machine started."""
    names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
    ticks = dict(
        zip(names, map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:]), strict=False)
    )
    return sum(ticks[name] for name in names if name not in ("idle", "iowait")) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    """Processor seconds used by this process and by its finished children."""
    return sum(os.times()[:4])


class Neighbours:
    """Context manager that measures the processor use of other processes while it is active.

    Attributes
    ----------
    seconds : float
        Wall time inside the context.
    own : float
        Processor seconds of this process and of its children that ended meanwhile.
    cores : float
        Processor cores used by other processes, on average.
    """

    seconds = own = cores = 0.0

    def __enter__(self) -> Neighbours:
        self._start, self._busy, self._own = time.perf_counter(), busy_seconds(), _own_seconds()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._start
        self.own = _own_seconds() - self._own
        self.cores = round(max(0.0, (busy_seconds() - self._busy - self.own) / self.seconds), 2)


def wait_until_idle(limit: float, cores: float = 0.1, watched: float = 5.0) -> None:
    """Wait until fewer than ``cores`` cores were used for ``watched`` seconds, at most ``limit`` seconds."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        before = busy_seconds()
        time.sleep(watched)
        if busy_seconds() - before < cores * watched:
            return


def drop_from_cache(paths: Sequence[Path]) -> None:
    """Ask the system to drop the files from its page cache, so that the next read comes from the disk.

    The disk's own cache stays.
    """
    for path in paths:
        with path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_seconds(paths: Sequence[Path]) -> float:
    """Seconds to read the files one after another into the same buffer."""
    buffer = memoryview(bytearray(PIECE))
    start = time.perf_counter()
    for path in paths:
        with path.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):  # type: ignore[attr-defined]
                pass
    return time.perf_counter() - start


def copy_rate(size: int = 1 << 28, repeats: int = 5) -> float:
    """Bytes per second, read plus written, of the fastest of ``repeats`` copies within memory."""
    source = np.random.default_rng(0).integers(256, size=size, dtype=np.uint8)
    target = np.ones(size, np.uint8)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - start)
    return 2 * size / min(seconds)


def product_seconds(queries: int, dimension: int, rows: int, block: int, dtype: str, device: str) -> float:
    """Seconds for the products of all queries with ``rows`` vectors in memory, ``block`` vectors at a time.

    The products are discarded. The vectors are random, never zero, and come from 64 blocks in turn, which
    together are larger than a processor's cache.
    """
    import torch

    generator = torch.Generator(device).manual_seed(0)
    kind = getattr(torch, dtype)
    left = torch.randn(queries, dimension, generator=generator, device=device).to(kind)
    blocks = [torch.randn(block, dimension, generator=generator, device=device).to(kind) for _ in range(64)]
    out = torch.empty(queries, block, dtype=kind, device=device)
    torch.mm(left, blocks[0].T, out=out)
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for number in range(rows // block):
        torch.mm(left, blocks[number % len(blocks)].T, out=out)
    if rest := rows % block:
        torch.mm(left, blocks[0][:rest].T)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def default_type(device: str) -> str:
    """Name of the floating-point type in which a study computes on a device by default."""
    import torch

    from augbench.runtime.precision import resolve

    return str(resolve("auto", torch.device(device))).removeprefix("torch.")


def product_rate(device: str, dtype: str) -> float:
    """Multiplications and additions per second of matrix products in ``dtype``, a network's upper limit."""
    side = SIDES[device]
    work = 2 * side**3
    one = product_seconds(side, side, side, side, dtype, device)
    count = max(1, int(SECONDS / one))
    return count * work / product_seconds(side, side, count * side, side, dtype, device)


def device_copy_rate(device: str, repeats: int = 20) -> float:
    """Bytes per second, read plus written, of copies of random data within the device's memory."""
    import torch

    source = torch.randint(256, (COPIED[device],), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    for _ in range(repeats):
        target.copy_(source)
    wait()
    return 2 * repeats * source.numel() / (time.perf_counter() - start)
