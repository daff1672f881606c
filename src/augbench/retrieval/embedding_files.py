"""Read published image embeddings tile by tile, in three layouts.

A folder becomes one :class:`EmbeddingFile` per file of vectors, in order of name, each with the metadata of
its rows. The layouts are:

- clip-retrieval and LAION-5B: ``img_emb/img_emb_0000.npy`` and ``metadata/metadata_0000.parquet``;
- DataComp's CommonPool: ``{shard}.npz``, one array per CLIP model, and ``{shard}.parquet``;
- Parquet with a column of vectors beside the metadata, as ClickHouse publishes a part of LAION-5B.

If metadata and vectors do not match row by row, a search returns wrong images that look plausible. So every
sign of a mismatch is an error.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from augbench.errors import UserError
from augbench.retrieval.neighbours import METADATA

SPELLINGS: dict[str, tuple[str, ...]] = {
    "id": ("id", "uid", "SAMPLE_ID", "hash", "key"),
    "url": ("url", "URL", "image_path"),
    "caption": ("caption", "TEXT", "text"),
    "width": ("original_width", "WIDTH", "width"),  # img2dataset's `width` is the resized one
    "height": ("original_height", "HEIGHT", "height"),
    "nsfw": ("NSFW", "nsfw"),
    "punsafe": ("punsafe",),
    "aesthetic": ("aesthetic", "AESTHETIC_SCORE", "aesthetic_score"),
}
"""Names of our columns in LAION, clip-retrieval, DataComp and ClickHouse; a file's first match is used."""

UNIT_TOLERANCE = 1e-3
"""A norm this close to 1 counts as unit length; float16 rounding changes a norm by up to 5e-4."""

DAMAGED = "fetch the file again"
# rows of a compressed array that are unpacked at a time to pick single rows
_ROWS_IN_STREAM = 16384


