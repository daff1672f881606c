"""Draw the training sets of a method from its pool of added images (paper, section 3).

Input: the index of a method's pool and the training split's class sizes. Output: one manifest per set. A set
has as many added images of a class as the class has real training images, unless the method's row says
otherwise (another multiple, or as many as fill the class up to a number). Images are drawn without
replacement within a set and independently between sets.

The seed of a draw derives from the study's seed, the set's number and the class, not from the method. Pools
of one size therefore give the same indices for every method (common random numbers), and methods differ by
their images, not by the draw.

A mixture draws from several pools in given shares. What it takes from a pool are the first images of the set
that a row drawing from that pool alone would get, so that the rows differ by as little as possible.

Set 0 is drawn from part 0 of the pool alone, unless the images of a class take turns (Boomerang's sources,
templates with ``draw: cycle``): part 0 then holds each turn about equally often, a random set does not. Other
images of a generated pool are independent of each other given their class, so this set is as random as any
other. Only part 0 is made for the candidates of a fine-tuned method, so they are compared on the same set
that the selected candidate uses later.

A class whose images the safety checker flagged too often has fewer images in its sets and stays in the study,
as many fewer as its pool lacks for this reason. The manifest's metadata name the classes that lack images.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from augbench.artifacts.pool import Lack, lacks_by_pool, lacks_of, pools_of, read_index, with_lacks
from augbench.config.methods import FillTo
from augbench.config.study import Study
from augbench.data.splits import read_split
from augbench.errors import UserError
from augbench.files import atomic_path
from augbench.seeds import derive_seed


def share_counts(size: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Split ``size`` images by shares that sum to 1, by the method of the largest remainder.

    Each share gets its quota rounded down. The images left go one each to the largest remainders; of equal
    remainders, the share that is listed first comes first. Shares count as the decimal numbers that they are
    written as.
    """
    quotas = {name: size * Fraction(repr(share)) for name, share in shares.items()}
    counts = {name: math.floor(quota) for name, quota in quotas.items()}
    by_remainder = sorted(quotas, key=lambda name: counts[name] - quotas[name])  # stable
    for name in by_remainder[: size - sum(counts.values())]:
        counts[name] += 1
    return counts


def needed_images(added: float, training_images: int) -> int:
    """Number of added images of a class in a set: ``added`` per real training image, rounded up."""
    return math.ceil(added * training_images)


def needed_by_class(
    training_images: Mapping[str, int], added: float, fill_to: FillTo | None = None
) -> dict[str, int]:
    """Number of added images of each class in a set.

    Parameters
    ----------
    training_images : mapping of str to int
        Real training images by class id.
    added : float
        Images per real training image (:func:`needed_images`).
    fill_to : int or "largest", optional
        Fill each class up to this many real and added images, or to the real ones of the largest class,
        instead. A class with as many or more real ones gets none.
    """
    if fill_to is None:
        return {class_id: needed_images(added, size) for class_id, size in training_images.items()}
    full = max(training_images.values(), default=0) if fill_to == "largest" else fill_to
    return {class_id: max(0, full - size) for class_id, size in training_images.items()}


@dataclass(frozen=True)
class Drawing:
    """Rules by which a method's sets are drawn.

    Attributes
    ----------
    added : float
        Images per real training image.
    ranked : bool
        Take the first images of the pool, the same for each set, instead of random ones.
    may_fall_short : bool
        A class with too few images gets all of them, instead of an error.
    first_part : bool
        Set 0 is drawn from part 0 alone.
    shuffled : bool
        The labels of a set are permuted at random over its images (:func:`shuffle_labels`).
    fill_to : int or "largest", optional
        Images that each class is filled up to, instead of ``added`` (:func:`needed_by_class`).
    pools : mapping of str to float
        Shares of a mixture's images by the row that made them; empty for a single pool.
    """

    added: float = 1.0
    ranked: bool = False
    may_fall_short: bool = False
    first_part: bool = True
    shuffled: bool = False
    fill_to: FillTo | None = None
    pools: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, study: Study, method: str) -> Drawing:
        """Return the rules in the method's row of the study."""
        row = study.augmented[method]
        return cls(
            row.added_per_training_image,
            row.ranked,
            row.may_fall_short,
            first_part=row.set_0_from_part_0,
            shuffled=row.shuffles_labels,
            fill_to=row.fill_to,
            pools=row.shares,
        )

    def needed(self, training_images: Mapping[str, int]) -> dict[str, int]:
        """Number of added images of each class in a set, by the real training images of each class."""
        return needed_by_class(training_images, self.added, self.fill_to)

    def counts(self, added: int) -> dict[str, int]:
        """Split the added images of a class by pool; the name of a single pool is empty."""
        return share_counts(added, self.pools or {"": 1.0})


