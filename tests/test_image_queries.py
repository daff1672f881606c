"""Queries by training images, copies of training images, and diverse selection of retrieved images."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import PROJECT, SMALL_STUDY
from PIL import Image

from augbench.artifacts.pool import build_index
from augbench.artifacts.shards import read_footer, read_shard
from augbench.artifacts.store import Store
from augbench.config.methods import Query
from augbench.config.stages import Execution
from augbench.config.study import Study, parse_study
from augbench.data import fashion_mnist
from augbench.data.classes import load_class_table
from augbench.data.splits import Split, read_split, write_split
from augbench.errors import UserError
from augbench.files import read_json, write_json
from augbench.leakage.records import read_leaks
from augbench.leakage.stage import embed_pools_block, embed_splits, guard
from augbench.miniature.corpus.style import clean_images
from augbench.models import folders
from augbench.plan import recipes
from augbench.plan.paths import Plan
from augbench.prompts.stage import write_prompts
from augbench.resample import Drawing, draw
from augbench.retrieval import hunt
from augbench.retrieval.embed import IDENTITY, embed, list_folder
from augbench.retrieval.embedding_files import open_embeddings
from augbench.retrieval.exact import ExactBackend
from augbench.retrieval.images import open_origin
from augbench.retrieval.manifest import freeze, read_manifest
from augbench.retrieval.neighbours import Found, merge, metadata_table, take_turns
from augbench.retrieval.queries import Asked, Questions, combine, image_queries
from augbench.retrieval.search import questions_of, search, search_block
from augbench.retrieval.selection import FacilityLocation, facility_location, k_center, mmr
from augbench.retrieval.shortfall import summarise
from augbench.retrieval.stage import retrieve
from augbench.runtime.job import Job

torch.set_num_threads(1)
CLASSES = load_class_table("fashion_mnist")
IDS = [info.class_id for info in CLASSES[:3]]  # the other classes are left out
PER_CLASS, KEPT_PER_CLASS = 4, 5
BY_IMAGES = {"query": {"images": "train"}}


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def at_angles(*degrees: float) -> np.ndarray:
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def random_vectors(count: int, seed: int = 0, width: int = 6) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(count, width)))


# --- queries --------------------------------------------------------------------------------------


def test_the_mean_of_images_is_their_direction_and_each_image_is_its_own() -> None:
    embeddings = at_angles(10, 50).astype(np.float16)
    (mean,) = image_queries(Query(images="train"), ["a", "b"], embeddings, 0)
    assert np.allclose(mean.vector, at_angles(30)[0], atol=1e-3)
    assert mean.name == "mean of 2 training images" and abs(np.linalg.norm(mean.vector) - 1) < 1e-6
    each = image_queries(Query(images="train", pool="each"), ["a", "b"], embeddings, 0)
    assert [asked.name for asked in each] == ["training image a", "training image b"]
    assert np.allclose([asked.vector for asked in each], embeddings, atol=1e-3)


def test_clusters_are_asked_in_the_order_of_their_first_image() -> None:
    query = Query(images="train", pool="clusters", clusters=2)
    asked = image_queries(query, list("abcd"), at_angles(80, 0, 90, 10), seed=3)
    assert [one.name for one in asked] == [
        f"mean of 2 training images, cluster {number} of 2" for number in (1, 2)
    ]
    assert np.allclose([one.vector for one in asked], at_angles(85, 5), atol=1e-6)


def test_text_weight_1_is_the_text_and_0_the_image_to_the_last_digit_and_between_it_is_between() -> None:
    text, image = Asked("a photo", at_angles(0)[0]), Asked("mean", at_angles(60)[0])
    assert combine(text, image, 1) is text and combine(text, image, 0) is image
    half = combine(text, image, 0.5)
    assert np.allclose(half.vector, at_angles(30)[0], atol=1e-6)
    assert half.name == "0.5 x 'a photo' + 0.5 x mean"
    near_text = combine(text, image, 0.75)  # (0.75 + 0.125, 0.2165): 13.9 degrees
    assert np.allclose(near_text.vector, at_angles(13.898)[0], atol=1e-4)


def test_queries_take_turns_and_an_image_counts_once_by_the_query_that_ranks_it_higher() -> None:
    keys = np.array([[1, 2, 3, 4], [5, 1, 6, 2], [2, 7, -1, -1]])
    query, rank = take_turns(keys, 10)
    assert [int(keys[q, r]) for q, r in zip(query, rank, strict=True)] == [1, 5, 2, 7, 3, 6, 4]
    assert query.tolist() == [0, 1, 2, 2, 0, 1, 0] and rank.tolist() == [0, 0, 0, 1, 2, 2, 3]
    assert take_turns(keys, 3)[0].tolist() == [0, 1, 2]


def test_equal_queries_find_what_one_of_them_finds() -> None:
    query, rank = take_turns(np.array([[4, 2, 9]] * 3), 3)
    assert query.tolist() == [0, 0, 0] and rank.tolist() == [0, 1, 2]


def found(ids: Sequence[str], similarity: Sequence[float], vectors: bool) -> Found:
    embeddings = np.arange(len(ids))[:, None].astype(np.float16) if vectors else None
    return Found(metadata_table({"id": ids}, len(ids)), np.array(similarity, np.float32), embeddings)


@pytest.mark.parametrize("vectors", [True, False])
def test_results_of_different_lengths_are_merged_with_all_their_columns(vectors: bool) -> None:
    result = merge([found("ab", [0.9, 0.8], vectors), found("bcd", [0.7, 0.6, 0.5], vectors)], 3)
    assert result.metadata.column("id").to_pylist() == ["a", "b", "c"]
    assert np.allclose(result.similarity, [0.9, 0.7, 0.6])
    assert result.query is not None and result.query.tolist() == [0, 1, 1]
    assert result.embeddings is None if not vectors else result.embeddings.ravel().tolist() == [0, 0, 1]  # type: ignore[union-attr]


def test_the_exact_search_merges_as_other_backends_do(tmp_path: Path) -> None:
    (tmp_path / "img_emb").mkdir()
    (tmp_path / "metadata").mkdir()
    for part, vectors in enumerate(np.split(random_vectors(60), 2)):
        np.save(tmp_path / f"img_emb/img_emb_{part}.npy", vectors.astype(np.float16))
        pq.write_table(
            metadata_table({"id": [f"{part}-{row}" for row in range(30)]}, 30),
            tmp_path / f"metadata/metadata_{part}.parquet",
        )
    backend = ExactBackend(open_embeddings(tmp_path), Store(tmp_path / "store"))
    queries, sizes = random_vectors(7, 1), [1, 4, 2]
    apart, together = backend.search(queries, 9), backend.search(queries, 9, sizes)
    for result, start, size in zip(together, (0, 1, 5), sizes, strict=True):
        expected = merge(apart[start : start + size], 9)
        assert result.metadata.equals(expected.metadata) and len(result.similarity) == 9
        for name in ("similarity", "embeddings", "query"):
            assert np.array_equal(getattr(result, name), getattr(expected, name))


# --- selection ------------------------------------------------------------------------------------


def naive_mmr(similarity: np.ndarray, vectors: np.ndarray, count: int, relevance: float) -> list[int]:
    chosen: list[int] = []
    while len(chosen) < count:

        def score(i: int) -> float:
            alike = max((float(vectors[i] @ vectors[j]) for j in chosen), default=0.0)
            return relevance * float(similarity[i]) - (1 - relevance) * alike

        chosen.append(max((i for i in range(len(vectors)) if i not in chosen), key=lambda i: (score(i), -i)))
    return chosen


def naive_k_center(vectors: np.ndarray, count: int) -> list[int]:
    chosen = [0]
    while len(chosen) < count:
        distance = [min(np.linalg.norm(v - vectors[j]) for j in chosen) for v in vectors]
        chosen.append(int(np.argmax(distance)))
    return chosen


def coverage(chosen: Sequence[int], vectors: np.ndarray, target: np.ndarray, weight: float) -> float:
    def covered(part: np.ndarray) -> float:
        if not len(part) or not chosen:
            return 0.0
        return float(np.mean([max((1 + v @ vectors[j]) / 2 for j in chosen) for v in part]))

    return weight * covered(target) + (1 - weight) * covered(vectors)


def naive_facility_location(vectors: np.ndarray, target: np.ndarray, count: int, weight: float) -> list[int]:
    chosen: list[int] = []
    while len(chosen) < count:
        left = [i for i in range(len(vectors)) if i not in chosen]
        gains = [coverage([*chosen, i], vectors, target, weight) for i in left]
        chosen.append(left[int(np.argmax(gains))])
    return chosen


def test_mmr_takes_the_nearest_and_then_what_is_like_no_chosen_image() -> None:
    # the query at 0 degrees: 10 and 12 are alike, -30 is less near and unlike both
    vectors = at_angles(10, 12, -30)
    similarity = vectors @ at_angles(0)[0]
    assert mmr(similarity, vectors, 3, penalty=0.5) == [0, 2, 1]
    assert mmr(similarity, vectors, 3, penalty=0) == [0, 1, 2]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("weight", [0, 0.3, 0.7, 1])
def test_selections_are_those_of_naive_greedy(seed: int, weight: float) -> None:
    vectors, target = random_vectors(14, seed), random_vectors(4, 100 + seed)
    similarity = np.sort(np.random.default_rng(seed).uniform(size=14).astype(np.float32))[::-1]
    assert mmr(similarity, vectors, 8, 1 - weight) == naive_mmr(similarity, vectors, 8, weight)
    assert facility_location(vectors, target, 8, weight) == naive_facility_location(
        vectors, target, 8, weight
    )
    assert k_center(vectors, 8) == naive_k_center(vectors, 8)


def test_mmr_without_a_penalty_is_nearest_first() -> None:
    vectors = random_vectors(40)
    query = unit(vectors[:3].sum(axis=0))
    order = np.argsort(-(vectors @ query), kind="stable")
    similarity = (vectors @ query)[order]
    assert mmr(similarity, vectors[order], 25, penalty=0) == list(range(25))


def test_k_center_goes_to_the_farthest_and_breaks_ties_by_rank() -> None:
    assert k_center(at_angles(0, 90, 180, 45, -90), 4) == [0, 2, 1, 4]


def test_facility_location_covers_the_target_or_the_pool() -> None:
    vectors, target = at_angles(0, 1, 2, 80), at_angles(82, 84)
    assert facility_location(vectors, target, 1, weight=1) == [3]
    assert facility_location(vectors, target, 1, weight=0) == [2], "three of four neighbours are near 2"
    covering = FacilityLocation(vectors, target, 0.5)
    assert covering.gain(3) == pytest.approx(coverage([3], vectors, target, 0.5), abs=1e-6)
    covering.choose(3)
    assert covering.gain(3) == 0


def test_a_lazy_choice_among_equal_images_takes_the_nearer_one() -> None:
    assert facility_location(at_angles(5, 5, 5), at_angles(5), 3, 0.5) == [0, 1, 2]


def test_fewer_candidates_than_wanted_are_all_chosen() -> None:
    vectors = random_vectors(3)
    assert sorted(k_center(vectors, 9)) == sorted(mmr(np.ones(3, np.float32), vectors, 9, 0.5)) == [0, 1, 2]
    assert sorted(facility_location(vectors, vectors, 9, 0.5)) == [0, 1, 2]


# --- config and plan ------------------------------------------------------------------------------


def study_of(draws: int = 1, **rows: Mapping[str, Any]) -> Study:
    data = copy.deepcopy(SMALL_STUDY)
    if draws > 1:
        data["dataset"]["draws"] = draws
    base = {"mechanism": "retrieve", "images_per_class": KEPT_PER_CLASS, "duplicate_threshold": None}
    data["methods"] = {"none": {"mechanism": "real"}} | {name: base | row for name, row in rows.items()}
    return parse_study(data)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query": {"pool": "each"}}, "query.pool: 'each'; allowed only with images: train"),
        ({"query": {"text_weight": 1.0}}, "query.text_weight: 1.0; allowed only with images: train"),
        ({"query": {"images": "test"}}, "query.images: 'test'; allowed: 'train'"),
        (
            {"query": {"images": "train", "pool": "clusters"}},
            "query.pool: .clusters.; needs the number of clusters",
        ),
        ({"query": {"images": "train", "clusters": 3}}, "query.clusters: 3; allowed only with pool: cl"),
        (
            {"query": {"images": "train", "templates": "clip"}},
            "query.images: .train.; beside a text, needs",
        ),
        ({"query": {"images": "train", "text_weight": 1.5}}, "query.text_weight: 1.5; allowed: less than"),
        ({"select": "farthest"}, "select: 'farthest'; allowed: 'nearest', 'mmr'"),
        ({"select_from": 2.0}, "select_from: 2.0; allowed only with select: mmr, k_center or facility"),
        ({"select": "mmr", "select_from": 0.5}, "select_from: 0.5; allowed: greater than or equal to 1"),
        ({"relevance": 0.5}, "relevance: 0.5; allowed only with select: mmr"),
        ({"select": "mmr", "target_weight": 0.5}, "target_weight: 0.5; allowed only with select: facility"),
        ({"training_copies": "keep"}, "training_copies: 'keep'; allowed: 'drop' or 'count'"),
        ({"manifest": "m", **BY_IMAGES}, "query.images: 'train'; allowed with a manifest: null"),
        ({"manifest": "m", "select": "mmr"}, "select: 'mmr'; allowed with a manifest: nearest"),
        ({"manifest": "m", "training_copies": "drop"}, "training_copies: 'drop'; allowed with a manifest"),
    ],
)
def test_a_key_that_means_nothing_is_one_line(row: Mapping[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"^methods\.web\.{message}"):
        study_of(web=row)


def test_new_keys_at_their_defaults_are_in_no_recipe() -> None:
    plain, same = study_of(web={}), study_of(web={"select": "nearest", "query": {"pool": "mean"}})
    for recipe in (recipes.search_recipe, recipes.retrieve_recipe, recipes.prompts_recipe):
        assert recipe(plain, "web") == recipe(same, "web")
    assert recipes.prompts_recipe(plain, "web")["query"].keys() == {"templates", "draw", "class_name"}
    assert not {"copies", "select"} & recipes.retrieve_recipe(plain, "web")["retrieve"].keys()
    assert not plain.retrieved["web"].depends_on_training_images
    assert Plan(plain, tuple(IDS)).embedded_draws == []


def test_a_text_weight_of_1_is_a_text_query_and_asks_for_no_image() -> None:
    row = study_of(web={"query": {"templates": "simple", "images": "train", "text_weight": 1.0}}).retrieved[
        "web"
    ]
    assert not row.asks_with_images and not row.depends_on_training_images and row.copies is None
    assert row.prompting is not None


def test_a_query_by_images_has_no_prompt_and_drops_copies_by_default() -> None:
    study = study_of(web=BY_IMAGES)
    row = study.retrieved["web"]
    assert row.prompting is None and row.copies == "drop" and row.depends_on_training_images
    assert recipes.prompts_recipe(study, "web")["query"] is None
    assert recipes.search_recipe(study, "web")["asked"]["query"] == {"images": "train", "text_weight": 0.0}


def test_rows_that_ask_with_images_are_repeated_in_each_draw_of_them_and_others_are_not() -> None:
    covering = {"select": "facility_location", "target_weight": 1.0}
    study = study_of(3, text={}, mean=BY_IMAGES, covering=covering, mmr={"select": "mmr"}).unfolded
    assert {*study.retrieved} == {
        *("text", "mmr", "mean", "mean_draw1", "mean_draw2"),
        *("covering", "covering_draw1", "covering_draw2"),
    }
    plan = Plan(study, tuple(IDS))
    assert plan.embedded_draws == [0, 1, 2] and plan.compared_with("text") == []
    assert plan.compared_with("mean_draw1") == ["results/small/retrieval/train/train_draw1.npy"]


# --- retrieval itself -----------------------------------------------------------------------------


def as_jpeg(image: Image.Image) -> bytes:
    stream = BytesIO()
    image.save(stream, "JPEG", quality=90)
    return stream.getvalue()


@dataclass(frozen=True)
class World:
    """A corpus of garments of three classes, and a target of a few others with the miniature's CLIP.

    The corpus has a recompressed copy of a training image of each class (``copy_0.jpg``, ...), and of all
    test images (``leak_0.jpg``, ...).
    """

    folder: Path

    def study(self, row: Mapping[str, Any]) -> Study:
        study = study_of(web=row).model_dump(mode="json")
        study["dataset"] = {"kind": "fashion_mnist"}
        study["corpus"] = {"kind": "image_folder", "root": str(self.folder / "corpus")}
        study["clip"] = {"model": str(PROJECT / "resources/mini/clip")}
        study["leakage"] = {"clip_threshold": 0.97, "neighbours": 2}
        study["retrieval"] = {"exclude": [info.class_id for info in CLASSES[3:]]}
        return parse_study(study)

    def run(self, out: Path, blocks: int = 1, **row: Any) -> Path:
        """Search and retrieve a row with ``blocks`` jobs, without the safety checker."""
        study = self.study({"drop_unsafe": False, "images_per_class": KEPT_PER_CLASS} | row)
        job = Job(study, Store(out / ".store", out), 1)
        train = self.folder / "train.parquet"
        members: dict[str, list[str]] = {class_id: [] for class_id in IDS}
        split = read_split(train)
        for class_id, image_id in zip(split.class_ids, split.image_ids, strict=True):
            members[class_id].append(image_id)
        write_prompts(study, "web", CLASSES, members, out / "prompts.parquet")
        compared = study.retrieved["web"].depends_on_training_images
        embedded = self.folder / "train.npy" if compared else None
        clip, neighbours = self.folder / "clip.json", out / "neighbours.parquet"
        asked = out / "prompts.parquet"
        questions = questions_of(job, "web", asked, split, clip, embedded)
        search(job, "web", clip, self.folder / "embeddings", questions, neighbours)
        for block in np.array_split(IDS, blocks):
            retrieve(
                job,
                name="web",
                prompts_path=asked,
                train_path=train,
                neighbours_path=neighbours,
                clip_path=clip,
                diffusion_path=self.folder / "diffusion.json",
                origin=open_origin(job, "web", []),
                targets=[str(out / f"shards/web/selected/{class_id}/0.parquet") for class_id in block],
                ledgers=[out / f"ledgers/{class_id}.parquet" for class_id in block],
                embedded_train=embedded,
            )
        return out


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, garment_files: Path) -> World:
    folder = tmp_path_factory.mktemp("world")
    (folder / "corpus").mkdir()
    world = World(folder)
    loaded = {name: fashion_mnist.load(garment_files, name) for name in ("train", "test")}

    def places(name: str, start: int, count: int) -> np.ndarray:
        labels = loaded[name][1]
        return np.concatenate([np.flatnonzero(labels == label)[start : start + count] for label in range(3)])

    def pictures(name: str, at: np.ndarray) -> list[Image.Image]:
        images = clean_images(loaded[name][0][at])
        return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]

    for name, source, start in (("train", "train", 0), ("val", "train", 200), ("test", "test", 0)):
        at = places(source, start, PER_CLASS)
        labels, ids = loaded[source][1][at], [f"{source}-{index:05d}" for index in at]
        split = Split(ids, [IDS[label] for label in labels], labels.astype(np.int32), ids)
        write_split(split, folder / f"{name}.parquet")
    for number, image in enumerate(pictures("train", places("train", 100, 20))):
        image.save(folder / f"corpus/{number:03d}.png")
    for number, image in enumerate(pictures("train", places("train", 0, PER_CLASS))[::PER_CLASS]):
        (folder / f"corpus/copy_{number}.jpg").write_bytes(as_jpeg(image))
    for number, image in enumerate(pictures("test", places("test", 0, PER_CLASS))):
        (folder / f"corpus/leak_{number}.jpg").write_bytes(as_jpeg(image))
    clip = {"folder": str(PROJECT / "resources/mini/clip"), "id": "the miniature's"}
    write_json(folder / "clip.json", clip)
    write_json(folder / "diffusion.json", {"id": "none"})
    job = Job(world.study({}), Store(folder / ".store", folder), 1)
    embed(job, list_folder(folder / "corpus"), folder / "clip.json", folder / "embeddings")
    embed_splits(
        job, {"train": folder / "train.parquet"}, folder / "clip.json", {"train": folder / "train.npy"}
    )
    return world


@pytest.fixture(autouse=True)
def without_checker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "load_pipeline", lambda *arguments: None)


def pool(out: Path) -> list[tuple[str, int, str, str]]:
    """Class, number, source and hash of every image, in the pool's order."""
    names = ("class_id", "index", "source", "sha256")
    return [
        tuple(row[name] for name in names)  # type: ignore[misc]
        for class_id in IDS
        for row in read_shard(out / f"shards/web/selected/{class_id}/0.parquet", names).to_pylist()
    ]


