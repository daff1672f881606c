"""The cache: what became of each URL, and the files that were fetched, in one SQLite file that survives ``kill -9``.

Flows in: a row per URL, with its file if it is kept. Flows out: the same rows, files and images, to this run and later ones.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from io import BytesIO
from pathlib import Path

from PIL import Image

from augbench.errors import UserError
from augbench.retrieval.web.content import FORMATS, upright_rgb


@dataclass(frozen=True)
class Fetched:
    """What became of a URL; None where it did not get that far.

    Attributes
    ----------
    fate : str
        One of :data:`augbench.retrieval.web.fates.FATES`.
    final_url : str
        After redirects.
    status : int
        Of the last answer.
    sha256 : str
        Of the file, in hexadecimal.
    width, height : int
        In pixels, upright.
    size : int
        Of the file, in bytes.
    fetched_at : str
        When the fate was known (UTC, ISO 8601).
    seconds : float
        How long that took.
    limits : str
        :attr:`augbench.retrieval.web.fates.Limits.signature` at the time.
    held : bool
        Whether the file is in the cache.
    """

    url: str
    fate: str
    final_url: str | None = None
    status: int | None = None
    content_type: str | None = None
    sha256: str | None = None
    width: int | None = None
    height: int | None = None
    size: int | None = None
    fetched_at: str = ""
    seconds: float = 0.0
    limits: str = ""
    held: bool = False


Record = tuple[Fetched, bytes | None]

_COLUMNS = [entry.name for entry in fields(Fetched) if entry.name != "held"]
# bytes come last: SQLite reads the columns before them without following a file's pages
_CREATE = """CREATE TABLE IF NOT EXISTS images (
    url TEXT PRIMARY KEY, fate TEXT NOT NULL, final_url TEXT, status INTEGER, content_type TEXT, sha256 TEXT, width INTEGER, height INTEGER,
    size INTEGER, fetched_at TEXT NOT NULL, seconds REAL NOT NULL, limits TEXT NOT NULL, bytes BLOB)"""
_VERSION = 1


def _storable(text: str) -> str:
    """Text as SQLite takes it: lone surrogates, which URLs and headers may hold, are spelled out."""
    return text.encode("utf-8", "backslashreplace").decode()


class Cache:
    """Fates and files by URL, in one SQLite file. One process writes; ``read_only`` ones may share it when nobody writes.

    A rollback journal, not a write-ahead log, because the log needs memory shared between processes, which network file systems lack. A commit
    reaches the disk before it returns: after ``kill -9`` or a power cut all that was committed is there.

    Parameters
    ----------
    path : path
        Made if it is missing, unless ``read_only``.

    Raises
    ------
    UserError
        The file is in use by another process, damaged, no such cache, or missing; later, the disk is full.
    """

    def __init__(self, path: str | Path, read_only: bool = False) -> None:
        self.path, self.read_only = Path(path), read_only
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def __enter__(self) -> Cache:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> None:
        """Open the file; a transaction that a killed process left behind is undone."""
        if self.read_only and not self.path.exists():
            raise UserError(str(self.path), "missing", "run the download first")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._explained():
            # readers open the file for writing as well: only so can they undo what a killed writer left
            connection = sqlite3.connect(self.path, timeout=1, isolation_level=None, check_same_thread=False)
            try:
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
        self._connection = connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        if self.read_only:
            connection.execute("PRAGMA query_only = ON")
        else:
            connection.execute("PRAGMA page_size = 16384")
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("PRAGMA journal_mode = TRUNCATE")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("BEGIN EXCLUSIVE")
            if self._is_empty(connection):
                connection.execute(_CREATE)
                connection.execute(f"PRAGMA user_version = {_VERSION}")
            connection.execute("COMMIT")
        found = [row[1] for row in connection.execute("PRAGMA table_info(images)")]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if found != [*_COLUMNS, "bytes"] or version != _VERSION:
            raise UserError(
                str(self.path), "no download cache of this version", "delete the file, or give another path"
            )

    @staticmethod
    def _is_empty(connection: sqlite3.Connection) -> bool:
        return connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0] == 0

    def close(self) -> None:
        """Close the file; another process may open it then."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            remedy = {
                sqlite3.SQLITE_BUSY: "another process has it open; wait until that has ended",
                sqlite3.SQLITE_FULL: "free space, then run again; nothing fetched is lost",
                sqlite3.SQLITE_NOTADB: "delete the file, or give another path",
                sqlite3.SQLITE_CORRUPT: "delete the file; its images will be fetched again",
                sqlite3.SQLITE_CANTOPEN: "give a path in a folder that can be written to",
                sqlite3.SQLITE_READONLY: "make it writable",
                sqlite3.SQLITE_IOERR: "check the disk and its quota, then run again; nothing fetched is lost",
            }.get(code)
            if remedy is None:
                raise
            raise UserError(str(self.path), str(error), remedy) from error

    @contextmanager
    def _used(self) -> Iterator[sqlite3.Connection]:
        if self._connection is None:
            raise ValueError(f"{self.path}: the cache is closed")
        with self._lock, self._explained():
            yield self._connection

    @contextmanager
    def _written(self) -> Iterator[sqlite3.Connection]:
        with self._used() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def get(self, url: str) -> Fetched | None:
        """What is known of a URL; None if nothing is."""
        with self._used() as connection:
            row = connection.execute(
                f"SELECT {', '.join(_COLUMNS)}, bytes IS NOT NULL FROM images WHERE url = ?",
                (_storable(url),),
            ).fetchone()
        return (
            None
            if row is None
            else Fetched(**{**dict(zip(_COLUMNS, row[:-1], strict=True)), "url": url, "held": bool(row[-1])})
        )

    def content(self, url: str) -> bytes:
        """The original file of an image that was fetched.

        Raises
        ------
        KeyError
            It was not, or has been forgotten.
        """
        with self._used() as connection:
            row = connection.execute("SELECT bytes FROM images WHERE url = ?", (_storable(url),)).fetchone()
        if row is None or row[0] is None:
            raise KeyError(url)
        return bytes(row[0])

    def image(self, url: str) -> Image.Image:
        """The image, upright, as 8-bit RGB; KeyError as for :meth:`content`."""
        with Image.open(BytesIO(self.content(url)), formats=FORMATS) as image:
            return upright_rgb(image)

    def put(self, records: Sequence[Record]) -> None:
        """Write rows, replacing those of the same URLs; they are on the disk when this returns."""
        names = [*_COLUMNS, "bytes"]
        rows = [
            [
                _storable(value) if isinstance(value, str) else value
                for value in (getattr(found, name) for name in _COLUMNS)
            ]
            + [content]
            for found, content in records
        ]
        with self._written() as connection:
            connection.executemany(
                f"INSERT OR REPLACE INTO images ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})",
                rows,
            )

    def forget_bytes(self, urls: Iterable[str]) -> None:
        """Remove the files of some URLs and give their space back; the fates stay. A later download of these URLs fetches them again."""
        with self._written() as connection:
            connection.executemany(
                "UPDATE images SET bytes = NULL WHERE url = ?", ((_storable(url),) for url in urls)
            )
        with self._used() as connection:
            while connection.execute("PRAGMA freelist_count").fetchone()[0]:
                # in steps: the journal holds the pages that move
                connection.execute("PRAGMA incremental_vacuum(4096)").fetchall()

    def fates(self) -> Counter[str]:
        """How many URLs have which fate."""
        with self._used() as connection:
            return Counter(
                dict(connection.execute("SELECT fate, COUNT(*) FROM images GROUP BY fate").fetchall())
            )
