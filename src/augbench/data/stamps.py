"""Stamps of files: size and time of the last change, by which another content is noticed without reading it.

Splits of a user's own images record them (:mod:`augbench.data.splits`), so that the store's keys name images
by content, not by place. Files of one name, size and time count as the same, as for rsync. An image that is a
row of a Parquet file has the stamp of that file.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from augbench.batches import in_batches
from augbench.errors import UserError

AT_ONCE = 256  # files that a thread looks at in one call
THREADS = 8


class Stamp(NamedTuple):
    """Size in bytes, and time of the last change in nanoseconds since 1970."""

    size: int
    mtime_ns: int

    def __str__(self) -> str:
        seconds, rest = divmod(self.mtime_ns, 10**9)
        return f"{self.size:,} bytes of {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(seconds))}.{rest:09d} UTC"


Stamps = Sequence[Stamp | None]  # None: the id names the image's bytes by their hash
KeyName = str | tuple[str, int, int]


def stamp_of(path: Path) -> Stamp:
    """Stamp of a file, or of the file that a link leads to."""
    stat = path.stat()
    return Stamp(stat.st_size, stat.st_mtime_ns)


def stamps_of(files: Iterable[Path]) -> list[Stamp]:
    """Stamps of files, in order; each file is looked at once.

    Raises
    ------
    OSError
        A file is missing.
    """
    from augbench.data.decode import in_order

    files = list(files)
    batches = in_batches(dict.fromkeys(files), AT_ONCE)
    found: dict[Path, Stamp] = {}
    for batch in in_order(lambda batch: [(file, stamp_of(file)) for file in batch], batches, THREADS):
        found.update(batch)
    return [found[file] for file in files]


def names_in_keys(image_ids: Sequence[str], stamps: Stamps | None) -> list[KeyName]:
    """What names images in the store's keys: the id, with the stamp of the file if it has one."""
    if stamps is None:
        return list(image_ids)
    return [
        image_id if stamp is None else (image_id, *stamp)
        for image_id, stamp in zip(image_ids, stamps, strict=True)
    ]


def check_unchanged(files: Sequence[Path], stamps: Sequence[Stamp]) -> None:
    """Check that files are as the splits recorded them, at the cost of one look at each.

    Raises
    ------
    UserError
        The size or the time of a file differs; names the first, and the number of the others.
    OSError
        A file is missing.
    """
    changed = _changed(files, stamps)
    if (first := next(changed, None)) is None:
        return
    file, recorded, found = first
    others = len({path for path, _, _ in changed} - {file})
    more = f" ({others} more files differ)" if others else ""
    raise UserError(
        str(file),
        f"{found}, but the study's splits recorded {recorded}{more}",
        "put the earlier file back (copies keep their time with cp -p or rsync -t), or delete the study's folder "
        "splits to take the files as they are: what was made of the earlier ones is then made again",
    )


def _changed(files: Sequence[Path], stamps: Sequence[Stamp]) -> Iterator[tuple[Path, Stamp, Stamp]]:
    for file, recorded, found in zip(files, stamps, stamps_of(files), strict=True):
        if found != recorded:
            yield file, recorded, found
