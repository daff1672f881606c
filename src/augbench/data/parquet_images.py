"""Images in the rows of Parquet files, read in place: data sets of Hugging Face's ``datasets``, and others.

An image is named by its file's path below the folder and its row there: ``data/train-0.parquet:17``. Its
column holds the bytes of an image file, alone or in a structure with the file's name (``bytes``, ``path``).
Memory is bounded: of many rows only as many as fit into a share of the free memory are held at a time, and of
a row group, a few pages.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from augbench.config.corpus import ParquetCorpus
from augbench.data.walk import NOT_PARQUET, PARQUET, LeftOut, Listing, printable, reasons, walk
from augbench.errors import UserError
from augbench.memory import free_memory

Encoded = bytes | UserError

ROWS_AT_ONCE = 16  # rows decoded from a file's pages at a time
SHARE_OF_MEMORY = 1 / 8  # of the free memory, for images that are read ahead
READERS = 4  # files read at the same time


def row_name(file: str, row: int) -> str:
    """Name of an image."""
    return f"{file}:{row}"


def file_and_row(name: str) -> tuple[str, int]:
    """Inverse of :func:`row_name`.

    Raises
    ------
    ValueError
        This is no name of a row.
    """
    file, _, row = name.rpartition(":")
    return file, int(row)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn errors of the block, which reads a Parquet file, into one that names it."""
    try:
        yield
    except FileNotFoundError:
        allowed = "put it back, or delete the splits and run again"
        raise UserError(printable(str(path)), "missing", allowed) from None
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        found = f"not readable as Parquet ({printable(reason)})"
        raise UserError(printable(str(path)), found, "fetch the file again") from None


def list_parquet(root: Path, key: str) -> Listing:
    """List the Parquet files in a folder and all folders below it.

    Raises
    ------
    UserError
        The folder, which the config names under ``key``, is missing, unreadable, or has no Parquet file.
    """
    allowed = "allowed: a folder with Parquet files (.parquet)"
    try:
        listing = walk(root, PARQUET)
    except UserError as error:
        reason = error.found if os.path.lexists(root) else "no such folder"
        raise UserError(key, f"{str(root)!r}, {reason}", allowed) from None
    if not listing.images:
        found = "; ".join([f"no Parquet file in {str(root)!r}", *reasons(listing.left_out)])
        arrow = any(one.reason == NOT_PARQUET and one.name.endswith(".arrow") for one in listing.left_out)
        hint = "; write a data set that was saved with save_to_disk with to_parquet" if arrow else ""
        raise UserError(key, found, f"{allowed}{hint}")
    return listing


@dataclass(frozen=True)
class ImageRows:
    """Images in the column ``column`` of the Parquet files below ``root``.

    ``key`` is the column's key of the config, for errors.
    """

    root: Path
    column: str
    key: str
    _sizes: dict[str, float] = field(default_factory=dict, init=False, repr=False)  # bytes of a row, by file

    @contextmanager
    def open(self, file: str) -> Iterator[pq.ParquetFile]:
        """Open a file whose column of images was found to be one.

        Raises
        ------
        UserError
            The file is missing or damaged, or has no such column; or the block raised an error of Arrow.
        """
        path = self.root / file
        with reading(path), pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as opened:
            self.check_column(path, self.column, self.key, opened.schema_arrow)
            kind = opened.schema_arrow.field(self.column).type
            if pa.types.is_struct(kind):
                kind = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else kind
            if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
                found = f"the column {self.column!r} of {printable(str(path))} is {kind}"
                raise UserError(self.key, found, "allowed: bytes, or a structure with bytes (and path)")
            yield opened

    @staticmethod
    def check_column(path: Path, column: str, key: str, schema: pa.Schema) -> None:
        """Raise :class:`UserError` unless a file has exactly one column of this name."""
        if schema.names.count(column) != 1:
            found = f"{column!r}, but {printable(str(path))} has columns {', '.join(schema.names)}"
            raise UserError(key, found, "allowed: a column of each file")

    def content_column(self, schema: pa.Schema) -> str:
        """Path of the column with the images' bytes."""
        structure = pa.types.is_struct(schema.field(self.column).type)
        return f"{self.column}.bytes" if structure else self.column

    def empty_rows(self, file: str) -> list[int]:
        """Rows without an image; only row groups whose statistics count some are read."""
        with self.open(file) as opened:
            return _empty_rows(opened, self.content_column(opened.schema_arrow))

    def read(self, names: Sequence[str]) -> Iterator[Encoded]:
        """Yield the image files of ``names`` in order; for one that can't be read, the error.

        Each file is read at most once for as many images as fit into memory, from its first to its last
        wanted row.
        """
        from augbench.data.decode import in_order

        for window in self._windows(names):
            wanted: dict[str, dict[int, Encoded]] = defaultdict(dict)
            places = [file_and_row(name) for name in window]
            for file, row in places:
                wanted[file][row] = UserError(self._shown(file, row), "no such row", "fetch the file again")
            for _ in in_order(self._read_file, wanted.items(), READERS):
                pass
            for file, row in places:
                yield wanted[file][row]

    def _shown(self, file: str, row: int) -> str:
        return printable(str(self.root / row_name(file, row)))

    def _size(self, file: str) -> float:
        """Mean number of bytes of a row."""
        if file not in self._sizes:
            path = self.root / file
            try:
                self._sizes[file] = path.stat().st_size / max(1, pq.read_metadata(path).num_rows)
            except (pa.ArrowException, OSError):  # reported where it is read
                self._sizes[file] = 0.0
        return self._sizes[file]

    def _windows(self, names: Sequence[str]) -> Iterator[Sequence[str]]:
        """Cut ``names`` into pieces whose images fit into a share of the free memory."""
        budget, taken, first = free_memory() * SHARE_OF_MEMORY, 0.0, 0
        for place, name in enumerate(names):
            taken += self._size(file_and_row(name)[0])
            if taken > budget and place > first:
                yield names[first:place]
                first, taken = place, self._size(file_and_row(name)[0])
        yield names[first:]

    def _read_file(self, item: tuple[str, dict[int, Encoded]]) -> None:
        """Replace the values of a dictionary by the images in these rows of a file."""
        file, found = item
        try:
            with self.open(file) as opened:
                column = self.content_column(opened.schema_arrow)
                for row, value in _values(opened, column, sorted(found)):
                    found[row] = value if value is not None else self._none(file, row)
        except UserError as error:
            found.update({row: error for row, value in found.items() if isinstance(value, UserError)})

    def _none(self, file: str, row: int) -> UserError:
        return UserError(
            self._shown(file, row), "no bytes of an image", "remove this row, or write its image into it"
        )


