"""The formats of an exported training set; the same images give the same bytes.

- ``imagefolder``: ``train/{class}/*.png`` with ``train/metadata.parquet``, as torchvision, timm and Hugging
  Face's ``datasets`` read folders; a Parquet file, since ``datasets`` wants the same types in every split;
- ``webdataset``: ``train-000000.tar`` and so on, each image as ``{key}.png``, ``{key}.cls``, ``{key}.json``,
  with timm's ``_info.json``;
- ``parquet``: ``train-000000.parquet`` and so on, with the features that ``datasets`` reads.

A folder that an earlier, stopped call began is finished: a tar or Parquet file takes its name when it is
whole, and is then not made again. Images in folders are recorded, :data:`IMAGES_PER_FILE` at a time, in the
hidden folder :data:`RECORDS`, which the caller removes at the end. Images are held in memory one by one, for
Parquet files :data:`ROWS_TOGETHER`.
"""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import count, islice, takewhile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from augbench.artifacts.shards import image_kind
from augbench.artifacts.store import link_file
from augbench.batches import in_batches
from augbench.commands.export.contents import DETAILS, Picture
from augbench.data.classes import ClassInfo, folder_of
from augbench.files import atomic_path, write_json

IMAGES_PER_FILE = 1000  # of a tar or Parquet file, or of a record
ROWS_TOGETHER = 100  # rows of a Parquet file's row group
RECORDS = ".augbench-records"
METADATA = pa.schema([pa.field("file_name", pa.string()), *DETAILS])
RECORD = METADATA.append(pa.field("bytes", pa.int64()))  # size of the image's file


