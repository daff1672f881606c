"""Effects of near-duplicates: a pool without them, and accuracy without the test images that have one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from augbench.errors import UserError


def without_leaks(
    index: pa.Table, leaks: pa.Table, class_sizes: Mapping[str, int] | None = None, where: str = "pool"
) -> pa.Table:
    """Index of a pool without the images that have a near-duplicate in a split.

    Parameters
    ----------
    index : Table
        :data:`augbench.artifacts.pool.SCHEMA`.
    leaks : Table
        :data:`augbench.leakage.records.SCHEMA`, of the same pool.
    class_sizes : mapping of str to int, optional
        Number of images that each class needs. Part 0 alone needs as many, because the first training set
        is drawn from it. Default: one per class, in any part.
    where : str
        Name of the pool in errors.

    Raises
    ------
    UserError
        Classes have too few images left (all are listed with their counts), or ``leaks`` has images that
        are not in the pool.
    """
    keys = list(
        zip(*(index.column(name).to_pylist() for name in ("class_id", "index", "sha256")), strict=True)
    )
    leaking = set(
        zip(*(leaks.column(name).to_pylist() for name in ("class_id", "index", "sha256")), strict=True)
    )
    if strange := sorted(leaking - set(keys)):
        class_id, number, _ = strange[0]
        raise UserError(
            where,
            f"image {number} of class {class_id!r} was changed or deleted after the leakage guard checked it",
            "run the guard again",
        )
    stays = np.array([key not in leaking for key in keys], dtype=bool)
    left = index.filter(pa.array(stays, pa.bool_()))
    dropped = Counter(key[0] for key in keys if key in leaking)
    sizes = dict.fromkeys(index.column("class_id").to_pylist(), 1) if class_sizes is None else class_sizes
    counts = Counter(left.column("class_id").to_pylist())
    first = Counter(
        row["class_id"]
        for row in left.select(["class_id", "path"]).to_pylist()
        if Path(row["path"]).stem == "0"
    )
    short = []
    for class_id, size in sizes.items():
        fewest = counts[class_id] if class_sizes is None else min(counts[class_id], first[class_id])
        if fewest < size and dropped[class_id]:
            short.append(f"{class_id} {fewest} of {size} ({dropped[class_id]} dropped)")
    if short:
        raise UserError(
            where,
            f"too few images left for {len(short)} class(es) after near-duplicates of validation and test "
            f"images were dropped: {', '.join(short)}",
            "make or retrieve more per class, or let the report name them instead of dropping them",
        )
    return left


def accuracy_without(predictions: pa.Table, leaks: pa.Table) -> tuple[float | None, int]:
    """Accuracy on the test images that have no near-duplicate in a pool.

    Parameters
    ----------
    predictions : Table
        :data:`augbench.classifier.score.SCHEMA`.
    leaks : Table
        Columns split and image_id of :data:`augbench.leakage.records.SCHEMA`; rows of splits other than
        ``test`` are ignored.

    Returns
    -------
    float or None, int
        Share of images whose predicted label is the true one (None if no image is left), and the number
        of images left.
    """
    touched = pc.unique(leaks.filter(pc.equal(leaks.column("split"), "test")).column("image_id"))
    left = predictions.filter(pc.invert(pc.is_in(predictions.column("image_id"), value_set=touched)))
    share = pc.mean(pc.equal(left.column("label"), left.column("predicted")).cast(pa.float64())).as_py()
    return share, left.num_rows
