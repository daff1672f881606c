"""Exact search over embedding files finds the rows of brute force, in every layout, tiling and resumption."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from augbench.artifacts.store import Store
from augbench.errors import UserError
from augbench.retrieval import comparison
from augbench.retrieval.embedding_files import (
    ONE_BY_ONE,
    EmbeddingFile,
    PlainVectors,
    Reading,
    open_embeddings,
)
from augbench.retrieval.exact import ExactBackend, ExactSearch, Hits, takes_part
from augbench.retrieval.neighbours import METADATA

D, SIZES = 24, (150, 97, 203)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def clustered(rows: int, dimension: int, seed: int) -> np.ndarray:
    """Unit vectors around 12 centres, float16 as on disk."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(12, dimension))
    return unit(centres[random.integers(12, size=rows)] + random.normal(size=(rows, dimension))).astype(
        np.float16
    )


QUERIES = clustered(19, D, 1).astype(np.float64)
QUERIES = unit(QUERIES).astype(np.float32)
PARTS = np.split(clustered(sum(SIZES), D, 2), np.cumsum(SIZES)[:-1])


def search(files: Sequence[EmbeddingFile], queries: np.ndarray, k: int, **options: Any) -> Hits:
    return ExactSearch(files, queries, k, **options).hits()


def urls(part: int) -> list[str]:
    return [f"http://a/{part}/{row}" for row in range(len(PARTS[part]))]


def write_npy(folder: Path, parts: Sequence[np.ndarray] = PARTS) -> Path:
    """Write clip-retrieval's layout, with LAION's file names."""
    (folder / "img_emb").mkdir(parents=True)
    (folder / "metadata").mkdir()
    for part, vectors in enumerate(parts):
        np.save(folder / f"img_emb/img_emb_{part:04d}.npy", vectors)
        table = pa.table({"url": [f"http://a/{part}/{row}" for row in range(len(vectors))]})
        pq.write_table(table, folder / f"metadata/metadata_{part:04d}.parquet", row_group_size=64)
    return folder


def write_npz(folder: Path, save: Callable[..., None]) -> Path:
    """Write DataComp's layout."""
    folder.mkdir()
    for part, vectors in enumerate(PARTS):
        save(folder / f"{part:08d}.npz", b32_img=vectors[:, :8], l14_img=vectors, l14_txt=vectors[::-1])
        pq.write_table(
            pa.table({"uid": [f"{part}-{row}" for row in range(len(vectors))], "url": urls(part)}),
            folder / f"{part:08d}.parquet",
        )
    return folder


def write_parquet(folder: Path, kind: pa.DataType) -> Path:
    """Write ClickHouse's layout, with row groups that do not match the tiles."""
    folder.mkdir()
    for part, vectors in enumerate(PARTS):
        lists = pa.array(
            list(vectors if kind.value_type == pa.float16() else vectors.astype(np.float32)), kind
        )
        pq.write_table(
            pa.table({"id": range(len(vectors)), "url": urls(part), "vector": lists}),
            folder / f"part{part}.parquet",
            row_group_size=40,
        )
    return folder


LAYOUTS: dict[str, Callable[[Path], list[EmbeddingFile]]] = {
    "npy, float16": lambda folder: open_embeddings(write_npy(folder)),
    "npy, float32": lambda folder: open_embeddings(
        write_npy(folder, [part.astype(np.float32) for part in PARTS])
    ),
    "npz": lambda folder: open_embeddings(write_npz(folder, np.savez), npz_key="l14_img"),
    "npz, compressed": lambda folder: open_embeddings(
        write_npz(folder, np.savez_compressed), npz_key="l14_img"
    ),
    "parquet, lists": lambda folder: open_embeddings(write_parquet(folder, pa.list_(pa.float32()))),
    "parquet, float16 lists of one length": lambda folder: open_embeddings(
        write_parquet(folder, pa.list_(pa.float16(), D))
    ),
}


@pytest.fixture
def files(tmp_path: Path) -> list[EmbeddingFile]:
    return open_embeddings(write_npy(tmp_path / "embeddings"))


def brute(parts: Sequence[np.ndarray], queries: np.ndarray, k: int) -> list[list[tuple[int, int]]]:
    """(file, row) of the k nearest per query, nearest first; the data have no ties."""
    vectors = np.concatenate(parts).astype(np.float64)
    places = [
        (part, row) for part, vectors_of_part in enumerate(parts) for row in range(len(vectors_of_part))
    ]
    similarity = queries.astype(np.float64) @ vectors.T
    order = np.argsort(-similarity, axis=1)
    ranked = np.take_along_axis(similarity, order, axis=1)[:, : k + 1]
    assert np.diff(ranked).max() < -2e-7, (
        "two images are equally near: other data are needed for this comparison"
    )
    return [[places[place] for place in row[:k]] for row in order]


def places(hits: Hits) -> list[list[tuple[int, int]]]:
    return [
        list(zip(file, row, strict=True))
        for file, row in zip(hits.file.tolist(), hits.row.tolist(), strict=True)
    ]


def same(one: Hits, other: Hits) -> bool:
    """Whether two results are equal to the last bit."""
    return all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in ("file", "row", "similarity")
    )