# --- vectors ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Vectors(ABC):
    """Vectors of one file: ``rows`` vectors of ``dimension`` numbers each, float16 or float32."""

    path: Path
    rows: int
    dimension: int

    @abstractmethod
    def tiles(self, rows_per_tile: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield all rows in order, as (number of the first row, tile ``(n, D)``) with n <= ``rows_per_tile``.

        One tile is in memory at a time.
        """

    @abstractmethod
    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return the vectors ``(n, D)`` of ``rows``, int64 ``(n,)``, ascending and without repeats."""


def _fill(stream: IO[bytes], array: np.ndarray, path: Path) -> None:
    """Fill ``array`` from ``stream``; loops because ``readinto`` may return fewer bytes than requested."""
    view = array.view(np.uint8).reshape(-1).data
    while view:
        count = stream.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise UserError(str(path), "ends before its last row", DAMAGED)
        view = view[count:]


@dataclass(frozen=True)
class PlainVectors(Vectors):
    """An uncompressed array in a ``.npy`` file or an ``.npz``, ``offset`` bytes from the file's start."""

    dtype: np.dtype
    offset: int

    def __post_init__(self) -> None:
        needed = self.offset + self.rows * self.dimension * self.dtype.itemsize
        if (size := self.path.stat().st_size) < needed:
            raise UserError(str(self.path), f"{size} bytes, {needed} promised by its header", DAMAGED)

    def tiles(self, rows_per_tile: int) -> Iterator[tuple[int, np.ndarray]]:
        # Read, not memory-mapped: mapped pages count as this process's memory, and each costs a page fault.
        with self.path.open("rb", buffering=0) as stream:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            stream.seek(self.offset)
            for start in range(0, self.rows, rows_per_tile):
                tile = np.empty((min(rows_per_tile, self.rows - start), self.dimension), self.dtype)
                _fill(stream, tile, self.path)
                yield start, tile

    def take(self, rows: np.ndarray) -> np.ndarray:
        mapped = np.memmap(self.path, self.dtype, "r", self.offset, (self.rows, self.dimension))
        return np.asarray(mapped[rows])


@dataclass(frozen=True)
class CompressedVectors(Vectors):
    """A compressed member of an ``.npz``.

    It can only be unpacked from its start, so :meth:`take` also reads it tile by tile.
    """

    dtype: np.dtype
    member: str

    def tiles(self, rows_per_tile: int) -> Iterator[tuple[int, np.ndarray]]:
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as stream:
                _array_header(stream, self.path)
                for start in range(0, self.rows, rows_per_tile):
                    tile = np.empty((min(rows_per_tile, self.rows - start), self.dimension), self.dtype)
                    _fill(stream, tile, self.path)
                    yield start, tile
        except (zipfile.BadZipFile, zlib.error) as error:
            raise UserError(str(self.path), f"damaged ({error})", DAMAGED) from None

    def take(self, rows: np.ndarray) -> np.ndarray:
        found = np.empty((len(rows), self.dimension), self.dtype)
        for start, tile in self.tiles(_ROWS_IN_STREAM):
            first, last = np.searchsorted(rows, (start, start + len(tile)))
            found[first:last] = tile[rows[first:last] - start]
            if last == len(rows):
                break
        return found


@dataclass(frozen=True)
class ParquetVectors(Vectors):
    """Vectors in a list column of a Parquet file."""

    column: str

    def tiles(self, rows_per_tile: int) -> Iterator[tuple[int, np.ndarray]]:
        start = 0
        try:
            with pq.ParquetFile(self.path, memory_map=True) as file:
                for batch in file.iter_batches(rows_per_tile, columns=[self.column]):
                    yield start, self._matrix(batch.column(0), start)
                    start += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise UserError(str(self.path), f"damaged ({str(error).splitlines()[0]})", DAMAGED) from None

    def take(self, rows: np.ndarray) -> np.ndarray:
        pieces = [
            self._matrix(table.column(0).combine_chunks(), start)
            for start, table in _row_groups(self.path, rows, [self.column])
        ]
        return np.concatenate([np.empty((0, self.dimension), np.float32), *pieces])

    def _matrix(self, lists: pa.Array, start: int) -> np.ndarray:
        lengths = pc.fill_null(pc.list_value_length(lists), -1).to_numpy(zero_copy_only=False)
        if (wrong := np.flatnonzero(lengths != self.dimension)).size:
            found = "no vector" if lengths[wrong[0]] < 0 else f"a vector of {lengths[wrong[0]]} numbers"
            raise UserError(
                f"{self.path}: {self.column}",
                f"{found} near row {start + wrong[0]}",
                f"all vectors must have {self.dimension} numbers, as the first row has",
            )
        values = lists.flatten()
        if values.null_count:
            raise UserError(
                f"{self.path}: {self.column}",
                f"a vector with a missing number after row {start}",
                "no number may be missing",
            )
        matrix = values.to_numpy(zero_copy_only=False).reshape(-1, self.dimension)
        return matrix if matrix.dtype == np.float16 else matrix.astype(np.float32, copy=False)


def _row_groups(path: Path, rows: np.ndarray, columns: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
    """Yield the ascending ``rows`` of a Parquet file per row group, as (the group's first row, table).

    Row groups without a wanted row are not read.
    """
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            start = 0
            for group in range(file.metadata.num_row_groups):
                end = start + file.metadata.row_group(group).num_rows
                first, last = np.searchsorted(rows, (start, end))
                if first < last:
                    table = file.read_row_group(group, columns=list(columns))
                    yield start, table.take(pa.array(rows[first:last] - start))
                start = end
    except (pa.ArrowException, OSError) as error:
        raise UserError(str(path), f"damaged ({str(error).splitlines()[0]})", DAMAGED) from None


def _array_header(stream: IO[bytes], path: Path) -> tuple[int, int, np.dtype]:
    """Read a NumPy array's header: rows, dimension and dtype; the stream is then at the first number."""
    try:
        version = np.lib.format.read_magic(stream)
        form = np.lib.format
        read = form.read_array_header_1_0 if version == (1, 0) else form.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    except (ValueError, EOFError) as error:
        raise UserError(str(path), f"no NumPy array ({str(error).splitlines()[0]})", DAMAGED) from None
    if len(shape) != 2 or fortran or dtype not in (np.float16, np.float32):
        order = ", column by column" if fortran else ""
        raise UserError(
            str(path),
            f"{dtype.name} {shape}{order}",
            "allowed: float16 or float32 of shape (rows, dimension), row by row",
        )
    return shape[0], shape[1], dtype


def _open_npy(path: Path) -> Vectors:
    with path.open("rb") as stream:
        rows, dimension, dtype = _array_header(stream, path)
        return PlainVectors(path, rows, dimension, dtype, stream.tell())


def _open_npz(path: Path, key: str | None) -> tuple[Vectors, str]:
    """Open the array ``key``, or the only array of image embeddings; return it with its name."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            images = [name for name in names if name.endswith("_img")]
            if key is None and len(images) != 1:
                raise UserError(
                    str(path), f"{len(images)} arrays of image embeddings", f"name one of {', '.join(names)}"
                )
            key = key or images[0]
            if key not in names:
                raise UserError(str(path), f"no array {key!r}", f"it has {', '.join(names)}")
            member = archive.getinfo(f"{key}.npy")
            with archive.open(member) as stream:
                rows, dimension, dtype = _array_header(stream, path)
                header = stream.tell()
    except zipfile.BadZipFile as error:
        raise UserError(str(path), f"damaged ({error})", DAMAGED) from None
    if member.compress_type != zipfile.ZIP_STORED:
        return CompressedVectors(path, rows, dimension, dtype, member.filename), key
    # a member's data begin after 30 bytes, its name and an extra field (PKWARE's APPNOTE, section 4.3.7)
    with path.open("rb") as archive_bytes:
        archive_bytes.seek(member.header_offset + 26)
        lengths = struct.unpack("<HH", archive_bytes.read(4))
    return PlainVectors(path, rows, dimension, dtype, member.header_offset + 30 + sum(lengths) + header), key


def _open_parquet(path: Path, column: str | None) -> tuple[Vectors, str]:
    """Open the column of vectors; return it with its name. The first row sets the dimension."""
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
            vectors = [
                name for name, kind in zip(schema.names, schema.types, strict=True) if _is_vector(kind)
            ]
            if column is not None and column not in schema.names:
                raise UserError(
                    str(path), f"no column {column!r}", f"columns of vectors: {', '.join(vectors) or 'none'}"
                )
            if column is not None and column not in vectors:
                raise UserError(
                    f"{path}: {column}",
                    str(schema.field(column).type),
                    f"columns of vectors: {', '.join(vectors) or 'none'}",
                )
            if column is None and len(vectors) != 1:
                raise UserError(
                    str(path),
                    f"{len(vectors)} columns of vectors",
                    f"name one of {', '.join(vectors or schema.names)}",
                )
            column = column or vectors[0]
            if rows == 0:
                return ParquetVectors(path, 0, 0, column), column
            (first,) = next(file.iter_batches(1, columns=[column])).column(0).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            str(path), f"not a whole Parquet file ({str(error).splitlines()[0]})", DAMAGED
        ) from None
    if not first:
        raise UserError(f"{path}: {column}", "no vector in row 0", "every row needs its vector")
    return ParquetVectors(path, rows, len(first), column), column


def _is_vector(kind: pa.DataType) -> bool:
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return lists and pa.types.is_floating(kind.value_type)


def check_norms(norms: np.ndarray, rows: np.ndarray, path: str | Path) -> None:
    """Check that vectors can be compared: not zero, and finite.

    Parameters
    ----------
    norms : ndarray, float (n,)
        Euclidean norms of the vectors.
    rows : ndarray, int (n,)
        Row of each vector in the file ``path``.

    Raises
    ------
    UserError
        A vector is zero or not finite.
    """
    for wrong, what in ((~np.isfinite(norms), "not finite"), (norms == 0, "zero")):
        if wrong.any():
            raise UserError(
                str(path),
                f"the vector of row {rows[wrong][0]} is {what}, {wrong.sum()} of {len(rows)} rows near it",
                "embed these images again, or leave the file out",
            )


def unit(vectors: np.ndarray) -> np.ndarray:
    """Convert vectors ``(n, D)`` to float32 of unit length.

    Vectors whose norm is within :data:`UNIT_TOLERANCE` of 1 are not rescaled.
    """
    vectors = vectors.astype(np.float32)
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    off = np.abs(norms - 1) > UNIT_TOLERANCE
    vectors[off] /= norms[off, None]
    return vectors


# --- files --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EmbeddingFile:
    """Vectors of images with their metadata, row by row.

    Attributes
    ----------
    name : str
        Name of the file of vectors; unique in its folder.
    source : Vectors
        The vectors.
    content : str
        Name of the array or column that holds the vectors.
    metadata_path : Path
        Parquet file with one row for each vector.
    columns : mapping
        The file's names of our columns (:data:`~augbench.retrieval.neighbours.METADATA`), where it has them.
    """

    name: str
    source: Vectors
    content: str
    metadata_path: Path
    columns: Mapping[str, str] = field(repr=False)

    @property
    def rows(self) -> int:
        """Number of vectors."""
        return self.source.rows

    @property
    def dimension(self) -> int:
        """Length of each vector."""
        return self.source.dimension

    @property
    def paths(self) -> list[Path]:
        """Files that hold the vectors and the metadata."""
        return list(dict.fromkeys([self.source.path, self.metadata_path]))

    def tiles(self, rows_per_tile: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield all vectors in order, as stored; see :meth:`Vectors.tiles`."""
        return self.source.tiles(rows_per_tile)

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Return the vectors ``(n, D)`` of ``rows``, int ``(n,)`` in any order, as stored."""
        wanted, position = np.unique(rows, return_inverse=True)
        if not len(wanted):
            return np.empty((0, self.dimension), np.float32)
        vectors = self.source.take(wanted.astype(np.int64))
        return vectors if np.array_equal(wanted, rows) else vectors[position]

    def metadata(self, rows: np.ndarray) -> pa.Table:
        """Return the metadata of ``rows``, int ``(n,)`` in any order.

        The columns are those of :data:`~augbench.retrieval.neighbours.METADATA`; a value that the file
        lacks is null. A missing ``id`` becomes the file's name without its suffix and the row, such as
        ``img_emb_0000:17``.

        Raises
        ------
        UserError
            A column cannot be converted to the type it needs.
        """
        wanted, position = np.unique(rows, return_inverse=True)
        wanted = wanted.astype(np.int64)
        names = sorted(set(self.columns.values()))
        groups = [table for _, table in _row_groups(self.metadata_path, wanted, names)]
        stem = Path(self.name).stem
        fallback = pa.array([f"{stem}:{row}" for row in wanted.tolist()], pa.string())
        columns = {}
        for name, kind in METADATA.items():
            if groups and name in self.columns:
                values = pa.concat_tables(groups).column(self.columns[name]).combine_chunks()
                values = self._converted(values, name, kind)
            else:
                values = pa.nulls(len(wanted), kind)
            columns[name] = pc.coalesce(values, fallback) if name == "id" else values
        return pa.table(columns).take(pa.array(position))

    def _converted(self, values: pa.Array, name: str, kind: pa.DataType) -> pa.Array:
        """Convert values to ``kind``. In files that pandas wrote, integers with gaps are floats with NaN."""
        try:
            if pa.types.is_floating(values.type):
                values = pc.if_else(pc.is_finite(values), values, pa.scalar(None, values.type))
                if not pa.types.is_floating(kind):
                    values = pc.cast(pc.round(values), pa.int64())
            return pc.cast(values, kind)
        except pa.ArrowException as error:
            where = f"{self.metadata_path}: {self.columns[name]}"
            raise UserError(
                where,
                f"{values.type} ({str(error).splitlines()[0]})",
                f"{kind} is needed for {name!r}; name another column",
            ) from None

    def identity(self) -> dict[str, Any]:
        """Names, sizes and modification times, as plain values; they tell whether the files have changed.

        The content is not hashed: a corpus has terabytes, and hashing would read them once more.
        """
        stats = [(path.name, path.stat()) for path in self.paths]
        return {
            "vectors": self.content,
            "files": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
        }


def open_embeddings(
    folder: str | Path,
    vector_column: str | None = None,
    npz_key: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> list[EmbeddingFile]:
    """Open the files of vectors in ``folder``, in order of name, without reading the vectors.

    Files without rows are left out.

    Parameters
    ----------
    vector_column : str, optional
        Parquet layout: the column of vectors; required if there are several.
    npz_key : str, optional
        DataComp's layout: the array of image embeddings (``l14_img``, ...); required if there are several.
    columns : mapping, optional
        Column names in the metadata files by our names. The others are found through :data:`SPELLINGS`.

    Raises
    ------
    UserError
        The folder or its files are missing; vectors and metadata do not match; files have different
        dimensions; or a file is damaged.
    """
    folder, columns = Path(folder), dict(columns or {})
    if unknown := sorted(set(columns) - set(METADATA)):
        raise UserError(f"columns.{unknown[0]}", "unknown column", f"allowed: {', '.join(METADATA)}")
    if not folder.is_dir():
        raise UserError(str(folder), "no such folder", "give the folder of the embeddings")
    if (folder / "img_emb").is_dir():
        if npz_key or vector_column:
            raise UserError(
                str(folder),
                f"a name for the vectors ({npz_key or vector_column!r})",
                "files in clip-retrieval's layout hold one array: leave it out",
            )
        opened = [(path, _open_npy(path), "", metadata) for path, metadata in _clip_retrieval_pairs(folder)]
    elif npz := sorted(folder.glob("*.npz")):
        opened = [(path, *_open_npz(path, npz_key), path.with_suffix(".parquet")) for path in npz]
    elif parquet := sorted(folder.glob("*.parquet")):
        opened = [(path, *_open_parquet(path, vector_column), path) for path in parquet]
    else:
        raise UserError(
            str(folder),
            "no embeddings",
            "allowed: img_emb/*.npy with metadata/*.parquet, *.npz with *.parquet, or *.parquet with vectors",
        )
    files = [_embedding_file(*parts, columns) for parts in opened]
    files = [file for file in files if file.rows]
    if not files:
        raise UserError(str(folder), "files without rows", "fetch the embeddings again")
    for file in files:
        if file.dimension != files[0].dimension:
            found = f"{file.dimension} numbers per vector, {files[0].dimension} in {files[0].name}"
            raise UserError(
                str(file.source.path), found, "a folder may hold the embeddings of one CLIP model only"
            )
    return files


def _clip_retrieval_pairs(folder: Path) -> list[tuple[Path, Path]]:
    """Pair files of vectors and metadata by the number at the end of their names.

    LAION's numbers have four digits, others have more.
    """
    arrays = sorted((folder / "img_emb").glob("*.npy"))
    if not arrays:
        raise UserError(str(folder / "img_emb"), "no .npy file", "fetch the embeddings")
    # LAION's folder is called laion2B-en-metadata
    tables = sorted(path for path in folder.glob("*metadata") if path.is_dir())
    if len(tables) != 1:
        found = ", ".join(path.name for path in tables) or "no folder of metadata"
        raise UserError(
            str(folder),
            found,
            "allowed: exactly one folder of metadata beside img_emb, such as clip-retrieval's `metadata`",
        )
    by_number = {
        path.stem.rpartition("_")[2].lstrip("0"): path for path in sorted(tables[0].glob("*.parquet"))
    }
    pairs = []
    for array in arrays:
        number = array.stem.rpartition("_")[2]
        if number.lstrip("0") not in by_number:
            raise UserError(
                str(array),
                "no metadata",
                f"{tables[0] / f'metadata_{number}.parquet'} must say which images its rows are",
            )
        pairs.append((array, by_number[number.lstrip("0")]))
    return pairs


def _embedding_file(
    path: Path, source: Vectors, content: str, metadata_path: Path, columns: Mapping[str, str]
) -> EmbeddingFile:
    try:
        with pq.ParquetFile(metadata_path, memory_map=True) as file:
            rows, there = file.metadata.num_rows, file.schema_arrow.names
    except FileNotFoundError:
        raise UserError(
            str(path), "no metadata", f"{metadata_path} must say which images its rows are"
        ) from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            str(metadata_path), f"not a whole Parquet file ({str(error).splitlines()[0]})", DAMAGED
        ) from None
    if rows != source.rows:
        raise UserError(
            str(metadata_path),
            f"{rows} rows, {source.rows} vectors in {path.name}",
            "row i must describe vector i: fetch both again",
        )
    known = {}
    for name, spellings in SPELLINGS.items():
        if name in columns and columns[name] not in there:
            raise UserError(
                f"columns.{name}",
                f"no column {columns[name]!r} in {metadata_path}",
                f"it has {', '.join(there)}",
            )
        spelling = columns.get(name) or next((spelling for spelling in spellings if spelling in there), None)
        if spelling is not None:
            known[name] = spelling
    return EmbeddingFile(path.name, source, content, metadata_path, known)
