"""Retrieval: growing k, filters, ledger, manifests, short classes; neighbours of real backends."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import SMALL_STUDY, Workspace
from PIL import Image

from augbench.config.methods import RetrieveMethod
from augbench.config.study import parse_study
from augbench.errors import UserError
from augbench.files import read_json, write_json
from augbench.retrieval import embed
from augbench.retrieval.embed import IDENTITY, build_index
from augbench.retrieval.filters import KEPT, Filters, duplicates, owners
from augbench.retrieval.hunt import LEDGER, Hunt, hunt_all, prefix_sizes
from augbench.retrieval.images import Arrival, FolderOrigin
from augbench.retrieval.index import IndexBackend
from augbench.retrieval.manifest import freeze, read_manifest
from augbench.retrieval.neighbours import Found, Neighbour, metadata_table, read_neighbours, write_neighbours
from augbench.retrieval.shortfall import decide, read_excluded, shortfall, summarise
from augbench.retrieval.web.fates import FETCHED

NONE: frozenset[int] = frozenset()


def neighbours_of(size: int, twins: frozenset[int] = NONE, **columns: Mapping[int, Any]) -> list[Neighbour]:
    """Neighbours 0, 1, ... of class c; each has its own embedding, those in ``twins`` the previous one's."""
    rows: list[Neighbour] = []
    for i in range(size):
        vector = rows[-1].embedding if i in twins else np.eye(1, size, i, dtype=np.float16)[0]
        given = {name: values.get(i) for name, values in columns.items()}
        row = Neighbour("c", "q", i, str(i), f"u{i}", "", None, None, None, None, None, 1 - i / 1000, vector)
        rows.append(replace(row, **given))
    return rows


