"""Find out how a folder holds a data set or a corpus: the keys of the config's section that reads it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from augbench.data.classes import load_class_table
from augbench.data.flat_folder import GROUND_TRUTH, KAGGLE
from augbench.data.image_folder import class_folders
from augbench.data.walk import PARQUET, list_corpus, list_folder, printable, try_list, walk
from augbench.errors import UserError, some

if TYPE_CHECKING:
    import pyarrow as pa

TRAIN = ("train", "training")
VALIDATION = ("val", "valid", "validation", "dev")
TEST = ("test", "testing")
KAGGLE_PREFIX = "ILSVRC/Data/CLS-LOC"
IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")


@dataclass
class Layout:
    """How a folder holds a data set.

    Attributes
    ----------
    keys : dict
        Keys of the config's section ``dataset``, without those of the splits' sizes.
    notes : list of str
        What is not used, and why.
    """

    keys: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def find_layout(folder: Path) -> Layout:
    """Find class folders, folders of splits with class folders, or Parquet files.

    A folder that holds one folder and no image is looked through, as an unpacked archive often needs.

    Raises
    ------
    UserError
        There is nothing of this kind; says what is there.
    """
    listing = class_folders(folder, "dataset.root")
    for prefix in ("", KAGGLE_PREFIX):
        if (layout := _split_folders(folder, prefix)) is not None:
            return layout
    if any(_has_images(folder / name) for name in listing.folders):
        return Layout({"kind": "image_folder", "root": str(folder)})
    if any(_has_parquet(place) for place in (folder, *(folder / name for name in listing.folders))):
        return _parquet_layout(folder)
    if len(listing.folders) == 1 and not listing.images:
        return find_layout(folder / listing.folders[0])
    found = f"{len(listing.images)} images and {len(listing.folders)} folders without images"
    below = some([printable(name) for name in listing.folders], most=3)
    raise UserError(
        "dataset.root",
        f"{str(folder)!r} has {found}{f': {below}' if below else ''}",
        "allowed: one folder of images per class, alone or below train (val, test), or Parquet files;"
        " sort the images into class folders, or name the folder that holds the class folders",
    )


def _has_images(folder: Path) -> bool:
    listing = try_list(folder)
    return not isinstance(listing, UserError) and bool(listing.images)


def _has_parquet(folder: Path) -> bool:
    listing = try_list(folder, PARQUET)
    return not isinstance(listing, UserError) and bool(listing.images)


def _has_classes(folder: Path) -> bool:
    listing = try_list(folder)
    return not isinstance(listing, UserError) and any(_has_images(folder / name) for name in listing.folders)


def _first(words: Sequence[str], names: dict[str, str]) -> str | None:
    return next((names[word] for word in words if word in names), None)


def _split_folders(root: Path, prefix: str) -> Layout | None:
    """Return the layout if there is a train folder with class folders, by itself or with val and test."""
    place = root / prefix
    listing = try_list(place)
    if isinstance(listing, UserError):
        return None
    names = {name.lower(): name for name in listing.folders}
    train = _first(TRAIN, names)
    if train is None or not _has_classes(place / train):
        return None
    layout = Layout({"kind": "image_folder", "root": str(root), "train_folder": _below(prefix, train)})
    given: list[dict[str, str]] = []
    for name in filter(None, (_first(VALIDATION, names), _first(TEST, names))):
        held = {"folder": _below(prefix, name)}
        if not _has_classes(place / name):
            if (labels := _label_file(root)) is None or name.lower() in TEST:
                layout.notes.append(f"{name} has no class folders and no labels, so it is not used")
                continue
            held["labels"] = labels
        given.append(held)
    for split, held in zip(("test", "validation"), reversed(given), strict=False):
        layout.keys |= {f"{split}_{what}": value for what, value in held.items()}
    beside = [name for name in listing.folders if f"{prefix}/{name}".lstrip("/") not in layout.keys.values()]
    if beside:
        layout.notes.append(f"other folders beside {train} are not used: {some([*map(printable, beside)])}")
    return layout


def _below(prefix: str, name: str) -> str:
    return f"{prefix}/{name}" if prefix else name


def _label_file(root: Path) -> str | None:
    """Path below ``root`` of a known file of labels of ILSVRC2012's validation images."""
    for pattern in (KAGGLE, GROUND_TRUTH, f"*/{GROUND_TRUTH}", f"*/data/{GROUND_TRUTH}"):
        if found := sorted(root.glob(pattern)):
            return found[0].relative_to(root).as_posix()
    return None


