"""Compare a tile of stored vectors with all queries: exact k nearest rows at the speed of a matrix product.

A tile costs one matrix product with the queries, and one look at each query's greatest product. If that
product may be among the query's k nearest, single similarities are computed again, in float64, from the
stored vectors. So the product may use a lower precision: its error has a bound (Cauchy-Schwarz and the unit
roundoff), and every product within that bound is computed again. On a CPU each thread compares its own
block, because threads that share one small product wait for each other after every step. To a GPU, the next
tile is copied from pinned memory while one is compared.
"""

from __future__ import annotations

import warnings
import zipfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, local
from typing import TYPE_CHECKING

import numpy as np

from augbench.retrieval.embedding_files import ONE_BY_ONE, UNIT_TOLERANCE, Reading
from augbench.runtime.fit import BatchLimit
from augbench.runtime.overlap import Upload, Uploads

if TYPE_CHECKING:
    import torch

# rows compared together on a CPU: their products with a few thousand queries fit into its cache
BLOCK_ROWS = 1024
ROWS_PER_TILE = 16384
SEGMENT = 64  # products of a query that are checked one by one if the greatest of them may count
BLOCK_PRODUCTS = {"cpu": 1 << 21, "cuda": 1 << 28}  # products in memory at a time
PAIRS = 1 << 12  # float64 similarities computed at a time
READERS = 4  # threads that read for a GPU, which compares faster than one thread reads
STAGE = "exact search"


@dataclass(frozen=True)
class Partial:
    """Rows of one file that may be among the nearest: at most k per query, and none below ``floor``.

    The floor keeps most partial results of a large corpus nearly empty. The price: a partial result is
    valid only if the k-th nearest image of all files is at least as similar as the floor. That can fail
    when a file was removed.

    Attributes
    ----------
    floor : ndarray, float32 (Q,)
        Similarity of the k-th nearest image in the files before this one.
    count : ndarray, int32 (Q,)
        Rows per query.
    row : ndarray, int64 (sum of count,)
        Row numbers query by query, nearest first.
    similarity : ndarray, float32 (sum of count,)
        Cosine similarity of each row and its query.
    """

    floor: np.ndarray
    count: np.ndarray
    row: np.ndarray
    similarity: np.ndarray

    def write(self, path: Path) -> None:
        np.savez(path, floor=self.floor, count=self.count, row=self.row, similarity=self.similarity)

    @classmethod
    def read(cls, path: Path) -> Partial:
        with np.load(path) as arrays:
            return cls(arrays["floor"], arrays["count"], arrays["row"], arrays["similarity"])

    @classmethod
    def is_whole(cls, path: Path) -> bool:
        try:
            found = cls.read(path)
        except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile):
            return False
        return int(found.count.sum()) == len(found.row) == len(found.similarity)


MOST_ROWS = 0xFFFFFFFF
_EMPTY = -(1 << 63)


