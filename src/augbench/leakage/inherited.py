"""Near-duplicates through edges: images that were made from a near-duplicate of a validation or test image.

A row may start or learn from the images of another row. Its own images then need not look like a real image
that the other row's image shows, and still carry what it says. Input: the pools, the pairs that the guard
found, and the images that rows learned from. Output: one row per added image, the image that it comes from,
and the real image. Images are followed by the hash of their bytes, through any number of rows.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from augbench.artifacts.origins import ADDED, origins, parse_added
from augbench.artifacts.parquet import read_table
from augbench.artifacts.pool import pool_of, read_index
from augbench.data.splits import read_split
from augbench.files import atomic_path
from augbench.leakage.records import read_leaks

if TYPE_CHECKING:
    from augbench.runtime.job import Job

logger = logging.getLogger(__name__)

SCHEMA = pa.schema(
    [
        ("method", pa.string()),
        ("class_id", pa.string()),
        ("index", pa.int32()),  # i of "image i of class c"
        ("sha256", pa.string()),  # of the added image
        ("edge", pa.string()),  # START or LEARNED
        ("origin", pa.string()),  # sha256 of the image that it started from, or that its class learned from
        ("split", pa.string()),  # val or test
        ("image_id", pa.string()),  # of the real image that the origin shows, or comes from
        ("real_class_id", pa.string()),
    ]
)
START, LEARNED = "start", "learn_from"
Real = tuple[str, str, str]  # split, image_id and real_class_id of a real image


def write_inherited(
    job: Job,
    indexes: Mapping[str, str | Path],
    leaks: Mapping[str, str | Path],
    learned: Mapping[str, str | Path],
    outs: Mapping[str, str | Path],
    excluded: Collection[str] = (),
) -> None:
    """Write the inherited near-duplicates of methods, each after those that it is built on.

    All images of a class that learned from a near-duplicate count. That a U-Net that all classes share has
    seen it is not counted for the other classes.

    Parameters
    ----------
    indexes, outs : mapping of method to path
        Index of each method's pool, and the target (:data:`SCHEMA`).
    leaks : mapping of method to path
        The guard's pairs (:func:`augbench.leakage.stage.guard`) of all guarded methods.
    learned : mapping of method to path
        Manifests of the images that methods learned from (:mod:`augbench.personalise.learned`).
    excluded : collection of str
        Classes that training and scoring leave out.

    Raises
    ------
    UserError
        A file is missing or damaged.
    """
    known: dict[str, set[Real]] = {}
    for path in leaks.values():
        for pair in read_leaks(path).to_pylist():
            known.setdefault(pair["sha256"], set()).add(_real(pair))
    lessons = {method: _hashes_by_class(path) for method, path in learned.items()}
    for method, path in indexes.items():
        rows = list(_inherited(method, read_index(path), job.folder, known, lessons, excluded))
        for row in rows:
            known.setdefault(row["sha256"], set()).add(_real(row))
        with atomic_path(outs[method]) as temporary:
            pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), temporary)
        logger.info("%s: %d images made from near-duplicates", method, len({row["sha256"] for row in rows}))


def _real(row: Mapping[str, Any]) -> Real:
    return row["split"], row["image_id"], row["real_class_id"]


def _hashes_by_class(path: str | Path) -> dict[str, list[str]]:
    split = read_split(path)
    found: dict[str, list[str]] = {}
    for class_id, source in zip(split.class_ids, split.sources, strict=True):
        if source.startswith(ADDED):
            found.setdefault(class_id, []).append(parse_added(source)["sha256"])
    return found


def _inherited(
    method: str,
    index: pa.Table,
    folder: Path,
    known: Mapping[str, set[Real]],
    lessons: Mapping[str, Mapping[str, list[str]]],
    excluded: Collection[str],
) -> Iterator[dict[str, Any]]:
    paths = index.column("path").to_pylist()
    started = {path: origins([folder / path]) for path in dict.fromkeys(paths)}
    for row in index.to_pylist():
        if row["class_id"] in excluded:
            continue
        start = started[row["path"]].get((row["class_id"], row["index"]))
        taught = lessons.get(pool_of(row["path"]), {}).get(row["class_id"], [])
        edges = [*([(START, start)] if start else []), *((LEARNED, sha256) for sha256 in taught)]
        for edge, origin in edges:
            for split, image_id, real_class_id in sorted(known.get(origin, ())):
                yield {
                    "method": method,
                    "class_id": row["class_id"],
                    "index": row["index"],
                    "sha256": row["sha256"],
                    "edge": edge,
                    "origin": origin,
                    "split": split,
                    "image_id": image_id,
                    "real_class_id": real_class_id,
                }


def read_inherited(path: str | Path) -> pa.Table:
    """Read the inherited near-duplicates of one method; raises a UserError if the file is damaged."""
    return read_table(path, SCHEMA)


def count_inherited(rows: pa.Table) -> int:
    """Number of added images that were made from a near-duplicate."""
    return len({(row["class_id"], row["index"]) for row in rows.to_pylist()})
