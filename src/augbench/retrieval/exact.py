"""Exact search: for every query the k nearest images of a corpus that need not fit into memory, with no index to build.

Flows in: files of embeddings, and all queries at once. Flows out: for every query its k nearest rows, the same ones whatever the tile size, the
number of threads, the order of the work or the device. The files are read once, tile by tile, while the tile before is compared with all queries.

How it stays exact at the speed of a matrix product: a tile costs the product with the queries and one look at each query's best
product. Only where that could belong among the query's k nearest are single similarities computed anew, in float64, from the stored vectors.
So the product itself may be of lower precision: its error is bounded (Cauchy-Schwarz and the unit roundoff), and the bound widens the net.
On a CPU each thread compares a block of its own: threads that share one small product wait for each other after every step.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
import zipfile
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock, local
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa

from augbench.artifacts.store import Store
from augbench.errors import UserError
from augbench.progress import Progress
from augbench.retrieval.embedding_files import UNIT_TOLERANCE, EmbeddingFile, check_norms, unit
from augbench.retrieval.neighbours import Found, metadata_table
from augbench.seeds import derive_seed

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)
T = TypeVar("T")

ROWS_PER_TILE = 16384
BLOCK_ROWS = (
    1024  # rows compared together on a CPU: their products with some thousand queries stay in its cache
)
SEGMENT = 64  # products of a query that are looked at one by one if the greatest of them may count
BLOCK_PRODUCTS = {"cpu": 1 << 21, "cuda": 1 << 28}  # products in memory at a time
PAIRS = 1 << 12  # similarities computed anew at a time
KIND = "exact_search"


@dataclass(frozen=True)
class Hits:
    """The nearest images of each query, nearest first; equally near ones in order of file and row.

    Attributes
    ----------
    file : ndarray, int32 (Q, K)
        Position in the sequence of files that was searched.
    row : ndarray, int64 (Q, K)
        Row in that file.
    similarity : ndarray, float32 (Q, K)
        Cosine of query and image. K is k, or the number of images that took part if that is less.
    """

    file: np.ndarray
    row: np.ndarray
    similarity: np.ndarray


def search(
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
) -> Hits:
    """The k nearest images of every query, exactly.

    Parameters
    ----------
    queries : ndarray, float32 (Q, D)
        Of unit length.
    k : int
        Images per query.
    partial : path or Store
        Where the result of each finished file is kept, a few numbers per query. A search that was interrupted reads the unfinished files only.
    rows_per_tile : int
        Vectors in memory at a time; up to three tiles are (one compared, one waiting, one being made).
    device : str
        "cpu" or "cuda"; changes no result.
    share : float
        Part of the rows that takes part, chosen by a hash of seed, file name and row: a smaller share is a subset of a larger one. Saves
        the comparison, not the reading.
    product : str, optional
        Number format of the matrix product: "float32", "bfloat16" or "float16"; by default the fastest that the device has. Changes no result.

    Raises
    ------
    UserError
        Queries and images of different dimension, a vector that is zero or not finite, a damaged file.
    """
    queries = np.ascontiguousarray(queries, np.float32)
    if (
        queries.ndim != 2
        or not len(queries)
        or not np.allclose(np.linalg.norm(queries, axis=1), 1, atol=UNIT_TOLERANCE)
    ):
        raise ValueError(f"queries of shape {queries.shape}: float32 (Q, D) of unit length needed")
    if k < 1 or not 0 < share <= 1 or rows_per_tile < 1:
        raise ValueError(
            f"k {k}, share {share}, rows_per_tile {rows_per_tile}: k >= 1, 0 < share <= 1 and rows_per_tile >= 1 needed"
        )
    for file in files:
        if file.dimension != queries.shape[1]:
            allowed = f"queries have {queries.shape[1]}: both must come from the same CLIP model"
            raise UserError(str(file.source.path), f"{file.dimension} numbers per vector", allowed)
        if file.rows > _MOST_ROWS:
            raise UserError(
                str(file.source.path), f"{file.rows} rows", f"at most {_MOST_ROWS} rows per file; split it"
            )
    store = partial if isinstance(partial, Store) else Store(Path(partial))
    asked = {
        "version": 1,
        "queries": hashlib.sha256(repr(queries.shape).encode() + queries.tobytes()).hexdigest(),
        "k": k,
    }
    if share < 1:
        asked |= {"share": share, "seed": seed}
    recipes = [{**asked, "file": file.identity()} for file in files]
    comparison = _Comparison(queries, k, device, product)

    while True:
        kept = [store.has(KIND, recipe, ".npz", _Partial.is_whole) for recipe in recipes]
        unfinished = [file for file, there in zip(files, kept, strict=True) if not there]
        done = sum(file.rows for file, there in zip(files, kept, strict=True) if there)
        progress = Progress("exact search", sum(file.rows for file in files), "vector", done)
        best, highest = _Best(len(queries), k), np.full(len(queries), -np.inf, np.float32)
        with (
            comparison.workers() as compare,
            closing(_read_ahead(_pieces(unfinished, rows_per_tile, share, seed))) as pieces,
        ):
            for number, (file, recipe, there) in enumerate(zip(files, recipes, kept, strict=True)):
                if not there:
                    nearest = comparison.begin(best.floor())
                    for piece in pieces:
                        if piece is None:
                            break
                        compare(piece.vectors, piece.rows, nearest, file)
                        progress.update(piece.read)
                    compare.finish()
                    store.commit(KIND, recipe, ".npz", nearest.result().write)
                else:
                    store.tally.reused += 1
                found = _Partial.read(store.path(KIND, recipe, ".npz"))
                best.merge(number, found)
                highest = np.maximum(highest, found.floor)
        if (highest <= best.floor()).all():
            logger.info("exact search: %d files, %s", len(files), store.tally)
            return best.hits()
        paths = [store.path(KIND, recipe, ".npz") for recipe in recipes]
        outdated = [path for path in paths if (_Partial.read(path).floor > best.floor()).any()]
        logger.info(
            "exact search: files that an earlier search read are gone; %d files are searched again",
            len(outdated),
        )
        for path in outdated:
            path.unlink()


# --- one file's result ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Partial:
    """One file's rows that may be among the nearest: per query at most k, and none below ``floor``.

    The floor is the similarity of the k-th nearest image in the files before this one. It makes most of a large corpus's partial results
    nearly empty; in return they hold only as long as the k-th nearest image of all files is no less similar, as when a file has gone.

    Attributes
    ----------
    floor : ndarray, float32 (Q,)
    count : ndarray, int32 (Q,)
        Rows per query.
    row : ndarray, int64 (sum of count,)
        Nearest first, query by query.
    similarity : ndarray, float32 (sum of count,)
    """

    floor: np.ndarray
    count: np.ndarray
    row: np.ndarray
    similarity: np.ndarray

    def write(self, path: Path) -> None:
        np.savez(path, floor=self.floor, count=self.count, row=self.row, similarity=self.similarity)

    @classmethod
    def read(cls, path: Path) -> _Partial:
        with np.load(path) as arrays:
            return cls(arrays["floor"], arrays["count"], arrays["row"], arrays["similarity"])

    @classmethod
    def is_whole(cls, path: Path) -> bool:
        try:
            found = cls.read(path)
        except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile):
            return False
        return int(found.count.sum()) == len(found.row) == len(found.similarity)


class _Best:
    """The nearest rows of all files so far. Files are merged in order, so that a stable sort keeps ties in order of file and row."""

    def __init__(self, queries: int, k: int) -> None:
        self.k = k
        self.file = np.full((queries, k), -1, np.int32)
        self.row = np.zeros((queries, k), np.int64)
        self.similarity = np.full((queries, k), -np.inf, np.float32)

    def floor(self) -> np.ndarray:
        """Similarity of the k-th nearest image, float32 ``(Q,)``; -inf while there are fewer."""
        return self.similarity[:, -1].copy()

    def merge(self, file: int, found: _Partial) -> None:
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
        found = int((self.file >= 0).sum(axis=1).min())
        return Hits(self.file[:, :found], self.row[:, :found], self.similarity[:, :found])


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Piece:
    """Vectors ``(n, D)`` of some rows, int64 ``(n,)``, and how many rows were read for them."""

    vectors: np.ndarray
    rows: np.ndarray
    read: int


def takes_part(rows: np.ndarray, name: str, share: float, seed: int) -> np.ndarray:
    """Which rows of the file ``name`` belong to the share, bool ``(n,)``.

    A row's number is hashed to 64 bits by the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), which starts at the file's own seed.
    """
    with np.errstate(over="ignore"):
        mixed = np.uint64(derive_seed(seed, "share", name)) + rows.astype(np.uint64) * np.uint64(
            0x9E3779B97F4A7C15
        )
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return mixed < share * 2.0**64


def _pieces(
    files: Sequence[EmbeddingFile], rows_per_tile: int, share: float, seed: int
) -> Iterator[_Piece | None]:
    """What there is to compare, file after file, with None at the end of each; a small share's rows are gathered to whole tiles."""
    for file in files:
        vectors: list[np.ndarray] = []
        rows: list[np.ndarray] = []
        gathered = read = 0
        for start, tile in file.tiles(rows_per_tile):
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
    """The same items; the next one is made in a thread while the caller uses the last."""
    end = object()
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(next, items, end)
        while (item := pending.result()) is not end:
            pending = pool.submit(next, items, end)
            yield item  # type: ignore[misc]


