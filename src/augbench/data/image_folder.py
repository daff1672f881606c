"""Data sets in folders of images: ``root/class/*`` or ``root/split/class/*``, as in ImageNet.

An image's id is its path under the root. Validation and test images may be in one flat folder with a file of
labels, as ILSVRC2012 is published; their ids are those that they would have in class folders. Several folders
are listed at a time, so that 1.3 million files take seconds.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from augbench.config.data import ImageFolder
from augbench.config.problems import ConfigError
from augbench.data.classes import (
    ClassInfo,
    check_unique,
    class_id_of,
    folder_of,
    load_class_table,
    readable_name,
)
from augbench.data.flat_folder import read_labels
from augbench.data.source import ClassImages, ImageList, ImageSource, StoredFile
from augbench.data.walk import (
    BESIDE,
    EXTENSIONS,
    FLAT,
    HIDDEN,
    NESTED,
    SPECIAL,
    SUFFIX,
    LeftOut,
    Listing,
    list_folder,
    reasons,
    try_list,
)
from augbench.errors import NAMED, UserError, some

if TYPE_CHECKING:
    from PIL.Image import Image


def first_problems(problems: list[UserError]) -> list[UserError]:
    """First problems, and one more that gives the number of the others."""
    if len(problems) <= NAMED:
        return problems
    return [
        *problems[:NAMED],
        UserError("dataset", f"{len(problems) - NAMED} more problems of this kind", "see the lines above"),
    ]


def _unpacking(tar: Path, folder: Path) -> str:
    quoted = shlex.quote(str(folder))
    return f"unpack it: mkdir -p {quoted} && tar -xf {shlex.quote(str(tar))} -C {quoted}"


def _list_split(folder: Path, key: str, allowed: str) -> Listing:
    """List a split's folder; a missing one, and one that holds tars in place of images, are errors.

    ILSVRC2012 comes as a tar of the validation images, and one of the training images, which holds a tar for
    each class.
    """
    try:
        listing = list_folder(folder)
    except UserError as error:
        reason = error.found if os.path.lexists(folder) else "no such folder"
        part = "train" if key.endswith("train_folder") else "val"
        if os.path.isfile(folder) and folder.suffix == ".tar":
            command = f"{_unpacking(folder, folder.with_name(part))}; then name that folder"
            raise UserError(key, f"{str(folder)!r}, a tar", command) from None
        beside = [] if key == "dataset.root" else sorted(folder.parent.glob(f"*{part}*.tar"))
        if tar := next(iter(beside), None):
            found = f"{str(folder)!r}, {reason}, but there is {tar.name}"
            raise UserError(key, found, _unpacking(tar, folder)) from None
        raise UserError(key, f"{str(folder)!r}, {reason}", f"allowed: {allowed}") from None
    tars = [one.name for one in listing.left_out if one.name.lower().endswith(".tar")]
    packed = [name for name in tars if Path(name).stem not in listing.folders]
    found = f"{str(folder)!r} has {len(packed)} tars that are not unpacked: {some(packed)}"
    if [name for name in packed if re.fullmatch(r"n[0-9]{8}\.tar", name)]:
        loop = 'for t in n*.tar; do mkdir -p "${t%.tar}" && tar -xf "$t" -C "${t%.tar}"; done'
        raise UserError(key, found, f"unpack them: cd {shlex.quote(str(folder))} && {loop}")
    if packed and not (listing.folders or listing.images):
        raise UserError(key, found, _unpacking(folder / packed[0], folder))
    return listing


def class_folders(folder: Path, key: str) -> Listing:
    """List ``folder``, which the config names under ``key``; its folders are the classes'.

    Raises
    ------
    UserError
        The folder can't be listed, holds tars that are not unpacked, or has something that may be a class
        and can't be read.
    """
    listing = _list_split(folder, key, "a folder with one folder of images per class")
    if lost := [one for one in listing.left_out if one.reason not in (HIDDEN, SUFFIX, SPECIAL)]:
        found = f"{str(folder)!r}: {'; '.join(reasons(lost))}"
        raise UserError(key, found, "each may be a class: repair or remove it")
    return listing


class FolderSource(ImageSource):
    """Images in class folders under ``root``; subclasses decide which folders are classes.

    Parameters
    ----------
    labels : mapping, optional
        File of labels (:mod:`augbench.data.flat_folder`) of ``validation_folder`` and ``test_folder``, if
        they are flat.

    Attributes
    ----------
    links : set of str
        Sources of the last :meth:`scan` that are symbolic links.
    """

    def __init__(
        self,
        root: str,
        train_folder: str | None = None,
        validation_folder: str | None = None,
        test_folder: str | None = None,
        labels: Mapping[str, str | None] | None = None,
    ) -> None:
        self.root = Path(os.path.expanduser(root))
        self.links: set[str] = set()
        folders = {
            "train_folder": train_folder,
            "validation_folder": validation_folder,
            "test_folder": test_folder,
        }
        self.folders = {name: value and os.path.expanduser(value) for name, value in folders.items()}
        self.labels = {folder: file for folder, file in (labels or {}).items() if file is not None}

    def key(self, folder: str) -> str:
        """Config key that sets ``train_folder``, ``validation_folder`` or ``test_folder``."""
        return "dataset.root" if self.folders[folder] is None else f"dataset.{folder}"

    def path(self, folder: str) -> Path:
        """Path of the folder that holds a split's class folders."""
        return self.root / (self.folders[folder] or "")

    def _require_root(self) -> None:
        """Report a missing root before any problem with a folder in it."""
        if not os.path.isdir(self.root):
            class_folders(self.root, "dataset.root")

    def _names_in(self, folder: str, listing: Listing) -> list[str]:
        """Names of the class folders in a listing, without validation and test folders beside them."""
        beside = (
            {Path(value).parts[0] for value in self.folders.values() if value}
            if self.folders[folder] is None
            else set()
        )
        return [name for name in listing.folders if name not in beside]

    def class_names(self, folder: str) -> list[str]:
        """Names of the class folders, sorted."""
        self._require_root()
        return self._names_in(folder, class_folders(self.path(folder), self.key(folder)))

    def folders_by_id(self, folder: str) -> dict[str, str]:
        """Names of the class folders, sorted, by the class ids that they give.

        Raises
        ------
        UserError
            A name can't be a class id, or two names are one.
        """
        found: dict[str, str] = {}
        for name in self.class_names(folder):
            try:
                other = found.setdefault(class_id_of(name), name)
            except ValueError as error:
                raise UserError(self.key(folder), f"the folder {name!r}", str(error)) from None
            if other != name:
                twice = f"the folders {other!a} and {name!a}, whose names look the same"
                raise UserError(self.key(folder), twice, "allowed: one folder per name; merge or rename them")
        return found

    def scan(self) -> list[ClassImages]:
        """List the images of all classes; one error reports missing, unknown and empty class folders."""
        self._require_root()
        self.left_out, self.links = (), set()
        class_ids = [info.class_id for info in self.classes()]
        problems = self._shared_folders()
        found: dict[str, list[ImageList]] = {}
        for folder, value in self.folders.items():
            if folder != "train_folder" and value is None:
                continue
            try:
                scan = self._scan_flat if folder in self.labels else self._scan_folder
                found[folder] = scan(folder, class_ids)
            except UserError as error:
                problems += error.problems if isinstance(error, ConfigError) else [error]
        if problems:
            raise ConfigError(problems)
        nothing: list[ImageList | None] = [None] * len(class_ids)
        validation, test = (found.get(folder, nothing) for folder in ("validation_folder", "test_folder"))
        return [
            ClassImages(*row) for row in zip(class_ids, found["train_folder"], validation, test, strict=True)
        ]

    def _shared_folders(self) -> list[UserError]:
        """Problems with splits that share a folder: their images must differ (guarded test split)."""
        problems, seen = [], {self.path("train_folder").resolve(): "train_folder"}
        for folder in ("validation_folder", "test_folder"):
            if self.folders[folder] is None:
                continue
            first = seen.setdefault(self.path(folder).resolve(), folder)
            if first != folder:
                allowed = f"allowed: another folder than {first}"
                problems.append(UserError(self.key(folder), repr(self.folders[folder]), allowed))
        return problems

    def _scan_folder(self, folder: str, class_ids: list[str]) -> list[ImageList]:
        from augbench.data.decode import in_order

        base, key, names = self.path(folder), self.key(folder), self.folders_by_id(folder)
        problems = []
        if missing := [folder_of(class_id) for class_id in class_ids if class_id not in names]:
            flat = f"; sort the images into class folders, or set {key.replace('_folder', '_labels')}"
            hint = "" if names or folder == "train_folder" else flat
            count = f"{len(missing)} of {len(class_ids)}"
            found = f"{str(base)!r} has no folder for {count} classes: {some(sorted(missing))}"
            problems.append(UserError(key, found, f"each class_id needs a folder of its name{hint}"))
        known = set(class_ids)
        if unknown := [name for class_id, name in names.items() if class_id not in known]:
            found = f"{str(base)!r} has {len(unknown)} folders that are no class: {some(unknown)}"
            allowed = f"allowed: one folder per class_id, here {some([*map(folder_of, class_ids)])}"
            problems.append(UserError(key, found, allowed))
        here = class_folders(base, key)
        if here.links.intersection(names.values()):  # links may lead two classes to the same images
            seen: dict[str, str] = {}
            for name in names.values():
                if (first := seen.setdefault(os.path.realpath(base / name), name)) != name:
                    found = f"{str(base)!r}: {first!r} and {name!r} are one folder"
                    problems.append(UserError(key, found, "allowed: a folder for each class; remove a link"))
        prefix = f"{self.folders[folder]}/" if self.folders[folder] else ""
        left_out = [*here.left_out, *(LeftOut(name, BESIDE) for name in here.images)]
        present = [names[class_id] for class_id in class_ids if class_id in names]
        listings = in_order(try_list, (base / name for name in present), threads=8)
        lists = []
        for name, listing in zip(present, listings, strict=True):
            if isinstance(listing, UserError):
                problems.append(listing)
                continue
            if not listing.images:
                hint = ""
                if listing.folders:
                    hint = (
                        "; it holds folders: are train_folder and test_folder set? If they are the classes,"
                        f" set dataset.root to {str(base / name)!r}"
                    )
                allowed = f"a class needs images ({' '.join(sorted(EXTENSIONS))}){hint}"
                found = "; ".join(["0 images", *reasons(listing.left_out)])
                problems.append(UserError(str(base / name), found, allowed))
            below = [*listing.left_out, *(LeftOut(nested, NESTED) for nested in listing.folders)]
            left_out += [LeftOut(f"{name}/{one.name}", one.reason) for one in below]
            ids = [f"{prefix}{name}/{image}" for image in listing.images]
            self.links |= {f"{prefix}{name}/{link}" for link in listing.links.intersection(listing.images)}
            lists.append(ImageList(ids, ids))
        if problems:
            raise ConfigError(first_problems(problems))
        self.left_out = [*self.left_out, *(LeftOut(f"{prefix}{one.name}", one.reason) for one in left_out)]
        return lists

    def _scan_flat(self, folder: str, class_ids: list[str]) -> list[ImageList]:
        """List the images of a folder without class folders, by the classes in its file of labels."""
        base, key = self.path(folder), self.key(folder)
        labels_key = key.replace("_folder", "_labels")
        listing = _list_split(base, key, "a folder of images")
        if not listing.images:
            hint = f"; it holds folders: leave {labels_key} out" if listing.folders else ""
            found = "; ".join([f"no image in {str(base)!r}", *reasons(listing.left_out)])
            raise UserError(key, found, f"allowed: the images that {labels_key} is about{hint}")
        file = self.root / os.path.expanduser(self.labels[folder])
        labels = read_labels(file, labels_key, listing.images)
        names: dict[str, list[str]] = {class_id: [] for class_id in class_ids}
        if unknown := sorted(set(labels.values()).difference(map(folder_of, class_ids))):
            found = f"{str(file)!r} names {len(unknown)} classes that the class table lacks: {some(unknown)}"
            raise UserError(
                labels_key, found, f"allowed: class_ids, here {some([*map(folder_of, class_ids)])}"
            )
        for image, name in labels.items():
            names[class_id_of(name)].append(image)
        if empty := [folder_of(class_id) for class_id, those in names.items() if not those]:
            found = f"{str(file)!r} has no image of {len(empty)} of {len(names)} classes: {some(empty)}"
            raise UserError(labels_key, found, "each class needs images")
        prefix = self.folders[folder]
        left_out = [*listing.left_out, *(LeftOut(name, FLAT) for name in listing.folders)]
        self.left_out = [*self.left_out, *(LeftOut(f"{prefix}/{one.name}", one.reason) for one in left_out)]
        self.links |= {f"{prefix}/{name}" for name in listing.links.intersection(listing.images)}
        return [
            ImageList(
                [f"{prefix}/{folder_of(class_id)}/{name}" for name in those],
                [f"{prefix}/{name}" for name in those],
            )
            for class_id, those in names.items()
        ]

    def load(self, sources: Sequence[str]) -> Iterator[Image]:
        """Decode the files in order, a few at a time."""
        from augbench.data.decode import in_order, open_rgb

        return in_order(open_rgb, self.files(sources))

    def files(self, sources: Sequence[str]) -> list[Path]:
        """Each image is a file."""
        return [self.root / source for source in sources]

    def stored(self, sources: Sequence[str]) -> Iterator[StoredFile | None]:
        """Read the files in order."""
        return (_read_file(file) for file in self.files(sources))


def _read_file(path: Path) -> StoredFile | None:
    try:
        return StoredFile(path.read_bytes(), path)
    except OSError:
        return None


class ImageFolderSource(FolderSource):
    """``root/class/*``, or ``root/{train_folder}/class/*`` with given validation or test folders."""

    def __init__(self, dataset: ImageFolder) -> None:
        labels = {"validation_folder": dataset.validation_labels, "test_folder": dataset.test_labels}
        super().__init__(
            dataset.root, dataset.train_folder, dataset.validation_folder, dataset.test_folder, labels
        )
        self.table = dataset.classes

    def classes(self) -> list[ClassInfo]:
        """Classes of the table that the config names or, without one, the sorted folder names as words."""
        if self.table is not None:
            return load_class_table(self.table)
        names = self.folders_by_id("train_folder")
        classes = [ClassInfo(class_id, (readable_name(name),)) for class_id, name in names.items()]
        check_unique(classes, f"{self.key('train_folder')}: {self.path('train_folder')}")
        return classes
