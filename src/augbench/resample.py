"""Resample: the pool of added images becomes as many training sets as the protocol asks for (paper, section 3).

Flows in: the index of a method's pool and the training split's class sizes. Flows out: manifests, each with as many added images
of a class as the class has real training images, drawn without replacement inside a set and independently between sets.

The generator of a draw derives from the study's seed, the set's number and the class, not from the method: pools of one size
give the same indices for every method (common random numbers), so that methods differ by their images and not by the draw.

Set 0 is drawn from part 0 alone. Images of a generated pool are independent of each other given their class, so that is as random a
set as any other; and candidates of a fine-tuned method, of which only part 0 is made, are compared on the very set that the
selected one goes on with.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from augbench.artifacts.pool import read_index
from augbench.config.study import Study
from augbench.data.splits import read_split
from augbench.errors import UserError
from augbench.files import atomic_path
from augbench.seeds import derive_seed


def needed_images(added: float, training_images: int) -> int:
    """Images of a class that a set gets, where ``added`` are added for each real one."""
    return math.ceil(added * training_images)


@dataclass(frozen=True)
class Drawing:
    """How a method's sets are drawn.

    Attributes
    ----------
    added : float
        Images per real training image.
    ranked : bool
        Take the first images of the pool, the same for each set, instead of random ones.
    may_fall_short : bool
        A class with too few images gets those that there are.
    first_part : bool
        Set 0 is drawn from part 0 alone.
    """

    added: float = 1.0
    ranked: bool = False
    may_fall_short: bool = False
    first_part: bool = True

    @classmethod
    def of(cls, study: Study, method: str) -> Drawing:
        """As the method's row says."""
        row = study.augmented[method]
        return cls(
            row.added_per_training_image, row.ranked, row.may_fall_short, first_part=row.pool_row is None
        )


def draw(
    pool: pa.Table,
    class_sizes: Mapping[str, int],
    run: int,
    study_seed: int,
    where: str = "pool",
    drawing: Drawing | None = None,
) -> pa.Table:
    """Set number ``run``: of each class as many rows of ``pool`` as ``class_sizes`` and ``drawing`` say, in the order of the pool.

    Parameters
    ----------
    pool : Table
        An index (:data:`augbench.artifacts.pool.SCHEMA`), rows sorted by (label, index); set 0 sees its part 0 only.
    class_sizes : mapping of str to int
        Real training images per class id.
    where : str
        Name of the pool in errors.

    Raises
    ------
    UserError
        Classes with fewer images than are needed, all of them listed with their counts.
    """
    drawing = drawing or Drawing()
    sizes = {class_id: needed_images(drawing.added, size) for class_id, size in class_sizes.items()}
    members: dict[str, list[int]] = {class_id: [] for class_id in class_sizes}
    for row, (class_id, path) in enumerate(
        zip(pool.column("class_id").to_pylist(), pool.column("path").to_pylist(), strict=True)
    ):
        if run == 0 and drawing.first_part and Path(path).stem != "0":
            continue
        members.setdefault(class_id, []).append(row)
    short = [
        f"{name} {len(members[name])} of {size}" for name, size in sizes.items() if len(members[name]) < size
    ]
    if short and not drawing.may_fall_short:
        raise UserError(
            where,
            f"too few images for {len(short)} class(es): {', '.join(short)}",
            "make or retrieve more per class, or leave these classes out",
        )
    chosen = []
    for class_id, size in sizes.items():
        rows = np.array(members[class_id], dtype=np.int64)
        rng = np.random.default_rng(derive_seed(study_seed, "resample", run, class_id))
        chosen.append(rows[:size] if drawing.ranked else rows[rng.permutation(len(rows))[:size]])
    return pool.take(np.sort(np.concatenate(chosen)) if chosen else np.empty(0, dtype=np.int64))


def resample(
    pool_path: str | Path,
    train_path: str | Path,
    outs: Sequence[str | Path],
    study_seed: int,
    drawing: Drawing | None = None,
    excluded: Collection[str] = (),
    leaks_path: str | Path | None = None,
) -> None:
    """Write the sets; the number of each is the stem of its file (``0.parquet``, ``1.parquet``, ...).

    Parameters
    ----------
    pool_path : path
        Index of the method's pool.
    train_path : path
        The training split; it decides how many images each class gets.
    excluded : collection of str
        Classes that are left out.
    leaks_path : path, optional
        Near-duplicates of validation and test images (:func:`augbench.leakage.stage.guard`), which no set gets.

    Raises
    ------
    UserError
        A pool too small, or classes of pool and split that carry other labels.
    """
    pool, train = read_index(pool_path), read_split(train_path)
    check_same_labels(pool, dict(zip(train.class_ids, train.labels.tolist(), strict=True)), str(pool_path))
    sizes = Counter(class_id for class_id in train.class_ids if class_id not in excluded)
    if leaks_path is not None:
        from augbench.leakage.effects import without_leaks
        from augbench.leakage.records import read_leaks

        drawn = drawing or Drawing()
        needed = (
            None
            if drawn.may_fall_short or not drawn.first_part
            else {class_id: needed_images(drawn.added, size) for class_id, size in sizes.items()}
        )
        pool = without_leaks(pool, read_leaks(leaks_path), needed, str(pool_path))
    for out in outs:
        with atomic_path(out) as temporary:
            pq.write_table(
                draw(
                    pool,
                    class_sizes=sizes,
                    run=int(Path(out).stem),
                    study_seed=study_seed,
                    where=str(pool_path),
                    drawing=drawing,
                ),
                temporary,
            )


def check_same_labels(rows: pa.Table, labels: Mapping[str, int], where: str) -> None:
    """Class order is checked by id wherever two sources meet (invariant 6).

    Raises
    ------
    UserError
        A class of ``rows`` has another label than in ``labels``, or is not there.
    """
    for class_id, label in sorted(
        set(zip(rows.column("class_id").to_pylist(), rows.column("label").to_pylist(), strict=True))
    ):
        if labels.get(class_id) != label:
            raise UserError(
                where,
                f"class {class_id!r} has label {label}",
                f"the training split says {labels.get(class_id)}; delete it and run again",
            )


def overlap(sets: Sequence[pa.Table]) -> float | None:
    """Mean share of images that two of the sets have in common, over all pairs; None for fewer than two sets.

    1 says that the sets are the same, as where a pool holds no more images than a set: then the spread between runs measures
    the classifier's seed only. Independent draws of n from N images have n / N in common on average.
    """
    keys = [
        set(zip(rows.column("class_id").to_pylist(), rows.column("index").to_pylist(), strict=True))
        for rows in sets
    ]
    shares = [len(one & other) / max(1, min(len(one), len(other))) for one, other in combinations(keys, 2)]
    return float(np.mean(shares)) if shares else None
