"""Decode every image that a study may read, once, and remember those that were in order.

Images are known by path, size and time of their file, and their row in a Parquet file. A file that was in
order is not read again until it changes, so that an interrupted check resumes, and one after a repair reads
only what was repaired.
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
from typing import NamedTuple, Protocol

from augbench.batches import in_batches
from augbench.data.decode import GUESSED_BITS, in_order, try_decode
from augbench.data.parquet_images import Encoded, ImageRows, file_and_row
from augbench.data.walk import printable
from augbench.errors import UserError, some
from augbench.files import canonical_hash, sha256_file
from augbench.progress import Progress

logger = logging.getLogger(__name__)

KNOWN = Path("results/.checked_images.sqlite")
VERSION = 2  # of what counts as in order, and of what is remembered
COLUMNS = "images (key TEXT PRIMARY KEY, digest BLOB, bits INTEGER)"
AT_ONCE = 500  # files looked up in one query
THREADS = max(8, 2 * (os.cpu_count() or 1))  # more than cores: a disk may be slow


class Known(NamedTuple):
    """SHA-256 of a file, and the guessed depth of a grey image of 16 bits."""

    digest: bytes
    bits: int | None


@dataclass
class Checked:
    """Result of decoding files.

    Attributes
    ----------
    digests : dict
        SHA-256 of the files that are in order, by name.
    bits : dict
        Guessed depth of grey images of 16 bits, by name.
    damaged : dict
        Problems of the other files, by name.
    """

    digests: dict[str, bytes] = field(default_factory=dict)
    bits: dict[str, int] = field(default_factory=dict)
    damaged: dict[str, UserError] = field(default_factory=dict)

    def add(self, name: str, found: Known) -> None:
        """Add a file that is in order."""
        self.digests[name] = found.digest
        if found.bits is not None:
            self.bits[name] = found.bits

    def guesses(self) -> Iterator[str]:
        """Yield a warning per depth that is less than the 16 bits that values are stored in."""
        for bits in sorted({found for found in self.bits.values() if found < 16}):
            names = [printable(name) for name, found in self.bits.items() if found == bits]
            yield (
                f"{len(names)} grey images of 16 bits have no value above {2**bits - 1} and count as images"
                f" of {bits} bits: {some(names, 3)}; if they are dark instead, save them with 8 bits"
            )


def _open_known() -> sqlite3.Connection:
    try:
        KNOWN.parent.mkdir(parents=True, exist_ok=True)
        known = sqlite3.connect(KNOWN)
        known.execute(f"CREATE TABLE IF NOT EXISTS {COLUMNS} WITHOUT ROWID")
    except (OSError, sqlite3.Error) as error:
        logger.warning("%s: %s; files that are in order will be read again", KNOWN, error)
        known = sqlite3.connect(":memory:")
        known.execute(f"CREATE TABLE {COLUMNS}")
    return known


def _key(path: Path, *row: int) -> str | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return canonical_hash([VERSION, os.path.abspath(path), stat.st_size, stat.st_mtime_ns, *row])


def _known(path: Path, content: bytes | None = None) -> Known | UserError:
    found = try_decode(path, most_pixels=0, content=content)
    if isinstance(found, UserError):
        return found
    digest = sha256_file(path) if content is None else hashlib.sha256(content).hexdigest()
    return Known(bytes.fromhex(digest), found.image.info.get(GUESSED_BITS))


class Images(Protocol):
    """Images that can be checked."""

    def batches(self, names: Sequence[str]) -> Iterable[Sequence[str]]:
        """Cut ``names`` into parts that are checked together."""

    def key(self, name: str) -> str | None:
        """Return a key that changes with the image, or None if it is missing."""

    def read(self, names: Sequence[str]) -> Iterator[Known | UserError]:
        """Yield what is known of each image, or why it can't be decoded."""


@dataclass(frozen=True)
class ImageFiles:
    """Image files in a folder."""

    root: Path

    def batches(self, names: Sequence[str]) -> Iterable[Sequence[str]]:
        return in_batches(names, AT_ONCE)

    def key(self, name: str) -> str | None:
        return _key(self.root / name)

    def read(self, names: Sequence[str]) -> Iterator[Known | UserError]:
        return in_order(_known, (self.root / name for name in names), THREADS)


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

    def read(self, names: Sequence[str]) -> Iterator[Known | UserError]:
        def read(item: tuple[str, Encoded]) -> Known | UserError:
            name, content = item
            return content if isinstance(content, UserError) else _known(self.rows.root / name, content)

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
            for name, before in _look_up(known, keys):
                checked.add(name, before)
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
                    checked.add(name, found)
                    new.append((keys[name], *found))
            _remember(known, new)
    return checked


def _remember(known: sqlite3.Connection, new: Sequence[tuple[str | None, bytes, int | None]]) -> None:
    try:
        with known:
            known.executemany("INSERT OR REPLACE INTO images VALUES (?, ?, ?)", new)
    except sqlite3.Error as error:
        logger.warning("%s: %s; these files will be read again", KNOWN, error)


def _look_up(known: sqlite3.Connection, keys: dict[str, str | None]) -> Iterator[tuple[str, Known]]:
    """Yield what is known of the files that are known to be in order, with their names."""
    for name, key in keys.items():
        row = known.execute("SELECT digest, bits FROM images WHERE key = ?", (key,)).fetchone()
        if row is not None:
            yield name, Known(*row)
