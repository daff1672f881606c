"""Data sets in Parquet files with a column of images and one of labels, such as Hugging Face's imagenet-1k.

An image's id is the path that it has in folders, ``{split}/{class}/{file name}``, if the file names are in
the column of images and differ within each class. So the same images are drawn as from folders. Otherwise the
id is the name of its row (:mod:`augbench.data.parquet_images`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from augbench.config.data import ParquetImages
from augbench.config.problems import ConfigError
from augbench.data.classes import (
    ClassInfo,
    check_unique,
    class_id_of,
    folder_of,
    load_class_table,
    readable_name,
)
from augbench.data.image_folder import first_problems
from augbench.data.source import ClassImages, ImageList, ImageSource, StoredFile
from augbench.data.walk import LeftOut, printable
from augbench.errors import UserError, some

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL.Image import Image

    from augbench.data.parquet_images import Encoded, ImageRows

NO_SPLIT = "of no split that the config names"
SPLITS = ("train_split", "validation_split", "test_split")


@dataclass
class _Class:
    """Images of a class in a split: their rows, and the names of their files (None: not known)."""

    rows: list[str] = field(default_factory=list)
    files: list[str | None] = field(default_factory=list)


def names_split(part: str, split: str) -> bool:
    """Whether a part of a path has the name of a split as a word: ``train-00000-of-00294``, ``x.train``."""
    letter = r"[^\W\d_]"
    return re.search(rf"(?<!{letter})(?<!_){re.escape(split)}(?!{letter}|_+{letter})", part) is not None


def label_names(schema: pa.Schema, column: str) -> list[str] | None:
    """Return the names that ``datasets`` has written for a column's labels (ClassLabel), or None."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [*map(str, names)] if isinstance(names, list) else None


def _words(text: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]+", text.casefold()))


def match_names(names: Sequence[str], classes: Sequence[ClassInfo]) -> list[int]:
    """Return the class in the table of each label, by the labels' names.

    The names are the table's class_ids, in any order, or describe its rows in their order, as imagenet-1k's
    do. A name describes a row if it has one of the row's lemmas; or, if it has no row's lemma, a word of it.

    Raises
    ------
    ValueError
        They are neither; says where they differ.
    """
    by_id = {folder_of(info.class_id): label for label, info in enumerate(classes)}
    if by_id.keys() >= set(names):
        missing = sorted(by_id.keys() - set(names))
        if missing:
            raise ValueError(f"they lack {len(missing)} classes of the table: {some(missing)}")
        return [by_id[name] for name in names]
    if len(names) != len(classes):
        raise ValueError(f"there are {len(names)}, and the table has {len(classes)} classes")
    owners: dict[str, set[int]] = {}
    for label, info in enumerate(classes):
        for lemma in info.lemmas:
            owners.setdefault(lemma.casefold(), set()).add(label)
    differing = []
    for label, name in enumerate(names):
        owning = set().union(*(owners.get(part.strip(), ()) for part in name.casefold().split(",")))
        if label not in owning and (owning or not _words(name) & _words(classes[label].name)):
            differing.append(f"label {label} is {name!r} and the table's {classes[label].name!r}")
    if differing:
        raise ValueError(f"{len(differing)} of {len(names)} differ: {some(differing, most=3)}")
    return list(range(len(names)))


