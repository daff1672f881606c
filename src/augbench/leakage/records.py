"""The guard's files: a table of confirmed pairs per method, and a summary of it."""

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
        ("split", pa.string()),  # val or test
        ("image_id", pa.string()),  # of the real image
        ("real_class_id", pa.string()),
        ("clip_similarity", pa.float32()),
        ("hash_distance", pa.int32()),  # of 256 bits
        ("correlation", pa.float32()),  # of fine detail
        ("kind", pa.string()),  # one of KINDS
    ]
)


@dataclass(frozen=True)
class Summary:
    """What the guard found in one method's pool: images, not pairs.

    Attributes
    ----------
    checked : int
        Added images.
    val, test, either : int
        Of these, with a near-duplicate in that split, or in one of them.
    val_images, test_images : int
        Distinct real images that have a near-duplicate in the pool.
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
    """The figures of one method, from its table of pairs and the number of images ``checked``."""
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


def read_leaks(path: str | Path) -> pa.Table:
    """Read the pairs of one method.

    Raises
    ------
    UserError
        Missing, not a whole Parquet file, or other columns than :data:`SCHEMA`.
    """
    return read_table(path, SCHEMA)
