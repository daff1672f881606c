"""Decode every image that a study may read, once, and remember those that were in order.

Images are known by path, size and time of their file, and their row in a Parquet file. A file that was in order is not read again until it changes, so that
an interrupted check resumes, and one after a repair reads only what was repaired.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Protocol

from augbench.batches import in_batches
from augbench.data.decode import find_damage, in_order
from augbench.data.parquet_images import Encoded, ImageRows, file_and_row
from augbench.errors import UserError
from augbench.files import canonical_hash, sha256_file
from augbench.progress import Progress

logger = logging.getLogger(__name__)

KNOWN = Path("results/.checked_images.sqlite")
VERSION = 1  # of what counts as in order
AT_ONCE = 500  # files looked up in one query
THREADS = max(8, 2 * (os.cpu_count() or 1))  # more than cores: a disk may be slow


@dataclass
class Checked:
    """Result of decoding files: by name, the SHA-256 of those in order, and the problems of the others."""

    digests: dict[str, bytes] = field(default_factory=dict)
    damaged: dict[str, UserError] = field(default_factory=dict)


def _open_known() -> sqlite3.Connection:
    try:
        KNOWN.parent.mkdir(parents=True, exist_ok=True)
        known = sqlite3.connect(KNOWN)
        known.execute("CREATE TABLE IF NOT EXISTS files (key TEXT PRIMARY KEY, digest BLOB) WITHOUT ROWID")
    except (OSError, sqlite3.Error) as error:
        logger.warning("%s: %s; files that are in order will be read again", KNOWN, error)
        known = sqlite3.connect(":memory:")
        known.execute("CREATE TABLE files (key TEXT PRIMARY KEY, digest BLOB)")
    return known


def _key(path: Path, *row: int) -> str | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return canonical_hash([VERSION, os.path.abspath(path), stat.st_size, stat.st_mtime_ns, *row])


class Images(Protocol):
    """Images that can be checked."""

    def batches(self, names: Sequence[str]) -> Iterable[Sequence[str]]:
        """Cut ``names`` into parts that are checked together."""

    def key(self, name: str) -> str | None:
        """Return a key that changes with the image, or None if it is missing."""

    def read(self, names: Sequence[str]) -> Iterator[bytes | UserError]:
        """Yield the SHA-256 of each image, or why it can't be decoded."""


@dataclass(frozen=True)
class ImageFiles:
    """Image files in a folder."""

    root: Path

    def batches(self, names: Sequence[str]) -> Iterable[Sequence[str]]:
        return in_batches(names, AT_ONCE)

    def key(self, name: str) -> str | None:
        return _key(self.root / name)

    def read(self, names: Sequence[str]) -> Iterator[bytes | UserError]:
        def read(name: str) -> bytes | UserError:
            path = self.root / name
            return find_damage(path) or bytes.fromhex(sha256_file(path))

        return in_order(read, names, THREADS)


@dataclass(frozen=True)
class ParquetRows:
    """Images in Parquet files. A file is read once, so its rows are checked together."""

    rows: ImageRows

    def batches(self, names: Sequence[str]) -> Iterable[Sequence[str]]:
        ordered = sorted(names, key=file_and_row)
        return (list(those) for _, those in groupby(ordered, key=lambda name: file_and_row(name)[0]))

    def key(self, name: str) -> str | None:
        file, row = file_and_row(name)
        return _key(self.rows.root / file, row)

    def read(self, names: Sequence[str]) -> Iterator[bytes | UserError]:
        def read(item: tuple[str, Encoded]) -> bytes | UserError:
            name, content = item
            if isinstance(content, UserError):
                return content
            return find_damage(self.rows.root / name, content) or hashlib.sha256(content).digest()

        return in_order(read, zip(names, self.rows.read(names), strict=True), THREADS)


def decode_all(images: Images, names: Sequence[str], what: str) -> Checked:
    """Decode the images ``names``, several at a time.

    Parameters
    ----------
    what : str
        Name in progress lines.
    """
    checked = Checked()
    progress = Progress(what, len(names), "image")
    show = len(names) > AT_ONCE  # fewer take no time
    with closing(_open_known()) as known:
        for batch in images.batches(names):
            keys = dict(zip(batch, in_order(images.key, batch, THREADS), strict=True))
            checked.digests.update(_look_up(known, keys))
            left = [name for name in batch if name not in checked.digests]
            if show and len(left) < len(batch):
                progress.update(len(batch) - len(left), "known from an earlier check")
            new = []
            for name, found in zip(left, images.read(left), strict=True):
                if show:
                    progress.update()
                if isinstance(found, UserError):
                    checked.damaged[name] = found
                else:
                    checked.digests[name] = found
                    new.append((keys[name], found))
            _remember(known, new)
    return checked


def _remember(known: sqlite3.Connection, new: Sequence[tuple[str | None, bytes]]) -> None:
    try:
        with known:
            known.executemany("INSERT OR REPLACE INTO files VALUES (?, ?)", new)
    except sqlite3.Error as error:
        logger.warning("%s: %s; these files will be read again", KNOWN, error)


def _look_up(known: sqlite3.Connection, keys: dict[str, str | None]) -> Iterator[tuple[str, bytes]]:
    """Yield name and SHA-256 of the files that are known to be in order."""
    for name, key in keys.items():
        row = known.execute("SELECT digest FROM files WHERE key = ?", (key,)).fetchone()
        if row is not None:
            yield name, row[0]
