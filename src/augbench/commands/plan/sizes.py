"""Number of real images in each split of a study, before or after the splits are made."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from augbench.config.data import Caltech256, FashionMnist
from augbench.data.sources import open_source
from augbench.data.splits import resolve_shares, split_sizes
from augbench.plan.paths import Plan

# training images of all classes together; test images of each class, None if the data set gives none
PUBLISHED = {"imagenet": (1_281_167, 50), "caltech256": (29_780, None)}
ASSUMED_IMAGES = 100  # per class, if nothing is known


@dataclass(frozen=True)
class Sizes:
    """Number of real images of all classes together; ``source`` names where the numbers come from."""

    classes: int
    train: int
    validation: int
    test: int
    source: str

    @property
    def per_class(self) -> float:
        """Mean number of training images per class."""
        return self.train / self.classes


def sizes_of(plan: Plan) -> Sizes:
    """Return the sizes of the splits without the classes that ``retrieval.exclude`` lists.

    All classes count as equally large for this. :func:`_sizes_of_all` says where sizes come from.
    """
    found, made = _sizes_of_all(plan), len(plan.made_ids)
    train, validation, test = (
        round(size * made / found.classes) for size in (found.train, found.validation, found.test)
    )
    return Sizes(made, train, validation, test, found.source)


def _sizes_of_all(plan: Plan) -> Sizes:
    """Return the sizes of the splits, of all classes.

    Sources, in this order: the split manifests, the published sizes of the data set, its files, an
    assumption.
    """
    study, classes = plan.study, len(plan.class_ids)
    if all(Path(plan.splits[name]).is_file() for name in ("train", "val", "test")):
        import pyarrow.parquet as pq

        rows = {name: pq.read_metadata(plan.splits[name]).num_rows for name in ("train", "val", "test")}
        return Sizes(classes, rows["train"], rows["val"], rows["test"], "split manifests")
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
    splits = [
        split_sizes("", pool, shares, round(pool * 0.1) or 1 if given else None, test)
        for pool, test in zip(pools, tests, strict=True)
    ]
    cut = dataset.test_images_per_class
    return Sizes(
        classes,
        sum(s.train for s in splits),
        sum(s.validation for s in splits),
        sum(min(s.test, cut or s.test) for s in splits),
        known,
    )
