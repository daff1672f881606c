"""Write files atomically, and hash files and values: a target exists complete or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from augbench.errors import UserError

PROJECT = Path(__file__).resolve().parents[2]  # the clone of the repository
RESOURCES = PROJECT / "resources"  # small data files of the repository
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; if the block succeeds, rename it to ``path``.

    If the block fails, the temporary file is removed. The file is flushed to disk before the rename, so a
    crash leaves the old file or the new one, never a part of one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(
        prefix=f".{path.name[:80]}.", suffix=f".tmp{path.suffix}", dir=path.parent
    )
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def explained_disk_errors(folder: str | Path) -> Iterator[None]:
    """Raise a :class:`UserError` that names ``folder`` if the disk is full or not writable."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise UserError(
            str(folder),
            error.strerror or str(error),
            "free space or make it writable, then run again; nothing finished is lost",
        ) from error


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON with sorted keys, atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def expand_path(key: str, path: str) -> Path:
    """Return the path that a config key names, with the home folder for ``~`` and environment variables.

    Raises
    ------
    UserError
        A variable is not set.
    """
    expanded = os.path.expandvars(path)
    if "$" in expanded:
        found = f"{path!r}, but this environment variable is not set"
        raise UserError(key, found, "allowed: a folder, with variables that are set")
    return Path(os.path.expanduser(expanded))


def read_text(path: str | Path) -> str:
    """Read a text that a user wrote, without a byte order mark.

    Raises
    ------
    UserError
        The file can't be read, or is not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(str(path), reason, "a file that you may read is needed") from None
    except UnicodeDecodeError as error:
        raise UserError(str(path), f"not readable as text ({error})", "save it as UTF-8") from None


def read_json(path: str | Path) -> Any:
    """Read a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def sha256_file(path: str | Path, update: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file, read in pieces of 1 MiB; ``update`` is called with the number of bytes of each."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
            if update is not None:
                update(len(piece))
    return digest.hexdigest()


def canonical_hash(value: Any) -> str:
    """SHA-256 of a JSON value (dict, list, str, number, None), independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def is_array(path: Path) -> bool:
    """Whether a file holds a whole array in numpy's format."""
    import numpy as np

    try:
        np.load(path, mmap_mode="r")
    except (ValueError, OSError, EOFError):
        return False
    return True
