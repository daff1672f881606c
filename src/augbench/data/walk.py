"""Find image files, or Parquet files with images, in folders, by the same rules for data sets and corpora.

A file is an image if its name ends in one of :data:`EXTENSIONS`, in any case. Hidden files and folders and
those that other programs leave behind are not looked at. Links are followed, to files and to folders. All
that is left out is listed with its reason.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from augbench.errors import UserError, some

logger = logging.getLogger(__name__)

EXTENSIONS = frozenset(
    {"jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm"}
)
PARQUET = frozenset({"parquet"})
# names, in lower case, that Windows, macOS, NAS systems and file systems leave in folders of images
LITTER = frozenset(
    {
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "__macosx",
        "@eadir",
        "#recycle",
        "$recycle.bin",
        "system volume information",
        "lost+found",
    }
)

HIDDEN = "hidden, or left by another program"
SUFFIX = "no suffix of an image"
NOT_PARQUET = "no Parquet file"
DANGLING = "a link to nothing"
SPECIAL = "neither a file nor a folder"
NOT_UTF8 = "a name that is not UTF-8"
OUTSIDE = "outside the folder"
NESTED = "a folder in a class folder"
FLAT = "a folder beside the images"
BESIDE = "beside the class folders"
AROUND = "a link to a folder around this one"
TWICE = "a folder that was searched under another name"


@dataclass(frozen=True)
class LeftOut:
    """A file or folder that is not used: its path relative to the folder that was searched, and why."""

    name: str
    reason: str


@dataclass
class Listing:
    """Content of a folder, or of all folders below it.

    Attributes
    ----------
    images, folders : list of str
        Names relative to the folder; folders are those directly in it.
    links : set of str
        The images and folders that are symbolic links.
    left_out : list of LeftOut
    """

    images: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    links: set[str] = field(default_factory=set)
    left_out: list[LeftOut] = field(default_factory=list)


def printable(name: str) -> str:
    """Name of a file on one line of UTF-8, whatever its bytes are."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in name
    )


def _problem(name: str, kind: str, suffixes: frozenset[str] = EXTENSIONS) -> str | None:
    """Return why a file or folder of this name is left out, or None; ``kind`` as :func:`_kind` gives it."""
    if name.startswith(".") or name.lower() in LITTER:
        return HIDDEN
    if kind not in ("file", "folder"):
        return kind
    try:
        name.encode()
    except UnicodeEncodeError:
        return NOT_UTF8
    stem, _, suffix = name.rpartition(".")
    if kind == "folder" or (stem and suffix.lower() in suffixes):
        return None
    return NOT_PARQUET if suffixes is PARQUET else SUFFIX


def path_problem(name: str) -> str | None:
    """Return why :func:`walk` lists no image under this path relative to its folder, whatever is there."""
    parts = name.split("/")
    if ".." in parts or "" in parts:
        return OUTSIDE
    kinds = ["folder"] * (len(parts) - 1) + ["file"]
    problems = (_problem(part, kind) for part, kind in zip(parts, kinds, strict=True))
    return next((problem for problem in problems if problem is not None), None)


def _kind(entry: os.DirEntry[str]) -> str:
    """Return "file" or "folder", following links, or why the entry is neither."""
    try:
        if entry.is_file():
            return "file"
        if entry.is_dir():
            return "folder"
    except OSError as error:  # a circle of links, or a target in a folder that may not be read
        return error.strerror or DANGLING
    return DANGLING if entry.is_symlink() else SPECIAL


def list_folder(folder: str | Path, suffixes: frozenset[str] = EXTENSIONS) -> Listing:
    """List a folder's images, or files with other ``suffixes``, and its folders, sorted by name.

    Raises
    ------
    UserError
        The folder can't be read.
    """
    listing = Listing()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name, kind = entry.name, _kind(entry)
                if (problem := _problem(name, kind, suffixes)) is not None:
                    listing.left_out.append(LeftOut(name, problem))
                    continue
                (listing.images if kind == "file" else listing.folders).append(name)
                if entry.is_symlink():
                    listing.links.add(name)
    except OSError as error:
        found = error.strerror or type(error).__name__
        raise UserError(printable(str(folder)), found, "a folder that you may read is needed") from None
    listing.images.sort()
    listing.folders.sort()
    listing.left_out.sort(key=lambda one: one.name)
    return listing


def walk(root: str | Path, suffixes: frozenset[str] = EXTENSIONS) -> Listing:
    """List the images, or files with other ``suffixes``, in a folder and all below it, sorted by path.

    Folders are read several at a time. A folder that several links lead to is searched once, under its own
    name if it is below ``root``; a link to a folder around ``root`` is not followed.

    Raises
    ------
    UserError
        ``root`` can't be read. An unreadable folder below it is left out.
    """
    from augbench.data.decode import in_order

    root = Path(root)
    top = os.path.realpath(root)
    found, seen = list_folder(root, suffixes), {top}
    links: list[str] = []
    pending = found.folders
    while pending or links:
        if not pending:  # links come last, so that a folder keeps its own name
            pending, links = sorted(links), []
        fresh = []
        for name in pending:
            if name in found.links:
                links.append(name)
                found.links.remove(name)
                continue
            real = os.path.realpath(root / name)
            if real in seen or Path(top).is_relative_to(real):
                found.left_out.append(LeftOut(name, TWICE if real in seen else AROUND))
                continue
            seen.add(real)
            fresh.append(name)
        pending = []
        listings = in_order(partial(try_list, suffixes=suffixes), (root / name for name in fresh), 8)
        for name, below in zip(fresh, listings, strict=True):
            if isinstance(below, UserError):
                found.left_out.append(LeftOut(name, str(below.found)))
                continue
            found.images += (f"{name}/{image}" for image in below.images)
            found.links |= {f"{name}/{link}" for link in below.links}
            found.left_out += (LeftOut(f"{name}/{one.name}", one.reason) for one in below.left_out)
            pending += (f"{name}/{folder}" for folder in below.folders)
    found.images.sort()
    found.left_out.sort(key=lambda one: one.name)
    return found


def log_left_out(what: str, left_out: Iterable[LeftOut]) -> None:
    """Log a line per reason (:func:`reasons`)."""
    for line in reasons(left_out):
        logger.warning("%s: %s", what, line)


def list_corpus(root: str | Path) -> Listing:
    """List the images of a corpus (:func:`walk`).

    Raises
    ------
    UserError
        ``root`` is missing, can't be read, or has no image.
    """
    allowed = f"allowed: a folder with images ({' '.join(sorted(EXTENSIONS))})"
    try:
        listing = walk(root)
    except UserError as error:
        reason = error.found if os.path.lexists(root) else "no such folder"
        raise UserError("corpus.root", f"{str(root)!r}, {reason}", allowed) from None
    if not listing.images:
        found = "; ".join([f"no image in {str(root)!r}", *reasons(listing.left_out)])
        raise UserError("corpus.root", found, allowed)
    return listing


def try_list(folder: Path, suffixes: frozenset[str] = EXTENSIONS) -> Listing | UserError:
    """List a folder (:func:`list_folder`), or return the error."""
    try:
        return list_folder(folder, suffixes)
    except UserError as error:
        return error


def reasons(left_out: Iterable[LeftOut]) -> list[str]:
    """Return a text per reason: how many files or folders were left out, and the first of their names."""
    names: dict[str, list[str]] = {}
    for one in left_out:
        names.setdefault(one.reason, []).append(printable(one.name))
    return [f"{len(those)} left out, {reason}: {some(those)}" for reason, those in sorted(names.items())]
