"""Exact search: the k nearest images of every query, without an index and without the corpus in memory.

The result does not depend on the tile size, the number of threads, the order of the work, the device, or the
number of jobs that share the files. The files are read once for all queries, tile by tile, while the previous
tile is compared with all queries.
:mod:`augbench.retrieval.comparison` explains why this is exact at the speed of a matrix product.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from augbench.artifacts.store import Store
from augbench.errors import UserError
from augbench.progress import Progress
from augbench.retrieval.comparison import MOST_ROWS, ROWS_PER_TILE, STAGE, Comparison, Partial
from augbench.retrieval.embedding_files import UNIT_TOLERANCE, EmbeddingFile, Reading, unit
from augbench.retrieval.neighbours import Found, take_turns
from augbench.runtime.fit import needing_memory
from augbench.seeds import derive_seed

logger = logging.getLogger(__name__)
T = TypeVar("T")
KIND = "exact_search"


@dataclass(frozen=True)
class Hits:
    """The nearest images of each query, nearest first; ties are in order of file and row.

    Attributes
    ----------
    file : ndarray, int32 (Q, K)
        Position of the file in the searched sequence.
    row : ndarray, int64 (Q, K)
        Row in that file.
    similarity : ndarray, float32 (Q, K)
        Cosine similarity of query and image. K is k, or the number of images searched if that is less.
    """

    file: np.ndarray
    row: np.ndarray
    similarity: np.ndarray


class ExactSearch:
    """A search for the k nearest images of every query in all files, exactly.

    Parameters
    ----------
    queries : ndarray, float32 (Q, D)
        Query vectors of unit length.
    k : int
        Images per query.
    partial : path or Store
        Stores the result of each finished file, a few numbers per query. An interrupted search resumes with
        the unfinished files.
    rows_per_tile : int
        Vectors per tile; up to three tiles are in memory (one compared, one waiting, one being read), for
        a GPU one more per further thread that reads.
    device : str
        "cpu" or "cuda"; does not change the result.
    share : float
        Fraction of the rows that is searched, chosen by a hash of seed, file name and row. A smaller share
        is a subset of a larger one. It saves comparisons, but not reading.
    product : str, optional
        Number format of the matrix product: "float32", "bfloat16" or "float16". The default is the device's
        fastest. It does not change the result.

    Raises
    ------
    UserError
        Queries and images have different dimensions, or a file has too many rows.
    """

    def __init__(
        self,
        files: Sequence[EmbeddingFile],
        queries: np.ndarray,
        k: int,
        *,
        partial: str | Path | Store,
        rows_per_tile: int = ROWS_PER_TILE,
        device: str = "cpu",
        share: float = 1.0,
        seed: int = 0,
        product: str | None = None,
    ) -> None:
        self.files, self.queries, self.k = files, np.ascontiguousarray(queries, np.float32), k
        self.rows_per_tile, self.device, self.product = rows_per_tile, device, product
        self.share, self.seed = share, seed
        self._check()
        self.store = partial if isinstance(partial, Store) else Store(Path(partial))
        shape_and_numbers = repr(self.queries.shape).encode() + self.queries.tobytes()
        self.asked = {"version": 1, "queries": hashlib.sha256(shape_and_numbers).hexdigest(), "k": k}
        if share < 1:
            self.asked |= {"share": share, "seed": seed}
        self.recipes = [{**self.asked, "file": file.identity()} for file in files]

    def _check(self) -> None:
        """Check the arguments."""
        queries, wide = self.queries, self.queries.ndim == 2 and len(self.queries)
        if not wide or not np.allclose(np.linalg.norm(queries, axis=1), 1, atol=UNIT_TOLERANCE):
            raise ValueError(f"queries of shape {queries.shape}: float32 (Q, D) of unit length needed")
        if self.k < 1 or not 0 < self.share <= 1 or self.rows_per_tile < 1:
            raise ValueError(
                f"k {self.k}, share {self.share}, rows_per_tile {self.rows_per_tile}: "
                "k >= 1, 0 < share <= 1 and rows_per_tile >= 1 needed"
            )
        for file in self.files:
            path = str(file.source.path)
            if file.dimension != queries.shape[1]:
                allowed = f"queries have {queries.shape[1]}: both must come from the same CLIP model"
                raise UserError(path, f"{file.dimension} numbers per vector", allowed)
            if file.rows > MOST_ROWS:
                raise UserError(path, f"{file.rows} rows", f"at most {MOST_ROWS} rows per file; split it")

    def hits(self) -> Hits:
        """Search the files without a partial result, and merge the results of all.

        Raises
        ------
        UserError
            No vector can be compared, or a file is damaged.
        """
        with self._claimed():
            best = self._best()
        if not best.hits().row.size:
            raise UserError(
                str(self.files[0].source.path.parent),
                "no vector to compare with: all are zero, not finite or outside corpus_share",
                "embed the images again, or raise corpus_share",
            )
        return best.hits()

    def fill(self) -> None:
        """Search the files of a part of a larger search, which takes their results from the store.

        Several jobs may each do this for other files.
        """
        if self.files:
            with self._claimed():
                self._fill()

    def _claimed(self) -> AbstractContextManager[None]:
        """Claim the search, after waiting for others that search the same files."""
        return self.store.claim(KIND, {**self.asked, "files": [recipe["file"] for recipe in self.recipes]})

    def _best(self) -> _Best:
        """The nearest images of all files; an earlier result that lacks some of them is made again."""
        while True:
            best, highest = self._fill()
            if (highest <= best.floor()).all():
                break
            outdated = [path for path in self._kept() if (Partial.read(path).floor > best.floor()).any()]
            logger.info(
                "exact search: files of an earlier search are gone; searching %d again", len(outdated)
            )
            for path in outdated:
                path.unlink()
        logger.info("exact search: %d files, %s", len(self.files), self.store.tally)
        return best

    def _kept(self) -> list[Path]:
        return [self.store.path(KIND, recipe, ".npz") for recipe in self.recipes]

    def _fill(self) -> tuple[_Best, np.ndarray]:
        """Search the files without a partial result, in order.

        Returns
        -------
        _Best, ndarray of float32 (Q,)
            The nearest images of all files, and each query's highest floor among the partial results.
        """
        there = [self.store.has(KIND, recipe, ".npz", Partial.is_whole) for recipe in self.recipes]
        best = _Best(len(self.queries), self.k)
        highest = np.full(len(self.queries), -np.inf, np.float32)
        with closing(self._compare(there, best.floor)) as made:
            for number, (recipe, kept) in enumerate(zip(self.recipes, there, strict=True)):
                if kept:
                    self.store.tally.reused += 1
                else:
                    self.store.commit(KIND, recipe, ".npz", next(made).write)
                self.store.note_use(KIND, recipe, ".npz")
                found = Partial.read(self.store.path(KIND, recipe, ".npz"))
                best.merge(number, found)
                highest = np.maximum(highest, found.floor)
        return best, highest

    def _compare(
        self, there: Sequence[bool], floor: Callable[[], np.ndarray]
    ) -> Generator[Partial, None, None]:
        """Yield the results of the files that are not ``there``, in order; nothing is loaded for none.

        ``floor`` gives the floor of the next one (:class:`~augbench.retrieval.comparison.Partial`).
        """
        unfinished = [file for file, kept in zip(self.files, there, strict=True) if not kept]
        everything = sum(file.rows for file in self.files)
        done = everything - sum(file.rows for file in unfinished)
        progress = Progress("exact search", everything, "vector", done)
        with needing_memory(STAGE, f"{len(self.queries)} queries"):
            comparison = Comparison(self.queries, self.k, self.device, self.product)
        made = _pieces(unfinished, self.rows_per_tile, self.share, self.seed, comparison.reading)
        with (
            needing_memory(STAGE, f"{self.rows_per_tile} vectors and {len(self.queries)} queries"),
            comparison.workers() as compare,
            closing(_read_ahead(made)) as pieces,
        ):
            for file in unfinished:
                nearest = comparison.begin(floor())
                for piece in pieces:
                    if piece is None:
                        break
                    compare(piece.vectors, piece.rows, nearest)
                    progress.update(piece.read)
                compare.finish()
                if nearest.left_out:
                    logger.warning(
                        "%s: %d vectors are zero or not finite and are left out, the first in row %d",
                        file.source.path,
                        len(nearest.left_out),
                        min(nearest.left_out),
                    )
                yield nearest.result()


class _Best:
    """The nearest rows of all files so far.

    Files are merged in order, so that a stable sort keeps ties in order of file and row.
    """

    def __init__(self, queries: int, k: int) -> None:
        self.k = k
        self.file = np.full((queries, k), -1, np.int32)
        self.row = np.zeros((queries, k), np.int64)
        self.similarity = np.full((queries, k), -np.inf, np.float32)

    def floor(self) -> np.ndarray:
        """Similarity of the k-th nearest image, float32 ``(Q,)``; -inf while there are fewer."""
        return self.similarity[:, -1].copy()

    def merge(self, file: int, found: Partial) -> None:
        touched = np.flatnonzero(found.count)
        if not len(touched):
            return
        count = found.count[touched]
        there = np.arange(count.max()) < count[:, None]
        row, similarity = np.zeros(there.shape, np.int64), np.full(there.shape, -np.inf, np.float32)
        row[there], similarity[there] = found.row, found.similarity
        similarity = np.concatenate([self.similarity[touched], similarity], axis=1)
        order = np.argsort(-similarity, axis=1, kind="stable")[:, : self.k]

        def sorted_in(old: np.ndarray, new: np.ndarray) -> np.ndarray:
            return np.take_along_axis(np.concatenate([old[touched], new], axis=1), order, axis=1)

        self.file[touched] = sorted_in(self.file, np.where(there, np.int32(file), np.int32(-1)))
        self.row[touched] = sorted_in(self.row, row)
        self.similarity[touched] = np.take_along_axis(similarity, order, axis=1)

    def hits(self) -> Hits:
        found = int(np.count_nonzero(self.file >= 0, axis=1).min())
        return Hits(self.file[:, :found], self.row[:, :found], self.similarity[:, :found])


def merge_hits(hits: Hits, sizes: Sequence[int]) -> tuple[Hits, np.ndarray]:
    """Merge the hits of each class's queries, which take turns; as many images stay as each query found.

    Parameters
    ----------
    sizes : sequence of int
        Number of queries of each class.

    Returns
    -------
    Hits, ndarray of int (classes, K)
        The hits of each class, and the number of the query that found each.
    """
    found = hits.row.shape[1]
    shape = (len(sizes), found)
    query, rows = np.empty(shape, np.int64), np.empty(shape, np.int64)
    rank = np.empty(shape, np.int64)
    start = 0
    for number, size in enumerate(sizes):
        mine = slice(start, start + size)
        keys = hits.file[mine].astype(np.int64) * MOST_ROWS + hits.row[mine]
        query[number], rank[number] = take_turns(keys, found)
        rows[number] = start + query[number]
        start += size
    return Hits(hits.file[rows, rank], hits.row[rows, rank], hits.similarity[rows, rank]), query


@dataclass(frozen=True)
class _Piece:
    """Vectors ``(n, D)`` of some rows, int64 ``(n,)``, and the number of rows that were read for them."""

    vectors: np.ndarray
    rows: np.ndarray
    read: int


def takes_part(rows: np.ndarray, name: str, share: float, seed: int) -> np.ndarray:
    """Mark the rows of the file ``name`` that belong to the share; bool ``(n,)``.

    A row's number is hashed to 64 bits by the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014),
    which starts at the file's own seed.
    """
    with np.errstate(over="ignore"):
        start, step = np.uint64(derive_seed(seed, "share", name)), np.uint64(0x9E3779B97F4A7C15)
        mixed = start + rows.astype(np.uint64) * step
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return mixed < share * 2.0**64


def _pieces(
    files: Sequence[EmbeddingFile], rows_per_tile: int, share: float, seed: int, reading: Reading
) -> Iterator[_Piece | None]:
    """Yield the pieces to compare, file by file, with None at the end of each file.

    With a share below 1, chosen rows are gathered into whole tiles.
    """
    for file in files:
        vectors: list[np.ndarray] = []
        rows: list[np.ndarray] = []
        gathered = read = 0
        for start, tile in file.tiles(rows_per_tile, reading):
            numbers = np.arange(start, start + len(tile))
            read += len(tile)
            if share == 1:
                yield _Piece(tile, numbers, len(tile))
                read = 0
                continue
            chosen = takes_part(numbers, file.name, share, seed)
            vectors.append(tile[chosen])
            rows.append(numbers[chosen])
            gathered += len(rows[-1])
            if gathered >= rows_per_tile:
                yield _Piece(np.concatenate(vectors), np.concatenate(rows), read)
                vectors, rows, gathered, read = [], [], 0, 0
        if read:
            yield _Piece(np.concatenate(vectors), np.concatenate(rows), read)
        yield None


def _read_ahead(items: Iterator[T]) -> Generator[T, None, None]:
    """Yield the same items; a thread makes the next one while the caller uses the last."""
    end = object()
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(next, items, end)
        while (item := pending.result()) is not end:
            pending = pool.submit(next, items, end)
            yield item  # type: ignore[misc]


def collect(hits: Hits, files: Sequence[EmbeddingFile]) -> list[Found]:
    """Read metadata and embeddings of the hits, one entry per query; each file is read once."""
    queries, found = hits.row.shape
    file, row = hits.file.ravel(), hits.row.ravel()
    embeddings = np.empty((file.size, files[0].dimension), np.float16)
    tables, hit = [], []
    for number in np.unique(file):
        place = np.flatnonzero(file == number)
        wanted, position = np.unique(row[place], return_inverse=True)
        embeddings[place] = unit(files[number].vectors(wanted)).astype(np.float16)[position]
        table = files[number].metadata(wanted).append_column("place", files[number].places(wanted))
        tables.append(table.take(pa.array(position)))
        hit.append(place)
    metadata = pa.concat_tables(tables).combine_chunks().take(pa.array(np.argsort(np.concatenate(hit))))
    metadata = _with_unique_ids(metadata)
    return [
        Found(
            metadata.slice(query * found, found),
            hits.similarity[query],
            embeddings[query * found : (query + 1) * found],
        )
        for query in range(queries)
    ]


def _with_unique_ids(metadata: pa.Table) -> pa.Table:
    """Drop the column ``place`` (file and row), after it has replaced ids that stand for several images.

    Downloads that were put together repeat their ids.
    """
    counts = metadata.group_by("id").aggregate([("place", "count_distinct")])
    repeated = counts.filter(pc.field("place_count_distinct") > 1).column("id")
    if len(repeated):
        logger.warning("%d ids stand for several images, which are named by file and row", len(repeated))
    ids = pc.if_else(pc.is_in(metadata["id"], repeated), metadata["place"], metadata["id"])
    return metadata.drop_columns("place").set_column(metadata.schema.get_field_index("id"), "id", ids)


@dataclass(frozen=True)
class ExactBackend:
    """Search backend for a corpus of embedding files; parameters as in :class:`ExactSearch`."""

    files: Sequence[EmbeddingFile]
    store: Store
    device: str = "cpu"
    share: float = 1.0
    seed: int = 0
    rows_per_tile: int = ROWS_PER_TILE
    name: str = field(default="exact", init=False)

    def block(self, number: int, of: int) -> Sequence[EmbeddingFile]:
        """Return the files of one of ``of`` blocks: file ``number``, ``number + of``, and so on."""
        return self.files[number::of]

    def fill(self, queries: np.ndarray, k: int, number: int, of: int) -> None:
        """Search one block of the files; :meth:`search` then takes its results from the store."""
        self._exact(self.block(number, of), queries, k).fill()

    def search(self, queries: np.ndarray, k: int, sizes: Sequence[int] | None = None) -> list[Found]:
        """Search as :class:`~augbench.retrieval.neighbours.Backend` says."""
        hits = self._exact(self.files, queries, k).hits()
        if sizes is None:
            return collect(hits, self.files)
        hits, query = merge_hits(hits, sizes)
        found = collect(hits, self.files)
        return [replace(result, query=numbers) for result, numbers in zip(found, query, strict=True)]

    def _exact(self, files: Sequence[EmbeddingFile], queries: np.ndarray, k: int) -> ExactSearch:
        """The search in some of the files."""
        return ExactSearch(
            files,
            queries,
            k,
            partial=self.store,
            rows_per_tile=self.rows_per_tile,
            device=self.device,
            share=self.share,
            seed=self.seed,
        )

    def identity(self) -> dict[str, Any]:
        """Everything except queries and k that determines the result, as plain values."""
        return {"files": [file.identity() for file in self.files], "share": self.share, "seed": self.seed}
