"""Propose how many images of each class train, validate and test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from augbench.commands.check.dataset import ClassCounts, sizes_of_classes
from augbench.config.data import ImageFolder, ParquetImages
from augbench.data.classes import folder_of
from augbench.data.splits import SplitSizes
from augbench.errors import UserError, some

SHOTS = range(100, 49, -5)  # training images per class, if every class has enough
WANTED = 75  # training images of the median class, if the classes differ too much for shots
LEAST_FOR_TWICE = 30  # with fewer training images, all images are better used for training than for a bound
MOST_TEST_IMAGES = 25_000
LEAST_TEST_CUT = 50  # test images per class that stay in any case


@dataclass(frozen=True)
class Proposal:
    """Sizes of the splits.

    Attributes
    ----------
    keys : dict
        Keys of the config's section ``dataset`` that set the sizes.
    twice : bool
        Whether there is room for a row with twice the real data.
    sizes : dict of str to SplitSizes
        Resulting sizes, by class id.
    """

    keys: dict[str, Any]
    twice: bool
    sizes: dict[str, SplitSizes]

    def images(self, split: str) -> list[int]:
        """Images of each class in ``train``, ``validation`` or ``test``."""
        cut = self.keys.get("test_images_per_class") if split == "test" else None
        return [min(getattr(size, split), cut or getattr(size, split)) for size in self.sizes.values()]


def dataset_of(keys: Mapping[str, Any]) -> ImageFolder | ParquetImages:
    """Section ``dataset`` of these keys."""
    return (ParquetImages if keys["kind"] == "parquet" else ImageFolder)(**keys)


def propose_sizes(layout: Mapping[str, Any], counts: Sequence[ClassCounts]) -> Proposal:
    """Propose 50 to 100 training images per class, or as many as there are, that leave enough for the others.

    The first of several proposals that fits every class is taken: the same number for every class with room
    for twice as many, shares with such room, and shares without.

    Parameters
    ----------
    layout : mapping
        The other keys of the section ``dataset``.

    Raises
    ------
    UserError
        A class has too few images for any proposal; names these classes.
    """
    last: Mapping[str, Any] = {}
    smallest = min(counts, key=lambda count: count.pool)  # most often the one that does not fit
    for keys, twice in _candidates(counts):
        last = keys
        try:
            _sizes(layout, keys, twice, [smallest])
            sizes = _sizes(layout, keys, twice, counts)
        except UserError:
            continue
        proposal = Proposal(keys, twice, sizes)
        if twice and median(proposal.images("train")) < LEAST_FOR_TWICE:
            continue
        most = max(LEAST_TEST_CUT, MOST_TEST_IMAGES // len(counts))
        if max(proposal.images("test")) > most:
            proposal.keys["test_images_per_class"] = most
        return proposal
    raise _too_few(layout, last, counts)


def _sizes(
    layout: Mapping[str, Any], keys: Mapping[str, Any], twice: bool, counts: Sequence[ClassCounts]
) -> dict[str, SplitSizes]:
    needed = {"train", "train2x"} if twice else {"train"}
    return sizes_of_classes(dataset_of({**layout, **keys}), needed, counts)


def _candidates(counts: Sequence[ClassCounts]) -> Iterator[tuple[dict[str, Any], bool]]:
    """Yield sizes as keys of the config, the best first, and whether train2x must fit, too."""
    given_validation = [count.validation for count in counts if count.validation is not None]
    given_test = any(count.test is not None for count in counts)
    for shots in SHOTS:
        fewer = min(given_validation, default=shots) < shots
        yield {"shots": shots, **({"validation_shots": min(given_validation)} if fewer else {})}, True
    wanted = max(1, int(100 * WANTED / median(count.pool for count in counts))) / 100
    if given_validation:
        for train in (0.33, 0.25):
            yield {"train_fraction": min(train, wanted)}, True
        yield {"train_fraction": min(0.99, wanted)}, False
    elif given_test:
        for train in (0.33, 0.3, 0.25):
            share = min(train, wanted)
            yield {"train_fraction": share, "validation_fraction": share}, True
        for train, validation in ((0.7, 0.3), (0.5, 0.5)):
            yield {"train_fraction": min(train, wanted), "validation_fraction": validation}, False
    else:
        for train in (0.25, 0.2, 0.15):
            share, validation = min(train, wanted), min(0.2, wanted)
            test = min(0.5, round(0.95 - 2 * share - validation, 2))  # less than what is left, for rounding
            shares = {"validation_fraction": validation, "test_fraction": test}
            yield {"train_fraction": share, **shares}, True
        for train, validation, test in ((0.5, 0.2, 0.3), (0.33, 0.33, 0.33)):
            shares = {"validation_fraction": validation, "test_fraction": test}
            yield {"train_fraction": min(train, wanted), **shares}, False


def _too_few(layout: Mapping[str, Any], keys: Mapping[str, Any], counts: Sequence[ClassCounts]) -> UserError:
    """Error that names the classes which the last proposal does not fit, and how many images fit it."""

    def fits(count: ClassCounts) -> bool:
        try:
            _sizes(layout, keys, False, [count])
        except UserError:
            return False
        return True

    lacking = [count for count in counts if not fits(count)]
    first = lacking[0]
    least = next(
        size
        for size in range(first.pool + 1, 10_000)
        if fits(ClassCounts(first.class_id, size, first.validation, first.test))
    )
    names = some([f"{folder_of(count.class_id)!r} ({count.pool})" for count in lacking])
    parts = [name for name in ("validation", "test") if getattr(first, name) is None]
    splits = " and ".join([", ".join(["training", *parts[:-1]]), *parts[-1:]])
    return UserError(
        layout["root"],
        f"{len(lacking)} of {len(counts)} classes have too few images for {splits}: {names}",
        f"allowed: at least {least} images per class; add images, or take these classes out of the folder",
    )