# --- exactness ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_nearest_images_of_brute_force(tmp_path: Path, layout: str) -> None:
    opened = LAYOUTS[layout](tmp_path / "embeddings")
    hits = search(opened, QUERIES, 30, partial=tmp_path / "partial", rows_per_tile=64)
    assert [file.rows for file in opened] == list(SIZES)
    assert places(hits) == brute(PARTS, QUERIES, 30)
    vectors = np.stack([[PARTS[file][row] for file, row in query] for query in places(hits)]).astype(
        np.float64
    )
    assert np.abs(hits.similarity - np.einsum("qkd,qd->qk", vectors, QUERIES)).max() < 1e-6
    first = list(zip(hits.file[:, 0], hits.row[:, 0], strict=True))
    assert [opened[file].metadata(np.array([row])).column("url")[0].as_py() for file, row in first] == [
        f"http://a/{file}/{row}" for file, row in first
    ]


@pytest.mark.parametrize("rows_per_tile", [1, 7, 150, 100_000])
def test_the_tile_size_changes_no_bit_of_the_result(
    tmp_path: Path, files: list[EmbeddingFile], rows_per_tile: int
) -> None:
    whole = search(files, QUERIES, 30, partial=tmp_path / "one")
    assert same(whole, search(files, QUERIES, 30, partial=tmp_path / "other", rows_per_tile=rows_per_tile))


@pytest.mark.parametrize("product", ["float32", "bfloat16", "float16"])
def test_the_number_format_of_the_product_changes_no_bit_of_the_result(
    tmp_path: Path, files: list[EmbeddingFile], product: str
) -> None:
    hits = search(files, QUERIES, 30, partial=tmp_path / "partial", product=product)
    assert places(hits) == brute(PARTS, QUERIES, 30)
    assert same(hits, search(files, QUERIES, 30, partial=tmp_path / "other"))


@pytest.mark.parametrize("product", ["bfloat16", "float16"])
def test_a_product_misses_nothing_where_similarities_are_closer_than_it_can_tell(
    tmp_path: Path, product: str
) -> None:
    noise = np.random.default_rng(9).normal(size=(3000, D)) * 1e-4
    parts = np.split(unit(QUERIES[0] + noise).astype(np.float32), 3)
    opened = open_embeddings(write_npy(tmp_path / "embeddings", parts))
    queries = unit(QUERIES[:1] + np.random.default_rng(10).normal(size=(8, D)) * 0.1).astype(np.float32)
    whole = search(opened, queries, 100, partial=tmp_path / "one", product="float32")
    assert np.ptp(whole.similarity, axis=1).max() < 2e-4
    assert same(
        whole, search(opened, queries, 100, partial=tmp_path / "other", product=product, rows_per_tile=100)
    )


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16"])
def test_segments_that_hold_a_product_at_its_bound_are_found_whatever_the_signs(kind: str) -> None:
    import torch

    products = torch.randn(6, 5, 64, generator=torch.Generator().manual_seed(0)).to(getattr(torch, kind))
    products[5] = -products[5].abs()
    bound = products[:, 2].amax(dim=1)  # reached by segment 2, to the last bit
    bound[4] = float("-inf")
    found, reached = comparison._may_reach(products, bound), products.amax(dim=2) >= bound[:, None]
    assert (found | ~reached).all() and reached[:, 2].all()
    assert torch.equal(found[:4], reached[:4]), "a positive bound leaves out what is below"


