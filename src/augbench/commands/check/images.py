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

from augbench.batches import in_batches
from augbench.data.decode import find_damage, in_order
from augbench.errors import UserError
from augbench.files import canonical_hash, sha256_file
from augbench.progress import Progress

logger = logging.getLogger(__name__)

KNOWN = Path("results/.checked_images.sqlite")
VERSION = 1  # of what counts as in order
AT_ONCE = 500  # files looked up in one query


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


def _key(path: Path) -> str | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return canonical_hash([VERSION, os.path.abspath(path), stat.st_size, stat.st_mtime_ns])


def _read(path: Path) -> bytes | UserError:
    return find_damage(path) or bytes.fromhex(sha256_file(path))


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
            checked.digests.update(_look_up(known, keys))
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
