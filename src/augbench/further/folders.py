"""Further test sets in folders: which class each folder belongs to, and their images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from augbench.config.data import FolderTest
from augbench.config.problems import ConfigError
from augbench.config.study import Study
from augbench.data.classes import ClassInfo, class_id_of, folder_of, load_class_table, readable_name
from augbench.data.decode import in_order
from augbench.data.image_folder import class_folders, first_problems
from augbench.data.splits import Split, write_split
from augbench.data.stamps import stamps_of
from augbench.data.walk import BESIDE, NESTED, LeftOut, Listing, log_left_out, reasons, try_list
from augbench.errors import UserError, some

NOT_ASKED = "a class that `classes` does not list"
ELSEWHERE = "no class of the study"


@dataclass(frozen=True)
class FolderScan:
    """Images of a further test set, those that are symbolic links, and what is not used."""

    split: Split
    links: frozenset[str]
    left_out: tuple[LeftOut, ...]


def scan_folder(test: FolderTest, key: str, classes: Sequence[ClassInfo]) -> FolderScan:
    """List the images of a further test set.

    Parameters
    ----------
    key : str
        Config key of the set, for example ``dataset.further_tests.v2``.
    classes : sequence of ClassInfo
        The study's classes, in label order.

    Returns
    -------
    FolderScan
        Image ids and sources are paths below ``root``. Folders of no class of the study are left out.

    Raises
    ------
    UserError
        The folder is missing; a folder is no number of the class table, or two are of one class; a class that
        ``classes`` lists has no folder; a class folder is empty; or there are fewer than two classes. One
        error reports all problems, a line each.
    """
    root = Path(test.root)
    here = class_folders(root, f"{key}.root")
    labels, others, problems = _labels_of(here.folders, test, key, classes)
    left_out = [*here.left_out, *(LeftOut(name, BESIDE) for name in here.images), *others]
    if test.classes is not None:
        problems += _listed_problems(test.classes, labels, key, classes)
    if len(labels) < 2 and not problems:
        found = f"{str(root)!r} has {len(labels)} folder(s) of classes of the study"
        if unknown := [one.name for one in others if one.reason == ELSEWHERE]:
            found += f", and {len(unknown)} others: {some(unknown)}"
        needed = f"at least 2 are needed; with folders: {test.folders}, {_allowed(test, classes)}"
        problems.append(UserError(f"{key}.root", found, needed))
    rows: list[tuple[int, str]] = []
    links: set[str] = set()
    listings = in_order(try_list, (root / name for name in labels), threads=8)
    for (name, label), listing in zip(labels.items(), listings, strict=True):
        if isinstance(listing, UserError):
            problems.append(listing)
            continue
        if not listing.images:
            found = "; ".join(["0 images", *reasons(listing.left_out)])
            problems.append(UserError(str(root / name), found, "a class folder needs images"))
        rows += [(label, f"{name}/{image}") for image in listing.images]
        links |= {f"{name}/{link}" for link in listing.links.intersection(listing.images)}
        left_out += _below(name, listing)
    if problems:
        raise ConfigError(first_problems(problems))
    rows.sort()
    ids = [image for _, image in rows]
    split = Split(
        ids,
        [classes[label].class_id for label, _ in rows],
        np.array([label for label, _ in rows], dtype=np.int32),
        ids,
    )
    return FolderScan(split, frozenset(links), tuple(left_out))


def write_manifest(study: Study, test: str, classes: Sequence[ClassInfo], path: str | Path) -> None:
    """List the images of a further test set in a folder, with the stamps of their files.

    Raises
    ------
    UserError
        As :func:`scan_folder`.
    """
    section = study.dataset.further_tests[test]
    assert isinstance(section, FolderTest)
    found = scan_folder(section, f"dataset.further_tests.{test}", classes)
    log_left_out(test, found.left_out)
    stamps = stamps_of(Path(section.root) / source for source in found.split.sources)
    write_split(replace(found.split, stamps=stamps), path)


def _below(name: str, listing: Listing) -> Iterator[LeftOut]:
    nested = (LeftOut(folder, NESTED) for folder in listing.folders)
    return (LeftOut(f"{name}/{one.name}", one.reason) for one in (*listing.left_out, *nested))


def _labels_of(
    names: Sequence[str], test: FolderTest, key: str, classes: Sequence[ClassInfo]
) -> tuple[dict[str, int], list[LeftOut], list[UserError]]:
    """Label of each folder's class by the folder's name, folders that are left out, and problems."""
    known = _known_names(test, classes)
    asked = {info.class_id for info in classes} if test.classes is None else {*test.classes}
    labels: dict[str, int] = {}
    left_out: list[LeftOut] = []
    numberless: list[str] = []
    ambiguous: list[str] = []
    twice: list[str] = []
    for name in names:
        found = known.get(_as_written(test.folders, name))
        if found is None and test.folders == "label_numbers" and test.classes is None:
            numberless.append(name)
        elif not found:
            left_out.append(LeftOut(name, ELSEWHERE))
        elif not any(classes[label].class_id in asked for label in found):
            left_out.append(LeftOut(name, NOT_ASKED))
        elif len(found) > 1:
            ambiguous.append(name)
        elif (other := next((one for one, label in labels.items() if label == found[0]), None)) is not None:
            twice.append(f"{other!r} and {name!r}")
        else:
            labels[name] = found[0]
    problems = []
    if numberless:
        found_there = f"{test.root!r} has {len(numberless)} folders that are no number: {some(numberless)}"
        problems.append(UserError(f"{key}.root", found_there, f"allowed: {_allowed(test, classes)}"))
    if ambiguous:
        found_there = f"{test.root!r} has folders whose name several classes have: {some(ambiguous)}"
        problems.append(
            UserError(f"{key}.root", found_there, "allowed: class_ids as names, folders: class_ids")
        )
    if twice:
        found_there = f"{test.root!r} has two folders of one class: {some(twice)}"
        problems.append(UserError(f"{key}.root", found_there, "allowed: one folder per class"))
    return labels, left_out, problems


def _allowed(test: FolderTest, classes: Sequence[ClassInfo]) -> str:
    """What folders may be called, in words."""
    if test.folders == "class_ids":
        return f"names are class_ids, here {some([folder_of(info.class_id) for info in classes])}"
    if test.folders == "class_names":
        return f"names are those of classes, here {some([info.lemmas[0] for info in classes])}"
    return f"numbers from 0 to {len(_numbered(test, classes)) - 1} of numbers_of: {test.numbers_of}"


def _as_written(how: str, name: str) -> str:
    """The key of :func:`_known_names` that a folder's name is looked up by."""
    if how == "class_names":
        return readable_name(name).casefold()
    if how == "label_numbers":
        return str(int(name)) if name.isascii() and name.isdecimal() else name
    try:
        return class_id_of(name)
    except ValueError:
        return ""  # no class has it