def class_table(names: Sequence[str]) -> str | None:
    """Shipped class table that has exactly these class folders (``imagenet``), or None."""
    return "imagenet" if _are_wnids(names) and _imagenet_ids() == {*names} else None


def _are_wnids(names: Sequence[str]) -> bool:
    return bool(names) and all(re.fullmatch("n[0-9]{8}", name) for name in names)


def _imagenet_ids() -> set[str]:
    return {info.class_id for info in load_class_table("imagenet")}


def naming_note(names: Sequence[str], file: str) -> str | None:
    """Return a note about class folders whose names mean nothing in a prompt, or None.

    ``file`` is the class table that the note proposes.
    """
    if not (_are_wnids(names) or all(name.isdecimal() for name in names)):
        return None
    note = (
        f"the class folders ({some(names, most=3)}) are numbers, which mean nothing in a prompt. Name the"
        " classes in a class table (docs/own_data.md) and set dataset.classes to it."
    )
    if _are_wnids(names) and {*names} <= _imagenet_ids():
        note += (
            f" resources/classes/imagenet.tsv has these classes: copy its header and their lines to {file}."
        )
    return note


# --- Parquet files --------------------------------------------------------------------------


def _parquet_layout(root: Path) -> Layout:
    """Return the keys that read Parquet files: their columns, splits and class table."""
    from augbench.data.parquet_source import label_names, match_names

    files = walk(root, PARQUET).images
    schema = _schema(root / files[0])
    image, label = image_column(schema), _label_column(schema)
    if image is None or label is None:
        what = "images (bytes)" if image is None else "labels (whole numbers or texts)"
        found = f"{printable(str(root / files[0]))} has no column of {what}: {', '.join(schema.names)}"
        raise UserError("dataset.root", found, "allowed: files with a column of images and one of labels")
    layout = Layout({"kind": "parquet", "root": str(root)})
    layout.keys |= _unless("image_column", image, "image") | _unless("label_column", label, "label")
    names = label_names(schema, label)
    if names is not None and len(names) == 1000:
        try:
            match_names(names, load_class_table("imagenet"))
            layout.keys["classes"] = "imagenet"
        except ValueError:
            pass
    _add_splits(layout, root, files, label)
    return layout


def _unless(key: str, value: str, default: str) -> dict[str, str]:
    return {} if value == default else {key: value}


def _schema(file: Path) -> pa.Schema:
    import pyarrow.parquet as pq

    from augbench.data.parquet_images import reading

    with reading(file):
        return pq.read_schema(file)


