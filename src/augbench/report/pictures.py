"""Images shown in figures, and their thumbnails.

Input: the training split, a training set's manifest of added images, and its shards. Output: a Parquet file
with every image shown, its origin and its thumbnail. The figure is drawn from this file, so shards and data
set are read once. Images are drawn at random from those that classifiers were trained on, never chosen by
looks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from augbench.artifacts.parquet import whole
from augbench.artifacts.pool import load_images
from augbench.artifacts.shards import encode_image, image_kind, read_shard
from augbench.data.classes import ClassInfo
from augbench.data.sources import open_source
from augbench.data.splits import Split
from augbench.files import atomic_path
from augbench.seeds import derive_seed

if TYPE_CHECKING:
    from augbench.runtime.job import Job

REAL = "real"  # panel of training images
SIDE = 192  # a thumbnail's largest side in pixels; a column of the figures has room for fewer
LOSSLESS_SIDE = 64  # thumbnails up to this side are PNG, which is exact and still small


@dataclass(frozen=True)
class ImageRecord:
    """One image shown; None for values that it does not have.

    ``panel`` is a method, or :data:`REAL`. ``place`` counts the images of a class in a panel. ``image`` is
    the id of a training image, or the index i of an added image ("image i of class c"). ``source`` is the
    training image that an added image started from, or the address that it was retrieved from.
    ``safety_flags`` and ``model`` are the shard's columns.
    """

    panel: str
    class_id: str
    class_name: str
    place: int
    image: str
    source: str | None = None
    prompt: str | None = None
    seed: int | None = None
    similarity: float | None = None
    safety_flags: int | None = None
    model: str | None = None


Shown = tuple[ImageRecord, Image.Image]
SCHEMA = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        *[(name, pa.string()) for name in ("panel", "class_id", "class_name")],
        ("place", pa.int32()),
        ("origin", pa.string()),  # ImageRecord.image
        *[(name, pa.string()) for name in ("source", "prompt")],
        ("seed", pa.int64()),
        ("similarity", pa.float64()),
        ("safety_flags", pa.int32()),
        ("model", pa.string()),
    ]
)
# Columns that a picture takes over from its shard.
RECORDED = ("source", "prompt", "seed", "similarity", "safety_flags", "model")


def short_name(info: ClassInfo) -> str:
    """Name of a class in figures: its first lemma."""
    return info.lemmas[0]


def choose(rows: int, count: int, study_seed: int, *scope: str) -> list[int]:
    """Draw ``count`` of ``rows`` places at random, sorted; all of them if there are fewer.

    The draw depends on the seed and the scope alone.
    """
    rng = np.random.default_rng(derive_seed(study_seed, "figures", *scope))
    return sorted(int(place) for place in rng.permutation(rows)[:count])


def spread_classes(classes: Sequence[ClassInfo], count: int) -> list[ClassInfo]:
    """``count`` classes, evenly spaced in label order; all of them if there are fewer."""
    places = np.linspace(0, len(classes) - 1, min(count, len(classes))).round().astype(int)
    return [classes[place] for place in places]


def real_pictures(job: Job, train: Split, wanted: Sequence[tuple[ClassInfo, int]]) -> list[Shown]:
    """Load the training images ``wanted``, given as (class, row of the split)."""
    source = open_source(job.study.dataset, job.study.seed, job.study.corpus)
    images = source.load([train.sources[row] for _, row in wanted])
    counted: dict[str, int] = {}
    shown = []
    for (info, row), image in zip(wanted, images, strict=True):
        place = counted[info.class_id] = counted.get(info.class_id, -1) + 1
        shown.append((ImageRecord(REAL, info.class_id, short_name(info), place, train.image_ids[row]), image))
    return shown


def added_pictures(
    panel: str, rows: pa.Table, classes: Mapping[str, ClassInfo], study_folder: Path
) -> list[Shown]:
    """Load added images, given as rows of an index, in its order.

    Raises
    ------
    UserError
        A shard is missing or damaged.
    """
    details: dict[str, list[dict[str, object]]] = {}
    counted: dict[str, int] = {}
    shown = []
    for row, image in zip(rows.to_pylist(), load_images(rows, study_folder), strict=True):
        if row["path"] not in details:
            details[row["path"]] = read_shard(study_folder / row["path"], RECORDED).to_pylist()
        info = classes[row["class_id"]]
        place = counted[info.class_id] = counted.get(info.class_id, -1) + 1
        known = details[row["path"]][row["row"]]
        shown.append(
            (
                ImageRecord(
                    panel=panel,
                    class_id=info.class_id,
                    class_name=short_name(info),
                    place=place,
                    image=str(row["index"]),
                    **known,
                ),
                image,
            )
        )
    return shown


def rows_of(manifest: pa.Table, class_id: str) -> pa.Table:
    """The rows of a class in an index."""
    return manifest.filter(pc.equal(manifest.column("class_id"), class_id))


def thumbnail(image: Image.Image, largest: int = SIDE) -> Image.Image:
    """The image's central square, reduced to at most ``largest`` pixels a side."""
    side = min(*image.size, largest)
    return ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)


def encode_thumbnail(image: Image.Image, largest: int = SIDE, quality: int = 92) -> bytes:
    """Encode a thumbnail as PNG if it is small, else as JPEG of ``quality``."""
    small = thumbnail(image, largest)
    return encode_image(small, "png" if max(small.size) <= LOSSLESS_SIDE else "jpeg", quality)


def write_pictures(shown: Iterable[Shown], path: str | Path) -> None:
    """Write pictures and their thumbnails as Parquet, which Hugging Face ``datasets`` opens as images."""
    write_encoded([(picture, encode_thumbnail(image)) for picture, image in shown], path)


def write_encoded(shown: Iterable[tuple[ImageRecord, bytes]], path: str | Path) -> None:
    """Write pictures with thumbnails that are already encoded."""
    rows = []
    for picture, encoded in shown:
        values = asdict(picture)
        values["origin"] = values.pop("image")
        kind = image_kind(encoded)
        rows.append(
            {
                **values,
                "image": {
                    "bytes": encoded,
                    "path": f"{picture.panel}_{picture.class_id}_{picture.place}.{kind}",
                },
            }
        )
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), temporary)


def read_pictures(path: str | Path) -> list[tuple[ImageRecord, np.ndarray]]:
    """Read pictures and their thumbnails, uint8 (H, W, 3), in the order in which they were written.

    Raises
    ------
    UserError
        The file is damaged, or holds something else.
    """
    return [
        (picture, np.asarray(Image.open(BytesIO(encoded)).convert("RGB")))
        for picture, encoded in read_encoded(path)
    ]


def read_encoded(path: str | Path) -> list[tuple[ImageRecord, bytes]]:
    """Read pictures and their encoded thumbnails; raises as :func:`read_pictures`."""
    with whole(path, " of pictures"):
        rows = pq.read_table(path, schema=SCHEMA).to_pylist()
    shown = []
    for row in rows:
        encoded = row.pop("image")["bytes"]
        shown.append((ImageRecord(image=row.pop("origin"), **row), encoded))
    return shown