@dataclass(frozen=True)
class RowListing:
    """Parquet files of a corpus with their numbers of rows, and what is left out."""

    rows: dict[str, int]
    left_out: list[LeftOut]

    def names(self) -> list[str]:
        """Names of all rows."""
        return [row_name(file, row) for file, count in self.rows.items() for row in range(count)]


def list_corpus_rows(corpus: ParquetCorpus) -> tuple[ImageRows, RowListing]:
    """List the rows of a corpus; files that are damaged or have no column of images are left out.

    Raises
    ------
    UserError
        The folder is missing, or has no row with images.
    """
    images = ImageRows(Path(corpus.root), corpus.image_column, "corpus.image_column")
    listing = list_parquet(images.root, "corpus.root")
    rows, left_out, problems = {}, list(listing.left_out), []
    for file in listing.images:
        try:
            with images.open(file) as opened:
                for key in ("caption_column", "url_column"):
                    if (column := getattr(corpus, key)) is not None:
                        images.check_column(images.root / file, column, f"corpus.{key}", opened.schema_arrow)
                        if not is_text(opened.schema_arrow, column):
                            kind = opened.schema_arrow.field(column).type
                            found = f"the column {column!r} of {printable(file)} is {kind}"
                            raise UserError(f"corpus.{key}", found, "allowed: a column of texts")
                rows[file] = opened.metadata.num_rows
        except UserError as error:
            problems.append(error)
            left_out.append(LeftOut(file, str(error.found)))
    if problems and not rows:
        raise problems[0]
    if not sum(rows.values()):
        raise UserError(
            "corpus.root", f"{corpus.root!r}: Parquet files without rows", "allowed: rows with images"
        )
    return images, RowListing(rows, left_out)


def is_text(schema: pa.Schema, column: str) -> bool:
    """Whether a column holds texts, or numbers that can be written as such."""
    kind = schema.field(column).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    simple = (pa.types.is_primitive, pa.types.is_null, pa.types.is_string, pa.types.is_large_string)
    return any(holds(kind) for holds in simple)


def _groups(opened: pq.ParquetFile) -> Iterator[tuple[int, int, int]]:
    """Yield number, first row and end of each row group."""
    first = 0
    for group in range(opened.num_row_groups):
        end = first + opened.metadata.row_group(group).num_rows
        yield group, first, end
        first = end


def _values(opened: pq.ParquetFile, column: str, rows: Sequence[int]) -> Iterator[tuple[int, bytes | None]]:
    """Yield ``rows``, ascending, with their values; pages are read up to the last wanted row of a group."""
    for group, first, end in _groups(opened):
        wanted = rows[bisect_left(rows, first) : bisect_left(rows, end)]
        batches = opened.iter_batches(ROWS_AT_ONCE, [group], [column], use_threads=False) if wanted else ()
        for batch in batches:
            end = first + batch.num_rows
            for row in wanted[bisect_left(wanted, first) : bisect_left(wanted, end)]:
                value = batch.column(0)[row - first].as_py()
                yield row, value["bytes"] if isinstance(value, dict) else value
            if wanted[-1] < end:
                break
            first = end


def _empty_rows(opened: pq.ParquetFile, column: str) -> list[int]:
    schema = opened.schema
    place = next(i for i in range(len(schema)) if schema.column(i).path == column)
    empty = []
    for group, first, end in _groups(opened):
        statistics = opened.metadata.row_group(group).column(place).statistics
        if statistics is None or not statistics.has_null_count or not statistics.null_count:
            continue
        found = _values(opened, column, range(first, end))
        empty += [row for row, value in found if value is None]
    return empty
