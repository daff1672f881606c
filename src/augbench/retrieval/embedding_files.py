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

import logging
import os
import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from augbench.data.decode import in_order
from augbench.errors import UserError
from augbench.retrieval.neighbours import METADATA

logger = logging.getLogger(__name__)

SPELLINGS: dict[str, tuple[str, ...]] = {
    "id": ("id", "uid", "SAMPLE_ID", "hash", "key"),
    "hash": ("md5", "hash", "sha256"),
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
# exceptions of zipfile for archives that are broken, encrypted or of an unknown compression
_BAD_ARCHIVE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
# rows that are unpacked or looked at together, outside a search
_ROWS_IN_STREAM = 16384
# rows that are asked for the length of a vector
_ROWS_THAT_TELL = 100


# --- vectors ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """How tiles are read: the memory that they are read into, and by how many threads at once.

    Files that can only be read from their start are read by one thread.
    """

    empty: Callable[[tuple[int, int], np.dtype], np.ndarray] = np.empty
    threads: int = 1


ONE_BY_ONE = Reading()


@dataclass(frozen=True)
class Vectors(ABC):
    """Vectors of one file: ``rows`` vectors of ``dimension`` numbers each, float16 or float32."""

    path: Path
    rows: int
    dimension: int

    @abstractmethod
    def tiles(self, rows_per_tile: int, reading: Reading = ONE_BY_ONE) -> Iterator[tuple[int, np.ndarray]]:
        """Yield all rows in order, as (number of the first row, tile ``(n, D)``) with n <= ``rows_per_tile``.

        One tile is in memory at a time, and with several threads one more for each of them.
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

    def tiles(self, rows_per_tile: int, reading: Reading = ONE_BY_ONE) -> Iterator[tuple[int, np.ndarray]]:
        # Read, not memory-mapped: mapped pages count as this process's memory, and each costs a page fault.
        def read(start: int) -> tuple[int, np.ndarray]:
            tile = reading.empty((min(rows_per_tile, self.rows - start), self.dimension), self.dtype)
            with self.path.open("rb", buffering=0) as stream:
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
                stream.seek(self.offset + start * self.dimension * self.dtype.itemsize)
                _fill(stream, tile, self.path)
            return start, tile

        starts = range(0, self.rows, rows_per_tile)
        if reading.threads == 1:
            return map(read, starts)
        return in_order(read, starts, reading.threads, ahead=reading.threads)

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

    def tiles(self, rows_per_tile: int, reading: Reading = ONE_BY_ONE) -> Iterator[tuple[int, np.ndarray]]:
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as stream:
                _array_header(stream, self.path)
                for start in range(0, self.rows, rows_per_tile):
                    tile = reading.empty((min(rows_per_tile, self.rows - start), self.dimension), self.dtype)
                    _fill(stream, tile, self.path)
                    yield start, tile
        except _BAD_ARCHIVE as error:
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

    def tiles(self, rows_per_tile: int, reading: Reading = ONE_BY_ONE) -> Iterator[tuple[int, np.ndarray]]:
        start = 0
        try:
            with pq.ParquetFile(self.path, memory_map=True) as file:
                for batch in file.iter_batches(rows_per_tile, columns=[self.column]):
                    yield start, self._matrix(batch.column(0))
                    start += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise UserError(str(self.path), f"damaged ({str(error).splitlines()[0]})", DAMAGED) from None

    def take(self, rows: np.ndarray) -> np.ndarray:
        pieces = [
            self._matrix(table.column(0).combine_chunks())
            for table in _row_groups(self.path, rows, [self.column])
        ]
        return np.concatenate([np.empty((0, self.dimension), np.float32), *pieces])

    def _matrix(self, lists: pa.Array) -> np.ndarray:
        """Return the vectors; a missing vector or number, and a vector of another length, is not finite."""
        whole = pc.equal(pc.list_value_length(lists), self.dimension).fill_null(False)
        values = lists.filter(whole).flatten().to_numpy(zero_copy_only=False)  # nulls become NaN
        values = values if values.dtype == np.float16 else values.astype(np.float32, copy=False)
        matrix = values.reshape(-1, self.dimension)
        if len(matrix) == len(lists):
            return matrix
        padded = np.full((len(lists), self.dimension), np.nan, matrix.dtype)
        padded[whole.to_numpy(zero_copy_only=False)] = matrix
        return padded


def _row_groups(path: Path, rows: np.ndarray, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yield the ascending ``rows`` of a Parquet file per row group.

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
                    yield table.take(pa.array(rows[first:last] - start))
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
    except _BAD_ARCHIVE as error:
        raise UserError(str(path), f"damaged ({error})", DAMAGED) from None
    if member.compress_type != zipfile.ZIP_STORED:
        return CompressedVectors(path, rows, dimension, dtype, member.filename), key
    # a member's data begin after 30 bytes, its name and an extra field (PKWARE's APPNOTE, section 4.3.7)
    with path.open("rb") as archive_bytes:
        archive_bytes.seek(member.header_offset + 26)
        lengths = struct.unpack("<HH", archive_bytes.read(4))
    return PlainVectors(path, rows, dimension, dtype, member.header_offset + 30 + sum(lengths) + header), key


def _open_parquet(path: Path, column: str | None) -> tuple[Vectors, str]:
    """Open the column of vectors; return it with its name. Most of the first vectors set the dimension."""
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
            lengths = (
                pc.mode(pc.list_value_length(batch.column(0).drop_null()))
                for batch in file.iter_batches(_ROWS_THAT_TELL, columns=[column])
            )
            dimension = next((found[0]["mode"].as_py() for found in lengths if len(found)), 0)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            str(path), f"not a whole Parquet file ({str(error).splitlines()[0]})", DAMAGED
        ) from None
    if rows and not dimension:
        raise UserError(f"{path}: {column}", f"no vector in {rows} rows", "embed the images again")
    return ParquetVectors(path, rows, dimension, column), column


def _is_vector(kind: pa.DataType) -> bool:
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return lists and pa.types.is_floating(kind.value_type)


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

    def tiles(self, rows_per_tile: int, reading: Reading = ONE_BY_ONE) -> Iterator[tuple[int, np.ndarray]]:
        """Yield all vectors in order, as stored; see :meth:`Vectors.tiles`."""
        return self.source.tiles(rows_per_tile, reading)

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
        lacks, or that its type cannot hold, is null. A missing ``id`` becomes file and row (:meth:`places`).

        Raises
        ------
        UserError
            A column has another type than it needs.
        """
        wanted, position = np.unique(rows, return_inverse=True)
        wanted = wanted.astype(np.int64)
        names = sorted(set(self.columns.values()))
        groups = list(_row_groups(self.metadata_path, wanted, names))
        columns = {}
        for name, kind in METADATA.items():
            if groups and name in self.columns:
                values = pa.concat_tables(groups).column(self.columns[name]).combine_chunks()
                values = self._converted(values, name, kind)
            else:
                values = pa.nulls(len(wanted), kind)
            columns[name] = pc.coalesce(values, self.places(wanted)) if name == "id" else values
        return pa.table(columns).take(pa.array(position))

    def places(self, rows: np.ndarray) -> pa.Array:
        """Return file and row of ``rows``, such as ``img_emb_0000:17``; unique in a corpus."""
        stem = Path(self.name).stem
        return pa.array([f"{stem}:{row}" for row in rows.tolist()], pa.string())

    def _converted(self, values: pa.Array, name: str, kind: pa.DataType) -> pa.Array:
        """Convert values to ``kind``. In files that pandas wrote, integers with gaps are floats with NaN.

        A value that ``kind`` cannot hold becomes null, but a column of texts that are no numbers is refused.
        """
        steps = [kind]
        if pa.types.is_floating(values.type):
            values = pc.if_else(pc.is_finite(values), values, pa.scalar(None, values.type))
            if not pa.types.is_floating(kind):
                values, steps = pc.round(values), [pa.int64(), kind]
        where = f"{self.metadata_path}: {self.columns[name]}"
        try:
            return _cast(values, steps)
        except pa.ArrowException as error:
            unfit = UserError(
                where,
                f"{values.type} ({str(error).splitlines()[0]})",
                f"{kind} is needed for {name!r}; name another column",
            )
            if isinstance(error, pa.ArrowNotImplementedError):
                raise unfit from None
        fitting = pa.array([_or_null(value, steps) for value in values], kind)
        if fitting.null_count == len(fitting) and not pa.types.is_string(kind):
            with pq.ParquetFile(self.metadata_path, memory_map=True) as file:
                first = next(file.iter_batches(_ROWS_IN_STREAM, columns=[self.columns[name]])).column(0)
            if not pa.types.is_primitive(first.type) and not any(_or_null(text, steps) for text in first):
                raise unfit
        logger.warning(
            "%s: %d of %d values are no %s and count as unknown",
            where,
            fitting.null_count - values.null_count,
            len(values),
            kind,
        )
        return fitting

    def identity(self) -> dict[str, Any]:
        """Names, sizes and modification times, as plain values; they tell whether the files have changed.

        The content is not hashed: a corpus has terabytes, and hashing would read them once more.
        """
        stats = [(path.name, path.stat()) for path in self.paths]
        return {
            "vectors": self.content,
            "files": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
        }


def _cast(value: Any, steps: Iterable[pa.DataType]) -> Any:
    """Cast an array or a scalar to each type in turn."""
    for kind in steps:
        value = value.cast(kind)
    return value


def _or_null(value: pa.Scalar, steps: Iterable[pa.DataType]) -> Any:
    try:
        return _cast(value, steps).as_py()
    except pa.ArrowInvalid:
        return None


def visible(folder: Path, pattern: str) -> list[Path]:
    """Return the files of a folder in order of name, without hidden ones such as macOS's ``._a.npy``."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


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
    elif npz := visible(folder, "*.npz"):
        opened = [(path, *_open_npz(path, npz_key), path.with_suffix(".parquet")) for path in npz]
    elif parquet := visible(folder, "*.parquet"):
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
    """Pair ``img_emb_NAME.npy`` with ``metadata_NAME.parquet``.

    If a name has no partner, the number at its end decides, whatever its zeros, but only if no other file of
    vectors or metadata has that number.
    """
    arrays = visible(folder / "img_emb", "*.npy")
    if not arrays:
        raise UserError(str(folder / "img_emb"), "no .npy file", "fetch the embeddings")
    # LAION's folder is called laion2B-en-metadata
    tables = [path for path in visible(folder, "*metadata") if path.is_dir()]
    if len(tables) != 1:
        found = ", ".join(path.name for path in tables) or "no folder of metadata"
        raise UserError(
            str(folder),
            found,
            "allowed: exactly one folder of metadata beside img_emb, such as clip-retrieval's `metadata`",
        )
    by_number: dict[str, list[Path]] = defaultdict(list)
    for path in [*arrays, *visible(tables[0], "*.parquet")]:
        by_number[path.stem.rpartition("_")[2].lstrip("0")].append(path)
    pairs = []
    for array in arrays:
        name = array.stem.removeprefix("img_emb_")
        whole = tables[0] / f"metadata_{name}.parquet"
        alike = by_number[name.rpartition("_")[2].lstrip("0")]
        if not whole.is_file() and len(alike) == 2 and alike[1].parent == tables[0]:
            whole = alike[1]
        elif not whole.is_file():
            others = [path.name for path in alike if path != array]
            raise UserError(
                str(array),
                f"no metadata of its own; its number is also in {', '.join(others)}"
                if others
                else "no metadata",
                f"{whole} must say which images its rows are",
            )
        pairs.append((array, whole))
    if len(unused := set(visible(tables[0], "*.parquet")) - {table for _, table in pairs}):
        logger.warning("%s: %d files describe no vectors and are not searched", tables[0], len(unused))
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
        if spelling is None:
            continue
        if there.count(spelling) > 1:
            found = f"{there.count(spelling)} columns {spelling!r}"
            raise UserError(str(metadata_path), found, f"allowed: one, for {name!r}; rename the others")
        known[name] = spelling
    return EmbeddingFile(path.name, source, content, metadata_path, known)