def draw(
    pool: pa.Table,
    class_sizes: Mapping[str, int],
    run: int,
    study_seed: int,
    where: str = "pool",
    drawing: Drawing | None = None,
) -> pa.Table:
    """Draw set number ``run`` from ``pool``: rows of each class, in the order of the pool.

    The metadata of the set name the classes that have fewer images in it than wanted.

    Parameters
    ----------
    pool : Table
        An index (:data:`augbench.artifacts.pool.SCHEMA`), rows sorted by (label, index).
    class_sizes : mapping of str to int
        Real training images per class id; with ``drawing`` they give the number of rows per class.
    where : str
        Name of the pool in errors.

    Raises
    ------
    UserError
        Some classes have too few images, by more than the pool's shards lack because all samples were
        flagged; the message lists all of them with their counts.
    """
    drawing = drawing or Drawing()
    by_pool = lacks_by_pool(pool) if drawing.pools else {("", c): lack for c, lack in lacks_of(pool).items()}
    wanted = {class_id: drawing.counts(size) for class_id, size in drawing.needed(class_sizes).items()}
    members: dict[tuple[str, str], list[int]] = {}
    sources = pools_of(pool) if drawing.pools else [""] * pool.num_rows
    for row, (class_id, path, source) in enumerate(
        zip(pool.column("class_id").to_pylist(), pool.column("path").to_pylist(), sources, strict=True)
    ):
        if run == 0 and drawing.first_part and Path(path).stem != "0":
            continue
        members.setdefault((class_id, source), []).append(row)
    short, lost = dict[str, Lack](), dict[str, list[str]]()
    for class_id, counts in wanted.items():
        found = {source: len(members.get((class_id, source), ())) for source in counts}
        missing = {source: size - found[source] for source, size in counts.items() if found[source] < size}
        refused = {source: by_pool.get((source, class_id), Lack(0, 0)) for source in missing}
        if missing:
            flagged = sum(lack.flagged for lack in refused.values())
            short[class_id] = Lack(sum(missing.values()), sum(counts.values()), flagged)
        beyond = [source for source, count in missing.items() if count > refused[source].images]
        if beyond:
            lost[class_id] = [
                f"{class_id} {found[source]} of {counts[source]}" + (f" from {source}" if source else "")
                for source in beyond
            ]
    if lost and not drawing.may_fall_short:
        raise UserError(
            where,
            f"too few images for {len(lost)} class(es): {', '.join(chain(*lost.values()))}",
            "make or retrieve more per class, or leave these classes out",
        )
    chosen = []
    for class_id, counts in wanted.items():
        for source, size in counts.items():
            rows = np.array(members.get((class_id, source), ()), dtype=np.int64)
            rng = np.random.default_rng(derive_seed(study_seed, "resample", run, class_id))
            chosen.append(rows[:size] if drawing.ranked else rows[rng.permutation(len(rows))[:size]])
    drawn = pool.take(np.sort(np.concatenate(chosen)) if chosen else np.empty(0, dtype=np.int64))
    drawn = with_lacks(drawn, short)
    return shuffle_labels(drawn, run, study_seed) if drawing.shuffled else drawn


def shuffle_labels(rows: pa.Table, run: int, study_seed: int) -> pa.Table:
    """Permute the classes of ``rows`` at random: a placebo whose labels say nothing about its images.

    Each class keeps its number of images. An image may get its own class again, by chance: labels that
    never do would say what an image is not. Set ``run`` has its own permutation.
    """
    order = np.random.default_rng(derive_seed(study_seed, "shuffled labels", run)).permutation(rows.num_rows)
    for name in ("label", "class_id"):
        rows = rows.set_column(
            rows.schema.get_field_index(name),
            rows.schema.field(name),
            rows.column(name).take(pa.array(order)),
        )
    return rows


def resample(
    pool_path: str | Path,
    train_path: str | Path,
    outs: Sequence[str | Path],
    study_seed: int,
    drawing: Drawing | None = None,
    excluded: Collection[str] = (),
    leaks_path: str | Path | None = None,
) -> None:
    """Write the manifests of the sets to ``outs``; a file's stem is the set's number (``0.parquet``, ...).

    Parameters
    ----------
    pool_path : path
        Index of the method's pool.
    train_path : path
        The training split; its class sizes decide how many images each class gets.
    excluded : collection of str
        Classes that are left out.
    leaks_path : path, optional
        Near-duplicates of validation and test images (:func:`augbench.leakage.stage.guard`), which no set
        gets.

    Raises
    ------
    UserError
        The pool is too small, or a class has different labels in pool and split.
    """
    pool, train = read_index(pool_path), read_split(train_path)
    check_same_labels(pool, dict(zip(train.class_ids, train.labels.tolist(), strict=True)), str(pool_path))
    sizes = Counter(class_id for class_id in train.class_ids if class_id not in excluded)
    if leaks_path is not None:
        from augbench.leakage.effects import without_leaks
        from augbench.leakage.records import read_leaks

        drawn, lacks = drawing or Drawing(), lacks_of(pool)
        needed = (
            None
            if drawn.may_fall_short or not drawn.first_part
            else {
                class_id: max(0, size - lacks.get(class_id, Lack(0, 0)).images)
                for class_id, size in drawn.needed(sizes).items()
            }
        )
        pool = without_leaks(pool, read_leaks(leaks_path), needed, str(pool_path))
    for out in outs:
        run = int(Path(out).stem)
        rows = draw(
            pool, class_sizes=sizes, run=run, study_seed=study_seed, where=str(pool_path), drawing=drawing
        )
        with atomic_path(out) as temporary:
            pq.write_table(rows, temporary)


def check_same_labels(rows: pa.Table, labels: Mapping[str, int], where: str) -> None:
    """Check that each class of ``rows`` has the label that ``labels`` gives it.

    Labels depend on the order of classes, so wherever two sources meet they are compared by class id.

    Raises
    ------
    UserError
        A class of ``rows`` has another label in ``labels``, or is missing there.
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

    1 means that all sets are the same, for example because the pool has no more images than a set. The spread
    between runs then measures only the effect of the classifier's seed. Independent draws of n from N images
    share n / N of them on average.
    """
    keys = [
        set(zip(rows.column("path").to_pylist(), rows.column("index").to_pylist(), strict=True))
        for rows in sets
    ]
    return mean_overlap(keys)


def mean_overlap(sets: Sequence[set[Any]]) -> float | None:
    """Mean share of members that two of the sets have in common, over all pairs; None for fewer than two."""
    shares = [len(one & other) / max(1, min(len(one), len(other))) for one, other in combinations(sets, 2)]
    return float(np.mean(shares)) if shares else None
