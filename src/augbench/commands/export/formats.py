"""The formats of an exported training set; the same images give the same bytes.

- ``imagefolder``: ``train/{class}/*.png`` with ``train/metadata.parquet``, as torchvision, timm and Hugging
  Face's ``datasets`` read folders; a Parquet file, since ``datasets`` wants the same types in every split;
- ``webdataset``: ``train-000000.tar`` and so on, each image as ``{key}.png``, ``{key}.cls``, ``{key}.json``,
  with timm's ``_info.json``;
- ``parquet``: ``train-000000.parquet`` and so on, with the features that ``datasets`` reads.
"""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from augbench.artifacts.shards import image_kind
from augbench.artifacts.store import link_file
from augbench.batches import in_batches
from augbench.commands.export.contents import DETAILS, Picture
from augbench.data.classes import ClassInfo, folder_of
from augbench.files import write_json

IMAGES_PER_FILE = 1000  # of a tar or Parquet file
Sets = Mapping[str, Iterable[Picture]]
METADATA = pa.schema([pa.field("file_name", pa.string()), *DETAILS])


def write_folders(folder: Path, sets: Sets, classes: Sequence[ClassInfo]) -> None:
    """Write an image folder; files of the data set are hard-linked where the file system allows it."""
    for split, pictures in sets.items():
        for info in classes:
            (folder / split / folder_of(info.class_id)).mkdir(parents=True)
        numbers: Counter[tuple[str, str]] = Counter()
        with pq.ParquetWriter(folder / split / "metadata.parquet", METADATA) as writer:
            for batch in in_batches(pictures, IMAGES_PER_FILE):
                rows = []
                for picture in batch:
                    class_id, kind = picture.details["class_id"], picture.details["kind"]
                    number = numbers[class_id, kind]
                    numbers[class_id, kind] += 1
                    name = f"{folder_of(class_id)}/{kind}_{number:06d}.{image_kind(picture.content)}"
                    if picture.path is not None:
                        link_file(picture.path.resolve(), folder / split / name)
                    else:
                        (folder / split / name).write_bytes(picture.content)
                    rows.append({"file_name": name, **picture.details})
                writer.write_table(pa.Table.from_pylist(rows, schema=METADATA))


def write_tars(folder: Path, sets: Sets, classes: Sequence[ClassInfo]) -> None:
    """Write WebDataset shards and timm's list of them."""
    splits: dict[str, dict[str, Any]] = {}
    for split, pictures in sets.items():
        lengths: dict[str, int] = {}
        for number, batch in enumerate(in_batches(pictures, IMAGES_PER_FILE)):
            name = f"{split}-{number:06d}.tar"
            with tarfile.open(folder / name, "w", format=tarfile.GNU_FORMAT) as tar:
                for place, picture in enumerate(batch, number * IMAGES_PER_FILE):
                    key = f"{place:09d}"
                    _add(tar, f"{key}.{image_kind(picture.content)}", picture.content)
                    _add(tar, f"{key}.cls", str(picture.details["label"]).encode())
                    _add(tar, f"{key}.json", _json(picture.details).encode())
            lengths[name] = len(batch)
        splits[split] = {
            "name": split,
            "num_samples": sum(lengths.values()),
            "filenames": [*lengths],
            "shard_lengths": [*lengths.values()],
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
        for number, batch in enumerate(in_batches(pictures, IMAGES_PER_FILE)):
            rows = [
                {
                    "image": {
                        "bytes": picture.content,
                        "path": f"{split}_{place:09d}.{image_kind(picture.content)}",
                    },
                    **picture.details,
                }
                for place, picture in enumerate(batch, number * IMAGES_PER_FILE)
            ]
            path = folder / f"{split}-{number:06d}.parquet"
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=100)


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
