"""Write and read shards: Parquet files of images with their provenance (shards stand alone).

Hugging Face's ``datasets`` reads a shard as images without this package. Its footer holds the recipe and a
checksum. Reading fails if rows are missing or bits have changed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from augbench.artifacts.parquet import REMAKE, whole
from augbench.errors import UserError
from augbench.files import atomic_path, canonical_hash, read_json, write_json

_HF_FEATURES = {"info": {"features": {"image": {"_type": "Image"}}}}
SCHEMA = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("label", pa.int32()),
        ("class_id", pa.string()),
        ("index", pa.int32()),  # i of "image i of class c"
        ("prompt", pa.string()),
        ("seed", pa.int64()),  # null for retrieved images
        ("source", pa.string()),  # image that generation started from, or URL of a retrieved image
        ("similarity", pa.float32()),  # CLIP similarity to the query; null for generated images
        ("safety_flags", pa.int32()),  # samples that the safety checker rejected before this one
        ("model", pa.string()),  # content hash of the diffusion model or corpus
        ("sha256", pa.string()),  # of the encoded image
    ]
)
ATTEMPTS = "attempts_per_image"
# sha256 of the added image that sampling started from; a column of shards that have such images
ORIGIN = pa.field("origin", pa.string())


@dataclass(frozen=True)
class ShardRow:
    """One image of a shard; the attributes are the columns of :data:`SCHEMA`, and :data:`ORIGIN`."""

    image: bytes
    label: int
    class_id: str
    index: int
    prompt: str | None
    model: str
    seed: int | None = None
    source: str | None = None
    similarity: float | None = None
    safety_flags: int = 0
    origin: str | None = None


@dataclass(frozen=True)
class Lacking:
    """Images that a shard lacks, because the safety checker flagged all samples of them.

    Attributes
    ----------
    attempts_per_image : int
        Mean number of samples per image of the shard after which they were given up.
    flagged : dict of int to int
        Number of samples of each image, by its index in the class.
    """

    attempts_per_image: int
    flagged: dict[int, int]


def content_of(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Drop from a recipe what decides no image of a shard: rows and studies share shards by this key.

    The row's name is in recipes because rules' params have always held it, and in the footers of earlier
    versions. The number of attempts decides only whether a shard is full (:func:`key_of`).
    """
    return {name: value for name, value in recipe.items() if name not in ("method", ATTEMPTS)}


def key_after(recipe: Mapping[str, Any], attempts_per_image: int) -> dict[str, Any]:
    """Key in the store of a shard that lacks images after so many samples per image."""
    return {**content_of(recipe), ATTEMPTS: attempts_per_image}


def key_of(path: str | Path) -> dict[str, Any]:
    """Key of a shard in the store: its content, and the number of attempts if it lacks images.

    A full shard is the same after any number of attempts that allows all its samples. Raises as
    :func:`read_footer`.
    """
    recipe, lacking = read_footer(path)["recipe"], read_lacking(path)
    return content_of(recipe) if lacking is None else key_after(recipe, lacking.attempts_per_image)


def encode_image(image: Image.Image, image_format: str, quality: int) -> bytes:
    """Encode as ``png``, ``jpeg`` or ``webp``; ``quality`` does not apply to PNG."""
    stream = BytesIO()
    image.save(stream, image_format.upper(), **({} if image_format == "png" else {"quality": quality}))
    return stream.getvalue()


def image_name(class_id: str, index: int) -> str:
    """Name of "image i of class c" in shards, without the suffix."""
    return f"{class_id}_{index:06d}"


def image_kind(encoded: bytes) -> str:
    """File suffix of an encoded image: ``png``, ``webp`` or ``jpg``."""
    return {b"\x89PNG": "png", b"RIFF": "webp"}.get(encoded[:4], "jpg")


def media_type(encoded: bytes) -> str:
    """Media type of an encoded image: ``image/png``, ``image/webp`` or ``image/jpeg``."""
    return f"image/{image_kind(encoded)}".replace("jpg", "jpeg")


def _checksum(rows: Iterable[Mapping[str, Any]]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{row['class_id']}/{row['index']}/{row['sha256']}\n".encode())
    return digest.hexdigest()


def write_shard(
    path: str | Path,
    rows: Sequence[ShardRow],
    recipe: Mapping[str, Any],
    lacking: Lacking | None = None,
) -> None:
    """Write rows to ``path``, atomically.

    The footer holds ``recipe``, the number of rows, a checksum over the images, and the images that the shard
    lacks, if there are any.
    """
    table_rows = []
    schema = SCHEMA.append(ORIGIN) if any(row.origin is not None for row in rows) else SCHEMA
    for row in rows:
        values = {name: getattr(row, name) for name in schema.names if name not in ("image", "sha256")}
        values["image"] = {
            "bytes": row.image,
            "path": f"{image_name(row.class_id, row.index)}.{image_kind(row.image)}",
        }
        values["sha256"] = hashlib.sha256(row.image).hexdigest()
        table_rows.append(values)
    footer = {"recipe": dict(recipe), "rows": len(rows), "checksum": _checksum(table_rows)}
    if lacking is not None:
        footer["lacking"] = asdict(lacking)
    metadata = {
        b"huggingface": json.dumps(_HF_FEATURES).encode(),
        b"augbench": json.dumps(footer).encode(),
    }
    table = pa.Table.from_pylist(table_rows, schema=schema.with_metadata(metadata))
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, row_group_size=64)


