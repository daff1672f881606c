"""Checks of the data set: its files, its images, and the sizes of its splits."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from augbench.config.corpus import MiniatureCorpus
from augbench.config.data import Dataset, FashionMnist
from augbench.config.problems import ConfigError
from augbench.config.study import Study
from augbench.data.image_folder import first_problems
from augbench.data.splits import SplitSizes, long_tail, resolve_shares, split_sizes
from augbench.errors import UserError


@dataclass(frozen=True)
class ClassCounts:
    """Number of images of one class; None if the data set gives no validation or test images."""

    class_id: str
    pool: int
    validation: int | None
    test: int | None


def published_file_problems(study: Study) -> Iterator[UserError]:
    """Yield the Fashion-MNIST files whose MD5 is not the published one. Missing files are fetched later."""
    sections = {"dataset": study.dataset, "corpus": study.corpus}
    folders = {
        section.downloads: name
        for name, section in sections.items()
        if isinstance(section, FashionMnist | MiniatureCorpus)
    }
    for folder, name in folders.items():
        from augbench.data.fashion_mnist import FILES

        if Path(folder).exists() and not Path(folder).is_dir():
            yield UserError(
                f"{name}.downloads", f"{folder!r} is a file", "allowed: a folder; a missing one is created"
            )
            continue
        for file in FILES:
            path = Path(folder) / f"{file.name}.gz"
            if path.is_file() and (found := hashlib.md5(path.read_bytes()).hexdigest()) != file.md5:
                yield UserError(
                    str(path),
                    f"its MD5 is {found}",
                    f"the published file has {file.md5}; delete it, and the next run fetches it again",
                )


def sizes_of_splits(study: Study, counts: Sequence[ClassCounts]) -> dict[str, SplitSizes]:
    """Return the sizes of each class's splits in a study; raises as :func:`sizes_of_classes`."""
    return sizes_of_classes(study.dataset, {method.split for method in study.real.values()}, counts)


def sizes_of_classes(
    dataset: Dataset, needed: Collection[str], counts: Sequence[ClassCounts]
) -> dict[str, SplitSizes]:
    """Return the sizes of each class's splits.

    Parameters
    ----------
    needed : collection of str
        Splits that methods use, as :func:`augbench.data.splits.split_sizes` takes them.

    Raises
    ------
    ConfigError
        Some classes are too small; names each of them.
    UserError
        A class of a long tail would have no training image.
    """
    given = [any(getattr(count, part) is not None for count in counts) for part in ("validation", "test")]
    shares = resolve_shares(dataset, given[0], given[1], needed)
    sizes, problems = {}, []
    for count in counts:
        try:
            sizes[count.class_id] = split_sizes(
                count.class_id,
                pool=count.pool,
                shares=shares,
                given_validation=count.validation,
                given_test=count.test,
                needed=needed,
                draws=dataset.draws,
            )
        except UserError as error:
            problems.append(error)
    if problems:
        raise ConfigError(first_problems(problems))
    return long_tail(sizes, dataset.imbalance)


def summary_of_sizes(sizes: dict[str, SplitSizes], test_cut: int | None, draws: int = 1) -> str:
    """Summarise the sizes of all classes, and the overlap of draws of the training images, in one line."""
    train = _span([size.train for size in sizes.values()])
    validation = _span([size.validation for size in sizes.values()])
    test = _span([min(size.test, test_cut or size.test) for size in sizes.values()])
    return (
        f"dataset: {len(sizes)} classes with {train} training, {validation} validation"
        f" and {test} test images each{_overlap_of_draws(sizes, draws)}"
    )


def _overlap_of_draws(sizes: dict[str, SplitSizes], draws: int) -> str:
    """What two draws of the training images are expected to share; empty if there is one draw."""
    if draws == 1:
        return ""
    shared = _span([round(100 * size.train / (size.train + size.room)) for size in sizes.values()])
    return f"; two of {draws} draws share about {shared}% of their training images"


def _span(values: list[int]) -> str:
    return f"{min(values)}" if min(values) == max(values) else f"{min(values)} to {max(values)}"