class Nearest:
    """The k nearest rows of one file so far, per query, with room for candidates that are not sorted yet.

    An entry is one integer: the bits of the similarity, arranged to sort like the number, then 2**32 - 1
    minus the row. So the greatest integers are the nearest rows, and ties are in order of row.

    Parameters
    ----------
    floor : Tensor, float32 (Q,)
        Rows with a lower similarity are dropped.
    """

    def __init__(self, floor: torch.Tensor, k: int) -> None:
        import torch

        self.k, self.floor = k, floor
        self.lock = Lock()
        # Replaced, never changed in place: other threads read it without the lock, and an old value is lower.
        self.threshold = floor
        self.entries = torch.full((len(floor), k + max(32, k // 2)), _EMPTY, device=floor.device)
        self.filled = torch.zeros(len(floor), dtype=torch.int64, device=floor.device)
        self.waiting = 0
        self.left_out: list[int] = []  # rows whose vectors are zero or not finite
        self.open = bool(torch.isinf(floor).any())  # whether some query still takes any row

    def add(self, query: torch.Tensor, row: torch.Tensor, similarity: torch.Tensor) -> None:
        """Add candidates, ``(P,)`` each, with ``query`` ascending; safe to call from any thread."""
        import torch

        wanted = torch.nonzero(similarity >= self.threshold.index_select(0, query)).squeeze(1)
        if len(wanted):
            query = query.index_select(0, wanted)
            entries = _entries(similarity.index_select(0, wanted), row.index_select(0, wanted))
            count = torch.bincount(query, minlength=len(self.filled))
            first = (count.cumsum(0) - count).index_select(0, query)
            position = torch.arange(len(query), device=query.device) - first
            with self.lock:
                self._append(query, position, entries, count)

    def _append(
        self, query: torch.Tensor, position: torch.Tensor, entries: torch.Tensor, count: torch.Tensor
    ) -> None:
        """Append ``count`` ``(Q,)`` entries per query, each at ``position`` after the query's last entry."""
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
        """Keep the k nearest entries per query and raise the thresholds."""
        import torch

        nearest = self.entries.topk(self.k, dim=1).values  # sorted: empty entries come last
        self.entries[:, : self.k] = nearest
        self.entries[:, self.k :] = _EMPTY
        self.filled.clamp_(max=self.k)
        self.waiting = 0
        last = nearest.amin(dim=1)
        similarity, _ = _from_entries(last)
        self.threshold = torch.where(last == _EMPTY, self.floor, torch.maximum(self.floor, similarity))
        self.open = bool(torch.isinf(self.threshold).any())

    def result(self) -> Partial:
        self.sort_in()
        entries = self.entries[:, : self.k].sort(dim=1, descending=True).values
        there = entries != _EMPTY
        similarity, row = _from_entries(entries[there])
        return Partial(
            *(array.cpu().numpy() for array in (self.floor, there.sum(dim=1).int(), row, similarity))
        )


def _entries(similarity: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    import torch

    bits = (similarity + 0.0).view(torch.int32)  # + 0.0 turns -0.0 into 0.0
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() << 32) | (MOST_ROWS - row)


def _from_entries(entries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode entries into similarities and rows."""
    import torch

    ordered = (entries >> 32).int()
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32), MOST_ROWS - (entries & 0xFFFFFFFF)


class Comparison:
    """Compares blocks of vectors with all queries."""

    def __init__(self, queries: np.ndarray, k: int, device: str, product: str | None) -> None:
        import torch

        self.k, self.device = k, torch.device(device)
        self.dtype = getattr(torch, product) if product else fastest_product(self.device)
        self.queries = torch.from_numpy(queries).to(self.device)
        self.rounded, self.exact = self.queries.to(self.dtype), self.queries.double()
        self.error = self._error_of_products()
        self.rows = BLOCK_ROWS if self.device.type == "cpu" else ROWS_PER_TILE
        self.together = BatchLimit(
            max(1, BLOCK_PRODUCTS[self.device.type] // self.rows), STAGE, "query vector"
        )
        self.own = local()  # each thread's buffer for products
        if self.device.type == "cuda":  # the error bound assumes that all sums are in float32
            torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
            torch.backends.cuda.matmul.allow_tf32 = False
        with warnings.catch_warnings():  # torch warns once that sparse tensors are in beta
            warnings.simplefilter("ignore")
            torch.sparse_csr_tensor([0, 0], [], [], (1, 1), check_invariants=False)

    def _error_of_products(self) -> torch.Tensor:
        """Bound the error of a product before it is rounded to the number format, float32 ``(Q,)``.

        Let u be the unit roundoff of the format, and q' and x' the rounded query and image. Then ``|q.x -
        q'.x'| <= |q - q'| |x'| + |q| |x - x'|``, where ``|x - x'| <= u |x|``. The float32 sum has an error
        of at most D 2**-24 times the sum of absolute products, which is at most 1 (Higham, Accuracy and
        Stability of Numerical Algorithms, section 3.1). This is doubled because hardware may add pairs of
        products at once. The final 1e-5 covers float16's loss near zero and the rounding of thresholds.
        """
        import torch

        roundoff = 0.0 if self.dtype == torch.float32 else torch.finfo(self.dtype).eps / 2
        sum_error = 2 * self.queries.shape[1] * 2.0**-24
        lengths = (1 + UNIT_TOLERANCE) ** 2  # query and image may each be this much too long
        rounding = torch.linalg.vector_norm(self.queries - self.rounded.float(), dim=1)
        return (rounding * (1 + roundoff) + roundoff + sum_error + 1e-5) * lengths

    @property
    def reading(self) -> Reading:
        """How tiles are read for this device."""
        return ONE_BY_ONE if self.device.type == "cpu" else Reading(_pinned, READERS)

    def begin(self, floor: np.ndarray) -> Nearest:
        """Start a new file; ``floor`` as in :class:`Partial`."""
        import torch

        return Nearest(torch.from_numpy(floor).to(self.device), self.k)

    @contextmanager
    def workers(self) -> Iterator[_Threads | _Overlapped]:
        """Start what compares tiles: on a CPU as many threads as torch has, one block of images each.

        Until they end, torch's own operations use one thread each.
        """
        import torch

        if self.device.type != "cpu":
            yield _Overlapped(self)
            return
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with ThreadPoolExecutor(threads) as pool:
                yield _Threads(self, pool, 2 * threads)
        finally:
            torch.set_num_threads(threads)

    def blocks(self, stored: np.ndarray, rows: np.ndarray) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Cut a tile into blocks that are compared together: vectors ``(n, D)`` and their rows ``(n,)``."""
        import torch

        if not stored.flags.writeable:  # Arrow's arrays are read-only, and torch warns about those
            stored = stored.copy()
        vectors, numbers = torch.from_numpy(stored), torch.from_numpy(rows)
        yield from zip(vectors.split(self.rows), numbers.split(self.rows), strict=True)

    def look(self, stored: torch.Tensor, row: torch.Tensor, nearest: Nearest) -> None:
        """Compare vectors ``(n, D)`` of rows ``(n,)`` with all queries, and add candidates to ``nearest``.

        Both are on the device.
        """
        images, row = self._unit(stored, row, nearest)
        if not len(row):
            return
        rounded = images.to(self.dtype)

        def near(queries: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            part = slice(queries[0], queries[-1] + 1)
            query, position = self._candidates(rounded, part, nearest)
            return query, row.index_select(0, position), self._similarities(query, images, position)

        for query, found, similarity in self.together.run(near, range(len(self.queries))):
            nearest.add(query, found, similarity)

    def _unit(
        self, stored: torch.Tensor, row: torch.Tensor, nearest: Nearest
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale to unit length like :func:`~augbench.retrieval.embedding_files.unit`; float32 ``(n, D)``.

        Vectors that cannot be compared are left out, and ``nearest`` records their rows.
        """
        import torch

        images = stored.float()
        off = ~((torch.linalg.vector_norm(images, dim=1) - 1).abs() <= UNIT_TOLERANCE)
        if off.any():
            norms = torch.linalg.vector_norm(images.double(), dim=1)
            images = torch.where(off[:, None], images / norms[:, None], images).float()
            usable = norms.isfinite() & (norms > 0)
            if not usable.all():
                with nearest.lock:
                    nearest.left_out += row[~usable].tolist()
                images, row = images[usable], row[usable]
        return images, row

    def _candidates(
        self, rounded: torch.Tensor, part: slice, nearest: Nearest
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Find pairs of query (of a part of them) and image that may be near.

        Returns the queries' numbers and the images' positions in the block, in order of query, then position.
        """
        import torch

        queries = self.rounded[part]
        size = min(len(self.queries), self.together.size) * self.rows
        if getattr(self.own, "products", None) is None or self.own.products.numel() != size:
            self.own.products = None  # frees the larger buffer of queries that did not fit
            self.own.products = torch.empty(size, dtype=self.dtype, device=self.device)
        products = torch.mm(
            queries, rounded.T, out=self.own.products[: len(queries) * len(rounded)].view(len(queries), -1)
        )
        bound = nearest.threshold[part] - self.error[part]
        if nearest.open:  # there is no threshold yet, but only the block's own k nearest can count
            last = products.topk(min(self.k, products.shape[1]), dim=1).values[:, -1].float()
            bound = torch.maximum(
                bound, last - torch.finfo(self.dtype).eps * last.abs() - 2 * self.error[part]
            )
        # Rounding is monotone: a rounded product below the rounded bound was below the bound before.
        bound = bound.to(self.dtype)
        width = SEGMENT if products.shape[1] % SEGMENT == 0 else products.shape[1]
        segments = products.view(len(queries), -1, width)
        query, segment = torch.nonzero(_may_reach(segments, bound), as_tuple=True)
        near = (
            segments.view(-1, width).index_select(0, query * segments.shape[1] + segment)
            >= bound.index_select(0, query)[:, None]
        )
        found, position = torch.nonzero(near, as_tuple=True)
        return query.index_select(0, found) + part.start, segment.index_select(0, found) * width + position

    def _similarities(
        self, query: torch.Tensor, images: torch.Tensor, position: torch.Tensor
    ) -> torch.Tensor:
        """Compute the cosine similarities of pairs, float32 ``(P,)``.

        They are summed in float64, so the result does not depend on the order or the device.
        """
        import torch

        if not len(query):
            return torch.empty(0, device=self.device)
        if self.device.type == "cpu" and torch.backends.mkl.is_available():
            first = torch.searchsorted(query, torch.arange(len(self.queries) + 1))
            return _sampled(first, position, self.exact, images.double()).float()
        similarity = torch.empty(len(query), device=self.device)
        for start in range(0, len(query), PAIRS):
            part = slice(start, start + PAIRS)
            similarity[part] = (images[position[part]].double() * self.exact[query[part]]).sum(dim=1).float()
        return similarity


class _Threads:
    """Hands blocks to threads, at most ``most`` at a time, so that reading does not get too far ahead."""

    def __init__(self, comparison: Comparison, pool: ThreadPoolExecutor, most: int) -> None:
        self.comparison, self.pool, self.most = comparison, pool, most
        self.under_way: deque[Future[None]] = deque()

    def __call__(self, stored: np.ndarray, rows: np.ndarray, nearest: Nearest) -> None:
        """Queue vectors ``(n, D)`` of ``rows`` for comparison; raise the errors of earlier blocks."""
        for vectors, numbers in self.comparison.blocks(stored, rows):
            self.under_way.append(self.pool.submit(self.comparison.look, vectors, numbers, nearest))
            while len(self.under_way) > self.most:
                self.under_way.popleft().result()

    def finish(self) -> None:
        """Wait for all blocks, and raise their errors."""
        while self.under_way:
            self.under_way.popleft().result()


class _Overlapped:
    """Compares each block on a GPU while the next one is copied there."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison, self.uploads = comparison, Uploads(comparison.device)
        self.waiting: tuple[Upload, Nearest] | None = None

    def __call__(self, stored: np.ndarray, rows: np.ndarray, nearest: Nearest) -> None:
        """Start copying vectors ``(n, D)`` of ``rows``, block by block, and compare those before."""
        for vectors, numbers in self.comparison.blocks(stored, rows):
            upload = self.uploads.begin(vectors, numbers)
            self.finish()
            self.waiting = upload, nearest

    def finish(self) -> None:
        """Compare the last block."""
        if self.waiting is not None:
            upload, nearest = self.waiting
            self.waiting = None
            with upload as (vectors, numbers):
                self.comparison.look(vectors, numbers, nearest)


def _may_reach(segments: torch.Tensor, bound: torch.Tensor) -> torch.Tensor:
    """Whether the greatest of products ``(Q, S, n)`` may reach the bound ``(Q,)``: bool ``(Q, S)``.

    A CPU takes a multiple of the time for the maximum of 16-bit floats that it takes for integers. Positive
    floats sort like their bits, above all negative ones. If a bound is not positive, all may reach it.
    """
    import torch

    if segments.element_size() != 2 or segments.device.type != "cpu":
        return segments.amax(dim=2) >= bound[:, None]
    least = torch.where(bound > 0, bound.view(torch.int16), torch.iinfo(torch.int16).min)
    return segments.view(torch.int16).amax(dim=2) >= least[:, None]


def _pinned(shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    """New array in memory that a GPU can copy from by itself."""
    import torch

    return torch.empty(shape, dtype=getattr(torch, dtype.name), pin_memory=True).numpy()


def _sampled(
    first: torch.Tensor, column: torch.Tensor, left: torch.Tensor, right: torch.Tensor
) -> torch.Tensor:
    """Compute the products of selected rows of ``left`` and ``right``.

    Row i of ``left`` is multiplied with rows ``column[first[i]:first[i + 1]]`` of ``right`` (the CSR format).
    """
    import torch

    pattern = torch.sparse_csr_tensor(
        first, column, left.new_zeros(len(column)), (len(left), len(right)), check_invariants=False
    )
    return torch.sparse.sampled_addmm(pattern, left, right.T, beta=0.0).values()


def fastest_product(device: torch.device) -> torch.dtype:
    """Return the number format in which the device multiplies matrices fastest."""
    import torch

    if device.type == "cuda":
        return torch.float16
    # torch.cpu.get_capabilities is too new for envs/cuda12.lock
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32
