"""Copies to and from a GPU while it computes.

A copy on the GPU's own stream waits for all work before it. Here, batches are copied on a stream beside it,
one ahead of their use, and results are read one behind. On a CPU nothing is copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import torch


class Upload:
    """Tensors on their way to the device; in a ``with`` block, they are there for the current stream.

    The block ends when all work on them has been started. Its two buffers take turns: the next copy into
    this one waits for that work.
    """

    def __init__(self, beside: Any) -> None:
        self.beside = beside
        self.hosts: Sequence[torch.Tensor] = ()
        self.buffers: list[torch.Tensor] = []
        self.copied: Any = None
        self.used: Any = None

    def begin(self, tensors: Sequence[torch.Tensor], device: torch.device) -> Self:
        """Start copying; ``hosts`` stay in memory until the copy is done."""
        import torch

        if self.beside is None:
            self.hosts = tensors
            return self
        if self.copied is not None:
            self.copied.synchronize()
        self.hosts = [tensor.pin_memory() for tensor in tensors]
        with torch.cuda.stream(self.beside):
            if self.used is not None:
                self.beside.wait_event(self.used)
            if not self._fits():
                self.buffers = []
                self.buffers = [torch.empty_like(host, device=device) for host in self.hosts]
            for buffer, host in zip(self.buffers, self.hosts, strict=True):
                buffer[: len(host)].copy_(host, non_blocking=True)
            self.copied = self.beside.record_event()
        return self

    def _fits(self) -> bool:
        return len(self.buffers) == len(self.hosts) and all(
            buffer.dtype == host.dtype and buffer.shape[1:] == host.shape[1:] and len(buffer) >= len(host)
            for buffer, host in zip(self.buffers, self.hosts, strict=True)
        )

    def __enter__(self) -> list[torch.Tensor]:
        import torch

        if self.beside is None:
            return list(self.hosts)
        torch.cuda.current_stream().wait_event(self.copied)
        return [buffer[: len(host)] for buffer, host in zip(self.buffers, self.hosts, strict=True)]

    def __exit__(self, *error: object) -> None:
        import torch

        if self.beside is not None:
            self.used = torch.cuda.current_stream().record_event()


class Uploads:
    """Copies of batches to ``device``, each begun while the one before is used."""

    def __init__(self, device: torch.device) -> None:
        import torch

        self.device = device
        beside = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._uploads = [Upload(beside), Upload(beside)]

    def begin(self, *tensors: torch.Tensor) -> Upload:
        """Start copying tensors from main memory; the upload before the last one must have been used."""
        self._uploads.reverse()
        return self._uploads[0].begin(tensors, self.device)

    def ahead(self, batches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield each batch on the device; the next one is copied meanwhile."""
        waiting: Upload | None = None
        for batch in batches:
            upcoming = self.begin(batch)
            if waiting is not None:
                with waiting as (there,):
                    yield there
            waiting = upcoming
        if waiting is not None:
            with waiting as (there,):
                yield there


def behind(results: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield each result in main memory; a GPU's are copied there while it computes the next."""
    import torch

    waiting: tuple[torch.Tensor, Any] | None = None
    for result in results:
        if result.device.type == "cpu":
            yield result
            continue
        host = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
        host.copy_(result, non_blocking=True)
        copied = host, torch.cuda.current_stream().record_event()
        if waiting is not None:
            waiting[1].synchronize()
            yield waiting[0]
        waiting = copied
    if waiting is not None:
        waiting[1].synchronize()
        yield waiting[0]
