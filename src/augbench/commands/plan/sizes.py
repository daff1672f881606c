"""Number of real images in each split of a study, before or after the splits are made."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from augbench.config.data import Caltech256, FashionMnist
from augbench.data.sources import open_source
from augbench.data.splits import Shares, long_tail, resolve_shares, split_sizes
from augbench.plan.paths import Plan

# training images of all classes together; test images of each class, None if the data set gives none
PUBLISHED = {"imagenet": (1_281_167, 50), "imagenet100": (126_689, 50), "caltech256": (29_780, None)}
ASSUMED_IMAGES = 100  # per class, if nothing is known


@dataclass(frozen=True)
class Sizes:
    """Number of real images of all classes together; ``source`` names where the numbers come from.

    ``by_class`` is the number of training images by class id, ``full`` the number of all images outside
    validation and test (None: unknown).
    """

    classes: int
    train: int
    validation: int
    test: int
    source: str
    by_class: Mapping[str, int] = field(default_factory=dict)
    full: int | None = None

    @property
    def per_class(self) -> float:
        """Mean number of training images per class."""
        return self.train / self.classes


def sizes_of(plan: Plan) -> Sizes:
    """Return the sizes of the splits without the classes that ``retrieval.exclude`` lists.

    All classes count as equally large for this, except in a long tail. :func:`_sizes_of_all` says where sizes
    come from.
    """
    found, made = _sizes_of_all(plan), len(plan.made_ids)
    train, validation, test = (
        round(size * made / found.classes) for size in (found.train, found.validation, found.test)
    )
    by_class = {class_id: found.by_class[class_id] for class_id in plan.made_ids}
    if plan.study.dataset.imbalance is not None:
        train = sum(by_class.values())
    full = None if found.full is None else round(found.full * made / found.classes)
    return Sizes(made, train, validation, test, found.source, by_class, full)


def _sizes_of_all(plan: Plan) -> Sizes:
    """Return the sizes of the splits, of all classes.

    Sources, in this order: the split manifests, the published sizes of the data set, its files, an
    assumption.
    """
    study, classes = plan.study, len(plan.class_ids)
    if all(Path(plan.splits[name]).is_file() for name in ("train", "val", "test")):
        import pyarrow.parquet as pq

        manifests = {name: path for name, path in plan.splits.items() if Path(path).is_file()}
        rows = {name: pq.read_metadata(path).num_rows for name, path in manifests.items()}
        counted = Counter(pq.read_table(plan.splits["train"], columns=["class_id"])["class_id"].to_pylist())
        return Sizes(
            classes, rows["train"], rows["val"], rows["test"], "split manifests", counted, rows.get("full")
        )
    dataset = study.dataset
    table = "caltech256" if isinstance(dataset, Caltech256) else dataset.classes
    tests: list[int | None]
    if isinstance(dataset, FashionMnist):
        source = open_source(dataset, study.seed, study.corpus)
        pools = [source.pool_size()] * classes  # type: ignore[attr-defined]
        tests, known = [1000] * classes, "published sizes"
    elif table in PUBLISHED:
        images, test = PUBLISHED[table]
        pools, tests, known = [round(images / classes)] * classes, [test] * classes, "published sizes"
    elif os.path.isdir(os.path.expanduser(dataset.root)):
        found = open_source(dataset, study.seed, study.corpus).scan()
        pools, known = [len(one.pool) for one in found], "the data set's files"
        tests = [None if one.test is None else len(one.test) for one in found]
    else:
        pools, tests = [ASSUMED_IMAGES] * classes, [None] * classes
        known = f"{ASSUMED_IMAGES} images per class assumed, because the data set is missing"
    given = dataset.gives_validation
    shares = resolve_shares(dataset, given, tests[0] is not None)
    sizes = {
        class_id: split_sizes(class_id, pool, shares, _validation(pool, shares) if given else None, test)
        for class_id, pool, test in zip(plan.class_ids, pools, tests, strict=True)
    }
    splits, cut = list(long_tail(sizes, dataset.imbalance).values()), dataset.test_images_per_class
    return Sizes(
        classes,
        sum(s.train for s in splits),
        sum(s.validation for s in splits),
        sum(min(s.test, cut or s.test) for s in splits),
        known,
        dict(zip(sizes, (s.train for s in splits), strict=True)),
        sum(s.train + s.room for s in splits),
    )


def _validation(pool: int, shares: Shares) -> int:
    """Validation images assumed for a class: a tenth of the others, or those asked for."""
    return max(round(pool * 0.1) or 1, shares.validation_shots or 0)
