"""Prompts from a user's file of captions, which any language or vision model may have written.

Input: a Parquet, CSV or JSONL file with the columns class_id and caption, and optionally index and image_id.
Output: the caption of an image, or what the file lacks.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np

from augbench.config.methods import CAPTION_SUFFIXES
from augbench.data.classes import folder_of, id_meant
from augbench.errors import UserError, some
from augbench.seeds import derive_seed
from augbench.texts import one_line

if TYPE_CHECKING:
    import pyarrow as pa

NEEDED, OPTIONAL = ("class_id", "caption"), ("index", "image_id")
COLUMNS = f"allowed: the columns {' and '.join(NEEDED)}, and optionally {' and '.join(OPTIONAL)}"


@dataclass(frozen=True)
class Caption:
    """A caption of a class.

    Attributes
    ----------
    index : int or None
        Number of the image that it is for; None: any image.
    image_id : str or None
        Training image that it describes; None: none in particular.
    """

    text: str
    index: int | None = None
    image_id: str | None = None


Captions = Mapping[str, tuple[Caption, ...]]


@cache
def load_captions(path: str) -> Captions:
    """Load the captions of every class in a file, in the file's order, by class_id.

    Raises
    ------
    UserError
        The file is missing or can't be read, lacks a column, or has no captions or empty ones.
    """
    table = _read(path)
    if missing := [name for name in NEEDED if name not in table.column_names]:
        found = f"no column {' and '.join(missing)}; it has {some(table.column_names)}"
        raise UserError(path, found, COLUMNS)
    columns = {
        name: table.column(name).to_pylist() if name in table.column_names else [None] * table.num_rows
        for name in (*NEEDED, *OPTIONAL)
    }
    texts = [one_line(text or "").strip() for text in columns["caption"]]
    if empty := [str(row) for row, text in enumerate(texts, start=1) if not text]:
        found = f"{len(empty)} empty captions, in row {some(empty)}"
        raise UserError(path, found, "allowed: a text in each row; remove the rows without one")
    if not texts:
        raise UserError(path, "no captions", "one row per image or per class is needed")
    captions: dict[str, list[Caption]] = {}
    for name, text, index, image_id in zip(
        columns["class_id"], texts, columns["index"], columns["image_id"], strict=True
    ):
        captions.setdefault(_meant(name or ""), []).append(Caption(text, index, image_id or None))
    return {class_id: tuple(own) for class_id, own in captions.items()}


def _meant(name: str) -> str:
    try:
        return id_meant(name)
    except ValueError:
        return name  # no class has it


def _read(path: str) -> pa.Table:
    """Read the columns of captions; Arrow reads all three formats."""
    import pyarrow as pa
    from pyarrow import csv, json
    from pyarrow import parquet as pq

    kinds = {"class_id": pa.string(), "caption": pa.string(), "index": pa.int64(), "image_id": pa.string()}
    if not os.path.isfile(path):
        allowed = f"allowed: a file of captions ({', '.join(CAPTION_SUFFIXES)})"
        raise UserError("captions", f"{path!r}, no such file", allowed)
    try:
        if path.endswith(".csv"):
            return csv.read_csv(
                path,
                parse_options=csv.ParseOptions(newlines_in_values=True),
                convert_options=csv.ConvertOptions(column_types=kinds),
            )
        if path.endswith(".jsonl"):
            table = json.read_json(path, parse_options=json.ParseOptions(newlines_in_values=False))
        else:
            table = pq.read_table(path)
        for place, name in enumerate(table.column_names):
            if name in kinds:
                table = table.set_column(place, name, table.column(name).cast(kinds[name]))
        return table
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(path, f"not readable as captions ({reason})", COLUMNS) from None


def caption_of(
    captions: Sequence[Caption],
    index: int,
    draw: Literal["random", "cycle"],
    seed: int,
    class_id: str,
    source: str | None = None,
) -> str | None:
    """Caption of image ``index`` of a class; None if there is none for it.

    The first of these that exist are chosen from: captions with this ``index``; captions of the training
    image that sampling starts from; captions that are for no image in particular. An image that starts from
    noise takes captions of training images as those of its class.

    Parameters
    ----------
    captions : sequence of Caption
        Captions of the class.
    draw : str
        ``cycle`` takes each in turn, ``random`` draws one with replacement.
    source : str, optional
        Id of the training image that sampling starts from.
    """
    choices = [caption for caption in captions if caption.index == index]
    if not choices and source is not None:
        choices = [one for one in captions if one.index is None and one.image_id == source]
    if not choices:
        choices = _general(captions, source is not None)
    if not choices:
        return None
    if draw == "cycle" or len(choices) == 1:
        return choices[index % len(choices)].text
    rng = np.random.default_rng(derive_seed(seed, "template", class_id, index))
    return choices[int(rng.integers(len(choices)))].text


def _general(captions: Sequence[Caption], from_images: bool) -> list[Caption]:
    """Captions that are for no image in particular."""
    return [one for one in captions if one.index is None and not (from_images and one.image_id)]


def check_captions(
    path: str, key: str, classes: Collection[str], left_out: Collection[str]
) -> list[UserError]:
    """Problems with a file of captions.

    Parameters
    ----------
    key : str
        Config key that names the file.
    classes, left_out : collection of str
        class_ids that images are made of, and those that the study leaves out.
    """
    try:
        captions = load_captions(path)
    except UserError as error:
        where = key if error.where == "captions" else error.where
        return [UserError(where, error.found, error.allowed)]
    problems = []
    if unknown := [name for name in captions if name not in classes and name not in left_out]:
        found = f"{path!r} has captions of {len(unknown)} classes that the study lacks: {some(unknown)}"
        problems.append(UserError(key, found, f"allowed: class_ids, here {some([*map(folder_of, classes)])}"))
    if missing := [folder_of(class_id) for class_id in classes if class_id not in captions]:
        found = f"{path!r} has no caption of {len(missing)} of {len(classes)} classes: {some(missing)}"
        problems.append(UserError(key, found, "each class needs a caption"))
    return problems


def without_caption(
    path: str, key: str, made: Mapping[str, Collection[int]], from_images: bool
) -> Iterator[UserError]:
    """Yield one problem if captions with an index leave images of classes without any.

    Parameters
    ----------
    made : mapping of str to collection of int
        Indices of the images to make, by class_id.
    from_images : bool
        Whether sampling starts from training images; their captions are known when these are drawn.
    """
    short = {}
    for class_id, indices in made.items():
        own = load_captions(path).get(class_id, ())
        if _general(own, from_images) or (from_images and any(one.image_id for one in own)):
            continue
        if lacking := sorted({*indices} - {one.index for one in own}):
            short[class_id] = lacking
    if short:
        class_id, lacking = next(iter(short.items()))
        found = (
            f"{path!r} has no caption for {len(lacking)} images of class {folder_of(class_id)!r}: index "
            f"{some([*map(str, lacking)], 3)}" + (f"; and {len(short) - 1} more classes" * (len(short) > 1))
        )
        yield UserError(key, found, "add them, or captions without index, which any image takes")
