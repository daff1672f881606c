"""How many real images each split of a study has, or will have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from augbench.config.data import Caltech256, FashionMnist, ImageFolder
from augbench.data.sources import open_source
from augbench.data.splits import resolve_shares, split_sizes
from augbench.plan.paths import Plan

PUBLISHED = {
    "imagenet": (1_281_167, 50),
    "caltech256": (29_780, None),
}  # training images of all classes, test images of each where they are given
ASSUMED_IMAGES = 100  # per class, where nothing is known


@dataclass(frozen=True)
class Sizes:
    """Real images of all classes together; ``source`` says how they are known."""

    classes: int
    train: int
    validation: int
    test: int
    source: str

    @property
    def per_class(self) -> float:
        """Training images of a class, on average."""
        return self.train / self.classes


def sizes_of(plan: Plan) -> Sizes:
    """Sizes of the splits: of the manifests, if they are made; else by the published sizes of the data set, else by listing its files."""
    study, classes = plan.study, len(plan.class_ids)
    if all(Path(plan.splits[name]).is_file() for name in ("train", "val", "test")):
        import pyarrow.parquet as pq

        train, validation, test_images = (
            pq.read_metadata(plan.splits[name]).num_rows for name in ("train", "val", "test")
        )
        return Sizes(classes, train, validation, test_images, "split manifests")
    dataset = study.dataset
    table = "caltech256" if isinstance(dataset, Caltech256) else dataset.classes
    tests: list[int | None]
    if isinstance(dataset, FashionMnist):
        source = open_source(dataset, study.seed, study.corpus)
        pools, tests, known = [source.pool_size()] * classes, [1000] * classes, "published sizes"  # type: ignore[attr-defined]
    elif table in PUBLISHED:
        images, test = PUBLISHED[table]
        pools, tests, known = [round(images / classes)] * classes, [test] * classes, "published sizes"
    elif Path(dataset.root).expanduser().is_dir():
        found = open_source(dataset, study.seed, study.corpus).scan()
        pools, tests, known = (
            [len(one.pool) for one in found],
            [None if one.test is None else len(one.test) for one in found],
            "the data set's files",
        )
    else:
        pools, tests, known = (
            [ASSUMED_IMAGES] * classes,
            [None] * classes,
            f"{ASSUMED_IMAGES} images per class assumed, for the data is not here",
        )
    given = isinstance(dataset, ImageFolder) and dataset.validation_folder is not None
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