def ledgers(out: Path) -> list[dict[str, Any]]:
    return [row for class_id in IDS for row in pq.read_table(out / f"ledgers/{class_id}.parquet").to_pylist()]


@pytest.fixture(scope="module")
def rows(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """Results of the rows that several tests look at, each made once."""
    kinds: dict[str, dict[str, Any]] = {
        "text": {},
        "mean": BY_IMAGES,
        "each": {"query": {"images": "train", "pool": "each"}},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folders, "load_pipeline", lambda *arguments: None)
        yield cache(lambda name: world.run(tmp_path_factory.mktemp(name), **kinds[name]))


@pytest.fixture
def text(rows: Callable[[str], Path]) -> Path:
    return rows("text")


@pytest.fixture
def mean(rows: Callable[[str], Path]) -> Path:
    return rows("mean")


@pytest.fixture
def each(rows: Callable[[str], Path]) -> Path:
    return rows("each")


def same_bytes(one: Path, other: Path) -> bool:
    return all(
        (one / f"shards/web/selected/{class_id}/0.parquet").read_bytes()
        == (other / f"shards/web/selected/{class_id}/0.parquet").read_bytes()
        for class_id in IDS
    )


def test_select_nearest_and_a_text_weight_of_1_give_todays_pool_byte_for_byte(
    world: World, text: Path, tmp_path: Path
) -> None:
    query = {"templates": "simple", "images": "train", "pool": "each", "text_weight": 1.0}
    assert same_bytes(text, world.run(tmp_path, query=query, select="nearest"))
    columns = pq.read_schema(text / f"ledgers/{IDS[0]}.parquet")
    assert columns.equals(hunt.LEDGER), "no new column in a ledger of today's rows"


def test_a_text_weight_of_0_is_the_image_query(world: World, mean: Path, text: Path, tmp_path: Path) -> None:
    query = {"templates": "simple", "images": "train", "text_weight": 0.0}
    assert same_bytes(mean, world.run(tmp_path, query=query))
    assert pool(mean) != pool(text)


def test_mmr_without_a_penalty_gives_the_nearest_images(world: World, text: Path, tmp_path: Path) -> None:
    assert pool(world.run(tmp_path, select="mmr", relevance=1.0)) == pool(text)


def test_an_image_query_finds_copies_of_training_images_which_are_dropped_and_named(
    world: World, each: Path
) -> None:
    rows = {(row["class_id"], row["id"]): row for row in ledgers(each)}
    train = read_split(world.folder / "train.parquet")
    for number, class_id in enumerate(IDS):
        row = rows[class_id, f"copy_{number}.jpg"]
        assert row["fate"] == "copy of a training image"
        assert row["copy_of"] == train.image_ids[number * PER_CLASS]
        assert row["query"] == f"training image {row['copy_of']}", "it is the query that finds it first"
    assert not any(source.startswith("copy_") for *_, source, _ in pool(each))


def test_a_shard_says_which_query_found_each_image_and_has_no_prompt(each: Path) -> None:
    kept = [row for row in ledgers(each) if row["class_id"] == IDS[0] and row["fate"] == "kept"]
    path = each / f"shards/web/selected/{IDS[0]}/0.parquet"
    recipe = read_footer(path)["recipe"]
    assert recipe["query"] is None and read_shard(path, ["prompt"])["prompt"].null_count == KEPT_PER_CLASS
    assert recipe["images"] == [[row["id"], row["sha256"], row["query"]] for row in kept]
    assert len({row["query"] for row in kept}) > 1


def summary_of(world: World, out: Path, row: Mapping[str, Any]) -> list[str]:
    files = [out / f"ledgers/{class_id}.parquet" for class_id in IDS]
    class_ids = [info.class_id for info in CLASSES]
    sizes = dict.fromkeys(class_ids, PER_CLASS)
    arguments = ({"web": files}, {"web": out / "neighbours.parquet"}, {"web": out / "m.parquet"})
    summarise(world.study(row), class_ids, sizes, *arguments, out / "yield.csv", out / "excluded.json")
    return (out / "yield.csv").read_text().splitlines()


def test_copies_that_are_only_counted_stay_and_are_in_the_yield(world: World, tmp_path: Path) -> None:
    row = {"query": {"images": "train", "pool": "each"}, "training_copies": "count"}
    out = world.run(tmp_path, **row)
    named = {(row["class_id"], row["id"]): row["copy_of"] for row in ledgers(out) if row["copy_of"]}
    train = read_split(world.folder / "train.parquet")
    for number in range(3):
        assert named[IDS[number], f"copy_{number}.jpg"] == train.image_ids[number * PER_CLASS]
        assert f"copy_{number}.jpg" in {source for c, _, source, _ in pool(out) if c == IDS[number]}
    found_by = {row["id"]: row["query"] for row in ledgers(out) if row["class_id"] == IDS[1]}
    assert found_by["copy_1.jpg"] == f"training image {train.image_ids[PER_CLASS]}"
    assert len(set(found_by.values())) == PER_CLASS, "all images of the class have asked"
    lines = summary_of(world, out, row)
    kept = [
        int(line.split(",")[-1]) for line in lines if line.startswith("web,all classes,") and "kept" in line
    ]
    assert any("a copy of a training image" in line for line in lines)
    assert sum(kept) == len(IDS) * KEPT_PER_CLASS


def test_text_rows_may_drop_copies_too(world: World, text: Path, tmp_path: Path) -> None:
    out = world.run(tmp_path, training_copies="drop")
    dropped = {row["id"] for row in ledgers(out) if row["fate"] == "copy of a training image"}
    assert not dropped & {source for *_, source, _ in pool(out)}
    if not dropped:
        assert pool(out) == pool(text)


@pytest.mark.parametrize(
    "row",
    [
        {"query": {"images": "train", "pool": "clusters", "clusters": 2}, "select": "facility_location"},
        pytest.param(
            {"query": {"templates": "simple", "images": "train", "text_weight": 0.5}, "select": "mmr"},
            marks=pytest.mark.full,
        ),
    ],
)
def test_another_block_and_batch_size_gives_the_same_images(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: Mapping[str, Any]
) -> None:
    one = world.run(tmp_path / "one", **row)
    monkeypatch.setattr(hunt, "IMAGES_AT_ONCE", 3)
    assert same_bytes(one, world.run(tmp_path / "other", blocks=3, **row))


@pytest.fixture(scope="module")
def in_files(world: World) -> Path:
    """The corpus's embeddings in seven files."""
    folder = world.folder / "in_files"
    (folder / "img_emb").mkdir(parents=True)
    (folder / "metadata").mkdir()
    vectors = np.load(world.folder / "embeddings/img_emb/img_emb_00000.npy")
    table = pq.read_table(world.folder / "embeddings/metadata/metadata_00000.parquet")
    for number, rows in enumerate(np.array_split(np.arange(len(vectors)), 7)):
        np.save(folder / f"img_emb/img_emb_{number:05d}.npy", vectors[rows])
        pq.write_table(table.take(rows), folder / f"metadata/metadata_{number:05d}.parquet")
    shutil.copy(world.folder / f"embeddings/{IDENTITY}", folder)
    return folder


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"corpus_share": 0.5},
        {"query": {"images": "train", "pool": "each", "templates": "simple", "text_weight": 0.5}},
    ],
)
def test_jobs_that_share_a_search_write_the_neighbours_of_one_job(
    world: World, in_files: Path, tmp_path: Path, row: Mapping[str, Any]
) -> None:
    study = world.study({"images_per_class": KEPT_PER_CLASS} | row)
    prompts, clip, train = tmp_path / "prompts.parquet", world.folder / "clip.json", world.folder
    write_prompts(study, "web", CLASSES, {class_id: ["x"] * PER_CLASS for class_id in IDS}, prompts)
    split, embedded = read_split(train / "train.parquet"), train / "train.npy"

    def neighbours(jobs: int) -> pa.Table:
        execution = study.execution.model_copy(update={"search_jobs": jobs})
        out = tmp_path / str(jobs)
        job = Job(study.model_copy(update={"execution": execution}), Store(out / ".store", out), 1)
        questions = questions_of(job, "web", prompts, split, clip, embedded)
        if jobs > 1:
            questions.write(tmp_path / "queries.parquet")
            questions = Questions.read(tmp_path / "queries.parquet")
            for block in range(jobs):
                listed = out / f"{block}.json"
                search_block(job, "web", clip, in_files, questions, block, listed)
                names = [f"img_emb_{number:05d}.npy" for number in range(7)][block::jobs]
                assert read_json(listed)["files"] == names
            made = job.store.tally.made
        search(job, "web", clip, in_files, questions, out / "neighbours.parquet", "cpu" if jobs > 1 else None)
        assert jobs == 1 or job.store.tally.made == made == 7
        return pq.read_table(out / "neighbours.parquet")

    assert neighbours(1).equals(neighbours(3))


