"""Filter a pool before training sets are drawn from it: keep the best share of each class by its scores."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from augbench.artifacts.parquet import REMAKE
from augbench.artifacts.pool import pools_of
from augbench.config.methods import Keep
from augbench.errors import UserError
from augbench.pools.scores import read_scores


def keep_best(
    index: pa.Table,
    scores: Mapping[str, Mapping[tuple[str, int, str], float]],
    keep: Keep,
    excluded: Collection[str] = (),
    where: str = "pool",
) -> pa.Table:
    """Part of an index with the best scores: ``keep.share`` of each pool's images of a class, rounded up.

    Parameters
    ----------
    index : Table
        :data:`augbench.artifacts.pool.SCHEMA`. Its order stays. Of equal scores the first image is kept.
    scores : mapping
        Scores of each pool's images by class, index and hash (:func:`augbench.pools.scores.read_scores`).
    excluded : collection of str
        Classes that the study leaves out: they have no scores, and stay whole.

    Raises
    ------
    UserError
        An image has no score.
    """
    keys = zip(*(index.column(name).to_pylist() for name in ("class_id", "index", "sha256")), strict=True)
    members: dict[tuple[str, str], list[int]] = {}
    values = np.zeros(index.num_rows)
    for row, (pool, key) in enumerate(zip(pools_of(index), keys, strict=True)):
        if key[0] not in excluded:
            if key not in scores[pool]:
                raise UserError(where, f"image {key[1]} of class {key[0]!r} in {pool} has no score", REMAKE)
            members.setdefault((pool, key[0]), []).append(row)
            values[row] = scores[pool][key]
    stays = np.ones(index.num_rows, dtype=bool)
    for rows in map(np.array, members.values()):
        ranked = rows[np.argsort(-values[rows], kind="stable")]
        stays[ranked[keep.kept(len(rows)) :]] = False
    return index.filter(pa.array(stays, pa.bool_()))


def filter_of(
    keep: Keep | None, paths: Collection[str | Path], excluded: Collection[str], where: str
) -> Callable[[pa.Table], pa.Table] | None:
    """The filter of a row as a function of its index; None if the row has none.

    Parameters
    ----------
    paths : collection of path
        Scores, one file per pool, named after the pool.
    """
    if keep is None:
        return None
    scores = {Path(path).stem: read_scores(path) for path in paths}
    return lambda index: keep_best(index, scores, keep, excluded, where)
