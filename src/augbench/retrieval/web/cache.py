"""Cache of URLs' fates and fetched files, in one SQLite file that survives ``kill -9``.

Later runs read the same rows, files and images.
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

from augbench.data.decode import upright_rgb
from augbench.errors import UserError
from augbench.retrieval.web.content import FORMATS


@dataclass(frozen=True)
class Fetched:
    """Result of fetching a URL; attributes that were not reached are None.

    Attributes
    ----------
    fate : str
        One of :data:`augbench.retrieval.web.fates.FATES`.
    final_url : str
        URL after redirects.
    status : int
        HTTP status of the last answer.
    sha256 : str
        SHA-256 of the file, in hexadecimal.
    width, height : int
        Size of the upright image, in pixels.
    size : int
        Size of the file, in bytes.
    fetched_at : str
        Time when the fate was known (UTC, ISO 8601).
    seconds : float
        Time that the URL took.
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
# bytes come last, so that SQLite reads the other columns without the pages of the file's bytes
_CREATE = """CREATE TABLE IF NOT EXISTS images (
    url TEXT PRIMARY KEY, fate TEXT NOT NULL, final_url TEXT, status INTEGER, content_type TEXT,
    sha256 TEXT, width INTEGER, height INTEGER, size INTEGER, fetched_at TEXT NOT NULL,
    seconds REAL NOT NULL, limits TEXT NOT NULL, bytes BLOB)"""
_VERSION = 1


def _storable(text: str) -> str:
    """Escape lone surrogates, which URLs and headers may hold and SQLite cannot store."""
    return text.encode("utf-8", "backslashreplace").decode()


class Cache:
    """Fates and files by URL, in one SQLite file.

    One process may write; when none does, several ``read_only`` processes may share the file. The file has
    a rollback journal, not a write-ahead log, because the log needs memory shared between processes, which
    network file systems lack. A commit returns once it is on the disk, so committed rows survive
    ``kill -9`` and power cuts.

    Parameters
    ----------
    path : path
        File of the cache; created if it is missing, unless ``read_only``.

    Raises
    ------
    UserError
        The file is in use by another process, damaged, not a cache of this version, or missing; later, the
        disk is full.
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
        """Open the file, and roll back a transaction that a killed process left behind."""
        if self.read_only and not self.path.exists():
            raise UserError(str(self.path), "missing", "run the download first")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._explained():
            # readers open the file for writing, too, so that they can roll back a killed writer's transaction
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
                str(self.path),
                "not a download cache of this version",
                "delete the file, or give another path",
            )

    @staticmethod
    def _is_empty(connection: sqlite3.Connection) -> bool:
        return connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0] == 0

    def close(self) -> None:
        """Close the file, so that another process may open it."""
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
        """Return the row of a URL, or None if there is none."""
        with self._used() as connection:
            row = connection.execute(
                f"SELECT {', '.join(_COLUMNS)}, bytes IS NOT NULL FROM images WHERE url = ?",
                (_storable(url),),
            ).fetchone()
        if row is None:
            return None
        values = dict(zip(_COLUMNS, row[:-1], strict=True))
        return Fetched(**{**values, "url": url, "held": bool(row[-1])})

    def content(self, url: str) -> bytes:
        """Return the bytes of a fetched image's original file.

        Raises
        ------
        KeyError
            The image was not fetched, or its bytes were deleted by :meth:`forget_bytes`.
        """
        with self._used() as connection:
            row = connection.execute("SELECT bytes FROM images WHERE url = ?", (_storable(url),)).fetchone()
        if row is None or row[0] is None:
            raise KeyError(url)
        return bytes(row[0])

    def image(self, url: str) -> Image.Image:
        """Return the image, upright, as 8-bit RGB; raises KeyError like :meth:`content`."""
        with Image.open(BytesIO(self.content(url)), formats=FORMATS) as image:
            return upright_rgb(image)

    def put(self, records: Sequence[Record]) -> None:
        """Write rows, and replace those of the same URLs; they are on the disk when this returns."""
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

    def forget_bytes(self, names: Iterable[str]) -> None:
        """Delete the files of some URLs or SHA-256 hashes and free their space, but keep the fates.

        A later download of these URLs fetches them again.
        """
        with self._written() as connection:
            connection.executemany(
                "UPDATE images SET bytes = NULL WHERE ?1 IN (url, sha256)",
                ((_storable(name),) for name in names),
            )
        with self._used() as connection:
            while connection.execute("PRAGMA freelist_count").fetchone()[0]:
                # in steps, because the journal holds the pages that move
                connection.execute("PRAGMA incremental_vacuum(4096)").fetchall()

    def fates(self) -> Counter[str]:
        """Count the URLs of each fate."""
        with self._used() as connection:
            return Counter(
                dict(connection.execute("SELECT fate, COUNT(*) FROM images GROUP BY fate").fetchall())
            )
