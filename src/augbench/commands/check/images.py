"""Decode every image file that a study may read, once, and remember the files that were in order.

Files are known by path, size and time. A file that was in order is not read again until it changes, so that
an interrupted check resumes, and one after a repair reads only what was repaired.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from augbench.batches import in_batches
from augbench.data.decode import GUESSED_BITS, in_order, try_decode
from augbench.data.walk import printable
from augbench.errors import UserError, some
from augbench.files import canonical_hash, sha256_file
from augbench.progress import Progress

logger = logging.getLogger(__name__)

KNOWN = Path("results/.checked_images.sqlite")
VERSION = 2  # of what counts as in order, and of what is remembered
COLUMNS = "images (key TEXT PRIMARY KEY, digest BLOB, bits INTEGER)"
AT_ONCE = 500  # files looked up in one query


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


def _key(path: Path) -> str | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return canonical_hash([VERSION, os.path.abspath(path), stat.st_size, stat.st_mtime_ns])


def _read(path: Path) -> Known | UserError:
    found = try_decode(path, most_pixels=0)
    if isinstance(found, UserError):
        return found
    return Known(bytes.fromhex(sha256_file(path)), found.image.info.get(GUESSED_BITS))


def decode_all(root: Path, names: Sequence[str], what: str) -> Checked:
    """Decode the files ``names`` in ``root``, several at a time.

    Parameters
    ----------
    what : str
        Name in progress lines.
    """
    checked, threads = Checked(), max(8, 2 * (os.cpu_count() or 1))  # more than cores: a disk may be slow
    progress = Progress(what, len(names), "image")
    show = len(names) > AT_ONCE  # fewer take no time
    with closing(_open_known()) as known:
        for batch in in_batches(names, AT_ONCE):
            keys = dict(zip(batch, in_order(_key, (root / name for name in batch), threads), strict=True))
            for name, before in _look_up(known, keys):
                checked.add(name, before)
            left = [name for name in batch if name not in checked.digests]
            if show and len(left) < len(batch):
                progress.update(len(batch) - len(left), "known from an earlier check")
            new = []
            for name, found in zip(
                left, in_order(_read, (root / name for name in left), threads), strict=True
            ):
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
