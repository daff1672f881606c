"""Exact search (G5): ours over files in the page cache, beside bare products and copies of the same size."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from augbench.retrieval.comparison import BLOCK_ROWS, ROWS_PER_TILE, fastest_product
from augbench.retrieval.embedding_files import open_embeddings
from augbench.retrieval.exact import ExactSearch, Hits
from benchmarks.day.lines import last
from benchmarks.day.session import Ready, Session, Variant
from benchmarks.machine import device_copy_rate, product_seconds, read_seconds
from benchmarks.search import arrays_of, make_embeddings

VECTORS = {"full": 1_000_000, "mini": 20_000}
DIMENSION = {"full": 768, "mini": 128}
QUERIES = {"full": (10_000, 64), "mini": (500, 16)}
K = 100
CHECKED = 32  # queries whose neighbours are compared with those of a plain product in float32


def name(queries: int, product: bool = False) -> str:
    """Name of a variant."""
    return f"{'bare products' if product else 'ours'}, {queries:,} queries"


class Candidates:
    """Makes the variants over one folder of random vectors."""

    def __init__(self, session: Session, folder: Path) -> None:
        self.session, self.folder, self.size = session, folder, session.size
        self.vectors, self.dimension = VECTORS[self.size], DIMENSION[self.size]
        make_embeddings(folder, self.vectors, self.dimension, 4, session.device, QUERIES[self.size][0])
        self.queries = np.load(folder / "queries.npy")

    def find(self, queries: int) -> Hits:
        """Search with the first queries and no earlier partial results."""
        with tempfile.TemporaryDirectory(dir=self.folder) as partial_results:
            return ExactSearch(
                open_embeddings(self.folder),
                self.queries[:queries],
                K,
                partial=partial_results,
                device=self.session.device,
            ).hits()

    def ours(self, queries: int) -> Ready:
        """Our search, from files to hits; the items are pairs of query and vector."""
        work = 2.0 * self.dimension  # per pair
        extra = {"queries": queries, "bytes_per_vector": 2 * self.dimension}
        return Ready(partial(self.find, queries), queries * self.vectors, work=lambda: work, extra=extra)

    def product(self, queries: int) -> Ready:
        """The matrix products alone, with vectors that are on the device."""
        dtype = str(fastest_product(torch.device(self.session.device))).removeprefix("torch.")
        block = BLOCK_ROWS if self.session.device == "cpu" else ROWS_PER_TILE
        seconds: list[float] = []

        def call() -> None:
            seconds.append(
                product_seconds(queries, self.dimension, self.vectors, block, dtype, self.session.device)
            )

        def details() -> dict[str, float]:
            counted = {"items": queries * self.vectors * len(seconds), "seconds": sum(seconds)}
            seconds.clear()
            return counted if counted["seconds"] else {}

        return Ready(call, queries * self.vectors, details)

    def recall(self) -> float:
        """Share of the true neighbours of some queries that our search finds."""
        found = self.find(CHECKED)
        offsets = np.cumsum([0, *(len(np.load(path, mmap_mode="r")) for path in arrays_of(self.folder))])
        rows = offsets[found.file] + found.row
        vectors = np.concatenate([np.load(path) for path in arrays_of(self.folder)])
        whole = torch.from_numpy(vectors).to(self.session.device).float()
        whole = torch.nn.functional.normalize(whole, dim=1)
        queries = torch.from_numpy(self.queries[:CHECKED]).to(self.session.device)
        true = (queries @ whole.T).topk(K, dim=1).indices.cpu().numpy()
        same = [len(np.intersect1d(*pair)) for pair in zip(rows, true, strict=True)]
        return sum(same) / true.size


def measure(session: Session) -> None:
    """Measure all variants; then the recall, the reading of the files, and copies."""
    dtype = str(fastest_product(torch.device(session.device))).removeprefix("torch.")
    session.ceiling(dtype)
    folder = session.scratch / "embeddings"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        make = Candidates(session, folder)
        facts: dict[str, Callable[[], float]] = {
            "copy_rate": lambda: device_copy_rate(session.device),
            "read_seconds": lambda: read_seconds(arrays_of(folder)),
            "recall": make.recall,
        }
        many, few = QUERIES[session.size]
        variants = [
            Variant(name(many), partial(make.ours, many), 3, 20),
            Variant(name(many, product=True), partial(make.product, many), 3, 10),
            Variant(name(few), partial(make.ours, few), 3, 10),
            Variant(name(few, product=True), partial(make.product, few), 2, 10),
        ]
        session.run(variants)
        for fact, figure in facts.items():
            if not last(session.lines.read(), "fact", session.stage, name=fact):
                session.fact(fact, figure())
    finally:
        shutil.rmtree(folder)