@pytest.mark.parametrize("select", ["mmr", "k_center", "facility_location"])
def test_the_pool_has_the_order_of_the_selection_which_ranked_sets_and_manifests_keep(
    world: World, tmp_path: Path, select: str
) -> None:
    out = world.run(tmp_path, select=select, select_from=2.0)
    of_class = [row for row in ledgers(out) if row["class_id"] == IDS[0]]
    chosen = sorted((row for row in of_class if row["fate"] == "kept"), key=lambda row: row["place"])
    assert [row["place"] for row in chosen] == list(range(KEPT_PER_CLASS))
    assert [row["fate"] for row in of_class].count("not selected") == KEPT_PER_CLASS
    assert chosen != sorted(chosen, key=lambda row: row["rank"]) or select == "mmr"
    sources = [source for c, _, source, _ in pool(out) if c == IDS[0]]
    assert sources == [row["url"] for row in chosen]
    paths = [out / f"shards/web/selected/{class_id}/0.parquet" for class_id in IDS]
    build_index(paths, out, out / "index.parquet")
    index = pq.read_table(out / "index.parquet")
    sizes = dict.fromkeys(IDS, 2)
    first = draw(index, sizes, run=0, study_seed=0, drawing=Drawing(ranked=True)).slice(0, 2)
    assert first.column("index").to_pylist() == [0, 1]
    freeze([out / f"ledgers/{class_id}.parquet" for class_id in IDS], out / "neighbours.parquet", out / "m")
    replayed = read_manifest(out / "m").found([IDS[0]])[IDS[0]]
    assert replayed.metadata.column("url").to_pylist() == sources


