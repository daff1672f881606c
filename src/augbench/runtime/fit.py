"""Batches that fit into a GPU's memory: one that does not is halved, and the work goes on.

The memory that a batch needs is known only when it runs. What is computed for one image does not depend on
the other images of its batch, so halves give the same images.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from augbench.batches import in_batches
from augbench.errors import UserError

logger = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")


class BatchLimit:
    """Largest batch of one stage; it halves whenever memory does not suffice.

    Parameters
    ----------
    size : int
        Images per batch to begin with.
    key : str
        Key of the config that sets it, or the name of the stage, for messages.
    item : str
        What a batch consists of, for messages.
    """

    def __init__(self, size: int, key: str, item: str = "image") -> None:
        self.size, self.key, self.item = size, key, item

    def run(self, work: Callable[[Sequence[T]], R], items: Sequence[T]) -> Iterator[R]:
        """Yield the results of ``work`` on batches of ``items``, in order.

        Raises
        ------
        UserError
            A single item does not fit.
        """
        start = 0
        while start < len(items):
            batch = items[start : start + self.size]
            result = self._tried(work, batch)
            if result:
                start += len(batch)
                yield result[0]
            else:
                self.halve(len(batch))

    def restart(self, work: Callable[[], R], items: int) -> R:
        """Return the result of ``work`` on ``items``, which it cuts into batches of at most :attr:`size`.

        Where a batch does not fit, all of ``work`` is done again with smaller ones.

        Raises
        ------
        UserError
            A single item does not fit.
        """
        while True:
            batch = range(min(self.size, items))
            if result := self._tried(lambda _: work(), batch):
                return result[0]
            self.halve(len(batch))

    def stream(self, work: Callable[[Sequence[T]], R], items: Iterable[T]) -> Iterator[R]:
        """Do the same as :meth:`run` for items that are made while they are used."""
        for batch in in_batches(items, self.size):
            yield from self.run(work, batch)

    def _tried(self, work: Callable[[Sequence[T]], R], batch: Sequence[T]) -> tuple[R] | None:
        """Result of ``work``, or None if memory did not suffice.

        The error is dropped here, because its traceback keeps the tensors alive that filled the memory.
        """
        import torch

        try:
            return (work(batch),)
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                found = f"not even one {self.item} fits into the GPU's memory"
                raise UserError(self.key, found, advice()) from error
            return None

    def halve(self, tried: int) -> None:
        """Halve the limit after a batch of ``tried`` items did not fit, and give cached memory back."""
        self.size = (tried + 1) // 2
        logger.warning(
            "%s: %d %ss do not fit into the GPU's memory; going on with %d",
            self.key,
            tried,
            self.item,
            self.size,
        )
        give_back()


def give_back() -> None:
    """Give memory back to the GPU that torch keeps for later use."""
    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@contextmanager
def needing_memory(key: str, what: str) -> Iterator[None]:
    """Raise :class:`UserError` if the GPU's memory does not suffice for the block, which has no batches."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(key, f"{what} do not fit into the GPU's memory", advice()) from error


def advice() -> str:
    """What helps where nothing fits, with the memory that is free and installed."""
    import torch

    needed = "a GPU with more memory, or one that no other program uses, is needed"
    if not torch.cuda.is_initialized():
        return needed
    free, installed = torch.cuda.mem_get_info()
    return f"{needed}; free here: {free / 2**30:.1f} of {installed / 2**30:.1f} GiB"
