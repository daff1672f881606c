"""Classes of images that are in one flat folder, from a file of labels: ILSVRC2012's validation images.

Two files are known: the development kit's ``ILSVRC2012_validation_ground_truth.txt``, whose numbers
``meta.mat`` beside it explains, and Kaggle's ``LOC_val_solution.csv``.
"""

from __future__ import annotations

import csv
import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from augbench.errors import UserError, some

GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
KAGGLE = "LOC_val_solution.csv"
KAGGLE_COLUMNS = ("ImageId", "PredictionString")
META = "meta.mat"
KNOWN = f"allowed: {GROUND_TRUTH} with {META} beside it (development kit), or {KAGGLE} (Kaggle)"


def label_files(root: Path, labels: str) -> list[str]:
    """Return the paths of a file of labels below ``root``, and of the ``meta.mat`` that it needs."""
    path = root / os.path.expanduser(labels)
    return [str(path)] if _is_kaggles(path) else [str(path), str(path.with_name(META))]


def _is_kaggles(path: Path) -> bool:
    return path.suffix.lower() == ".csv"


def read_labels(path: Path, key: str, images: Sequence[str]) -> dict[str, str]:
    """Return the class (an ImageNet wnid) of each of ``images``, by file name.

    Parameters
    ----------
    path : Path
        A ``.csv`` file is read as Kaggle's, any other as the development kit's.
    key : str
        Config key that names the file.
    images : sequence of str
        Names of the files in the folder, sorted.

    Raises
    ------
    UserError
        The file is missing or of another kind, or it does not give exactly one class to each image.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"not readable as text ({error})"
        raise UserError(key, f"{str(path)!r}, {reason}", KNOWN) from None
    if not _is_kaggles(path):
        return _from_devkit(path, text, key, images)
    try:
        return _from_kaggle(path, text, key, images)
    except csv.Error as error:
        raise UserError(key, f"{str(path)!r}, not readable as CSV ({error})", KNOWN) from None


def _from_devkit(path: Path, text: str, key: str, images: Sequence[str]) -> dict[str, str]:
    lines = text.rstrip().splitlines()
    wnids = _wnids(path.with_name(META), key)
    for number, line in enumerate(lines, 1):
        if line.strip() not in wnids:
            raise UserError(
                f"{path}, line {number}", repr(line), f"allowed: a number that {META} has; {KNOWN}"
            )
    if len(lines) != len(images):
        found = f"{len(lines)} lines in {str(path)!r}, but {len(images)} images in the folder"
        raise UserError(key, found, "allowed: a line for each image; unpack all of ILSVRC2012_img_val.tar")
    for number, image in enumerate(images, 1):
        digits = re.search(r"([0-9]+)\.[^.]*$", image)
        if digits is None or int(digits[1]) != number:
            allowed = "allowed: names that end in their line's number, as ILSVRC2012_val_00000001.JPEG"
            raise UserError(key, f"line {number} of {str(path)!r} would belong to {image!r}", allowed)
    return {image: wnids[line.strip()] for image, line in zip(images, lines, strict=True)}


def _wnids(meta: Path, key: str) -> dict[str, str]:
    """Return the wnids in the development kit's ``meta.mat``, by ILSVRC2012_ID."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    broken = (ValueError, KeyError, TypeError, IndexError, NotImplementedError, zlib.error, MatReadError)
    try:
        synsets = loadmat(str(meta), squeeze_me=True)["synsets"]
        return {
            str(int(number)): str(wnid)
            for number, wnid in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)
        }
    except (OSError, *broken) as error:
        missing = isinstance(error, FileNotFoundError)
        reason = "no such file" if missing else f"not the development kit's ({type(error).__name__}: {error})"
        raise UserError(key, f"{str(meta)!r}, {' '.join(reason.split())}", KNOWN) from None


def _from_kaggle(path: Path, text: str, key: str, images: Sequence[str]) -> dict[str, str]:
    rows = csv.DictReader(text.splitlines())
    if not set(KAGGLE_COLUMNS) <= set(rows.fieldnames or ()):
        found = f"{str(path)!r} has columns {', '.join(rows.fieldnames or ()) or 'none'}"
        raise UserError(key, found, f"allowed: {', '.join(KAGGLE_COLUMNS)}; {KNOWN}")
    found_in: dict[str, str] = {}
    for row in rows:
        image, words = row["ImageId"], (row["PredictionString"] or "").split()
        where = f"{path}, line {rows.line_num}"
        if not image or not words:
            raise UserError(where, repr(row), "allowed: ImageId,PredictionString, which begins with the wnid")
        if image in found_in:
            raise UserError(where, f"{image!r} again", "allowed: one line for each image")
        found_in[image] = words[0]
    stems = {image: PurePosixPath(image).stem for image in images}
    if missing := sorted(set(found_in).difference(stems.values())):
        found = f"{len(missing)} of {len(found_in)} images in {str(path)!r} are not in the folder"
        raise UserError(key, f"{found}: {some(missing)}", "allowed: a file for each line")
    if unlabelled := [image for image, stem in stems.items() if stem not in found_in]:
        found = f"{len(unlabelled)} of {len(images)} images have no line in {str(path)!r}"
        raise UserError(key, f"{found}: {some(unlabelled)}", "allowed: a line for each image")
    return {image: found_in[stem] for image, stem in stems.items()}