class ParquetSource(ImageSource):
    """Images in the rows of Parquet files.

    Attributes
    ----------
    root : Path
        Folder of the files.
    """

    def __init__(self, dataset: ParquetImages) -> None:
        self.dataset = dataset
        self.root = Path(os.path.expanduser(dataset.root))

    @property
    def rows(self) -> ImageRows:
        """The reader of the images."""
        from augbench.data.parquet_images import ImageRows

        return ImageRows(self.root, self.dataset.image_column, "dataset.image_column")

    def _files(self) -> dict[str, list[str]]:
        """List the files of each split that the config names, by its key; the others are left out.

        Raises
        ------
        UserError
            There are none of a split, or a file is of two.
        """
        from augbench.data.parquet_images import list_parquet

        listing = list_parquet(self.root, "dataset.root")
        splits = {key: name for key in SPLITS if (name := getattr(self.dataset, key)) is not None}
        found: dict[str, list[str]] = {key: [] for key in splits}
        others = []
        for file in listing.images:
            for part in reversed(file.removesuffix(".parquet").split("/")):
                of = [key for key, split in splits.items() if names_split(part, split)]
                if len(of) > 1:
                    where, both = f"dataset.{of[1]}", " and ".join(splits[key] for key in of)
                    raise UserError(where, f"{file!r} has the names of {both}", "allowed: one split per file")
                if of:
                    found[of[0]].append(file)
                    break
            else:
                others.append(LeftOut(file, NO_SPLIT))
        for key, files in found.items():
            if not files:
                names = some([printable(file) for file in listing.images], most=3)
                raise UserError(
                    f"dataset.{key}",
                    f"{splits[key]!r}, which is in the name of no Parquet file in {str(self.root)!r}: "
                    f"{names}",
                    "allowed: a word of a file's or folder's name",
                )
        self.left_out = [*listing.left_out, *others]
        return found

    def classes(self) -> list[ClassInfo]:
        """Classes of the table that the config names or, without one, the labels' names in the files."""
        if self.dataset.classes is not None:
            return load_class_table(self.dataset.classes)
        file = self._files()["train_split"][0]
        with self.rows.open(file) as opened:
            names = label_names(opened.schema_arrow, self.dataset.label_column)
        if names is None:
            found = f"null, and {file} has no names (ClassLabel) for its column {self.dataset.label_column!r}"
            raise UserError("dataset.classes", found, "allowed: a class table")
        classes = []
        for name in names:
            try:
                classes.append(ClassInfo(class_id_of(name), (readable_name(name),)))
            except ValueError as error:
                raise UserError(f"{self.root / file}", f"the label {name!r}", str(error)) from None
        check_unique(classes, f"{self.root / file}")
        return classes

    def scan(self) -> list[ClassImages]:
        """List the images of all classes; one error reports all files that do not fit."""
        self.left_out = ()
        classes, files = self.classes(), self._files()
        problems: list[UserError] = []
        found = {key: self._scan_split(key, files[key], classes, problems) for key in files}
        if problems:
            raise ConfigError(first_problems(problems))
        nothing: list[ImageList | None] = [None] * len(classes)
        validation, test = (found.get(key, nothing) for key in ("validation_split", "test_split"))
        class_ids = [info.class_id for info in classes]
        return [
            ClassImages(*row) for row in zip(class_ids, found["train_split"], validation, test, strict=True)
        ]

    def _scan_split(
        self, key: str, files: Sequence[str], classes: Sequence[ClassInfo], problems: list[UserError]
    ) -> list[ImageList]:
        images = [_Class() for _ in classes]
        before = len(problems)
        for file in files:
            try:
                self._scan_file(key, file, classes, images)
            except UserError as error:
                problems.append(error)
        empty = [
            folder_of(info.class_id) for info, those in zip(classes, images, strict=True) if not those.rows
        ]
        if empty and len(problems) == before:
            found = f"no image of {len(empty)} of {len(classes)} classes in {len(files)} files: {some(empty)}"
            problems.append(UserError(f"dataset.{key}", found, "each class needs images"))
        folders = [f"{getattr(self.dataset, key)}/{folder_of(info.class_id)}" for info in classes]
        named = all(None not in those.files and len({*those.files}) == len(those.rows) for those in images)
        lists = []
        for folder, those in zip(folders, images, strict=True):
            ids = [f"{folder}/{name}" for name in those.files] if named else those.rows
            pairs = sorted(zip(ids, those.rows, strict=True))
            lists.append(ImageList([image_id for image_id, _ in pairs], [row for _, row in pairs]))
        return lists

    def _scan_file(self, key: str, file: str, classes: Sequence[ClassInfo], images: Sequence[_Class]) -> None:
        """Add the rows of a file to the images of their classes."""
        import pyarrow as pa

        from augbench.data.parquet_images import row_name

        image_column, label_column = self.dataset.image_column, self.dataset.label_column
        path = printable(str(self.root / file))
        with self.rows.open(file) as opened:
            schema = opened.schema_arrow
            self.rows.check_column(self.root / file, label_column, "dataset.label_column", schema)
            kind, structure = schema.field(label_column).type, schema.field(image_column).type
            named = pa.types.is_struct(structure) and structure.get_field_index("path") >= 0
            paths = f"{image_column}.path"
            table = opened.read([label_column, *([paths] if named else [])])
            values = table.column(label_column).to_pylist()
            names = (
                [row and row["path"] for row in table.column(image_column).to_pylist()]
                if named
                else [None] * len(values)
            )
            by_value = self._classes_by_value(path, schema, classes)
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            found = f"the column {label_column!r} of {path} is {kind}"
            raise UserError("dataset.label_column", found, "allowed: whole numbers or texts")
        where, rows = f"dataset.{key}", len(values)
        if without := [row for row, value in enumerate(values) if value is None or value == -1]:
            found = f"{len(without)} of {rows} rows of {path} have no label (null or -1): {_rows(without)}"
            raise UserError(where, found, "allowed: a split with labels; imagenet-1k's split test has none")
        if wrong := [row for row, value in enumerate(values) if value not in by_value]:
            found = f"{len(wrong)} of {rows} rows of {path} have labels of no class: {values[wrong[0]]!r} in"
            allowed = f"allowed: {some([repr(value) for value in by_value], most=3)}"
            raise UserError(where, f"{found} {_rows(wrong)}", allowed)
        if empty := self.rows.empty_rows(file):
            found = f"{len(empty)} of {rows} rows of {path} have no image: {_rows(empty)}"
            raise UserError(where, found, "remove these rows, or write their images into them")
        folders = [folder_of(info.class_id) for info in classes]
        for row, (value, name) in enumerate(zip(values, names, strict=True)):
            label = by_value[value]
            images[label].rows.append(row_name(file, row))
            images[label].files.append(_file_name(name, folders[label]))

    def _classes_by_value(
        self, path: str, schema: pa.Schema, classes: Sequence[ClassInfo]
    ) -> Mapping[Any, int]:
        """Return the class of each value of the column of labels."""
        import pyarrow as pa

        column = self.dataset.label_column
        names = label_names(schema, column)
        if not pa.types.is_integer(schema.field(column).type):
            return {folder_of(info.class_id): label for label, info in enumerate(classes)}
        if names is None:
            return {label: label for label in range(len(classes))}
        try:
            return dict(enumerate(match_names(names, classes)))
        except ValueError as error:
            table = "the class table" if self.dataset.classes else "the first file"
            raise UserError(
                "dataset.classes",
                f"the labels' names in {path} do not fit {table}: {error}",
                "allowed: names that are class_ids, or lemmas of the table's rows in their order",
            ) from None

    def load(self, sources: Sequence[str]) -> Iterator[Image]:
        """Decode the images in order, a few at a time."""
        from augbench.data.decode import decode, in_order

        def opened(item: tuple[str, Encoded]) -> Image:
            name, content = item
            if isinstance(content, UserError):
                raise content
            return decode(self.root / name, content=content).image

        return in_order(opened, zip(sources, self.rows.read(sources), strict=True))

    def files(self, sources: Sequence[str]) -> list[Path]:
        """Files that hold the rows."""
        from augbench.data.parquet_images import file_and_row

        return [self.root / file_and_row(source)[0] for source in sources]

    def stored(self, sources: Sequence[str]) -> Iterator[StoredFile | None]:
        """Read the images' bytes in order."""
        contents = self.rows.read(sources)
        return (None if isinstance(found, UserError) else StoredFile(found) for found in contents)


def _rows(rows: Sequence[int]) -> str:
    return f"row{'s' if len(rows) > 1 else ''} {some([*map(str, rows)], most=3)}"


def _file_name(path: str | None, folder: str) -> str | None:
    """Return a file name without the class that imagenet-1k appends (``n01440764_10026_n01440764.JPEG``)."""
    if not path:
        return None
    name = PurePosixPath(path)
    return printable(f"{name.stem.removesuffix(f'_{folder}')}{name.suffix}")
