"""Claims: locks between processes, on single bytes of one file.

The operating system holds them, so a kill leaves none behind. They work across machines where the file system
shares POSIX locks (NFS does). A file system without locks grants every claim (:attr:`Claims.work` is false).
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from augbench.files import canonical_hash, explained_disk_errors

# errors of file systems that do not support locks: Lustre without "-o flock", some NFS
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
# A process keeps each file open until it ends: closing it would release all its locks, not only the last.
_opened: dict[Path, int] = {}
_without_locks: set[Path] = set()


def place_of(name: Any) -> int:
    """Byte of the file that stands for a JSON value; below 2**60."""
    return int(canonical_hash(name)[:15], 16)


class Claims:
    """The claims on the bytes of ``file``, which is made on first use.

    Claims of one process do not exclude each other.
    """

    def __init__(self, file: str | Path) -> None:
        self.file = Path(file).absolute()

    @property
    def work(self) -> bool:
        """Whether the file system has locks, as far as claims were taken."""
        return self.file not in _without_locks

    def take(self, place: int, wait: bool = True, shared: bool = False) -> bool:
        """Claim a byte; False if another process has it and ``wait`` is false.

        Parameters
        ----------
        place : int
            The byte.
        wait : bool
            Wait until the other process gives it back or ends.
        shared : bool
            Only exclude those that claim it alone.

        Raises
        ------
        UserError
            The folder of the file is not writable.
        """
        if self.file not in _opened:
            with explained_disk_errors(self.file.parent):
                self.file.parent.mkdir(parents=True, exist_ok=True)
                _opened[self.file] = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o666)
        how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.lockf(_opened[self.file], how | (0 if wait else fcntl.LOCK_NB), 1, place)
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            _without_locks.add(self.file)
        return True

    def give_back(self, place: int) -> None:
        """Give back a claimed byte."""
        try:
            fcntl.lockf(_opened[self.file], fcntl.LOCK_UN, 1, place)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise

    @contextmanager
    def held(self, place: int) -> Iterator[None]:
        """Hold a claim, after waiting for it."""
        self.take(place)
        try:
            yield
        finally:
            self.give_back(place)


@contextmanager
def fetching(folder: str | Path) -> Iterator[None]:
    """Hold the claim on a folder of downloads, so that two runs do not fetch the same files at once."""
    with Claims(Path(folder) / ".fetching").held(0):
        yield