def image_column(schema: pa.Schema) -> str | None:
    """Column of images in Parquet files: bytes, or a structure with bytes."""
    import pyarrow as pa

    def holds_images(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    found = [column.name for column in schema if holds_images(column.type)]
    return next((name for name in (*IMAGE_COLUMNS, *found) if name in found), None)


def _label_column(schema: pa.Schema) -> str | None:
    import pyarrow as pa

    from augbench.data.parquet_source import label_names

    named = [column.name for column in schema if label_names(schema, column.name) is not None]
    plain = [
        column.name
        for column in schema
        if pa.types.is_integer(column.type) or pa.types.is_string(column.type)
    ]
    wanted = (*(name for name in LABEL_COLUMNS if name in named), *named, *LABEL_COLUMNS)
    return next((name for name in wanted if name in named or name in plain), None)


def _add_splits(layout: Layout, root: Path, files: Sequence[str], label: str) -> None:
    from augbench.data.parquet_source import names_split

    def first(words: Sequence[str]) -> tuple[str, str] | None:
        """First of ``words`` that names a split, and the first of its files."""
        for word in words:
            for file in files:
                if any(names_split(part, word) for part in file.removesuffix(".parquet").split("/")):
                    return word, file
        return None

    train = first(TRAIN) or ((Path(files[0]).stem, files[0]) if len(files) == 1 else None)
    if train is None:
        found = f"no Parquet file in {str(root)!r} is of the split 'train': {some(files, most=3)}"
        raise UserError("dataset.train_split", found, "allowed: train as a word of a file's or folder's name")
    layout.keys |= _unless("train_split", train[0], "train")
    given = []
    for split in filter(None, (first(VALIDATION), first(TEST))):
        if _is_labelled(root / split[1], label):
            given.append(split[0])
        else:
            layout.notes.append(f"the split {split[0]} has no labels, so it is not used")
    for key, name in zip(("test_split", "validation_split"), reversed(given), strict=False):
        layout.keys[key] = name


def _is_labelled(file: Path, column: str) -> bool:
    """Whether all rows of a file have a label; null and -1 are none."""
    import pyarrow.parquet as pq

    from augbench.data.parquet_images import reading

    with reading(file):
        values = pq.read_table(file, columns=[column]).column(column).to_pylist()
    return all(value is not None and value != -1 for value in values)


# --- corpora ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class CorpusFound:
    """Keys of the config's section ``corpus``, its description, and its number of images, if counted."""

    keys: dict[str, Any]
    text: str
    images: int | None = None

    @property
    def is_embedded(self) -> bool:
        """Whether a CLIP model of someone else's choice has embedded it."""
        return "clip" in self.keys


def find_corpus(folder: Path, clip: str) -> CorpusFound:
    """Find images, Parquet files, an index or embeddings (:mod:`augbench.config.corpus`).

    Parameters
    ----------
    clip : str
        CLIP model that is taken to have made embeddings.

    Raises
    ------
    UserError
        The folder is missing, or has none of these.
    """
    place = {"folder": str(folder), "clip": clip}
    if (folder / "image.index").is_file():
        return CorpusFound({"kind": "clip_retrieval_index", **place}, "an index of clip-retrieval")
    embeddings = CorpusFound({"kind": "embeddings", **place}, "CLIP embeddings")
    if (folder / "img_emb").is_dir() or (folder.is_dir() and any(folder.glob("*.npz"))):
        return embeddings
    files = [] if not folder.is_dir() or list_folder(folder).images else walk(folder, PARQUET).images
    if files:
        if (column := image_column(_schema(folder / files[0]))) is None:
            return embeddings
        keys = {"kind": "parquet", "root": str(folder), **_unless("image_column", column, "image")}
        return CorpusFound(keys, f"{len(files):,} Parquet files with images")
    images = len(list_corpus(folder).images)
    return CorpusFound({"kind": "image_folder", "root": str(folder)}, f"{images:,} images", images)


def check_apart(layout: Layout, corpus: Path) -> None:
    """Raise :class:`UserError` if a corpus holds images of the data set, or is one of its folders."""
    root = Path(layout.keys["root"])
    parts = [layout.keys[key] for key in layout.keys if key.endswith("_folder")] or [""]
    here = corpus.resolve()
    for part in ((root / part).resolve() for part in parts):
        if here.is_relative_to(part) or part.is_relative_to(here):
            found = f"{str(corpus)!r} and the data set's {str(part)!r} are not apart"
            raise UserError(
                "--corpus",
                found,
                "allowed: a folder without the data set's images, which retrieval would find again",
            )
