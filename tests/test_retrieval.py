"""Retrieval: growing k, filters with reasons, the ledger; neighbours from a real clip-retrieval index."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Workspace

from augbench.config import RetrieveMethod
from augbench.corpus import embed
from augbench.corpus.embed import build_index
from augbench.errors import UserError
from augbench.files import read_json
from augbench.retrieval.index import IndexBackend, Neighbour
from augbench.retrieval.retrieve import Fates, find


@dataclass
class ListBackend:
    """A search backend over a fixed ranking; ids in ``twins`` duplicate the id before them."""

    size: int
    twins: frozenset[int] = frozenset()
    unsafe: frozenset[int] = frozenset()
    asked: list[int] = field(default_factory=list)

    def search(self, query: str, k: int) -> list[Neighbour]:
        self.asked.append(k)
        return [Neighbour(i, f"u{i}", "", 1 - i / 1000, "NSFW" if i in self.unsafe else "UNLIKELY") for i in range(min(k, self.size))]

    def duplicates(self, ids: Sequence[int], threshold: float) -> set[int]:
        return self.twins & set(ids)


def retrieved(backend: ListBackend, wanted: int, flagged: frozenset[int] = frozenset(), **config: object) -> list[tuple[int, str]]:
    method = RetrieveMethod(mechanism="retrieve", **config)  # type: ignore[arg-type]
    rows = find("c", "q", wanted, method, backend, Fates(method, lambda ids: [i in flagged for i in ids]))  # type: ignore[arg-type]
    return [(row.id, row.fate) for row in rows]


def test_k_starts_at_1_4_n_and_stops_when_enough_are_kept() -> None:
    backend = ListBackend(1000)
    rows = retrieved(backend, 10)
    assert backend.asked == [14]
    assert Counter(fate for _, fate in rows) == {"kept": 10, "not needed": 4}


def test_k_grows_in_steps_of_the_first_until_enough_survive() -> None:
    backend = ListBackend(1000, twins=frozenset(range(5, 25)))
    rows = retrieved(backend, 10)
    assert backend.asked == [14, 28, 42]
    assert [i for i, fate in rows if fate == "kept"] == [0, 1, 2, 3, 4, 25, 26, 27, 28, 29]


def test_k_stops_at_its_limit_and_the_class_stays_short() -> None:
    backend = ListBackend(1000, twins=frozenset(range(1, 1000)))
    rows = retrieved(backend, 10, growth_limit=3)
    assert backend.asked == [14, 28, 42]
    assert sum(fate == "kept" for _, fate in rows) == 1


def test_a_corpus_smaller_than_k_ends_the_search() -> None:
    backend = ListBackend(12)
    assert len(retrieved(backend, 20)) == 12 and backend.asked == [28]


def test_every_filter_leaves_its_reason() -> None:
    backend = ListBackend(100, twins=frozenset({1}), unsafe=frozenset({2}))
    fates = dict(retrieved(backend, 10, flagged=frozenset({3})))
    assert [fates[i] for i in range(5)] == ["kept", "duplicate", "unsafe: metadata", "unsafe: checker", "kept"]


def test_filters_can_be_switched_off() -> None:
    backend = ListBackend(100, twins=frozenset({1}), unsafe=frozenset({2}))
    fates = dict(retrieved(backend, 10, flagged=frozenset({3}), duplicate_threshold=None, drop_unsafe=False))
    assert all(fates[i] == "kept" for i in range(10))


def backend_of(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> IndexBackend:
    monkeypatch.chdir(workspace.folder)
    return IndexBackend(workspace.results / "corpus/index", "resources/mini/clip")


def test_neighbours_of_the_real_index_are_the_exact_ones(finished: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from augbench.models import load_clip

    backend = backend_of(finished, monkeypatch)
    model, tokenizer = load_clip("resources/mini/clip", torch.device("cpu"))
    query = "A photo of ankleboot,bootee."
    with torch.inference_mode():
        text = torch.nn.functional.normalize(model.get_text_features(**tokenizer([query], return_tensors="pt")), dim=-1)
    (embeddings,) = [np.load(path) for path in (finished.results / "corpus/embeddings/img_emb").glob("*.npy")]
    exact = embeddings.astype(np.float32) @ text[0].numpy()
    found = backend.search(query, 50)
    similarities = [neighbour.similarity for neighbour in found]
    assert similarities == sorted(similarities, reverse=True)
    assert similarities == pytest.approx(np.sort(exact)[::-1][:50].tolist(), abs=1e-5)
    assert similarities == pytest.approx(exact[[neighbour.id for neighbour in found]].tolist(), abs=1e-5)


def write_embeddings(folder: Path, rows: int) -> list[str]:
    """Random embeddings in two parts, with metadata, as :func:`embed_corpus` leaves them."""
    vectors = np.random.default_rng(0).normal(size=(rows, 16))
    paths = [folder / f"img_emb/img_emb_{part:05d}.npy" for part in range(2)]
    for part, (path, rows_of_part) in enumerate(zip(paths, np.array_split(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), 2), strict=True)):
        table = folder / f"metadata/metadata_{part:05d}.parquet"
        for parent in (path.parent, table.parent):
            parent.mkdir(parents=True, exist_ok=True)
        np.save(path, rows_of_part.astype(np.float16))
        pq.write_table(pa.table({"url": [f"u{part}-{i}" for i in range(len(rows_of_part))]}), table)
    return [str(path) for path in paths]


def test_an_index_of_a_small_corpus_misses_no_neighbour(tmp_path: Path) -> None:
    import faiss

    paths = write_embeddings(tmp_path / "embeddings", 3000)
    build_index(paths, tmp_path / "index", "clip", 1)
    vectors = np.concatenate([np.load(path) for path in paths]).astype(np.float32)
    _, found = faiss.read_index(str(tmp_path / "index/image.index")).search(vectors[:50], 20)
    assert np.array_equal(found, np.argsort(-(vectors[:50] @ vectors.T), axis=1)[:, :20])
    assert read_json(tmp_path / "index/image.json")["index_key"] == "Flat"
    urls = pq.read_table(tmp_path / "index/metadata").column("url").to_pylist()
    assert len(urls) == 3000 and urls[1500] == "u1-0"


def test_a_large_corpus_gets_the_index_that_autofaiss_chooses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_embeddings(tmp_path / "embeddings", 3000)
    monkeypatch.setattr(embed, "EXACT_UP_TO", 2999)
    build_index(paths, tmp_path / "index", "clip", 1)
    assert read_json(tmp_path / "index/image.json")["index_key"] != "Flat"


def test_an_image_found_twice_is_one_image(finished: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = backend_of(finished, monkeypatch)
    assert backend.duplicates([5, 9, 5], 0.99999) == {5}
    assert len(backend.duplicates(list(range(200)), 0.2)) > 100


def test_embeddings_of_another_clip_are_refused(finished: Workspace) -> None:
    with pytest.raises(UserError, match=r"embeddings of 'resources/mini/clip'; a query by 'other' needs embeddings of the same CLIP model"):
        IndexBackend(finished.results / "corpus/index", "other")


def test_the_ledger_adds_up_and_agrees_with_the_shards(finished: Workspace) -> None:
    ledgers = [row for path in (finished.results / "retrieval/retrieval").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    kept = Counter(row["class_id"] for row in ledgers if row["fate"] == "kept")
    assert len(kept) == 10 and set(kept.values()) == {10}
    for class_id in kept:
        shard = pq.read_table(finished.results / f"shards/retrieval/selected/{class_id}/0.parquet")
        assert shard.column("source").to_pylist() == [row["url"] for row in ledgers if row["class_id"] == class_id and row["fate"] == "kept"]
