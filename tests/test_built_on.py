"""Rows that are built on other rows' images: config, draws, starts, lessons, and near-duplicates through
edges.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import PROJECT, SMALL_STUDY, Workspace, noise
from PIL import Image
from safetensors.numpy import load_file

from augbench.artifacts.origins import Start, counts_by_row, starts_of
from augbench.artifacts.pool import SCHEMA, build_index, pool_of, read_index
from augbench.artifacts.shards import ShardRow, encode_image, read_shard, write_shard
from augbench.artifacts.store import Store
from augbench.config.methods import PoolOf
from augbench.config.study import Study, parse_study
from augbench.data import fashion_mnist
from augbench.data.classes import ClassInfo, write_class_table
from augbench.data.sources import open_source
from augbench.data.splits import Split, read_split, write_split
from augbench.errors import UserError
from augbench.files import write_json
from augbench.generate.stage import generate
from augbench.leakage import records
from augbench.leakage.inherited import LEARNED, START, read_inherited, write_inherited
from augbench.leakage.inherited import SCHEMA as INHERITED
from augbench.models.folders import fingerprint
from augbench.personalise.learned import WithAddedImages, write_learned_images
from augbench.personalise.stage import finetune_classes
from augbench.plan.paths import Plan
from augbench.prompts.stage import read_prompts, write_prompts
from augbench.report.tables import cost
from augbench.report.tables.leakage import read_rows, write_leakage_table
from augbench.resample import Drawing, resample
from augbench.runtime.job import Job

EDITED = {"mechanism": "sample", "start": {"pool": "retrieval"}, "noise": 0.5}
WORDS = {"mechanism": "personalise", "learn": "pseudoword", "candidates": ["val_loss"]}


def study_of(draws: int = 1, **rows: Any) -> Study:
    data = copy.deepcopy(SMALL_STUDY)
    data["dataset"]["draws"] = draws
    data["methods"] = {**data["methods"], **rows}
    return parse_study(data)


def test_a_row_names_the_rows_that_it_is_built_on() -> None:
    study = study_of(
        edited=EDITED,
        words={**WORDS, "learn_from": ["train", {"pool": "retrieval"}]},
        twice={"mechanism": "sample", "start": {"pool": "words"}},
        few={"mechanism": "draw", "pool": "twice", "added_per_training_image": 0.5},
    )
    rows = study.methods
    assert rows["edited"].built_on == rows["words"].built_on == ("retrieval",)
    assert rows["words"].edges == {"learn_from.1.pool": "retrieval"}
    assert rows["few"].edges == {"pool": "twice"} and rows["boomerang"].built_on == ()
    assert study.all_built_on("few") == ["retrieval", "words", "twice"]
    levels = {name: study.guard_level(name) for name in ("retrieval", "edited", "words", "twice", "few")}
    assert levels == {"retrieval": 0, "edited": 1, "words": 1, "twice": 2, "few": 2}
    assert {study.guard_level(name) for name in SMALL_STUDY["methods"]} == {0}


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        (
            {"a": {**EDITED, "start": {"pool": "b"}}, "b": {"mechanism": "draw", "pool": "a"}},
            r"methods\.a\.start\.pool: 'b'; a would be built on itself \(a -> b -> a\); allowed: a row that",
        ),
        (
            {"a": {**WORDS, "learn_from": ["train", {"pool": "a"}]}},
            r"methods\.a\.learn_from\.1\.pool: 'a'; a would be built on itself \(a -> a\)",
        ),
        (
            {"a": {**EDITED, "start": {"pool": "none"}}},
            r"methods\.a\.start\.pool: 'none'; allowed: a row with images of their own classes: .*retrieval",
        ),
        (
            {
                "a": {**EDITED, "start": {"pool": "placebo"}},
                "placebo": {"mechanism": "draw", "pool": "retrieval", "labels": "shuffled"},
            },
            r"methods\.a\.start\.pool: 'placebo'; allowed: a row with images of their own classes",
        ),
        (
            {"a": {**EDITED, "start": "image"}},
            r"methods\.a\.start: 'image'; allowed: 'noise', 'training_images', or a mapping with the key "
            r"pool$",
        ),
        ({"a": {**EDITED, "start": {"pool": 3}}}, r"methods\.a\.start\.pool: 3; allowed: text"),
        (
            {"a": {**WORDS, "learn_from": ["train", "all"]}},
            r"methods\.a\.learn_from\.1: 'all'; allowed: 'train', or a mapping with the key pool$",
        ),
        (
            {"a": {**WORDS, "learn_from": ["train", "train"]}},
            r"methods\.a\.learn_from: \['train', 'train'\]; an entry occurs twice",
        ),
        (
            {"a": {**WORDS, "learn_from": []}},
            r"methods\.a\.learn_from: \[\]; allowed: 'train', or a mapping with the key pool, or a list of "
            r"these",
        ),
        ({"a": {"mechanism": "sample", "noise": 0.5}}, r"methods\.a\.noise: 0\.5; allowed only with start"),
    ],
)
def test_a_row_that_cannot_be_built_is_one_line_that_names_the_key(rows: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line) as raised:
        study_of(**rows)
    assert "\n" not in str(raised.value)


def test_draws_repeat_a_row_if_anything_that_it_is_built_on_depends_on_the_training_images() -> None:
    study = study_of(
        2,
        edited=EDITED,
        again={"mechanism": "sample", "start": {"pool": "boomerang"}},
        thrice={"mechanism": "sample", "start": {"pool": "few"}},
        few={"mechanism": "draw", "pool": "again"},
        words={**WORDS, "learn_from": [{"pool": "retrieval"}, {"pool": "again"}]},
    )
    rows = study.unfolded.methods
    assert rows["edited_draw1"].edges == {"pool": "edited"}, "its pool is made once"
    assert rows["again_draw1"].edges == {"start.pool": "boomerang_draw1"}
    assert rows["few_draw1"].built_on == ("again_draw1",) and rows["few"].built_on == ("again",)
    assert rows["thrice_draw1"].edges == {"start.pool": "few_draw1"}
    assert rows["words_draw1"].built_on == ("retrieval_draw1", "again_draw1"), "a set of its own draw"
    assert rows["retrieval_draw1"].pool_rows == ("retrieval",), "from the pool that is made once"
    plan = Plan(study, ("a", "b")).unfolded
    assert "words_draw1" in plan.inheriting and "words_draw1" in plan.inherited_from
    assert not study.depends_on_training_images("edited") and study.depends_on_training_images("thrice")


def test_the_guard_searches_rows_before_those_that_are_made_from_them_only_where_it_drops() -> None:
    rows = {
        "edited": EDITED,
        "few": {"mechanism": "draw", "pool": "edited", "added_per_training_image": 0.5},
        "twice": {"mechanism": "sample", "start": {"pool": "few"}},
    }
    study = study_of(2, **rows)
    levels = [set(level) for level in Plan(study, ("a", "b")).unfolded.guard_levels]
    own = {f"{name}_draw1" for name in ("boomerang", "pseudoword_clip", "imagic_k2")}
    assert levels == [{*study.pooled}, own], "one more job for all rows with images of their own in a draw"
    assert Plan(study, ("a", "b")).inheriting == ["edited", "twice"]
    dropping = study.model_copy(update={"leakage": study.leakage.model_copy(update={"action": "drop"})})
    plan = Plan(dropping, ("a", "b")).unfolded
    assert [set(level) for level in plan.guard_levels][1:] == [
        {"edited", "edited_draw1", "few", "few_draw1"}, {"twice", "twice_draw1"},
    ]  # fmt: skip
    assert plan.started("twice") == [plan.pool("few")] and plan.started_leaks("twice") == [plan.leaks("few")]
    assert plan.started("boomerang") == plan.started_leaks("boomerang") == []


def test_a_row_starts_from_set_0_of_a_mixture_which_has_its_shares() -> None:
    mix = {"mechanism": "draw", "pools": {"retrieval": 0.25, "simple_prompt": 0.75}}
    study = study_of(2, mix=mix, edited={**EDITED, "start": {"pool": "mix"}})
    dropping = study.model_copy(update={"leakage": study.leakage.model_copy(update={"action": "drop"})})
    plan = Plan(dropping, ("a", "b")).unfolded
    assert plan.started("edited") == [plan.resample("mix", "0")]
    assert plan.started_leaks("edited") == [], "the set was drawn without them"
    assert plan.study.methods["edited_draw1"].pool_rows == ("edited",), "made once for all draws"


def test_costs_include_the_parts_that_the_rows_between_draw_from() -> None:
    study = study_of(
        many={"mechanism": "draw", "pool": "clip_prompts", "images_per_class": 40},
        few={"mechanism": "draw", "pool": "clip_prompts", "images_per_class": 10},
        from_many={**EDITED, "start": {"pool": "many"}},
        from_few={**EDITED, "start": {"pool": "few"}},
        both={"mechanism": "choose", "among": ["from_many", "from_few"]},
    )
    plan = Plan(study, ("a", "b"))
    assert study.parts_drawn("clip_prompts") == 2 and study.parts_made("clip_prompts") == 4
    assert cost._sources(plan, "from_many") == {"from_many": 2, "clip_prompts": 4}
    assert cost._sources(plan, "from_few") == {"from_few": 2, "clip_prompts": 1}
    assert cost._sources(plan, "both") == {"from_many": 2, "from_few": 2, "clip_prompts": 4}
    rows = ("both", "from_few", "from_many")
    own = {plan.path(stage, row) for stage in ("classifiers", "resamples") for row in rows}
    assert own < {*cost._folders(plan, "both")}


def test_costs_include_the_rows_that_a_row_is_built_on_once() -> None:
    study = study_of(
        edited=EDITED,
        words={**WORDS, "learn_from": ["train", {"pool": "edited"}]},
        few={"mechanism": "draw", "pool": "words", "added_per_training_image": 0.5},
    )
    plan = Plan(study, ("a", "b"))
    assert cost._sources(plan, "few") == {"words": 2, "retrieval": 1, "edited": 2}
    assert cost._upstream(plan, "few") == ["retrieval", "edited"] and cost._upstream(plan, "boomerang") == []
    assert cost._needs(plan, cost._sources(plan, "few")) == {cost.ALL, cost.GENERATION, cost.RETRIEVAL}


# --- pools of images --------------------------------------------------------------------------------

CLASSES = [ClassInfo("cat", ("cat",)), ClassInfo("dog", ("dog",))]
IDS = ("cat", "dog")
ROWS: dict[str, Any] = {
    "none": {"mechanism": "real"},
    "web": {"mechanism": "retrieve"},
    "copied": {"mechanism": "sample", "start": "training_images", "noise": 0.5},
    "edited": {"mechanism": "sample", "start": {"pool": "web"}, "noise": 0.5},
    "words": {**WORDS, "learn_from": ["train", {"pool": "web"}]},
    "again": {"mechanism": "sample", "start": {"pool": "edited"}},
}


def pet_study(methods: dict[str, Any] | None = None, **execution: Any) -> Study:
    return parse_study(
        {
            "study": "pets",
            "dataset": {"kind": "image_folder", "root": "pets", "train_fraction": 0.25},
            "corpus": {"kind": "image_folder", "root": "corpus"},
            "diffusion": {
                **SMALL_STUDY["diffusion"],
                "model": str(PROJECT / "resources/mini/stable-diffusion"),
                "steps": 4,
            },
            "clip": {"model": str(PROJECT / "resources/mini/clip")},
            "methods": ROWS if methods is None else methods,
            "augmentation": {"images_per_class": 4, "images_per_part": 2},
            "execution": {"batch_size": 2, **execution},
        }
    )


def write_pool(name: str, images: dict[str, Sequence[Image.Image]], generated: bool = False) -> Path:
    folder, paths = Path("results/pets"), []
    for label, (class_id, members) in enumerate(images.items()):
        paths.append(folder / f"shards/{name}/selected/{class_id}/0.parquet")
        rows = [
            ShardRow(
                encode_image(image, "png", 95), label, class_id, i, "a prompt", "model",
                seed=i if generated else None, source=None if generated else f"http://pets/{class_id}/{i}",
            )
            for i, image in enumerate(members)
        ]  # fmt: skip
        write_shard(paths[-1], rows, {})
    build_index(paths, folder, folder / f"shards/{name}/selected/index.parquet")
    return folder / f"shards/{name}/selected/index.parquet"


def training(count: int = 3) -> Split:
    """The first training images of each class, as a split."""
    names = [f"{class_id}/{number:03d}.png" for class_id in IDS for number in range(count)]
    labels = np.repeat(np.arange(2, dtype=np.int32), count)
    split = Split(names, [name[:3] for name in names], labels, names)
    write_split(split, "train.parquet")
    return split


def training_pool(split: Split) -> Path:
    study = pet_study()
    images = list(open_source(study.dataset, study.seed, study.corpus).load(split.sources))
    return write_pool("web", {"cat": images[:3], "dog": images[3:]})


def made(study: Study, method: str, store: str, blocks: Sequence[Sequence[str]] = (IDS,)) -> np.ndarray:
    """Images of a row, by class and index, made in some blocks of classes."""
    split = read_split("train.parquet")
    images = {class_id: [i for i in split.image_ids if i.startswith(class_id)] for class_id in IDS}
    index = Path("results/pets/shards/web/selected/index.parquet")
    starts = starts_of(index, "results/pets") if method == "edited" else None
    write_prompts(study, method, CLASSES, images, f"{method}.parquet", starts)
    write_json("model.json", {"id": "the miniature's"})
    job = Job(study, Store(Path(store), Path("results/pets")), 1)
    paths = [f"{store}/{method}/{c}/{part}.parquet" for block in blocks for c in block for part in (0, 1)]
    for block in blocks:
        targets = [path for path in paths if Path(path).parts[-2] in block]
        generate(job, method, f"{method}.parquet", "model.json", "train.parquet", {"": targets},
                 started_path=str(index))  # fmt: skip
    tables = [read_shard(path) for path in sorted(paths)]
    encoded = [image["bytes"] for table in tables for image in table.column("image").to_pylist()]
    return np.stack([np.asarray(Image.open(BytesIO(image)), dtype=int) for image in encoded])


def test_a_pool_of_the_training_images_gives_the_images_that_these_give(pets: Path, one_thread: None) -> None:
    """Training images and pool are the same pictures in the same order; so are the seeds of the rows."""
    training_pool(training())
    copied, edited = made(pet_study(), "copied", "a"), made(pet_study(), "edited", "a")
    assert len(copied) == 8 and np.array_equal(copied, edited)
    single = made(pet_study(batch_size=1), "edited", "b", [["dog"], ["cat"]])
    assert np.abs(single - edited).max() <= 2, "float rounding only, for another batch and block size"
    rows = pq.read_table("a/edited/dog/1.parquet").to_pylist()
    index = read_index("results/pets/shards/web/selected/index.parquet").to_pylist()
    hashes = [row["sha256"] for row in index if row["class_id"] == "dog"]
    assert [(row["source"], row["origin"]) for row in rows] == [
        ("http://pets/dog/2", hashes[2]), ("http://pets/dog/0", hashes[0]),
    ], "three images are taken in turn by four"  # fmt: skip
    assert "origin" not in pq.read_schema("a/copied/dog/1.parquet").names


def test_a_start_is_named_as_its_shard_knows_it_and_near_duplicates_can_be_left_out(pets: Path) -> None:
    images = {class_id: [noise(10 * n + i) for i in range(2)] for n, class_id in enumerate(IDS)}
    generated = write_pool("copied", images, generated=True)
    assert [start.source for start in starts_of(generated, "results/pets")["dog"]] == [
        "dog_000000", "dog_000001",
    ]  # fmt: skip
    found = write_pool("web", images)
    first = read_index(found).to_pylist()[0]
    write_leaks("leaks.parquet", "web", [(first["class_id"], first["index"], first["sha256"], "t1")])
    left = starts_of(found, "results/pets", "leaks.parquet")
    assert [len(left[class_id]) for class_id in IDS] == [1, 2]
    assert first["sha256"] not in {start.origin for starts in left.values() for start in starts}


def test_images_of_several_rows_are_started_from_in_turn_by_their_shares(pets: Path) -> None:
    """Of 8 images, 6 are of one row; the first four and the last four have three of them each."""
    pools = [
        read_index(write_pool(name, {"cat": [noise(10 * size + i) for i in range(size)]})).to_pylist()
        for name, size in (("few", 2), ("many", 6))
    ]
    images = [image for rows in pools for image in rows]
    pq.write_table(pa.Table.from_pylist(images, schema=SCHEMA), "mix.parquet")
    row_of = {image["sha256"]: pool_of(image["path"]) for image in images}
    found = [row_of[start.origin] for start in starts_of("mix.parquet", "results/pets")["cat"]]
    assert Counter(found[:4]) == Counter(found[4:]) == {"few": 1, "many": 3}


def test_a_class_without_images_to_start_from_is_named_unless_it_is_left_out(tmp_path: Path) -> None:
    study, starts = pet_study(), {"cat": [Start("http://pets/1", "0a")]}
    images = {class_id: ["x"] for class_id in IDS}
    with pytest.raises(
        UserError, match=r"methods\.edited\.start\.pool: 'web' has no image of 1 class\(es\): dog"
    ):
        write_prompts(study, "edited", CLASSES, images, tmp_path / "p.parquet", starts)
    write_prompts(study, "edited", CLASSES, images, tmp_path / "p.parquet", starts, excluded=["dog"])
    prompts = read_prompts(tmp_path / "p.parquet")
    assert {*prompts} == {("cat", 0), ("cat", 1)} and prompts["cat", 1][1]["origin"] == "0a"


def learned_set(name: str, excluded: Sequence[str] = ()) -> Path:
    """Training set 0 of a pool, as many images as training images."""
    index, out = Path(f"results/pets/shards/{name}/selected/index.parquet"), Path(f"{name}/0.parquet")
    out.parent.mkdir()
    drawing = Drawing(first_part=False)
    resample(index, "train.parquet", [out], 0, drawing, excluded)
    return out


def test_a_row_learns_from_training_images_and_as_many_of_a_pool(pets: Path) -> None:
    split = training(2)
    write_pool("web", {c: [noise(50 * n + i) for i in range(5)] for n, c in enumerate(IDS)})
    chosen, row = learned_set("web"), pet_study().personalised["words"]
    write_learned_images("words", row, "train.parquet", {"web": chosen}, "learned.parquet")
    learned = read_split("learned.parquet")
    assert counts_by_row(learned.sources) == {"train": 4, "web": 4}
    assert {*split.image_ids} < {*learned.image_ids}
    added = {f"{image['class_id']}/{image['sha256']}" for image in read_index(chosen).to_pylist()}
    assert {*learned.image_ids} - {*split.image_ids} == added
    source = WithAddedImages(open_source(pet_study().dataset, 0, None), Path("results/pets"))
    shown = [image.tobytes() for image in source.load(learned.sources)]
    expected = {noise(50 * n + i).tobytes() for n in range(2) for i in range(5)}
    pictures = dict(zip(learned.image_ids, shown, strict=True))
    assert {pictures[image_id] for image_id in added} <= expected
    assert pictures["dog/001.png"] == noise(101).tobytes(), "number 1 of the class whose first is 100"


def test_a_row_that_learns_from_a_pool_alone_needs_images_of_every_class_that_stays(pets: Path) -> None:
    training(2)
    write_pool("web", {"cat": [noise(i) for i in range(5)]})
    chosen = learned_set("web", excluded=["dog"])
    row = pet_study().personalised["words"].model_copy(update={"learn_from": PoolOf(pool="web")})
    with pytest.raises(
        UserError, match=r"methods\.words\.learn_from: 'web' has no image of 1 class\(es\): dog"
    ):
        write_learned_images("words", row, "train.parquet", {"web": chosen}, "learned.parquet")
    write_learned_images("words", row, "train.parquet", {"web": chosen}, "learned.parquet", ["dog"])
    learned = read_split("learned.parquet")
    sources = dict(zip(learned.image_ids, learned.class_ids, strict=True))
    assert [class_id for name, class_id in sources.items() if name.endswith(".png")] == ["dog", "dog"]


LEARNING: dict[str, dict[str, Any]] = {
    "conditioning": {"learn": "conditioning"},
    "clusters": {"learn": "conditioning", "clusters": 2},
    "imagic": {"learn": "conditioning", "train_unet": True},
    "lora": {"learn": "lora"},
}


@pytest.mark.full
@pytest.mark.parametrize("kind", LEARNING)
def test_every_kind_learns_from_a_pool_as_from_training_images_in_blocks_of_any_size(
    pets: Path, one_thread: None, kind: str
) -> None:
    """Pool and training images are the same pictures, and have the same ids in two manifests."""
    split, plain = training(2), pet_study()
    images = list(open_source(plain.dataset, plain.seed, plain.corpus).load(split.sources))
    pool = read_index(write_pool("web", {"cat": images[:2], "dog": images[2:]})).to_pylist()
    row = {"mechanism": "personalise", "candidates": [1], "learn_from": {"pool": "web"}, **LEARNING[kind]}
    study = pet_study({"none": ROWS["none"], "web": ROWS["web"], "row": row})
    personalised = study.personalised["row"]
    write_learned_images("row", personalised, "train.parquet", {"web": learned_set("web")}, "pool.parquet")
    learned = read_split("pool.parquet")
    files = dict(
        zip([f"{image['class_id']}/{image['sha256']}" for image in pool], split.sources, strict=True)
    )
    sources = [files[image_id] for image_id in learned.image_ids]
    write_split(Split(learned.image_ids, learned.class_ids, learned.labels, sources), "real.parquet")
    ids = [f"{class_id}/{number:03d}.png" for class_id in IDS for number in (8, 9)]
    write_split(Split(ids, [name[:3] for name in ids], split.labels, ids), "val.parquet")
    clusters = {image_id: number % 2 for number, image_id in enumerate([*learned.image_ids, *ids])}
    pq.write_table(pa.table({"image_id": [*clusters], "cluster": [*clusters.values()]}), "clusters.parquet")
    write_class_table(CLASSES, "classes.parquet")
    write_json("diffusion.json", fingerprint(study.diffusion.folder))

    def learn(manifest: str, blocks: Sequence[Sequence[str]] = (IDS,)) -> dict[str, np.ndarray]:
        folder = Path(f"{manifest}_{len(blocks)}")
        shared = {"epoch1": str(folder / "unet")} if personalised.train_unet else {}
        for block in blocks:
            finetune_classes(
                Job(study, Store(folder / "store", Path("results/pets")), 1), "row", 1.0,
                f"{manifest}.parquet", "val.parquet", "classes.parquet", "diffusion.json",
                "clusters.parquet" if personalised.clusters > 1 else None,
                [str(folder / f"{class_id}.safetensors") for class_id in block], shared,
            )  # fmt: skip
        made = sorted(folder.glob("*.safetensors")) + sorted(folder.glob("unet/*.safetensors"))
        assert len(made) == len(IDS) + len(shared)
        return {f"{path.name} {name}": array for path in made for name, array in load_file(path).items()}

    from_pool, from_training = learn("pool"), learn("real")
    assert all(np.array_equal(array, from_training[name]) for name, array in from_pool.items())
    if not personalised.shares_weights:
        apart = learn("pool", [["dog"], ["cat"]])
        assert all(np.allclose(array, apart[name], atol=1e-5) for name, array in from_pool.items())


# --- near-duplicates through edges ------------------------------------------------------------------


def write_leaks(path: str, method: str, pairs: Sequence[tuple[str, int, str, str]]) -> str:
    """Pairs of (class, index, hash of the added image, test image)."""
    rows = [
        {"method": method, "class_id": class_id, "index": index, "sha256": sha256, "split": "test",
         "image_id": image_id, "real_class_id": class_id, "clip_similarity": 1.0, "hash_distance": 0,
         "correlation": 1.0, "kind": "copy"}
        for class_id, index, sha256, image_id in pairs
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, schema=records.SCHEMA), path)
    return path


def write_started(name: str, origins: dict[str, list[str]]) -> Path:
    """A pool whose images started from images of these hashes."""
    folder, paths = Path("results/pets"), []
    for label, (class_id, hashes) in enumerate(origins.items()):
        images = [noise(1000 * len(name) + 10 * label + i) for i in range(len(hashes))]
        paths.append(folder / f"shards/{name}/selected/{class_id}/0.parquet")
        rows = [
            ShardRow(encode_image(image, "png", 95), label, class_id, i, "p", "m", seed=i, origin=origin)
            for i, (image, origin) in enumerate(zip(images, hashes, strict=True))
        ]
        write_shard(paths[-1], rows, {})
    build_index(paths, folder, folder / f"shards/{name}/selected/index.parquet")
    return folder / f"shards/{name}/selected/index.parquet"


def test_a_planted_leak_is_named_through_both_edges_and_through_several_rows(pets: Path) -> None:
    """The second retrieved cat shows test image t1; nothing that is made from it does."""
    training(2)
    web = write_pool("web", {c: [noise(50 * n + i) for i in range(2)] for n, c in enumerate(IDS)})
    cats = [row["sha256"] for row in read_index(web).to_pylist()]
    edited = write_started("edited", {"cat": [cats[0], cats[1], cats[0]], "dog": cats[2:]})
    names = [row["sha256"] for row in read_index(edited).to_pylist()]
    again = write_started("again", {"cat": [names[1], names[0]], "dog": names[3:]})
    words = write_pool("words", {c: [noise(900 * n + i) for i in range(3)] for n, c in enumerate(IDS)}, True)
    row = pet_study().personalised["words"]
    write_learned_images("words", row, "train.parquet", {"web": learned_set("web")}, "learned.parquet")
    leaks = {
        "web": write_leaks("web.parquet", "web", [("cat", 1, cats[1], "t1")]),
        **{name: write_leaks(f"{name}.parquet", name, []) for name in ("edited", "again", "words")},
    }
    indexes = {"edited": edited, "words": words, "again": again}
    outs = {name: f"inherited_{name}.parquet" for name in indexes}
    job = Job(pet_study(), Store(Path(".store"), Path("results/pets")), 1)
    write_inherited(job, indexes, leaks, {"words": "learned.parquet"}, outs)
    found = {name: read_inherited(path).to_pylist() for name, path in outs.items()}
    named = {
        name: [(row["class_id"], row["index"], row["edge"]) for row in rows] for name, rows in found.items()
    }
    assert named == {
        "edited": [("cat", 1, START)],
        "again": [("cat", 0, START)],
        "words": [("cat", i, LEARNED) for i in range(3)],
    }
    assert found["again"][0]["origin"] == names[1] and found["words"][2]["origin"] == cats[1]
    assert {row["image_id"] for rows in found.values() for row in rows} == {"t1"}
    write_inherited(job, indexes, leaks, {"words": "learned.parquet"}, outs, excluded=["cat"])
    assert not any(read_inherited(path).num_rows for path in outs.values())


def test_the_table_counts_and_names_what_is_inherited(pets: Path) -> None:
    study = pet_study({**ROWS, "best": {"mechanism": "choose", "among": ["web", "edited"]}})
    summary = {"checked": 4, "val": 0, "test": 0, "either": 0, "val_images": 0, "test_images": 0}
    limits = study.leakage.model_dump(mode="json", exclude={"action"})
    pair = {"class_id": "cat", "edge": START, "split": "test", "real_class_id": "cat", "origin": "0a"}
    rows = [
        {"method": "edited", "index": i, "sha256": f"{i}", "image_id": name, **pair}
        for i, name in ((0, "t1"), (0, "t2"), (3, "t1"))
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=INHERITED), "inherited.parquet")
    names = ("web", "edited")
    for name in names:
        Path(f"{name}.json").write_text(json.dumps({"method": name, **summary, "limits": limits}))
        write_leaks(f"{name}.parquet", name, [])
    ids = ["t1", "t2", "t3", "t4"]
    right = [True, False, True, True]
    table = {"image_id": ids, "label": [0] * 4, "predicted": [0 if is_right else 1 for is_right in right]}
    pq.write_table(pa.table(table), "predictions.parquet")
    pairs, counts = ({name: f"{name}.{kind}" for name in names} for kind in ("parquet", "json"))
    outs = {"csv": "leakage.csv", "md": "leakage.md"}
    predictions = {name: ["predictions.parquet"] for name in ("none", *names)}
    write_leakage_table(study, pairs, pairs, counts, predictions, outs, {"edited": "inherited.parquet"})
    web, edited = read_rows("leakage.csv")
    assert (web.inherited, edited.inherited, edited.test) == (None, 2, 0)
    assert (web.without_percent, edited.without_percent, edited.test_left) == (75, 100, 2)
    text = Path("leakage.md").read_text()
    assert "Baseline without (%) | Inherited |" in text and "| edited | 4 | 0 | 0 | 0 |" in text
    assert (
        "edited: inherited by image 0 of cat (started from test image t1), image 0 of cat (started from"
        in (text.replace("\\", ""))
    )
    inherited, chosen = {"edited": "inherited.parquet"}, {"best": "edited"}
    write_leakage_table(study, pairs, pairs, counts, predictions, outs, inherited, chosen)
    assert [row.inherited for row in read_rows("leakage.csv")] == [None, 2, 2]
    assert "best: inherited by image 0 of cat" in Path("leakage.md").read_text().replace("\\", "")
    write_leakage_table(study, pairs, pairs, counts, predictions, outs)
    assert "Inherited" not in Path("leakage.md").read_text()


# --- a study ----------------------------------------------------------------------------------------


def write_garments(workspace: Workspace, files: Path) -> None:
    """A data set of two classes, and a corpus whose two images per class include a test image."""
    images, labels = fashion_mnist.load(files, "train")
    test, test_labels = fashion_mnist.load(files, "test")
    for label, name in ((1, "trouser"), (8, "bag")):
        real, scored = np.flatnonzero(labels == label), np.flatnonzero(test_labels == label)
        parts = {
            f"data/train/{name}": images[real[:8]],
            f"data/test/{name}": test[scored[:4]],
            f"corpus/{name}": [test[scored[0]], images[real[100]]],
        }
        for folder, members in parts.items():
            (workspace.folder / folder).mkdir(parents=True)
            for number, image in enumerate(members):
                Image.fromarray(image).resize((32, 32)).save(workspace.folder / folder / f"{number}.png")


@pytest.mark.full
@pytest.mark.long
def test_a_planted_leak_goes_through_both_edges_of_a_study_and_is_left_out_where_they_drop(
    workspace: Workspace, garment_files: Path
) -> None:
    write_garments(workspace, garment_files)
    study = copy.deepcopy(SMALL_STUDY)
    study["dataset"] = {
        "kind": "image_folder", "root": "data", "train_folder": "train", "test_folder": "test",
        "train_fraction": 0.25,
    }  # fmt: skip
    study["corpus"] = {"kind": "image_folder", "root": "corpus"}
    web = {"mechanism": "retrieve", "images_per_class": 2, "duplicate_threshold": None, "drop_unsafe": False}
    study["methods"] = {
        "none": {"mechanism": "real"},
        "web": web,
        "edited": {"mechanism": "sample", "start": {"pool": "web"}, "noise": 0.5, "steps": 4},
        "words": {**WORDS, "candidates": [1], "learn_from": {"pool": "web"}},
        "half": {"mechanism": "draw", "pools": {"web": 0.5, "edited": 0.5}},
        "best": {"mechanism": "draw", "pool": "edited", "keep": {"by": "clip", "share": 1.0}},
        "chosen": {"mechanism": "choose", "among": ["half", "best"]},
    }
    study["finetune"] |= {"max_epochs": 1}
    study["augmentation"] = {"images_per_class": 4, "images_per_part": 2, "resamples": 1}
    study["classifier"] |= {"batch_size": 4, "max_epochs": 1}
    study["leakage"] = {"clip_threshold": 0.9, "neighbours": 3}
    workspace.write_study(study)
    results = workspace.results
    workspace.run("--target", "results/small/leakage/inherited/edited.parquet")
    from_edited = {name: (START, 4) for name in ("edited", "half", "best")}  # 2 of 4 images of each class
    for name, (edge, images) in {**from_edited, "words": (LEARNED, 8)}.items():
        found = read_inherited(results / f"leakage/inherited/{name}.parquet").to_pylist()
        assert {(row["edge"], row["split"], row["image_id"]) for row in found} == {
            (edge, "test", "test/bag/0.png"), (edge, "test", "test/trouser/0.png"),
        }  # fmt: skip
        assert len({(row["class_id"], row["index"]) for row in found}) == images
    inheriting = Plan(parse_study(study), ("bag", "trouser")).inheriting
    assert {*inheriting} == {*from_edited, "words"}, "a choice has the pairs of the row that it chose"
    shard = results / "shards/words/selected/bag/0.parquet"
    assert b"web" not in pq.read_schema(shard).metadata[b"augbench"], "shared files name no row"
    study["leakage"]["action"], study["methods"]["web"]["may_fall_short"] = "drop", True
    workspace.write_study(study)
    learned = "results/small/finetune/words/images.parquet"
    workspace.run("--target", learned, "--target", "results/small/prompts/edited.parquet")
    starts = {
        row["source"] for rows in read_prompts(results / "prompts/edited.parquet").values() for row in rows
    }
    assert starts == {"bag/1.png", "trouser/1.png"}, "the planted ones are number 0"
    assert counts_by_row(read_split(workspace.folder / learned).sources) == {"web": 2}