def read_footer(path: str | Path) -> dict[str, Any]:
    """Read a shard's footer: ``recipe``, ``rows`` and ``checksum``; ``lacking`` if images are missing.

    Raises
    ------
    UserError
        The file is not a whole Parquet file, not a shard, or has another number of rows than its footer says.
    """
    with whole(path):
        metadata = pq.read_schema(path).metadata or {}
        rows = pq.read_metadata(path).num_rows
    if b"augbench" not in metadata:
        raise UserError(str(path), "a Parquet file that is not a shard", REMAKE)
    footer: dict[str, Any] = json.loads(metadata[b"augbench"])
    if rows != footer["rows"]:
        raise UserError(str(path), f"{rows} rows, but the footer says {footer['rows']}", REMAKE)
    return footer


def read_lacking(path: str | Path) -> Lacking | None:
    """Read which images a shard lacks; None if it is full. Raises as :func:`read_footer`."""
    if (lacking := read_footer(path).get("lacking")) is None:
        return None
    flagged = {int(index): times for index, times in lacking["flagged"].items()}
    return Lacking(lacking["attempts_per_image"], flagged)


def read_shard(path: str | Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read ``columns`` of a shard (default: all) and check their rows against the footer's checksum.

    If ``image`` is among the columns, the bytes of every image are checked as well.

    Raises
    ------
    UserError
        As :func:`read_footer`, or the shard is damaged.
    """
    footer = read_footer(path)
    wanted = list(columns or SCHEMA.names)
    try:
        table = pq.read_table(path, columns=list(dict.fromkeys([*wanted, "class_id", "index", "sha256"])))
    except (pa.ArrowException, OSError) as error:
        raise UserError(str(path), f"damaged ({str(error).splitlines()[0]})", REMAKE) from None
    intact = _checksum(table.select(["class_id", "index", "sha256"]).to_pylist()) == footer["checksum"]
    if intact and "image" in wanted:
        encoded = table.column("image").combine_chunks().field("bytes")
        sums = table.column("sha256").to_pylist()
        intact = all(
            hashlib.sha256(image.as_py()).hexdigest() == sha for image, sha in zip(encoded, sums, strict=True)
        )
    if not intact:
        raise UserError(str(path), "its content does not match its checksum", REMAKE)
    return table.select(wanted)


def write_shard_list(path: str | Path, shards: Iterable[str | Path], study_folder: str | Path) -> None:
    """Write which shards there are and the checksum of each; the same images give the same file.

    A list stands for its shards in the workflow, so that plans have fewer files.

    Raises
    ------
    UserError
        As :func:`read_footer`.
    """
    sums = {os.path.relpath(shard, study_folder): read_footer(shard)["checksum"] for shard in shards}
    write_json(path, {"shards": sums})


def shards_among(paths: Iterable[str], study_folder: str | Path) -> list[str]:
    """Select the shards among a job's files, because thousands of inputs are not named one by one.

    Lists of shards (:func:`write_shard_list`) count as the shards that they name. A shard that is also in a
    list counts once.
    """
    found: list[str] = []
    for path in paths:
        if not path.startswith(f"{study_folder}/shards/"):
            continue
        if path.endswith(".json"):
            found += [str(Path(study_folder) / name) for name in read_json(path)["shards"]]
        elif Path(path).stem.isdigit():
            found.append(path)
    return list(dict.fromkeys(found))


def is_whole(path: str | Path) -> bool:
    """Whether ``path`` is a shard with all its rows and undamaged images."""
    try:
        read_shard(path)
    except UserError:
        return False
    return True


def is_kept(path: str | Path, attempts_per_image: int | None = None) -> bool:
    """Whether ``path``, a file of the store, is a whole shard made by the recipe whose hash is its name.

    This rejects shards of another recipe that were put there. Shards that lack images had the name of full
    ones in earlier versions.

    Parameters
    ----------
    attempts_per_image : int, optional
        Accept only a generated shard that this number of attempts gives (:func:`is_as_tried`).
    """
    try:
        read_shard(path)
        keys = (content_of(read_footer(path)["recipe"]), key_of(path))
        return Path(path).stem in map(canonical_hash, keys) and (
            attempts_per_image is None or is_as_tried(path, attempts_per_image)
        )
    except UserError:
        return False


def is_as_tried(path: str | Path, attempts_per_image: int) -> bool:
    """Whether ``attempts_per_image`` samples per image would have given this generated shard, too.

    A full shard is what every number gives that allows all its samples. One that lacks images depends on
    the number that it was made with.
    """
    if (lacking := read_lacking(path)) is not None:
        return lacking.attempts_per_image == attempts_per_image
    flags = read_shard(path, ["safety_flags"]).column(0).to_pylist()
    return len(flags) + sum(flags) <= attempts_per_image * len(flags)
