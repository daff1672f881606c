"""Shards: Parquet files of images that stand alone (invariant 2).

Flows in: encoded images with their provenance. Flows out: a file that Hugging Face's ``datasets`` reads as images without any
code of ours, whose footer holds the recipe and a checksum, and which is refused when rows are missing or bits have changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from augbench.artifacts.parquet import REMAKE, whole
from augbench.errors import UserError
from augbench.files import atomic_path, canonical_hash

_HF_FEATURES = {"info": {"features": {"image": {"_type": "Image"}}}}
SCHEMA = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("label", pa.int32()),
        ("class_id", pa.string()),
        ("index", pa.int32()),  # i of "image i of class c"
        ("method", pa.string()),
        ("prompt", pa.string()),
        ("seed", pa.int64()),  # null for retrieved images
        ("source", pa.string()),  # image started from, or URL retrieved from
        ("similarity", pa.float32()),  # CLIP similarity to the query; null for generated images
        ("safety_flags", pa.int32()),  # samples that the safety checker refused before this one
        ("model", pa.string()),  # content hash of the diffusion model or corpus
        ("sha256", pa.string()),  # of the encoded image
    ]
)


@dataclass(frozen=True)
class ShardRow:
    """One image of a shard; the attributes are the columns of :data:`SCHEMA`."""

    image: bytes
    label: int
    class_id: str
    index: int
    method: str
    prompt: str | None
    model: str
    seed: int | None = None
    source: str | None = None
    similarity: float | None = None
    safety_flags: int = 0


def encode_image(image: Image.Image, image_format: str, quality: int) -> bytes:
    """Encode as ``png``, ``jpeg`` or ``webp``."""
    stream = BytesIO()
    image.save(stream, image_format.upper(), **({} if image_format == "png" else {"quality": quality}))
    return stream.getvalue()


def image_kind(encoded: bytes) -> str:
    """``png``, ``webp`` or ``jpg``: which of the three an encoded image is."""
    return {b"\x89PNG": "png", b"RIFF": "webp"}.get(encoded[:4], "jpg")


def media_type(encoded: bytes) -> str:
    """Its name on the web: ``image/png``, ``image/webp`` or ``image/jpeg``."""
    return f"image/{image_kind(encoded)}".replace("jpg", "jpeg")


def _checksum(rows: Iterable[Mapping[str, Any]]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{row['class_id']}/{row['index']}/{row['sha256']}\n".encode())
    return digest.hexdigest()


def write_shard(path: str | Path, rows: Sequence[ShardRow], recipe: Mapping[str, Any]) -> None:
    """Write rows to ``path``, atomically; the footer keeps ``recipe``, the number of rows and a checksum over the images."""
    table_rows = []
    for row in rows:
        values = {name: getattr(row, name) for name in SCHEMA.names if name not in ("image", "sha256")}
        values["image"] = {
            "bytes": row.image,
            "path": f"{row.class_id}_{row.index:06d}.{image_kind(row.image)}",
        }
        values["sha256"] = hashlib.sha256(row.image).hexdigest()
        table_rows.append(values)
    metadata = {
        b"huggingface": json.dumps(_HF_FEATURES).encode(),
        b"augbench": json.dumps(
            {"recipe": dict(recipe), "rows": len(rows), "checksum": _checksum(table_rows)}
        ).encode(),
    }
    table = pa.Table.from_pylist(table_rows, schema=SCHEMA.with_metadata(metadata))
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, row_group_size=64)


def read_footer(path: str | Path) -> dict[str, Any]:
    """The recipe, the number of rows and the checksum in a shard's footer.

    Raises
    ------
    UserError
        The file is not a whole Parquet file, or not one of ours.
    """
    with whole(path):
        metadata = pq.read_schema(path).metadata or {}
        rows = pq.read_metadata(path).num_rows
    if b"augbench" not in metadata:
        raise UserError(str(path), "a Parquet file that is not a shard of ours", REMAKE)
    footer: dict[str, Any] = json.loads(metadata[b"augbench"])
    if rows != footer["rows"]:
        raise UserError(str(path), f"{rows} rows, {footer['rows']} promised", REMAKE)
    return footer


def read_shard(path: str | Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A shard's rows, after checking the footer; with the ``image`` column, also the bytes of every image."""
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


def is_whole(path: str | Path) -> bool:
    """Whether ``path`` is a shard with all its rows and intact images."""
    try:
        read_shard(path)
    except UserError:
        return False
    return True


def is_kept(path: str | Path) -> bool:
    """Whether ``path``, a file of the store, is a whole shard and was made by the recipe that its name is the hash of: not a foreign one put there."""
    return is_whole(path) and canonical_hash(read_footer(path)["recipe"]) == Path(path).stem
