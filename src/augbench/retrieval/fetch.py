"""Fetch the files of a published corpus; interrupted downloads resume."""

from __future__ import annotations

import logging
import os
import urllib.request
from http.client import HTTPException
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from augbench.errors import UserError
from augbench.files import explained_disk_errors
from augbench.progress import Progress

logger = logging.getLogger(__name__)
PIECE = 1 << 20  # bytes
SECONDS_TO_ANSWER = 60


def fetch_file(address: str, target: Path) -> None:
    """Fetch ``address`` to ``target``; a file of the right size that is already there is kept.

    What has arrived is in a hidden file beside it until the download is complete.

    Raises
    ------
    UserError
        The server does not answer, or gives another number of bytes than it promised; or the file is no
        whole Parquet file although its name ends in ``.parquet``.
    """
    part = target.with_name(f".{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        size = _size(address)
        if target.is_file() and target.stat().st_size == size:
            return
        with explained_disk_errors(target.parent):
            _append(address, part, size)
    except (OSError, HTTPException, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(address, f"not fetched ({reason})", "run again to resume") from None
    if (found := part.stat().st_size) != size:
        if found > size:
            part.unlink()
        raise UserError(address, f"{found} bytes arrived, {size} promised", "run again to resume")
    if target.suffix == ".parquet":
        try:
            pq.read_metadata(part)
        except pa.ArrowException as error:
            part.unlink()
            reason = str(error).splitlines()[0]
            raise UserError(address, f"no whole Parquet file ({reason})", "check the address") from None
    os.replace(part, target)
    logger.info("fetched %s, %d bytes, as promised", target, size)


def _size(address: str) -> int:
    request = urllib.request.Request(address, method="HEAD")
    with urllib.request.urlopen(request, timeout=SECONDS_TO_ANSWER) as answer:
        if (size := answer.headers["Content-Length"]) is None:
            raise ValueError("the server does not tell the number of bytes")
        return int(size)


def _append(address: str, part: Path, size: int) -> None:
    """Fetch the bytes that ``part`` lacks."""
    there = part.stat().st_size if part.is_file() else 0
    if there >= size > 0:
        return
    request = urllib.request.Request(address, headers={"Range": f"bytes={there}-"} if there else {})
    with urllib.request.urlopen(request, timeout=SECONDS_TO_ANSWER) as answer:
        resumes = answer.status == 206
        progress = Progress(
            f"fetch {part.name[1:-5]}", -(-size // PIECE), "MiB", there // PIECE if resumes else 0
        )
        with part.open("ab" if resumes else "wb") as stream:
            while piece := answer.read(PIECE):
                stream.write(piece)
                progress.update()
