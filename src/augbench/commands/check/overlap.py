"""Find images that are in two places that must not share any: training and test folders, data set and corpus.

The leakage guard finds near-duplicates of added images, after they were made. Here, files are compared: by
their real paths, by name and content for a sample, and by content for all files if they were decoded
(:mod:`augbench.commands.check.images`).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from augbench.data.source import ClassImages
from augbench.data.walk import printable
from augbench.errors import UserError, some
from augbench.files import sha256_file

SAMPLE = 200  # files of equal names whose content is compared
LEAST_COPIES = 5  # fewer different files in both places are no news: blank images, placeholders
MOST_COPIES = 0.1  # share of copies above which a folder counts as a copy; published data sets have some


@dataclass(frozen=True)
class Place:
    """Images that one key of the config names.

    Attributes
    ----------
    key : str
        Key of the config.
    what : str
        What the images are, in the plural.
    root : path
    names : sequence of str
        Paths relative to ``root``, or names of rows of Parquet files there.
    links : collection of str
        The names that are symbolic links.
    digests : mapping
        SHA-256 by name, if the files were decoded.
    """

    key: str
    what: str
    root: Path
    names: Sequence[str]
    links: Collection[str]
    digests: Mapping[str, bytes]

    def real_paths(self) -> Iterator[tuple[str, str]]:
        """Yield each image's real path and name; only links and folders are looked up on the disk."""
        folders: dict[str, str] = {}
        for name in self.names:
            if name in self.links:
                yield os.path.realpath(self.root / name), name
                continue
            folder, _, file = name.rpartition("/")
            if folder not in folders:
                folders[folder] = os.path.realpath(self.root / folder)
            yield f"{folders[folder]}/{file}", name

    def by_digest(self) -> Iterator[tuple[bytes, str]]:
        """Yield SHA-256 and name of each decoded image."""
        return ((digest, name) for name, digest in self.digests.items())


def places_of(
    images: Sequence[ClassImages],
    root: Path,
    links: Collection[str],
    digests: Mapping[str, bytes],
    unit: str = "folder",
) -> list[Place]:
    """Return the data set's training images, and its given validation and test images.

    ``unit`` is the end of the config's keys for them: ``train_folder``, ``train_split``.
    """
    places = []
    for part, key in (("pool", "train"), ("validation", "validation"), ("test", "test")):
        lists = [found for one in images if (found := getattr(one, part)) is not None]
        names = [name for found in lists for name in found.sources]
        if names:
            known = {name: digests[name] for name in names if name in digests}
            what = f"{'training' if part == 'pool' else part} images"
            places.append(Place(f"dataset.{key}_{unit}", what, root, names, links, known))
    return places


def _pairs(mine: Iterable[tuple[object, str]], others: Iterable[tuple[object, str]]) -> list[tuple[str, str]]:
    """Names with equal keys, one pair for each of mine."""
    by_key = dict(others)
    return [(name, by_key[key]) for key, name in mine if key in by_key]


def _copies_by_name(one: Place, other: Place) -> tuple[list[tuple[str, str]], int]:
    """Compare the content of a sample of files whose class folder and name agree; return pairs and number."""
    ends = {tuple(name.split("/")[-2:]): name for name in other.names}
    alike = [(name, ends[end]) for name in one.names if (end := tuple(name.split("/")[-2:])) in ends]
    sample = alike[:: max(1, len(alike) // SAMPLE)]
    return [pair for pair in sample if _equal(one.root / pair[0], other.root / pair[1])], len(sample)


def _equal(one: Path, other: Path) -> bool:
    try:
        return one.stat().st_size == other.stat().st_size and sha256_file(one) == sha256_file(other)
    except OSError:  # reported where it is decoded
        return False


def overlap(one: Place, other: Place, harm: str, copies_fail: bool) -> tuple[list[UserError], list[str]]:
    """Return the problems and warnings about images that are in both places.

    Parameters
    ----------
    harm : str
        What an image in both places does.
    copies_fail : bool
        Many files of equal content are a problem, not a warning.
    """
    where = f"{one.key}: {str(one.root)!r}" if one.key.startswith("corpus") else one.key

    def found(what: str, pairs: Sequence[tuple[str, str]], compared: int) -> str:
        names = some([f"{printable(mine)} = {printable(theirs)}" for mine, theirs in pairs], most=3)
        return f"{len(pairs)} of {compared} {one.what} are {what} {other.what}: {names}"

    if same := _pairs(one.real_paths(), other.real_paths()):
        text = found("files of the", same, len(one.names))
        return [UserError(where, text, f"allowed: none; {harm}")], []
    if one.digests and other.digests:
        mine = dict(one.by_digest())
        copies, compared = _pairs(mine.items(), other.by_digest()), len(mine)
    else:
        copies, compared = _copies_by_name(one, other)
    if len(copies) < LEAST_COPIES:
        return [], []
    text = found("copies of", copies, compared)
    if copies_fail and len(copies) > MOST_COPIES * compared:
        return [UserError(where, text, f"allowed: few; {harm}")], []
    return [], [f"warning: {where}: {text}; {harm}"]