@dataclass(frozen=True)
class Pictures:
    """The images of a split.

    Attributes
    ----------
    size : int
        Number of images.
    begin : callable
        Yields the images from a place on, which is 0 for all.
    """

    size: int
    begin: Callable[[int], Iterator[Picture]]

    def missing(self, file: Callable[[int], Path]) -> Iterator[tuple[int, Iterator[Picture]]]:
        """Yield the number of each file from the first missing one on, and its images, to be taken whole."""
        files = range(-(-self.size // IMAGES_PER_FILE))
        first = next((number for number in files if not file(number).is_file()), len(files))
        images = self.begin(first * IMAGES_PER_FILE) if first < len(files) else iter(())
        for number in files[first:]:
            yield number, islice(images, IMAGES_PER_FILE)


Sets = Mapping[str, Pictures]


def has_finished(folder: Path) -> bool:
    """Whether a stopped call left a tar, Parquet file or record that the next call need not make."""
    return any(any(place.glob("*-000000.*")) for place in (folder, folder / RECORDS))


def write_folders(folder: Path, sets: Sets, classes: Sequence[ClassInfo]) -> None:
    """Write an image folder; files of the data set are hard-linked where the file system allows it."""
    for split, pictures in sets.items():
        record = _numbered(folder / RECORDS, split, "parquet")
        for info in classes:
            (folder / split / folder_of(info.class_id)).mkdir(parents=True, exist_ok=True)
        numbers = _keep_recorded(folder / split, record)
        for number, images in pictures.missing(record):
            rows = [_write_image(folder / split, picture, numbers) for picture in images]
            with atomic_path(record(number)) as temporary:
                pq.write_table(pa.Table.from_pylist(rows, schema=RECORD), temporary)
        with pq.ParquetWriter(folder / split / "metadata.parquet", METADATA) as writer:
            for path in takewhile(Path.is_file, map(record, count())):
                writer.write_table(pq.read_table(path).select(METADATA.names))


def _write_image(folder: Path, picture: Picture, numbers: Counter[tuple[str, str]]) -> dict[str, Any]:
    """Write an image under the next number of its class and kind; return its row of the record."""
    class_id, kind = picture.details["class_id"], picture.details["kind"]
    name = f"{folder_of(class_id)}/{kind}_{numbers[class_id, kind]:06d}.{image_kind(picture.content)}"
    numbers[class_id, kind] += 1
    if picture.path is not None:
        link_file(picture.path.resolve(), folder / name)
    else:
        (folder / name).write_bytes(picture.content)
    return {"file_name": name, "bytes": len(picture.content), **picture.details}


def _keep_recorded(folder: Path, record: Callable[[int], Path]) -> Counter[tuple[str, str]]:
    """Count a split's recorded images by class and kind; remove all other files of its folder.

    A record ends to count, as do those after it, if a file of it is gone or has another size.
    """
    kept, numbers = set[str](), Counter[tuple[str, str]]()
    for path in takewhile(Path.is_file, map(record, count())):
        rows = pq.read_table(path, columns=["file_name", "bytes", "class_id", "kind"]).to_pylist()
        if any(_size(folder / row["file_name"]) != row["bytes"] for row in rows):
            path.unlink()
            break
        kept.update(row["file_name"] for row in rows)
        numbers.update((row["class_id"], row["kind"]) for row in rows)
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder).as_posix() not in kept:
            path.unlink()  # never written over: it may be a link to a file of the data set
    return numbers


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _numbered(folder: Path, split: str, suffix: str) -> Callable[[int], Path]:
    return lambda number: folder / f"{split}-{number:06d}.{suffix}"


def write_tars(folder: Path, sets: Sets, classes: Sequence[ClassInfo]) -> None:
    """Write WebDataset shards and timm's list of them."""
    splits: dict[str, dict[str, Any]] = {}
    for split, pictures in sets.items():
        file = _numbered(folder, split, "tar")
        for number, images in pictures.missing(file):
            with (
                atomic_path(file(number)) as temporary,
                tarfile.open(temporary, "w", format=tarfile.GNU_FORMAT) as tar,
            ):
                for place, picture in enumerate(images, number * IMAGES_PER_FILE):
                    key = f"{place:09d}"
                    _add(tar, f"{key}.{image_kind(picture.content)}", picture.content)
                    _add(tar, f"{key}.cls", str(picture.details["label"]).encode())
                    _add(tar, f"{key}.json", _json(picture.details).encode())
        firsts = range(0, pictures.size, IMAGES_PER_FILE)
        splits[split] = {
            "name": split,
            "num_samples": pictures.size,
            "filenames": [file(number).name for number in range(len(firsts))],
            "shard_lengths": [min(IMAGES_PER_FILE, pictures.size - first) for first in firsts],
        }
    write_json(folder / "_info.json", {"splits": splits})


def write_parquet(folder: Path, sets: Sets, classes: Sequence[ClassInfo]) -> None:
    """Write Parquet files whose schema names the classes for ``datasets``."""
    names = [folder_of(info.class_id) for info in classes]
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    image = pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    schema = pa.schema([image, *DETAILS], metadata)
    for split, pictures in sets.items():
        file = _numbered(folder, split, "parquet")
        for number, images in pictures.missing(file):
            rows = (_row(split, place, one) for place, one in enumerate(images, number * IMAGES_PER_FILE))
            with atomic_path(file(number)) as temporary, pq.ParquetWriter(temporary, schema) as writer:
                for batch in in_batches(rows, ROWS_TOGETHER):
                    writer.write_table(pa.Table.from_pylist(batch, schema=schema))


def _row(split: str, place: int, picture: Picture) -> dict[str, Any]:
    path = f"{split}_{place:09d}.{image_kind(picture.content)}"
    return {"image": {"bytes": picture.content, "path": path}, **picture.details}


def _json(details: Mapping[str, Any]) -> str:
    return json.dumps(dict(details))


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file without owner and time; what tarfile sets by default is 0 and rw-r--r--."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, BytesIO(content))


Writer = Callable[[Path, Sets, Sequence[ClassInfo]], None]
FORMATS: dict[str, Writer] = {
    "imagefolder": write_folders,
    "webdataset": write_tars,
    "parquet": write_parquet,
}
# pattern of a split's files, for Hugging Face's loader
DATA_FILES = {"imagefolder": "{}/**", "webdataset": "{}-*.tar", "parquet": "{}-*.parquet"}