# --- comparing --------------------------------------------------------------------------------------------------------

_MOST_ROWS = 0xFFFFFFFF
_EMPTY = -(1 << 63)


class _Nearest:
    """The k nearest rows of one file so far, per query, with room for candidates that are sorted in later.

    An entry is one integer: the similarity's bits, put in order, then the row counted down; so the greatest integers are the nearest rows, with
    ties in order of row.

    Parameters
    ----------
    floor : Tensor, float32 (Q,)
        Rows of a lower similarity are not wanted.
    """

    def __init__(self, floor: torch.Tensor, k: int) -> None:
        import torch

        self.k, self.floor = k, floor
        self.lock = Lock()
        self.threshold = (
            floor  # replaced, never changed: other threads read it meanwhile, and an older one is lower
        )
        self.entries = torch.full((len(floor), k + max(32, k // 2)), _EMPTY, device=floor.device)
        self.filled = torch.zeros(len(floor), dtype=torch.int64, device=floor.device)
        self.waiting = 0
        self.open = bool(torch.isinf(floor).any())  # whether some query takes whatever comes

    def add(self, query: torch.Tensor, row: torch.Tensor, similarity: torch.Tensor) -> None:
        """Take candidates, ``(P,)`` each; ``query`` ascends. Any thread may."""
        import torch

        wanted = torch.nonzero(similarity >= self.threshold.index_select(0, query)).squeeze(1)
        if len(wanted):
            query, entries = (
                query.index_select(0, wanted),
                _entries(similarity.index_select(0, wanted), row.index_select(0, wanted)),
            )
            count = torch.bincount(query, minlength=len(self.filled))
            position = torch.arange(len(query), device=query.device) - (count.cumsum(0) - count).index_select(
                0, query
            )
            with self.lock:
                self._append(query, position, entries, count)

    def _append(
        self, query: torch.Tensor, position: torch.Tensor, entries: torch.Tensor, count: torch.Tensor
    ) -> None:
        """Append ``count`` ``(Q,)`` entries to each query's, ``position`` of them after what is there."""
        import torch.nn.functional as F

        if int((self.filled + count).max()) > self.entries.shape[1]:
            self.sort_in()
            if (room := int((self.filled + count).max()) - self.entries.shape[1]) > 0:
                self.entries = F.pad(self.entries, (0, room), value=_EMPTY)
        self.entries[query, self.filled.index_select(0, query) + position] = entries
        self.filled += count
        self.waiting += len(query)
        if self.waiting > self.filled.numel() * self.k // 4:
            self.sort_in()

    def sort_in(self) -> None:
        """Keep the k nearest per query and raise the thresholds."""
        import torch

        nearest = self.entries.topk(self.k, dim=1).values  # sorted, so that what is empty comes last
        self.entries[:, : self.k] = nearest
        self.entries[:, self.k :] = _EMPTY
        self.filled.clamp_(max=self.k)
        self.waiting = 0
        last = nearest.amin(dim=1)
        similarity, _ = _from_entries(last)
        self.threshold = torch.where(last == _EMPTY, self.floor, torch.maximum(self.floor, similarity))
        self.open = bool(torch.isinf(self.threshold).any())

    def result(self) -> _Partial:
        self.sort_in()
        entries = self.entries[:, : self.k].sort(dim=1, descending=True).values
        there = entries != _EMPTY
        similarity, row = _from_entries(entries[there])
        return _Partial(
            *(array.cpu().numpy() for array in (self.floor, there.sum(dim=1).int(), row, similarity))
        )


def _entries(similarity: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    import torch

    bits = (similarity + 0.0).view(torch.int32)  # + 0.0: there is one zero only
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() << 32) | (_MOST_ROWS - row)


def _from_entries(entries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Similarities and rows."""
    import torch

    ordered = (entries >> 32).int()
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32), _MOST_ROWS - (entries & 0xFFFFFFFF)


class _Comparison:
    """Compares vectors with all queries."""

    def __init__(self, queries: np.ndarray, k: int, device: str, product: str | None) -> None:
        import torch

        self.k, self.device = k, torch.device(device)
        self.dtype = getattr(torch, product) if product else fastest_product(self.device)
        self.queries = torch.from_numpy(queries).to(self.device)
        self.rounded, self.exact = self.queries.to(self.dtype), self.queries.double()
        self.error = self._error_of_products()
        self.rows = BLOCK_ROWS if self.device.type == "cpu" else ROWS_PER_TILE
        self.queries_together = max(1, BLOCK_PRODUCTS[self.device.type] // self.rows)
        self.own = local()  # each thread's own space for products
        if self.device.type == "cuda":  # sums in float32 throughout, as the bound assumes
            torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
            torch.backends.cuda.matmul.allow_tf32 = False
        with warnings.catch_warnings():  # torch says once per process that its sparse tensors are young
            warnings.simplefilter("ignore")
            torch.sparse_csr_tensor([0, 0], [], [], (1, 1), check_invariants=False)

    def _error_of_products(self) -> torch.Tensor:
        """Bound of the error of a product before it is rounded to the number format, float32 ``(Q,)``.

        With unit roundoff u of the format and rounded query q' and image x': ``|q.x - q'.x'| <= |q - q'| |x'| + |q| |x - x'|``, where
        ``|x - x'| <= u |x|``; and the sum, in float32, errs by at most D 2**-24 times the sum of absolute products, which is at most 1
        (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). Twice that, because hardware may add pairs of products at once;
        and 1e-5 for what float16 loses of numbers near zero and for the roundings of thresholds.
        """
        import torch

        roundoff = 0.0 if self.dtype == torch.float32 else torch.finfo(self.dtype).eps / 2
        sum_error = 2 * self.queries.shape[1] * 2.0**-24
        lengths = (1 + UNIT_TOLERANCE) ** 2  # of query and image, which count as unit vectors
        rounding = torch.linalg.vector_norm(self.queries - self.rounded.float(), dim=1)
        return (rounding * (1 + roundoff) + roundoff + sum_error + 1e-5) * lengths

    def begin(self, floor: np.ndarray) -> _Nearest:
        """For a new file; ``floor`` as in :class:`_Partial`."""
        import torch

        return _Nearest(torch.from_numpy(floor).to(self.device), self.k)

    @contextmanager
    def workers(self) -> Iterator[_Workers]:
        """As many threads as torch has, one for each block of images; meanwhile torch's own operations take one thread each."""
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with ThreadPoolExecutor(threads if self.device.type == "cpu" else 1) as pool:
                yield _Workers(self, pool, 2 * threads)
        finally:
            torch.set_num_threads(threads)

    def look(self, stored: np.ndarray, rows: np.ndarray, nearest: _Nearest, file: EmbeddingFile) -> None:
        """Compare a block of vectors ``(n, D)`` of ``rows`` with all queries, and give what may be near to ``nearest``."""
        import torch

        if not stored.flags.writeable:  # Arrow's, at which torch takes offence
            stored = stored.copy()
        images = self._unit(torch.from_numpy(stored).to(self.device), rows, file)
        rounded, row = images.to(self.dtype), torch.from_numpy(rows).to(self.device)
        for first in range(0, len(self.queries), self.queries_together):
            query, position = self._candidates(rounded, first, nearest)
            if len(query):
                nearest.add(query, row.index_select(0, position), self._similarities(query, images, position))

    def _unit(self, stored: torch.Tensor, rows: np.ndarray, file: EmbeddingFile) -> torch.Tensor:
        """Float32 ``(n, D)``; as :func:`~augbench.retrieval.embedding_files.unit`."""
        import torch

        images = stored.float()
        off = ~((torch.linalg.vector_norm(images, dim=1) - 1).abs() <= UNIT_TOLERANCE)
        if off.any():
            norms = torch.linalg.vector_norm(images.double(), dim=1)
            check_norms(norms.cpu().numpy(), rows, file.source.path)
            images = torch.where(off[:, None], images / norms[:, None], images).float()
        return images

    def _candidates(
        self, rounded: torch.Tensor, first: int, nearest: _Nearest
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries (from the ``first`` on) and positions of images that may be near to them, in order of query, then position."""
        import torch

        part = slice(first, first + self.queries_together)
        queries = self.rounded[part]
        if not hasattr(self.own, "products"):
            self.own.products = torch.empty(
                min(len(self.queries), self.queries_together) * self.rows,
                dtype=self.dtype,
                device=self.device,
            )
        products = torch.mm(
            queries, rounded.T, out=self.own.products[: len(queries) * len(rounded)].view(len(queries), -1)
        )
        bound = nearest.threshold[part] - self.error[part]
        if nearest.open:  # of this block, only its own k nearest can count
            last = products.topk(min(self.k, products.shape[1]), dim=1).values[:, -1].float()
            bound = torch.maximum(
                bound, last - torch.finfo(self.dtype).eps * last.abs() - 2 * self.error[part]
            )
        bound = bound.to(self.dtype)  # rounding is monotone, so a product that rounds below it was below it
        width = SEGMENT if products.shape[1] % SEGMENT == 0 else products.shape[1]
        segments = products.view(len(queries), -1, width)
        query, segment = torch.nonzero(segments.amax(dim=2) >= bound[:, None], as_tuple=True)
        near = (
            segments.view(-1, width).index_select(0, query * segments.shape[1] + segment)
            >= bound.index_select(0, query)[:, None]
        )
        found, position = torch.nonzero(near, as_tuple=True)
        return query.index_select(0, found) + first, segment.index_select(0, found) * width + position

    def _similarities(
        self, query: torch.Tensor, images: torch.Tensor, position: torch.Tensor
    ) -> torch.Tensor:
        """Cosines of pairs, float32 ``(P,)``: summed in float64, so that they are the same in whichever order and on whichever device."""
        import torch

        if self.device.type == "cpu" and torch.backends.mkl.is_available():
            first = torch.searchsorted(query, torch.arange(len(self.queries) + 1))
            return _sampled(first, position, self.exact, images.double()).float()
        similarity = torch.empty(len(query), device=self.device)
        for start in range(0, len(query), PAIRS):
            part = slice(start, start + PAIRS)
            similarity[part] = (images[position[part]].double() * self.exact[query[part]]).sum(dim=1).float()
        return similarity


class _Workers:
    """Hands out blocks to threads; at most ``most`` are under way, so that reading does not run ahead of comparing."""

    def __init__(self, comparison: _Comparison, pool: ThreadPoolExecutor, most: int) -> None:
        self.comparison, self.pool, self.most = comparison, pool, most
        self.under_way: deque[Future[None]] = deque()

    def __call__(self, stored: np.ndarray, rows: np.ndarray, nearest: _Nearest, file: EmbeddingFile) -> None:
        """Have vectors ``(n, D)`` of ``rows`` compared; what was wrong with earlier ones is raised here."""
        for start in range(0, len(rows), self.comparison.rows):
            block = slice(start, start + self.comparison.rows)
            self.under_way.append(
                self.pool.submit(self.comparison.look, stored[block], rows[block], nearest, file)
            )
            while len(self.under_way) > self.most:
                self.under_way.popleft().result()

    def finish(self) -> None:
        """Wait for all blocks."""
        while self.under_way:
            self.under_way.popleft().result()


def _sampled(
    first: torch.Tensor, column: torch.Tensor, left: torch.Tensor, right: torch.Tensor
) -> torch.Tensor:
    """Those products of rows of ``left`` and ``right`` that a sparse matrix names: of row i, columns ``column[first[i]:first[i + 1]]``."""
    import torch

    pattern = torch.sparse_csr_tensor(
        first, column, left.new_zeros(len(column)), (len(left), len(right)), check_invariants=False
    )
    return torch.sparse.sampled_addmm(pattern, left, right.T, beta=0.0).values()


def fastest_product(device: torch.device) -> torch.dtype:
    """The number format in which the device multiplies matrices fastest."""
    import torch

    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if torch.cpu.get_capabilities().get("avx512_bf16") else torch.float32


# --- what was found ---------------------------------------------------------------------------------------------------


def collect(hits: Hits, files: Sequence[EmbeddingFile]) -> list[Found]:
    """Metadata and embeddings of the hits, one entry per query; each file is opened once."""
    queries, found = hits.row.shape
    file, row = hits.file.ravel(), hits.row.ravel()
    embeddings = np.empty((file.size, files[0].dimension), np.float16)
    tables, places = [metadata_table({}, 0)], [np.empty(0, np.int64)]
    for number in np.unique(file):
        place = np.flatnonzero(file == number)
        wanted, position = np.unique(row[place], return_inverse=True)
        embeddings[place] = unit(files[number].vectors(wanted)).astype(np.float16)[position]
        tables.append(files[number].metadata(wanted).take(pa.array(position)))
        places.append(place)
    metadata = pa.concat_tables(tables).combine_chunks().take(pa.array(np.argsort(np.concatenate(places))))
    return [
        Found(
            metadata.slice(query * found, found),
            hits.similarity[query],
            embeddings[query * found : (query + 1) * found],
        )
        for query in range(queries)
    ]


@dataclass(frozen=True)
class ExactBackend:
    """A corpus of embedding files as a search backend; parameters as of :func:`search`."""

    files: Sequence[EmbeddingFile]
    store: Store
    device: str = "cpu"
    share: float = 1.0
    seed: int = 0
    rows_per_tile: int = ROWS_PER_TILE
    name: str = field(default="exact", init=False)

    def search(self, queries: np.ndarray, k: int) -> list[Found]:
        hits = search(
            self.files,
            queries,
            k,
            partial=self.store,
            rows_per_tile=self.rows_per_tile,
            device=self.device,
            share=self.share,
            seed=self.seed,
        )
        return collect(hits, self.files)

    def identity(self) -> dict[str, Any]:
        """What the result depends on besides queries and k, as plain values."""
        return {"files": [file.identity() for file in self.files], "share": self.share, "seed": self.seed}
