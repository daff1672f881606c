"""Files of the leakage guard: for each method, a table of confirmed pairs and a summary of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from augbench.artifacts.parquet import read_table
from augbench.config.stages import Leakage

SCHEMA = pa.schema(
    [
        ("method", pa.string()),
        ("class_id", pa.string()),
        ("index", pa.int32()),  # i of "image i of class c"
        ("sha256", pa.string()),  # of the added image
        ("split", pa.string()),  # train, val, test, or a further test set
        ("image_id", pa.string()),  # of the real image
        ("real_class_id", pa.string()),
        ("clip_similarity", pa.float32()),  # cosine
        ("hash_distance", pa.int32()),  # of 256 bits
        ("correlation", pa.float32()),  # of fine detail
        ("kind", pa.string()),  # one of augbench.leakage.pictures.KINDS
    ]
)


@dataclass(frozen=True)
class Summary:
    """Result of the guard for one method's pool, counted in images, not pairs.

    Attributes
    ----------
    checked : int
        Number of added images.
    val, test, either : int
        Number of added images with a near-duplicate in the validation split, in the test split, in either.
    val_images, test_images : int
        Number of distinct real images that have a near-duplicate in the pool.
    limits : dict
        The study's :class:`~augbench.config.stages.Leakage`, without its action.
    """

    method: str
    checked: int
    val: int
    test: int
    either: int
    val_images: int
    test_images: int
    limits: dict[str, float]


def summarise(method: str, checked: int, leaks: pa.Table, limits: Leakage) -> Summary:
    """Summarise one method's table of pairs; ``checked`` is the number of its images."""
    images: dict[str, set[Any]] = {"val": set(), "test": set()}
    real: dict[str, set[Any]] = {"val": set(), "test": set()}
    for row in leaks.to_pylist():
        images[row["split"]].add((row["class_id"], row["index"]))
        real[row["split"]].add(row["image_id"])
    return Summary(
        method=method,
        checked=checked,
        val=len(images["val"]),
        test=len(images["test"]),
        either=len(images["val"] | images["test"]),
        val_images=len(real["val"]),
        test_images=len(real["test"]),
        limits=limits.model_dump(mode="json", exclude={"action"}),
    )


def count_images(leaks: pa.Table, split: str) -> int:
    """Number of added images with a near-duplicate in a split."""
    return len({(row["class_id"], row["index"]) for row in leaks.to_pylist() if row["split"] == split})


def read_leaks(path: str | Path) -> pa.Table:
    """Read the table of one method's pairs.

    Raises
    ------
    UserError
        The file is missing, is not a complete Parquet file, or has other columns than :data:`SCHEMA`.
    """
    return read_table(path, SCHEMA)
