"""Pictures in figures: which images are shown, and their thumbnails.

Flows in: the training split, a training set's manifest of added images and the shards behind it. Flows out: a Parquet file with every image shown, its
origin and its thumbnail, from which the figure is drawn: shards and data set are read once.
Images are drawn at random from what classifiers were trained on, never chosen by looks.
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
SIDE = 192  # pixels of a thumbnail at most: more than a column has room for
LOSSLESS_SIDE = 64  # up to here thumbnails are PNG: small anyway, and exact


@dataclass(frozen=True)
class ImageRecord:
    """One image shown; None stands for what it does not have.

    ``panel`` is a method, or :data:`REAL`; ``place`` counts the images of a class in a panel; ``image`` is a training image's id, or i of "image i of class
    c"; ``source`` the training image that an added one started from, or the address that it was retrieved from. ``safety_flags`` and ``model`` are a
    shard's columns.
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
        ("origin", pa.string()),  # Picture.image
        *[(name, pa.string()) for name in ("source", "prompt")],
        ("seed", pa.int64()),
        ("similarity", pa.float64()),
        ("safety_flags", pa.int32()),
        ("model", pa.string()),
    ]
)
RECORDED = (
    "source",
    "prompt",
    "seed",
    "similarity",
    "safety_flags",
    "model",
)  # what a picture takes over from its shard


def short_name(info: ClassInfo) -> str:
    """What a class is called in a figure: its best known name."""
    return info.lemmas[0]


def choose(rows: int, count: int, study_seed: int, *scope: str) -> list[int]:
    """``count`` of ``rows`` places at random, in order, all of them where there are fewer; a function of seed and scope alone."""
    rng = np.random.default_rng(derive_seed(study_seed, "figures", *scope))
    return sorted(int(place) for place in rng.permutation(rows)[:count])


def spread_classes(classes: Sequence[ClassInfo], count: int) -> list[ClassInfo]:
    """``count`` classes, evenly spaced in label order; all of them where there are fewer."""
    places = np.linspace(0, len(classes) - 1, min(count, len(classes))).round().astype(int)
    return [classes[place] for place in places]


def real_pictures(job: Job, train: Split, wanted: Sequence[tuple[ClassInfo, int]]) -> list[Shown]:
    """Training images, as (class, row of the split) each."""
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
    """Added images, as rows of an index, in its order.

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
    """The central square, at most ``largest`` pixels wide."""
    side = min(*image.size, largest)
    return ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)


def encode_thumbnail(image: Image.Image, largest: int = SIDE, quality: int = 92) -> bytes:
    """A thumbnail as PNG where it is small, else as JPEG of ``quality``."""
    small = thumbnail(image, largest)
    return encode_image(small, "png" if max(small.size) <= LOSSLESS_SIDE else "jpeg", quality)


def write_pictures(shown: Iterable[Shown], path: str | Path) -> None:
    """Write pictures with their thumbnails as Parquet, which Hugging Face's ``datasets`` opens as images."""
    write_encoded([(picture, encode_thumbnail(image)) for picture, image in shown], path)


def write_encoded(shown: Iterable[tuple[ImageRecord, bytes]], path: str | Path) -> None:
    """Write pictures whose thumbnails are encoded already."""
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
    """Pictures and their thumbnails, uint8 (H, W, 3), in the order they were written.

    Raises
    ------
    UserError
        Damaged, or another file.
    """
    return [
        (picture, np.asarray(Image.open(BytesIO(encoded)).convert("RGB")))
        for picture, encoded in read_encoded(path)
    ]


def read_encoded(path: str | Path) -> list[tuple[ImageRecord, bytes]]:
    """Pictures and their thumbnails as they are in the file; raises as :func:`read_pictures`."""
    with whole(path, " of pictures"):
        rows = pq.read_table(path, schema=SCHEMA).to_pylist()
    shown = []
    for row in rows:
        encoded = row.pop("image")["bytes"]
        shown.append((ImageRecord(image=row.pop("origin"), **row), encoded))
    return shown