def _numbered(test: FolderTest, classes: Sequence[ClassInfo]) -> Sequence[ClassInfo]:
    """The classes whose places the folders' numbers are."""
    assert test.numbers_of is not None
    return classes if test.numbers_of == "study" else load_class_table(test.numbers_of)


def _known_names(test: FolderTest, classes: Sequence[ClassInfo]) -> dict[str, tuple[int, ...]]:
    """Labels by what folders may be called; none for the number of a class that the study does not have."""
    if test.folders == "label_numbers":
        label_of = {info.class_id: (label,) for label, info in enumerate(classes)}
        numbered = enumerate(_numbered(test, classes))
        return {str(number): label_of.get(info.class_id, ()) for number, info in numbered}
    known: dict[str, tuple[int, ...]] = {}
    for label, info in enumerate(classes):
        names = {info.class_id}
        if test.folders == "class_names":
            names = {readable_name(lemma).casefold() for lemma in info.lemmas}
        for name in names:
            known[name] = (*known.get(name, ()), label)
    return known


def _listed_problems(
    listed: Sequence[str], labels: dict[str, int], key: str, classes: Sequence[ClassInfo]
) -> Iterator[UserError]:
    """Yield the listed classes that the study does not have, and those without a folder."""
    ids = [info.class_id for info in classes]
    if unknown := [class_id for class_id in listed if class_id not in ids]:
        yield UserError(f"{key}.classes", some(unknown), f"allowed: class_ids of the study, here {some(ids)}")
    there = {ids[label] for label in labels.values()}
    if missing := [class_id for class_id in listed if class_id in ids and class_id not in there]:
        found = f"no folder for {len(missing)} of {len(listed)} classes: {some(missing)}"
        yield UserError(f"{key}.classes", found, "each listed class needs a folder")