@dataclass
class ListOrigin:
    """Has all images except some; the colour of an image is its number."""

    gone: frozenset[int] = NONE
    same: frozenset[int] = NONE
    asked: list[int] = field(default_factory=list)

    def fetch(self, wanted: Mapping[str, Sequence[Neighbour]]) -> dict[str, dict[str, Arrival]]:
        found: dict[str, dict[str, Arrival]] = {}
        for class_id, rows in wanted.items():
            self.asked.append(len(rows))
            found[class_id] = {row.id: self._arrival(int(row.id)) for row in rows}
        return found

    def _arrival(self, number: int) -> Arrival:
        if number in self.gone:
            return Arrival("dead: HTTP 404")
        content = "same" if number in self.same else str(number)
        return Arrival(
            FETCHED, content, 64, 64, lambda: Image.new("RGB", (64, 64), (number % 256, number // 256, 0))
        )

    def close(self, class_id: str) -> None:
        pass


def hunted(
    neighbours: list[Neighbour],
    wanted: int,
    origin: ListOrigin | None = None,
    flagged: frozenset[int] = NONE,
    **config: object,
) -> list[tuple[int, str]]:
    """(id, fate) of every examined neighbour."""
    method = RetrieveMethod(mechanism="retrieve", **config)  # type: ignore[arg-type]
    hunt = Hunt("c", neighbours, wanted, prefix_sizes(method, wanted))
    filters = Filters(method)

    def flags(images: Sequence[Image.Image]) -> list[bool]:
        return [image.getpixel((0, 0))[0] in flagged for image in images]  # type: ignore[index]

    hunt_all([hunt], filters, origin or ListOrigin(), flags)
    return [(int(row["id"]), row["fate"]) for row in hunt.ledger(filters)]


# --- the protocol's loop --------------------------------------------------------------------------


def test_k_starts_at_1_4_n_and_stops_when_enough_are_kept() -> None:
    origin = ListOrigin()
    rows = hunted(neighbours_of(1000), 10, origin)
    assert origin.asked == [14]
    assert Counter(fate for _, fate in rows) == {"kept": 10, "not needed": 4}


def test_k_for_130_images_grows_from_182_to_1820() -> None:
    sizes = prefix_sizes(RetrieveMethod(mechanism="retrieve"), 130)
    assert (sizes[:3], sizes[-1], len(sizes)) == ([182, 364, 546], 1820, 10)


def test_k_grows_in_steps_of_the_first_until_enough_survive() -> None:
    origin = ListOrigin()
    rows = hunted(neighbours_of(1000, twins=frozenset(range(5, 25))), 10, origin)
    assert len(rows) == 42 and sum(origin.asked) == 42 - 20, "what a filter leaves out is not fetched"
    assert [i for i, fate in rows if fate == "kept"] == [0, 1, 2, 3, 4, 25, 26, 27, 28, 29]


def test_dead_links_make_k_grow_and_nothing_is_fetched_twice() -> None:
    origin = ListOrigin(gone=frozenset(range(0, 40, 2)))
    rows = hunted(neighbours_of(1000), 10, origin)
    assert origin.asked == [14, 14]
    assert Counter(fate for _, fate in rows) == {"kept": 10, "dead: HTTP 404": 14, "not needed": 4}


def test_k_stops_at_its_limit_and_the_class_stays_short() -> None:
    rows = hunted(neighbours_of(1000, twins=frozenset(range(1, 1000))), 10, growth_limit=3)
    assert len(rows) == 42 and sum(fate == "kept" for _, fate in rows) == 1


def test_a_corpus_smaller_than_k_ends_the_search() -> None:
    assert Counter(fate for _, fate in hunted(neighbours_of(12), 20)) == {"kept": 12}


def test_every_filter_leaves_its_reason() -> None:
    neighbours = neighbours_of(
        100,
        twins=frozenset({1}),
        nsfw={2: "NSFW", 3: "UNSURE"},
        punsafe={4: 0.9, 5: 0.1},
        width={6: 500, 7: 500},
        height={6: 10, 7: 500},
        aesthetic={8: 4.9, 9: 5.0, **dict.fromkeys([i for i in range(100) if i not in (8, 9)], 7.0)},
    )
    origin = ListOrigin(gone=frozenset({10}), same=frozenset({11, 12}))
    limits = {"max_punsafe": 0.5, "min_side": 100, "min_aesthetics": 5.0}
    fates = dict(hunted(neighbours, 10, origin, flagged=frozenset({13}), **limits))
    expected = {1: "duplicate", 2: "unsafe: metadata", 4: "unsafe: punsafe", 6: "too small", 8: "aesthetics"}
    expected |= {10: "dead: HTTP 404", 12: "same file", 13: "unsafe: checker"}
    assert {i: fates[i] for i in range(14)} == {i: expected.get(i, "kept") for i in range(14)}


@pytest.mark.parametrize(
    "tag",
    ["NSFW", "nsfw", " Nsfw ", "true", "True", "LIKELY", "VERY_LIKELY", "yes", "1", "1.0", "0.93", "porn"],
)
def test_every_spelling_of_unsafe_counts(tag: str) -> None:
    fates = dict(hunted(neighbours_of(3, nsfw={1: tag}), 2))
    assert fates[1] == "unsafe: metadata" and fates[0] == fates[2] == KEPT


@pytest.mark.parametrize(
    "tag", [None, "", "UNLIKELY", "unlikely", "UNSURE", "false", "False", "0", "0.0", "0.02", "sfw", "nan"]
)
def test_images_that_are_called_safe_or_nothing_are_kept(tag: str | None) -> None:
    assert dict(hunted(neighbours_of(3, nsfw={1: tag}), 2))[1] == KEPT


def test_filters_can_be_switched_off() -> None:
    neighbours = neighbours_of(100, twins=frozenset({1}), nsfw={2: "NSFW"})
    fates = dict(hunted(neighbours, 10, flagged=frozenset({3}), duplicate_threshold=None, drop_unsafe=False))
    assert fates[2] == "kept" and fates[1] == "kept"


def test_duplicates_are_connected_components_and_the_nearest_is_kept() -> None:
    angles = np.deg2rad([0, 90, 12, 24, 91, 180])  # 0 and 24 degrees are connected through 12
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert duplicates(vectors, 0.97).tolist() == [False, False, True, True, True, False]


def test_our_duplicates_are_those_of_clip_retrievals_detector() -> None:
    from clip_retrieval.clip_back import KnnService

    vectors = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    theirs = KnnService(clip_resources={}).get_non_uniques(vectors, 0.98)
    assert 50 < len(theirs) < 290
    assert set(np.flatnonzero(duplicates(vectors, 0.98)).tolist()) == set(theirs)


def test_an_image_can_be_kept_out_of_a_second_class(tmp_path: Path) -> None:
    def found(similarities: list[float]) -> Found:
        ids = [str(i) for i in range(len(similarities))]
        return Found(metadata_table({"id": ids}, len(ids)), np.array(similarities, dtype=np.float32), None)

    path = tmp_path / "neighbours.parquet"
    write_neighbours(
        path,
        {"b": found([0.9, 0.8, 0.7]), "a": found([0.5, 0.8, 0.75])},
        {"a": "qa", "b": "qb"},
        "test",
        "clip",
    )
    assert owners(path) == {"0": "b", "1": "a", "2": "a"}
    filters = Filters(RetrieveMethod(mechanism="retrieve", one_class=True), owner=owners(path))
    assert filters.fates(read_neighbours(path, ["b"])["b"]) == [
        KEPT,
        "nearer to another class",
        "nearer to another class",
    ]


def test_neighbours_are_read_as_they_were_written(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float16)
    columns = {
        "id": ["x", "y", "z"],
        "url": ["u", None, "w"],
        "width": [1, 2, None],
        "nsfw": [None, "NSFW", None],
        "punsafe": [0.25, None, None],
    }
    found = Found(metadata_table(columns, 3), np.array([0.5, 0.25, 0.125], dtype=np.float32), vectors)
    write_neighbours(tmp_path / "n.parquet", {"a": found, "b": found}, {"a": "qa", "b": "qb"}, "test", "clip")
    rows = read_neighbours(tmp_path / "n.parquet", ["b"])["b"]
    assert [
        (row.class_id, row.query, row.rank, row.id, row.url, row.width, row.nsfw, row.punsafe, row.similarity)
        for row in rows
    ] == [
        ("b", "qb", 0, "x", "u", 1, None, 0.25, 0.5),
        ("b", "qb", 1, "y", None, 2, "NSFW", None, 0.25),
        ("b", "qb", 2, "z", "w", None, None, None, 0.125),
    ]
    assert np.array_equal(np.stack([row.embedding for row in rows]), vectors)  # type: ignore[misc]


def test_where_a_backend_gives_no_embeddings_duplicates_are_found_after_download() -> None:
    with_vectors = neighbours_of(100, twins=frozenset({3, 7}))
    without = [replace(row, embedding=None) for row in with_vectors]
    vectors = {row.id: row.embedding for row in with_vectors}
    method = RetrieveMethod(mechanism="retrieve")
    hunt, filters = Hunt("c", without, 10, prefix_sizes(method, 10)), Filters(method)

    def embedded(images: Sequence[Image.Image]) -> np.ndarray:
        numbers = [image.getpixel((0, 0))[0] for image in images]  # type: ignore[index]
        return np.stack([vectors[str(number)] for number in numbers])  # type: ignore[misc]

    hunt_all([hunt], filters, ListOrigin(), lambda images: [False] * len(images), embedded)
    assert [(int(row["id"]), row["fate"]) for row in hunt.ledger(filters)] == hunted(with_vectors, 10)


def test_ids_that_stand_for_several_images_of_a_class_are_refused(tmp_path: Path) -> None:
    path, similarity = tmp_path / "neighbours.parquet", np.ones(2, np.float32)
    twice = Found(metadata_table({"id": ["7", "7"], "url": ["u0", "u1"]}, 2), similarity, None)
    write_neighbours(path, {"a": twice, "b": twice}, {"a": "q", "b": "q"}, "server", "abc")
    with pytest.raises(UserError, match=r"neighbours\.parquet: id '7' stands for 2 images of class 'b'"):
        read_neighbours(path, ["b"])
    shared = Found(metadata_table({"id": ["7"], "url": ["u0"]}, 1), similarity[:1], None)
    write_neighbours(path, {"a": shared, "b": shared}, {"a": "q", "b": "q"}, "server", "abc")
    assert [rows[0].id for rows in read_neighbours(path, ["a", "b"]).values()] == ["7", "7"]


# --- manifests, and classes that stay short -------------------------------------------------------


def ledger(path: Path, class_id: str, fates: Sequence[str]) -> Path:
    rows = [
        {
            "class_id": class_id,
            "query": "q",
            "rank": i,
            "id": str(i),
            "url": f"u{i}",
            "similarity": 0.5,
            "k": len(fates),
            "fate": fate,
            "sha256": f"s{i}",
        }
        for i, fate in enumerate(fates)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=LEDGER), path)
    return path


@pytest.fixture
def searched(tmp_path: Path) -> Path:
    path = tmp_path / "neighbours.parquet"
    found = Found(metadata_table({"id": ["0"]}, 1), np.ones(1, dtype=np.float32), None)
    write_neighbours(path, {"a": found}, {"a": "q"}, "exact", "abc")
    return path


def test_a_manifest_names_what_was_kept_and_is_replayed_in_its_order(tmp_path: Path, searched: Path) -> None:
    freeze(
        [ledger(tmp_path / "l.parquet", "a", ["kept", "duplicate", "kept", "not needed"])],
        searched,
        tmp_path / "m.parquet",
    )
    manifest = read_manifest(tmp_path / "m.parquet")
    assert manifest.hashes == {"a": {"0": "s0", "2": "s2"}}
    assert set(manifest.table.column("clip").to_pylist()) == {"abc"}
    assert manifest.found(["a"])["a"].metadata.column("url").to_pylist() == ["u0", "u2"]
    with pytest.raises(UserError, match="no image of class 'b'; allowed: a manifest with all 2 classes"):
        manifest.found(["a", "b"])
    with pytest.raises(UserError, match="no column"):
        read_manifest(searched)


def test_a_manifest_with_an_ambiguous_id_is_refused(tmp_path: Path, searched: Path) -> None:
    rows = pq.read_table(ledger(tmp_path / "l.parquet", "a", ["kept", "kept"])).to_pylist()
    pq.write_table(pa.Table.from_pylist([{**row, "id": "7"} for row in rows], LEDGER), tmp_path / "l.parquet")
    freeze([tmp_path / "l.parquet"], searched, tmp_path / "m.parquet")
    with pytest.raises(UserError, match=r"m\.parquet: id '7' stands for 2 images of class 'a'"):
        read_manifest(tmp_path / "m.parquet").found(["a"])


def test_a_file_that_has_changed_since_the_manifest_is_left_out() -> None:
    method = RetrieveMethod(mechanism="retrieve", duplicate_threshold=None)
    hunt = Hunt("c", neighbours_of(3), 3, [3], {"0": "0", "1": "something else", "2": "2"})
    hunt_all([hunt], Filters(method), ListOrigin(), lambda images: [False] * len(images))
    assert [row["fate"] for row in hunt.ledger(Filters(method))] == [
        "kept",
        "changed since the manifest",
        "kept",
    ]


def study_of(exclude: object = "auto", **rows: dict[str, Any]) -> Any:
    methods = {name: {"mechanism": "retrieve", **row} for name, row in (rows or {"retrieval": {}}).items()}
    return parse_study(
        {
            **SMALL_STUDY,
            "methods": {"none": {"mechanism": "real"}, **methods},
            "retrieval": {"exclude": exclude},
        }
    )


def test_classes_that_stay_short_are_computed_with_their_counts() -> None:
    study = study_of(
        retrieval={},
        retrieval_1000={"added_per_training_image": 10, "may_fall_short": True},
        half={"added_per_training_image": 0.5},
    )
    kept = {
        "retrieval": {"a": 10, "b": 9, "c": 0},
        "retrieval_1000": {"a": 50},
        "half": {"a": 5, "b": 5, "c": 4},
    }
    short = shortfall(study, kept, {"a": 10, "b": 10, "c": 9, "d": 10})
    assert short == {
        "b": {"retrieval": {"kept": 9, "needed": 10}},
        "c": {"retrieval": {"kept": 0, "needed": 9}, "half": {"kept": 4, "needed": 5}},
        "d": {"retrieval": {"kept": 0, "needed": 10}, "half": {"kept": 0, "needed": 5}},
    }
    assert decide(study, short, ["d", "c", "b", "a", "e"]) == ["d", "c", "b"]


def test_a_class_stays_with_as_many_images_as_the_row_says() -> None:
    study = study_of(retrieval={"images_per_class": 130, "least_images": 130})
    kept = {"retrieval": {"a": 130, "b": 129, "c": 130}}
    # 74 real images would need 74; the largest class decides for itself
    assert shortfall(study, kept, {"a": 74, "b": 74, "c": 131}) == {
        "b": {"retrieval": {"kept": 129, "needed": 130}},
        "c": {"retrieval": {"kept": 130, "needed": 131}},
    }


def test_listed_classes_are_not_counted_as_short() -> None:
    assert shortfall(study_of(["b"]), {"retrieval": {"a": 9}}, {"a": 9, "b": 9}) == {}


@pytest.mark.parametrize(
    ("keys", "left_out"),
    [
        ({}, {"metadata", "checker"}),
        ({"drop_unsafe": False}, set()),
        ({"drop_tagged": False}, {"checker"}),
        ({"drop_unsafe": False, "drop_tagged": True}, {"metadata"}),
    ],
)
def test_the_corpus_tag_and_the_safety_checker_are_two_keys(
    keys: dict[str, bool], left_out: set[str]
) -> None:
    method = RetrieveMethod(mechanism="retrieve", duplicate_threshold=None, **keys)  # type: ignore[arg-type]
    neighbours = neighbours_of(10, nsfw={2: "NSFW"})
    fates = Filters(method).fates(neighbours)
    assert ("unsafe: metadata" in fates) is ("metadata" in left_out)
    assert method.drop_unsafe is ("checker" in left_out)


def test_a_list_of_classes_must_hold_those_that_are_short() -> None:
    short = {"b": {"retrieval": {"kept": 9, "needed": 10}}}
    assert decide(study_of(["b", "c"]), short, ["a", "b", "c", "d"]) == ["b", "c"]
    with pytest.raises(
        UserError,
        match=r"retrieval\.exclude: 1 class\(es\) with too few retrieved images: b \(9 kept\); allowed: auto",
    ):
        decide(study_of(["c"]), short, ["a", "b", "c", "d"])
    with pytest.raises(UserError, match="1 class"):
        decide(study_of("none"), short, ["a", "b", "c", "d"])
    with pytest.raises(UserError, match="at least 2 must stay"):
        decide(study_of(["b"]), short, ["a", "b"])


def test_the_summary_counts_every_candidate_once(tmp_path: Path, searched: Path) -> None:
    ledgers = [
        ledger(tmp_path / "l0.parquet", "a", ["kept"] * 3 + ["duplicate"]),
        ledger(tmp_path / "l1.parquet", "b", ["kept", "dead: DNS"]),
        ledger(tmp_path / "l2.parquet", "c", ["kept"] * 3),
    ]
    out = {name: tmp_path / name for name in ("m.parquet", "yield.csv", "excluded.json")}
    summarise(
        study_of(),
        ["a", "b", "c"],
        {"a": 3, "b": 3, "c": 3},
        {"retrieval": ledgers},
        {"retrieval": searched},
        {"retrieval": out["m.parquet"]},
        out["yield.csv"],
        out["excluded.json"],
    )
    lines = out["yield.csv"].read_text().splitlines()
    assert "retrieval,all classes,kept,7" in lines and "retrieval,b,dead: DNS,1" in lines
    assert read_excluded([out["excluded.json"]]) == {"b"} and read_excluded([]) == frozenset()
    assert read_json(out["excluded.json"])["short"]["b"]["retrieval"] == {"kept": 1, "needed": 3}
    assert pq.read_table(out["m.parquet"]).num_rows == 7


# --- backends -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Corpus:
    """The finished study's corpus, with an index beside its embeddings."""

    embeddings: Path
    index: Path
    clip: dict[str, str]
    vectors: np.ndarray
    queries: np.ndarray

    def exact(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and similarities by brute force."""
        similarity = self.queries @ self.vectors.T
        order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        return order, np.take_along_axis(similarity, order, 1)


@pytest.fixture(scope="module")
def corpus(finished: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    import torch

    from augbench.models.clip import load_clip

    embeddings, index = finished.results / "corpus/embeddings", tmp_path_factory.mktemp("index") / "index"
    build_index(embeddings, index, 1)
    vectors = np.concatenate(
        [np.load(path) for path in sorted((embeddings / "img_emb").glob("*.npy"))]
    ).astype(np.float32)
    clip = {"id": read_json(embeddings / IDENTITY)["clip"], "folder": "resources/mini/clip"}
    texts = ["A photo of ankleboot,bootee.", "A photo of trouser,pants.", "a sneaker", "pullover"]
    queries = load_clip(clip, torch.device("cpu")).embed_texts(texts).numpy()
    return Corpus(embeddings, index, clip, vectors, queries)


def check_neighbours(found: list[Found], corpus: Corpus, k: int, vectors: bool) -> None:
    rows, similarities = corpus.exact(k)
    for query, result, row, similarity in zip(corpus.queries, found, rows, similarities, strict=True):
        ids = [int(name) for name in result.metadata.column("id").to_pylist()]
        assert np.allclose(result.similarity, similarity, atol=1e-4)
        assert np.allclose(result.similarity, corpus.vectors[ids] @ query, atol=1e-4)
        assert len(set(ids) ^ set(row.tolist())) <= 2, "the same images, but for ties at the last place"
        if vectors:
            assert result.embeddings is not None and np.allclose(
                result.embeddings, corpus.vectors[ids], atol=1e-3
            )
        for column in ("url", "caption", "nsfw"):
            assert None not in result.metadata.column(column).to_pylist()


def test_exact_search_and_the_index_give_the_same_neighbours(corpus: Corpus, tmp_path: Path) -> None:
    from augbench.artifacts.store import Store
    from augbench.retrieval.embedding_files import open_embeddings
    from augbench.retrieval.exact import ExactBackend

    exact = ExactBackend(open_embeddings(corpus.embeddings), Store(tmp_path / "store")).search(
        corpus.queries, 200
    )
    index = IndexBackend(corpus.index, corpus.clip).search(corpus.queries, 200)
    check_neighbours(exact, corpus, 200, vectors=True)
    check_neighbours(index, corpus, 200, vectors=True)
    for one, other in zip(exact, index, strict=True):
        assert one.metadata.column("nsfw").to_pylist()[:50] == other.metadata.column("nsfw").to_pylist()[:50]


def test_embeddings_of_another_clip_are_refused(corpus: Corpus) -> None:
    with pytest.raises(
        UserError, match=r"embeddings of CLIP \w+; a query by CLIP other needs embeddings of the same model"
    ):
        IndexBackend(corpus.index, {**corpus.clip, "id": "other"})
    with pytest.raises(UserError, match=r"corpus\.folder: no image\.index in"):
        IndexBackend(corpus.embeddings, corpus.clip)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def server(corpus: Corpus, tmp_path: Path) -> Iterator[str]:
    """A real ``clip-retrieval back`` over the corpus's index."""
    (tmp_path / "indices.json").write_text(json.dumps({"corpus": str(corpus.index)}))
    port = free_port()
    options = {
        "port": port,
        "indices_paths": tmp_path / "indices.json",
        "clip_model": f"hf_clip:{Path('resources/mini/clip').resolve()}",
        "use_jit": False,
        "enable_mclip_option": False,
        "provide_aesthetic_embeddings": False,
        "columns_to_return": '["url","caption","NSFW"]',
    }
    command = [
        sys.executable,
        "-m",
        "clip_retrieval.cli",
        "back",
        *(f"--{name}={value}" for name, value in options.items()),
    ]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        )
    try:
        for _ in range(240):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, (tmp_path / "log").read_text()[-2000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/knn-service"
    finally:
        process.kill()
        process.wait()


@pytest.mark.full
def test_a_real_server_gives_the_same_neighbours_and_is_asked_for_nothing_else(
    corpus: Corpus, server: str
) -> None:
    from augbench.retrieval.index import ServerBackend

    found = ServerBackend(server, "corpus").search(corpus.queries, 200)
    check_neighbours(found, corpus, 200, vectors=False)
    assert all(result.embeddings is None for result in found)
    with pytest.raises(UserError, match=r"corpus\.url: .*: answered"):
        ServerBackend(server, "another").search(corpus.queries[:1], 5)


def test_a_hidden_file_in_an_indexs_metadata_is_named(tmp_path: Path) -> None:
    (tmp_path / "metadata").mkdir()
    (tmp_path / "image.index").write_bytes(b"")
    (tmp_path / "metadata/._metadata_0.parquet").write_bytes(b"macOS")
    with pytest.raises(UserError, match=r"\._metadata_0\.parquet: a hidden file, no metadata; delete it"):
        IndexBackend(tmp_path, {"id": "clip", "folder": "folder"})


def test_a_server_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from augbench.retrieval import index

    monkeypatch.setattr(index, "SECONDS_BETWEEN", 0.0)
    url = f"http://127.0.0.1:{free_port()}/knn-service"
    with pytest.raises(UserError, match=rf"corpus\.url: {url}: "):
        index.ServerBackend(url, "corpus").search(np.ones((1, 4), dtype=np.float32), 5)


def write_embeddings(folder: Path, rows: int) -> Path:
    """Write random embeddings in two parts, with metadata, like the embedding job of a corpus."""
    vectors = np.random.default_rng(0).normal(size=(rows, 16))
    paths = [folder / f"img_emb/img_emb_{part:05d}.npy" for part in range(2)]
    for part, (path, rows_of_part) in enumerate(
        zip(paths, np.array_split(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), 2), strict=True)
    ):
        table = folder / f"metadata/metadata_{part:05d}.parquet"
        for parent in (path.parent, table.parent):
            parent.mkdir(parents=True, exist_ok=True)
        np.save(path, rows_of_part.astype(np.float16))
        pq.write_table(pa.table({"url": [f"u{part}-{i}" for i in range(len(rows_of_part))]}), table)
    write_json(folder / IDENTITY, {"clip": "clip", "corpus": "corpus"})
    return folder


def test_an_index_of_a_small_corpus_misses_no_neighbour(tmp_path: Path) -> None:
    import faiss

    folder = write_embeddings(tmp_path / "embeddings", 3000)
    build_index(folder, tmp_path / "index", 1)
    vectors = np.concatenate([np.load(path) for path in sorted((folder / "img_emb").glob("*.npy"))]).astype(
        np.float32
    )
    _, found = faiss.read_index(str(tmp_path / "index/image.index")).search(vectors[:50], 20)
    assert np.array_equal(found, np.argsort(-(vectors[:50] @ vectors.T), axis=1)[:, :20])
    assert read_json(tmp_path / "index/image.json")["index_key"] == "Flat"
    urls = pq.read_table(tmp_path / "index/metadata").column("url").to_pylist()
    assert len(urls) == 3000 and urls[1500] == "u1-0"


@pytest.mark.full
def test_a_large_corpus_gets_the_index_that_autofaiss_chooses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_embeddings(tmp_path / "embeddings", 3000)
    monkeypatch.setattr(embed, "EXACT_UP_TO", 2999)
    build_index(folder, tmp_path / "index", 1)
    assert read_json(tmp_path / "index/image.json")["index_key"] != "Flat"


# --- a folder of images ---------------------------------------------------------------------------


def test_a_folder_gives_the_images_that_it_lists_and_nothing_else(tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    (root / "cats").mkdir(parents=True)
    Image.new("RGB", (40, 30), "red").save(root / "cats/one.png")
    Image.new("RGB", (40, 30), "blue").save(tmp_path / "secret.png")
    (root / "broken.png").write_bytes(b"no image")
    (root / "link.png").symlink_to(tmp_path / "secret.png")  # as in a cache of Hugging Face's
    Image.new("RGB", (40, 30), "blue").save(root / "._cats.png")
    names = [
        "cats/one.png",
        "../secret.png",
        str(tmp_path / "secret.png"),
        "link.png",
        "broken.png",
        "gone.png",
        "._cats.png",
    ]
    rows = [replace(neighbours_of(1)[0], id=name) for name in names]
    found = FolderOrigin(root).fetch({"c": rows})["c"]
    outside = "refused: outside the folder"
    assert [found[name].fate for name in names] == [
        FETCHED,
        outside,
        outside,
        FETCHED,
        "undecodable",
        "dead: no such file",
        "refused: hidden, or left by another program",
    ]
    image = found["cats/one.png"]
    assert image.width == 40 and image.open().getpixel((0, 0)) == (255, 0, 0)  # type: ignore[misc]


# --- the workflow ---------------------------------------------------------------------------------


def test_the_ledger_adds_up_and_agrees_with_the_shards(finished: Workspace) -> None:
    folder = finished.results / "retrieval"
    ledgers = [
        row
        for path in sorted((folder / "retrieval/ledgers").glob("*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]
    kept = Counter(row["class_id"] for row in ledgers if row["fate"] == "kept")
    assert len(kept) == 10 and set(kept.values()) == {10}
    for class_id in kept:
        shard = pq.read_table(finished.results / f"shards/retrieval/selected/{class_id}/0.parquet")
        assert shard.column("source").to_pylist() == [
            row["url"] for row in ledgers if row["class_id"] == class_id and row["fate"] == "kept"
        ]
    total = sum(
        int(line.rpartition(",")[2])
        for line in (folder / "yield.csv").read_text().splitlines()
        if "all classes" in line
    )
    assert total == len(ledgers)
    assert pq.read_table(folder / "retrieval/manifest.parquet").num_rows == 100
    assert read_json(folder / "excluded.json") == {"exclude": "auto", "excluded": [], "short": {}}