def test_planted_test_images_that_an_image_query_finds_are_named_by_the_guard(
    world: World, each: Path, tmp_path: Path
) -> None:
    build_index(
        [each / f"shards/web/selected/{name}/0.parquet" for name in IDS], each, each / "index.parquet"
    )
    job = Job(world.study(BY_IMAGES), Store(tmp_path / ".store", each), 1)
    splits = {name: world.folder / f"{name}.parquet" for name in ("val", "test")}
    embedded = {name: tmp_path / f"{name}.npy" for name in splits}
    clip, out = world.folder / "clip.json", tmp_path / "leaks.parquet"
    embed_splits(job, splits, clip, embedded)
    two = Job(job.study.model_copy(update={"execution": Execution(embed_jobs=2)}), job.store, 1)
    for block, shards in enumerate((2, 1)):
        embed_pools_block(two, [each / "index.parquet"], clip, block, tmp_path / "block.json")
        assert read_json(tmp_path / "block.json") == {"shards": shards}
    made = job.store.tally.made
    guard(job, {"web": each / "index.parquet"}, splits, embedded, clip, job.study.leakage, {"web": out}, {})
    assert job.store.tally.made == made, "the shards were embedded by the two jobs"
    sources = {(class_id, number): source for class_id, number, source, _ in pool(each)}
    planted = {(*key, source) for key, source in sources.items() if source.startswith("leak_")}
    test = read_split(splits["test"]).image_ids
    named = {
        (row["class_id"], row["index"], f"leak_{test.index(row['image_id'])}.jpg")
        for row in read_leaks(out).to_pylist()
        if row["split"] == "test"
    }
    assert planted and named == planted


def test_more_clusters_than_training_images_are_one_line(world: World, tmp_path: Path) -> None:
    query = {"images": "train", "pool": "clusters", "clusters": PER_CLASS + 1}
    with pytest.raises(UserError, match=r"methods\.web\.query\.clusters: 5, and class .* has 4 training"):
        world.run(tmp_path, query=query)