def test_blocks_of_queries_and_images_change_no_bit_of_the_result(
    tmp_path: Path, files: list[EmbeddingFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = search(files, QUERIES, 30, partial=tmp_path / "one")
    monkeypatch.setattr(comparison, "BLOCK_ROWS", 16)
    monkeypatch.setattr(comparison, "BLOCK_PRODUCTS", {"cpu": 5 * 16})
    monkeypatch.setattr(comparison, "PAIRS", 3)
    assert same(whole, search(files, QUERIES, 30, partial=tmp_path / "other", rows_per_tile=40))


def test_tiles_that_several_threads_read_are_the_same_in_the_same_order(files: list[EmbeddingFile]) -> None:
    made: list[tuple[int, int]] = []

    def empty(shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
        made.append(shape)
        return np.empty(shape, dtype)

    reader = files[2].tiles(7, Reading(empty, 3))
    first = [next(reader)]
    assert len(made) <= 1 + 3  # the one in use, and one per thread
    for (start, tile), (expected, one) in zip([*first, *reader], files[2].tiles(7), strict=True):
        assert start == expected and np.array_equal(tile, one)
    assert isinstance(files[2].source, PlainVectors) and len(made) == -(-SIZES[2] // 7)


def test_a_search_that_copies_ahead_finds_the_same_bits(
    tmp_path: Path, files: list[EmbeddingFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: several readers, and a tile is compared when the next one is on its way."""
    whole = search(files, QUERIES, 30, partial=tmp_path / "one")
    begun: list[int] = []

    class Watching(comparison.Uploads):
        def begin(self, *tensors: Any) -> Any:
            begun.append(len(tensors[0]))
            return super().begin(*tensors)

    monkeypatch.setattr(comparison, "Uploads", Watching)
    monkeypatch.setattr(comparison.Comparison, "reading", Reading(threads=3))
    monkeypatch.setattr(
        comparison.Comparison, "workers", lambda self: nullcontext(comparison._Overlapped(self))
    )
    assert same(whole, search(files, QUERIES, 30, partial=tmp_path / "other", rows_per_tile=40))
    assert sum(begun) == sum(SIZES) and max(begun) == 40


def test_queries_that_do_not_fit_into_memory_are_halved_and_the_hits_stay_the_same(
    tmp_path: Path, files: list[EmbeddingFile], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    import torch

    whole = search(files, QUERIES, 30, partial=tmp_path / "one")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    similarities, most = comparison.Comparison._similarities, 2

    def scarce(self: Any, query: Any, images: Any, position: Any) -> Any:
        if query.unique().numel() > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return similarities(self, query, images, position)

    monkeypatch.setattr(comparison.Comparison, "_similarities", scarce)
    assert same(whole, search(files, QUERIES, 30, partial=tmp_path / "other", rows_per_tile=40))
    assert "exact search" in caplog.text and "do not fit into the GPU's memory; going on with" in caplog.text
    most = 0
    with pytest.raises(UserError, match="exact search: not even one query vector fits into the GPU's memory"):
        search(files, QUERIES, 30, partial=tmp_path / "third")


def test_vectors_that_do_not_fit_into_memory_end_in_one_line(
    tmp_path: Path, files: list[EmbeddingFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def none(*given: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(comparison.Comparison, "_unit", none)
    with pytest.raises(UserError, match=r"exact search: .* vectors and .* queries do not fit into the GPU's"):
        search(files, QUERIES, 30, partial=tmp_path / "partial")


def test_similarities_of_pairs_do_not_depend_on_how_they_are_summed(
    tmp_path: Path, files: list[EmbeddingFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    whole = search(files, QUERIES, 30, partial=tmp_path / "one")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    other = search(files, QUERIES, 30, partial=tmp_path / "other")
    assert places(whole) == places(other)
    assert np.abs(whole.similarity - other.similarity).max() < 2e-7


def test_it_agrees_with_an_exact_index_of_faiss(tmp_path: Path) -> None:
    import faiss

    parts = np.split(clustered(9000, 64, 3), 3)
    queries = unit(clustered(40, 64, 4).astype(np.float64)).astype(np.float32)
    index = faiss.IndexFlatIP(64)
    index.add(np.concatenate(parts).astype(np.float32))
    similarity, found = index.search(queries, 100)
    hits = search(
        open_embeddings(write_npy(tmp_path / "embeddings", parts)), queries, 100, partial=tmp_path / "partial"
    )
    ours = hits.file * 3000 + hits.row
    assert [set(row) for row in ours.tolist()] == [set(row) for row in found.tolist()]
    assert np.abs(hits.similarity - similarity).max() < 1e-6


def test_equally_near_images_come_in_order_of_file_and_row(tmp_path: Path) -> None:
    distinct = clustered(5, D, 5)
    parts = [np.tile(distinct, (copies, 1)) for copies in (9, 4, 30)]
    opened = open_embeddings(write_npy(tmp_path / "embeddings", parts))
    for k in (20, 43, 60):
        found = places(search(opened, QUERIES, k, partial=tmp_path / "partial", rows_per_tile=8))
        nearest = np.argsort(-(QUERIES.astype(np.float64) @ distinct.astype(np.float64).T), axis=1)
        for query, ranking in zip(found, nearest, strict=True):
            expected = [
                (file, row)
                for vector in ranking
                for file, part in enumerate(parts)
                for row in range(vector, len(part), 5)
            ]
            assert query == expected[:k]


def test_a_k_beyond_the_corpus_gives_every_image_once(tmp_path: Path, files: list[EmbeddingFile]) -> None:
    hits = search(files, QUERIES, 1000, partial=tmp_path / "partial", rows_per_tile=50)
    assert hits.row.shape == (len(QUERIES), sum(SIZES))
    assert all(len(set(query)) == sum(SIZES) for query in places(hits))
    assert (np.diff(hits.similarity) <= 0).all()


def test_vectors_that_are_not_of_unit_length_are_compared_by_their_cosine(tmp_path: Path) -> None:
    scale = np.random.default_rng(6).uniform(0.2, 30, size=(sum(SIZES), 1)).astype(np.float32)
    parts = np.split(np.concatenate(PARTS).astype(np.float32) * scale, np.cumsum(SIZES)[:-1])
    opened = open_embeddings(write_npy(tmp_path / "embeddings", parts))
    hits = search(opened, QUERIES, 30, partial=tmp_path / "partial")
    vectors = unit(np.concatenate(parts).astype(np.float64))
    assert np.abs(hits.similarity - np.sort(QUERIES @ vectors.T, axis=1)[:, ::-1][:, :30]).max() < 1e-6
    (found,) = ExactBackend(opened, Store(tmp_path / "store")).search(QUERIES[:1], 5)
    assert found.embeddings is not None
    assert np.abs(np.linalg.norm(found.embeddings.astype(np.float64), axis=1) - 1).max() < 1e-3


# --- interruption ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Watched(EmbeddingFile):
    """A real file that records each tile read from it."""

    read: list[str]

    def tiles(self, rows_per_tile: int, reading: Reading = ONE_BY_ONE) -> Iterator[tuple[int, np.ndarray]]:
        for tile in super().tiles(rows_per_tile, reading):
            self.read.append(self.name)
            yield tile


def watched(opened: Sequence[EmbeddingFile]) -> tuple[list[EmbeddingFile], list[str]]:
    read: list[str] = []
    return [
        Watched(**{part.name: getattr(file, part.name) for part in dataclasses.fields(file)}, read=read)
        for file in opened
    ], read


KILLED = """
import os, signal, sys
import numpy as np
from augbench.retrieval.embedding_files import PlainVectors, open_embeddings
from augbench.retrieval.exact import ExactSearch

inner = PlainVectors.tiles
def tiles(self, *given):
    for start, tile in inner(self, *given):
        if self.path.name == "img_emb_0002.npy" and start >= 100:
            os.kill(os.getpid(), signal.SIGKILL)
        yield start, tile
PlainVectors.tiles = tiles
queries = np.load(sys.argv[2])
ExactSearch(open_embeddings(sys.argv[1]), queries, 30, partial=sys.argv[3], rows_per_tile=50).hits()
"""


def test_after_a_kill_only_unfinished_files_are_read(tmp_path: Path, files: list[EmbeddingFile]) -> None:
    np.save(tmp_path / "queries.npy", QUERIES)
    arguments = [tmp_path / "embeddings", tmp_path / "queries.npy", tmp_path / "partial"]
    assert subprocess.run([sys.executable, "-c", KILLED, *map(str, arguments)], check=False).returncode == -9
    again, read = watched(files)
    hits = search(again, QUERIES, 30, partial=tmp_path / "partial", rows_per_tile=50)
    assert read == ["img_emb_0002.npy"] * 5
    assert same(hits, search(files, QUERIES, 30, partial=tmp_path / "other"))


def test_a_finished_search_reads_nothing_again(tmp_path: Path, files: list[EmbeddingFile]) -> None:
    first = search(files, QUERIES, 30, partial=tmp_path / "partial")
    again, read = watched(files)
    store = Store(tmp_path / "partial")
    assert same(first, search(again, QUERIES, 30, partial=store))
    assert read == [] and store.tally.reused == 3


def test_a_damaged_partial_result_is_made_again(tmp_path: Path, files: list[EmbeddingFile]) -> None:
    first = search(files, QUERIES, 30, partial=tmp_path / "partial")
    kept = sorted((tmp_path / "partial").rglob("*.npz"))
    kept[1].write_bytes(kept[1].read_bytes()[:-40])
    again, read = watched(files)
    assert same(first, search(again, QUERIES, 30, partial=tmp_path / "partial"))
    assert len(set(read)) == 1


@pytest.mark.parametrize("change", ["k", "queries", "share", "one file"])
def test_what_shapes_the_result_makes_it_new(tmp_path: Path, files: list[EmbeddingFile], change: str) -> None:
    search(files, QUERIES, 30, partial=tmp_path / "partial")
    if change == "one file":
        np.save(tmp_path / "embeddings/img_emb/img_emb_0001.npy", clustered(SIZES[1], D, 7))
    again, read = watched(open_embeddings(tmp_path / "embeddings"))
    queries = QUERIES[::-1] if change == "queries" else QUERIES
    search(
        again,
        queries,
        31 if change == "k" else 30,
        partial=tmp_path / "partial",
        share=0.5 if change == "share" else 1.0,
    )
    assert read == (
        ["img_emb_0001.npy"] if change == "one file" else [f"img_emb_000{part}.npy" for part in range(3)]
    )


def test_a_file_added_later_is_the_only_one_read(tmp_path: Path) -> None:
    first = write_npy(tmp_path / "two", PARTS[1:])
    search(open_embeddings(first), QUERIES, 30, partial=tmp_path / "partial")
    np.save(first / "img_emb/img_emb_0002.npy", PARTS[0])
    pq.write_table(pa.table({"url": urls(0)}), first / "metadata/metadata_0002.parquet")
    again, read = watched(open_embeddings(first))
    hits = search(again, QUERIES, 30, partial=tmp_path / "partial")
    assert read == ["img_emb_0002.npy"]
    assert places(hits) == brute([*PARTS[1:], PARTS[0]], QUERIES, 30)


def test_when_a_file_is_gone_rows_that_it_had_outdone_are_found(
    tmp_path: Path, files: list[EmbeddingFile]
) -> None:
    search(files, QUERIES, 30, partial=tmp_path / "partial")
    assert places(search(files[1:], QUERIES, 30, partial=tmp_path / "partial")) == brute(
        PARTS[1:], QUERIES, 30
    )


# --- several jobs ---------------------------------------------------------------------------------


def fill_blocks(files: Sequence[EmbeddingFile], k: int, partial: Path, jobs: int, **options: Any) -> None:
    """Search each block of the files by itself, the last block first."""
    for block in reversed(range(jobs)):
        ExactSearch(files[block::jobs], QUERIES, k, partial=partial, rows_per_tile=50, **options).fill()


@pytest.mark.parametrize("jobs", [2, 5])
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_jobs_that_share_the_files_find_the_bits_of_one_job_and_the_merge_reads_nothing(
    tmp_path: Path, files: list[EmbeddingFile], jobs: int, share: float
) -> None:
    again, read = watched(files)
    fill_blocks(again, 30, tmp_path / "blocks", jobs, share=share)
    assert set(read) == {file.name for file in files}
    read.clear()
    store = Store(tmp_path / "blocks")
    merged = search(again, QUERIES, 30, partial=store, share=share)
    assert read == [] and (store.tally.made, store.tally.reused) == (0, 3)
    assert same(merged, search(files, QUERIES, 30, partial=tmp_path / "one", share=share))


def test_ties_between_blocks_come_in_order_of_file_and_row(tmp_path: Path) -> None:
    distinct = clustered(5, D, 5)
    parts = [np.tile(distinct, (copies, 1)) for copies in (9, 4, 30, 7)]
    opened = open_embeddings(write_npy(tmp_path / "embeddings", parts))
    for k in (20, 43):
        fill_blocks(opened, k, tmp_path / "blocks", 2)
        merged = search(opened, QUERIES, k, partial=tmp_path / "blocks")
        assert same(merged, search(opened, QUERIES, k, partial=tmp_path / f"one_{k}"))


def test_a_block_that_ends_early_leaves_its_finished_files_and_the_merge_searches_the_rest(
    tmp_path: Path, files: list[EmbeddingFile]
) -> None:
    ExactSearch(files[1::2], QUERIES, 30, partial=tmp_path / "blocks").fill()
    failing, read = watched(files)
    array = tmp_path / "embeddings/img_emb/img_emb_0002.npy"
    whole = array.read_bytes()
    times = array.stat().st_atime_ns, array.stat().st_mtime_ns
    array.write_bytes(whole[: len(whole) // 2])  # block 0 ends in its second file
    with pytest.raises(UserError, match=r"img_emb_0002\.npy: ends before its last row"):
        ExactSearch(failing[0::2], QUERIES, 30, partial=tmp_path / "blocks", rows_per_tile=50).fill()
    array.write_bytes(whole)
    os.utime(array, ns=times)
    read.clear()
    merged = search(failing, QUERIES, 30, partial=tmp_path / "blocks")
    assert set(read) == {"img_emb_0002.npy"}
    assert same(merged, search(files, QUERIES, 30, partial=tmp_path / "one"))


def test_blocks_take_what_a_search_of_all_files_has_found_and_need_no_file(
    tmp_path: Path, files: list[EmbeddingFile]
) -> None:
    whole = search(files, QUERIES, 30, partial=tmp_path / "partial")
    again, read = watched(files)
    fill_blocks(again, 30, tmp_path / "partial", 5)
    assert read == [] and same(whole, search(again, QUERIES, 30, partial=tmp_path / "partial"))


# --- share ----------------------------------------------------------------------------------------


def test_shares_are_nested_and_about_as_large_as_asked_for() -> None:
    rows = np.arange(200_000)
    chosen = {share: takes_part(rows, "img_emb_0000.npy", share, 3) for share in (0.01, 0.1, 0.5)}
    for share, part in chosen.items():
        assert abs(part.mean() - share) < 4 * np.sqrt(share * (1 - share) / len(rows))
    assert not (chosen[0.01] & ~chosen[0.1]).any() and not (chosen[0.1] & ~chosen[0.5]).any()
    for name, seed in (("img_emb_0001.npy", 3), ("img_emb_0000.npy", 4)):
        overlap = (takes_part(rows, name, 0.1, seed) & chosen[0.1]).mean()
        assert abs(overlap - 0.01) < 4 * np.sqrt(0.01 * 0.99 / len(rows))


@pytest.mark.parametrize("rows_per_tile", [10, 1000])
def test_a_search_of_a_share_finds_the_nearest_of_its_rows(
    tmp_path: Path, files: list[EmbeddingFile], rows_per_tile: int
) -> None:
    chosen = [
        np.flatnonzero(takes_part(np.arange(size), file.name, 0.3, 1))
        for file, size in zip(files, SIZES, strict=True)
    ]
    expected = brute([part[rows] for part, rows in zip(PARTS, chosen, strict=True)], QUERIES, 20)
    hits = search(
        files, QUERIES, 20, partial=tmp_path / "partial", share=0.3, seed=1, rows_per_tile=rows_per_tile
    )
    assert places(hits) == [[(file, chosen[file][row]) for file, row in query] for query in expected]


# --- what is found --------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_neighbour_comes_with_its_own_metadata_and_embedding(tmp_path: Path, layout: str) -> None:
    opened = LAYOUTS[layout](tmp_path / "embeddings")
    found = ExactBackend(opened, Store(tmp_path / "store")).search(QUERIES, 30)
    for query, expected in zip(found, brute(PARTS, QUERIES, 30), strict=True):
        assert query.metadata.schema == pa.schema(list(METADATA.items()))
        assert query.metadata.column("url").to_pylist() == [
            f"http://a/{file}/{row}" for file, row in expected
        ]
        assert query.embeddings is not None and query.embeddings.dtype == np.float16
        assert np.array_equal(query.embeddings, [PARTS[file][row] for file, row in expected])
        assert query.similarity.shape == (30,)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_vectors_and_metadata_are_read_in_any_order(tmp_path: Path, layout: str) -> None:
    file = LAYOUTS[layout](tmp_path / "embeddings")[2]
    rows = np.array([200, 3, 39, 3, 40, 0])
    assert np.array_equal(file.vectors(rows), PARTS[2][rows])
    assert file.metadata(rows).column("url").to_pylist() == [f"http://a/2/{row}" for row in rows]
    assert len(file.vectors(rows[:0])) == file.metadata(rows[:0]).num_rows == 0


SPELT = {
    "LAION": {
        "SAMPLE_ID": [1.0, 9007199254740991.0],
        "URL": ["http://a", "http://b"],
        "TEXT": ["cat", None],
        "WIDTH": [640.0, float("nan")],
        "HEIGHT": [480, 1],
        "NSFW": ["UNLIKELY", "NSFW"],
        "similarity": [0.3, 0.4],
        "punsafe": [0.25, None],
        "AESTHETIC_SCORE": [5.5, 6.5],
    },
    "clip-retrieval": {
        "key": ["1", "9007199254740991"],
        "image_path": ["x", "y"],
        "url": ["http://a", "http://b"],
        "caption": ["cat", None],
        "width": [256, 256],
        "height": [256, 256],
        "original_width": [640, None],
        "original_height": [480, 1],
        "NSFW": ["UNLIKELY", "NSFW"],
        "punsafe": [0.25, None],
        "aesthetic": [5.5, 6.5],
    },
    "ours": {
        "id": [1, 9007199254740991],
        "url": ["http://a", "http://b"],
        "caption": ["cat", None],
        "width": [640, None],
        "height": [480, 1],
        "nsfw": ["UNLIKELY", "NSFW"],
        "punsafe": [0.25, None],
        "aesthetic_score": [5.5, 6.5],
    },
}


def with_metadata(folder: Path, columns: dict[str, list]) -> Path:
    write_npy(folder, [PARTS[0][:2]])
    pq.write_table(pa.table(columns), folder / "metadata/metadata_0000.parquet")
    return folder


@pytest.mark.parametrize("publisher", SPELT)
def test_metadata_is_found_as_its_publisher_spells_it(tmp_path: Path, publisher: str) -> None:
    (file,) = open_embeddings(with_metadata(tmp_path / "embeddings", SPELT[publisher]))
    one = {
        "id": "1",
        "url": "http://a",
        "caption": "cat",
        "width": 640,
        "height": 480,
        "nsfw": "UNLIKELY",
        "punsafe": 0.25,
        "aesthetic": 5.5,
        "hash": None,
    }
    other = {
        "id": "9007199254740991",
        "url": "http://b",
        "caption": None,
        "width": None,
        "height": 1,
        "nsfw": "NSFW",
        "punsafe": None,
        "aesthetic": 6.5,
        "hash": None,
    }
    assert file.metadata(np.array([1, 0, 1])).to_pylist() == [other, one, other]


def test_what_a_corpus_does_not_say_is_null_and_the_id_is_file_and_row(tmp_path: Path) -> None:
    (file,) = open_embeddings(
        with_metadata(tmp_path / "embeddings", {"link": ["http://a", "http://b"]}), columns={"url": "link"}
    )
    (row,) = file.metadata(np.array([1])).to_pylist()
    assert row == {**dict.fromkeys(METADATA), "id": "img_emb_0000:1", "url": "http://b"}


def test_a_column_can_be_named_where_its_spelling_is_another(tmp_path: Path) -> None:
    folder = with_metadata(
        tmp_path / "embeddings", {"url": ["http://a", "http://b"], "alt": ["cat", "dog"], "caption": ["", ""]}
    )
    (file,) = open_embeddings(folder, columns={"caption": "alt"})
    assert file.metadata(np.array([0, 1])).column("caption").to_pylist() == ["cat", "dog"]


# --- bad input ------------------------------------------------------------------------------------


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no embeddings; allowed: img_emb/\*\.npy with metadata"):
        open_embeddings(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        open_embeddings(tmp_path / "nowhere")


def test_metadata_of_another_length_is_refused(tmp_path: Path) -> None:
    folder = write_npy(tmp_path / "embeddings")
    pq.write_table(pa.table({"url": urls(1)[:-1]}), folder / "metadata/metadata_0001.parquet")
    with pytest.raises(
        UserError,
        match=r"metadata_0001\.parquet: 96 rows, 97 vectors in img_emb_0001\.npy; row i must describe "
        r"vector i",
    ):
        open_embeddings(folder)


def test_vectors_without_metadata_are_refused(tmp_path: Path) -> None:
    folder = write_npy(tmp_path / "embeddings")
    (folder / "metadata/metadata_0001.parquet").unlink()
    with pytest.raises(UserError, match=r"img_emb_0001\.npy: no metadata; .*metadata_0001\.parquet must say"):
        open_embeddings(folder)
    datacomp = write_npz(tmp_path / "datacomp", np.savez)
    (datacomp / "00000001.parquet").unlink()
    with pytest.raises(UserError, match=r"00000001\.npz: no metadata"):
        open_embeddings(datacomp, npz_key="l14_img")


def test_files_of_different_dimension_are_refused(tmp_path: Path) -> None:
    folder = write_npy(tmp_path / "embeddings", [PARTS[0], PARTS[1][:, :8]])
    with pytest.raises(
        UserError, match=rf"img_emb_0001\.npy: 8 numbers per vector, {D} in img_emb_0000\.npy"
    ):
        open_embeddings(folder)


def test_queries_of_another_dimension_are_refused(tmp_path: Path, files: list[EmbeddingFile]) -> None:
    with pytest.raises(
        UserError, match=rf"{D} numbers per vector; queries have 8: both must come from the same CLIP model"
    ):
        search(files, unit(QUERIES[:, :8]), 3, partial=tmp_path / "partial")


def test_vectors_that_cannot_be_compared_are_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = PARTS[1].copy()
    broken[[41, 50, 60]] = np.array([[np.nan], [np.inf], [0]], np.float16)
    opened = open_embeddings(write_npy(tmp_path / "embeddings", [PARTS[0], broken]))
    hits = search(opened, QUERIES, 30, partial=tmp_path / "partial", rows_per_tile=20)
    kept = np.delete(broken, [41, 50, 60], axis=0)
    rows = np.delete(np.arange(len(broken)), [41, 50, 60])
    expected = [
        [(file, row if file == 0 else rows[row]) for file, row in places_of_query]
        for places_of_query in brute([PARTS[0], kept], QUERIES, 30)
    ]
    assert places(hits) == expected
    assert "img_emb_0001.npy: 3 vectors are zero or not finite and are left out, the first in row 41" in (
        caplog.text
    )


def test_a_corpus_without_a_vector_to_compare_is_named(tmp_path: Path) -> None:
    opened = open_embeddings(write_npy(tmp_path / "embeddings", [PARTS[0] * 0]))
    with pytest.raises(UserError, match=r"img_emb: no vector to compare with: all are zero, not finite"):
        search(opened, QUERIES, 3, partial=tmp_path / "partial")


def test_a_truncated_array_is_refused(tmp_path: Path) -> None:
    folder = write_npy(tmp_path / "embeddings")
    array = folder / "img_emb/img_emb_0002.npy"
    array.write_bytes(array.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"img_emb_0002\.npy: \d+ bytes, \d+ promised by its header"):
        open_embeddings(folder)
    array.write_bytes(b"no array")
    with pytest.raises(UserError, match=r"img_emb_0002\.npy: no NumPy array"):
        open_embeddings(folder)


def test_an_array_of_another_type_or_order_is_refused(tmp_path: Path) -> None:
    for number, array in enumerate(
        (PARTS[0].astype(np.float64), np.asfortranarray(PARTS[0]), PARTS[0].ravel())
    ):
        folder = write_npy(tmp_path / f"embeddings{number}", [array])
        with pytest.raises(UserError, match="allowed: float16 or float32 of shape"):
            open_embeddings(folder)


def test_one_of_several_arrays_must_be_named(tmp_path: Path) -> None:
    folder = write_npz(tmp_path / "embeddings", np.savez)
    with pytest.raises(
        UserError, match=r"2 arrays of image embeddings; name one of b32_img, l14_img, l14_txt"
    ):
        open_embeddings(folder)
    with pytest.raises(UserError, match=r"no array 'h14_img'; it has b32_img, l14_img, l14_txt"):
        open_embeddings(folder, npz_key="h14_img")
    with pytest.raises(UserError, match="hold one array: leave it out"):
        open_embeddings(write_npy(tmp_path / "other"), npz_key="l14_img")


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    folder = write_npz(tmp_path / "embeddings", np.savez_compressed)
    archive = folder / "00000001.npz"
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"00000001\.npz: damaged"):
        open_embeddings(folder, npz_key="l14_img")
    middle = len(whole) // 2
    archive.write_bytes(whole[:middle] + bytes(64) + whole[middle + 64 :])
    with pytest.raises(UserError, match=r"00000001\.npz: damaged"):
        search(open_embeddings(folder, npz_key="l14_img"), QUERIES, 3, partial=tmp_path / "partial")


def test_a_column_that_holds_no_vectors_is_refused(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "embeddings", pa.list_(pa.float32()))
    with pytest.raises(UserError, match=r"part0\.parquet: no column 'embedding'; columns of vectors: vector"):
        open_embeddings(folder, vector_column="embedding")
    with pytest.raises(UserError, match=r"part0\.parquet: url: string; columns of vectors: vector"):
        open_embeddings(folder, vector_column="url")
    (folder / "part0.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"part0\.parquet: not a whole Parquet file"):
        open_embeddings(folder)


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float16()), pa.list_(pa.float32(), D)])
def test_rows_without_a_whole_vector_are_left_out(
    tmp_path: Path, kind: pa.DataType, caplog: pytest.LogCaptureFixture
) -> None:
    lists: list[Any] = [list(vector.astype(np.float16)) for vector in PARTS[0]]
    lists[0] = lists[45] = None
    lists[46] = [None] * D
    if kind != pa.list_(pa.float32(), D):
        lists[47], lists[48] = lists[47][:2], []
    (tmp_path / "embeddings").mkdir()
    table = pa.table({"url": urls(0), "vector": pa.array(lists, kind)})
    pq.write_table(table, tmp_path / "embeddings/part0.parquet", row_group_size=40)
    (file,) = open_embeddings(tmp_path / "embeddings")
    hits = search([file], QUERIES, 400, partial=tmp_path / "partial", rows_per_tile=16)
    left_out = {0, 45, 46} if kind == pa.list_(pa.float32(), D) else {0, 45, 46, 47, 48}
    assert {frozenset(row) for row in hits.row.tolist()} == {frozenset(range(len(lists))) - left_out}
    assert f"{len(left_out)} vectors are zero or not finite" in caplog.text
    assert np.isnan(file.vectors(np.array([45]))).all()
    assert np.array_equal(file.vectors(np.array([49, 1])), PARTS[0][[49, 1]])


def test_a_column_without_any_vector_is_refused(tmp_path: Path) -> None:
    table = pa.table({"url": urls(0)[:2], "vector": pa.array([None, []], pa.list_(pa.float32()))})
    pq.write_table(table, tmp_path / "part0.parquet")
    with pytest.raises(UserError, match=r"part0\.parquet: vector: no vector in 2 rows"):
        open_embeddings(tmp_path)


def test_values_that_a_column_cannot_hold_are_unknown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    columns = {
        "url": ["http://a", "http://b"],
        "width": pa.array([2**40, 640], pa.uint64()),
        "height": [1e30, 480.0],
        "punsafe": ["none", "0.25"],
        "caption": [b"caf\xe9", b"cat"],
    }
    (file,) = open_embeddings(with_metadata(tmp_path / "embeddings", columns))
    rows = file.metadata(np.array([0, 1])).to_pylist()
    names = ("width", "height", "punsafe", "caption")
    assert [[row[name] for name in names] for row in rows] == [[None] * 4, [640, 480, 0.25, "cat"]]
    assert "metadata_0000.parquet: width: 1 of 2 values are no int32 and count as unknown" in caplog.text
    assert file.metadata(np.array([0])).column("width").to_pylist() == [None]


@pytest.mark.parametrize("layout", ["npy", "npz", "parquet"])
def test_files_that_macos_adds_are_no_data(tmp_path: Path, layout: str) -> None:
    writers: dict[str, Callable[[Path], Path]] = {
        "npy": write_npy,
        "npz": lambda folder: write_npz(folder, np.savez),
        "parquet": lambda folder: write_parquet(folder, pa.list_(pa.float32())),
    }
    folder = writers[layout](tmp_path / "embeddings")
    expected = [file.name for file in open_embeddings(folder, npz_key="l14_img" if layout == "npz" else None)]
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\26\7\0\2\0\0Mac OS X        ")
    opened = open_embeddings(folder, npz_key="l14_img" if layout == "npz" else None)
    assert [file.name for file in opened] == expected and len(expected) == 3


# --- identity ---------------------------------------------------------------------------------------


def repeated_ids(folder: Path, column: str) -> list[EmbeddingFile]:
    """Two downloads put together: both begin their ids anew."""
    write_npy(folder, PARTS[:2])
    for part in range(2):
        rows = range(len(PARTS[part]))
        table = pa.table({column: [f"{row:09d}" for row in rows], "url": urls(part)})
        pq.write_table(table, folder / f"metadata/metadata_{part:04d}.parquet")
    return open_embeddings(folder)


@pytest.mark.parametrize("column", ["id", "uid", "SAMPLE_ID", "hash", "key"])
def test_an_id_names_one_image_although_two_downloads_repeat_theirs(tmp_path: Path, column: str) -> None:
    found = ExactBackend(repeated_ids(tmp_path / "e", column), Store(tmp_path / "store")).search(QUERIES, 50)
    rows = [row for query in found for row in query.metadata.to_pylist()]
    assert len({(row["id"], row["url"]) for row in rows}) == len({row["id"] for row in rows})
    for row in rows:
        part, number = row["url"].split("/")[-2:]
        assert row["id"] in (f"{int(number):09d}", f"img_emb_000{part}:{number}")
    assert {":" in row["id"] for row in rows} == {True, False}, "ids that are unique stay"


def pair_names(folder: Path, arrays: Sequence[str], tables: Sequence[str]) -> dict[str, str]:
    """The table of each array, by the names of the files."""
    (folder / "img_emb").mkdir(parents=True)
    (folder / "metadata").mkdir()
    for name in arrays:
        np.save(folder / f"img_emb/{name}.npy", PARTS[0][:2])
    for name in tables:
        pq.write_table(pa.table({"url": urls(0)[:2]}), folder / f"metadata/{name}.parquet")
    return {file.name: file.metadata_path.stem for file in open_embeddings(folder)}


@pytest.mark.parametrize(
    ("one", "other"), [("0000", "00000"), ("0", "part_0"), ("0", "00"), ("a_1", "b_1"), ("x", "y_")]
)
def test_vectors_and_metadata_are_paired_by_whole_names(tmp_path: Path, one: str, other: str) -> None:
    both = (f"img_emb_{one}", f"img_emb_{other}")
    found = pair_names(tmp_path / "e", both, (f"metadata_{one}", f"metadata_{other}"))
    assert found == {f"img_emb_{name}.npy": f"metadata_{name}" for name in (one, other)}
    with pytest.raises(
        UserError, match=rf"img_emb_{other}\.npy: no metadata.*; .*metadata_{other}\.parquet must say"
    ):
        pair_names(tmp_path / "one", both, (f"metadata_{one}",))


def test_numbers_with_other_zeros_are_paired_if_they_are_unique(tmp_path: Path) -> None:
    arrays, tables = ("img_emb_0", "img_emb_1"), ("metadata_0000", "metadata_0001")
    expected = {"img_emb_0.npy": "metadata_0000", "img_emb_1.npy": "metadata_0001"}
    assert pair_names(tmp_path / "e", arrays, tables) == expected
    with pytest.raises(
        UserError, match=r"img_emb_0\.npy: .* its number is also in metadata_00\.parquet, metadata_000"
    ):
        pair_names(tmp_path / "two", arrays[:1], ("metadata_00", "metadata_000"))


def test_metadata_without_vectors_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pair_names(tmp_path / "e", ("img_emb_0",), ("metadata_0", "metadata_1"))
    assert "metadata: 1 files describe no vectors and are not searched" in caplog.text


def test_columns_that_are_not_there_or_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = with_metadata(
        tmp_path / "embeddings", {"url": ["http://a", "http://b"], "size": ["big", "small"]}
    )
    with pytest.raises(UserError, match=r"columns\.link: unknown column; allowed: id, url, caption"):
        open_embeddings(folder, columns={"link": "url"})
    with pytest.raises(
        UserError, match=r"columns\.caption: no column 'alt' in .*metadata_0000\.parquet; it has url, size"
    ):
        open_embeddings(folder, columns={"caption": "alt"})
    (file,) = open_embeddings(folder, columns={"width": "size"})
    with pytest.raises(
        UserError,
        match=r"metadata_0000\.parquet: size: string .*; int32 is needed for 'width'; name another column",
    ):
        file.metadata(np.array([0]))


# --- memory ---------------------------------------------------------------------------------------

MEMORY = """
import sys
from pathlib import Path
import numpy as np
from augbench.retrieval.embedding_files import open_embeddings
from augbench.retrieval.exact import ExactSearch

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("VmHWM")]
    return int(line.split()[1])

queries = np.load(sys.argv[3])
ExactSearch(open_embeddings(sys.argv[1]), queries, 10, partial=sys.argv[4], rows_per_tile=4096).hits()
before = peak()
ExactSearch(open_embeddings(sys.argv[2]), queries, 10, partial=sys.argv[4], rows_per_tile=4096).hits()
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    few = clustered(4 * 4096, 512, 8)
    write_npy(tmp_path / "small", [few])
    write_npy(tmp_path / "large", [np.tile(few, (10, 1))])
    np.save(tmp_path / "queries.npy", unit(few[:4].astype(np.float64)).astype(np.float32))
    arguments = [str(tmp_path / name) for name in ("small", "large", "queries.npy", "partial")]
    grown = subprocess.run(
        [sys.executable, "-c", MEMORY, *arguments], check=True, capture_output=True, text=True
    ).stdout
    assert (tmp_path / "large/img_emb/img_emb_0000.npy").stat().st_size > 160e6
    assert int(grown) < 40_000  # KiB
