"""Few shots, long tails, and rows that fill classes up: splits, amounts, recipes, checks, plan."""

from __future__ import annotations

import copy
import csv
import json
from collections import Counter
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import LEAST_STUDY, SMALL_STUDY, Workspace
from test_resample import pool_of

from augbench.commands.check.dataset import ClassCounts, sizes_of_splits
from augbench.commands.check.methods import added_image_problems
from augbench.commands.check.training import pass_images
from augbench.commands.plan.estimate import estimate_study
from augbench.config.data import Caltech256, ImageFolder
from augbench.config.study import Study, load_study, parse_study
from augbench.data.classes import ClassInfo
from augbench.data.source import ClassImages, ImageList
from augbench.data.splits import Split, class_generator, make_splits, split_class, write_split
from augbench.errors import UserError
from augbench.files import PROJECT
from augbench.plan import recipes
from augbench.plan.paths import Plan
from augbench.prompts.stage import write_prompts
from augbench.report.render import read_csv, read_markdown
from augbench.report.tables import class_groups, class_sizes
from augbench.report.tables.class_sizes import thirds
from augbench.report.tables.table1 import Row as Table1Row
from augbench.report.tables.table1 import RunRow
from augbench.resample import Drawing, draw, needed_by_class
from augbench.retrieval.hunt import wanted_images
from augbench.retrieval.shortfall import shortfall

FOLDER: dict[str, Any] = {"kind": "image_folder", "root": "data", "train_folder": "train"}
GIVEN = ImageFolder(**FOLDER, test_folder="val", shots=5)
SAMPLED = ImageFolder(**FOLDER, shots=5)
IDS = tuple("abcdefghij")


def split(dataset: Any, pool: int = 100, validation: int | None = None, test: int | None = 50) -> Any:
    needed = {"train2x", "full", "train_draw1", "train2x_draw1"}
    found = split_class("a", pool, dataset, validation, test, class_generator(0, "a"), needed)
    return {name: set(indices.tolist()) for name, indices in found.items()}


def sizes(found: dict[str, set[int]]) -> dict[str, int]:
    return {name: len(found[name]) for name in ("train", "train2x", "val", "test", "full")}


# --- shots -----------------------------------------------------------------------------------------


def test_shots_give_as_many_training_and_validation_images_and_twice_as_many_for_train2x() -> None:
    assert sizes(split(GIVEN)) == {"train": 5, "train2x": 10, "val": 5, "test": 50, "full": 95}
    # without test images of its own, half of the pool is the test split
    assert sizes(split(SAMPLED, 31, test=None)) == {
        "train": 5, "train2x": 10, "val": 5, "test": 16, "full": 10,
    }  # fmt: skip
    assert sizes(split(SAMPLED.model_copy(update={"test_fraction": 0.2}), test=None))["test"] == 20


def test_the_splits_of_shots_are_disjoint_and_train_is_part_of_train2x() -> None:
    found = split(SAMPLED, 60, test=None)
    assert found["train"] < found["train2x"] < found["full"]
    assert found["full"] | found["val"] | found["test"] == set(range(60))
    assert sum(map(len, (found["full"], found["val"], found["test"]))) == 60


@pytest.mark.parametrize("test", [50, None])
def test_fewer_shots_are_among_more_and_all_have_the_same_test_images(test: int | None) -> None:
    base = GIVEN if test else SAMPLED
    five, twenty = (split(base.model_copy(update={"shots": shots}), 200, test=test) for shots in (5, 20))
    assert five["train"] < twenty["train"] and five["val"] < twenty["val"]
    assert five["train2x"] < twenty["train"] and five["test"] == twenty["test"]
    assert twenty["full"] < five["full"]


def test_shots_are_among_the_images_of_a_training_fraction_of_the_same_seed() -> None:
    tenth = ImageFolder(**FOLDER, test_folder="val", train_fraction=0.1)
    assert split(GIVEN)["train"] < split(tenth)["train"]


def test_further_draws_of_shots_are_nested_where_validation_has_one_size() -> None:
    five, twenty = (
        split(GIVEN.model_copy(update={"shots": shots, "validation_shots": 7, "draws": 2}))
        for shots in (5, 20)
    )
    assert five["train_draw1"] < twenty["train_draw1"] and len(five["train_draw1"]) == 5
    assert five["train_draw1"] < five["train2x_draw1"] and len(five["train2x_draw1"]) == 10
    assert five["train_draw1"] != five["train"] and not five["train2x_draw1"] & five["val"]


def test_validation_shots_set_the_size_of_sampled_and_of_given_validation_images() -> None:
    three = GIVEN.model_copy(update={"validation_shots": 3})
    assert sizes(split(three))["val"] == 3
    given, more = (split(which, validation=20) for which in (three, GIVEN))
    assert len(given["val"]) == 3 and len(more["val"]) == 5, "by default as many as shots"
    assert given["val"] < more["val"] <= set(range(20)) and len(more["full"]) == 100
    share = ImageFolder(**FOLDER, test_folder="val", shots=5, validation_fraction=0.1)
    assert sizes(split(share))["val"] == 10
    beside = ImageFolder(**FOLDER, test_folder="val", train_fraction=0.1, validation_shots=3)
    assert sizes(split(beside)) == {"train": 10, "train2x": 20, "val": 3, "test": 50, "full": 97}


@pytest.mark.parametrize(
    ("dataset", "pool", "test", "said"),
    [
        (
            GIVEN,
            9,
            50,
            r"dataset\.shots: 5, but class 'a' has 9 images; 15 are enough for train, val, train2x",
        ),
        (
            SAMPLED,
            20,
            None,
            r"dataset\.shots: 5, but class 'a' has 20 images; 30 are enough for train, val, test",
        ),
    ],
)
def test_a_class_with_too_few_images_is_named_with_its_count(
    dataset: Any, pool: int, test: int | None, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        split(dataset, pool, test=test)


def test_too_few_given_validation_images_are_one_line() -> None:
    said = r"dataset\.validation_shots: 5, but class 'a' has 4 validation images; allowed: at most 4"
    with pytest.raises(UserError, match=said):
        split(GIVEN, validation=4)


def study_of(dataset: dict[str, Any] | None = None, **changes: Any) -> Study:
    data = copy.deepcopy(SMALL_STUDY)
    for name in ("train_fraction", "validation_fraction"):
        del data["dataset"][name]
    data["dataset"].update(dataset or {"shots": 5})
    return parse_study({**data, **changes})


def counts(*pools: int) -> list[ClassCounts]:
    return [ClassCounts(class_id, pool, None, 1000) for class_id, pool in zip(IDS, pools, strict=False)]


def test_the_check_names_every_class_that_is_too_small_and_the_job_the_first() -> None:
    with pytest.raises(UserError) as caught:
        sizes_of_splits(study_of(), counts(100, 9, 8))
    assert [str(problem).split(";")[0] for problem in caught.value.problems] == [  # type: ignore[attr-defined]
        "dataset.shots: 5, but class 'b' has 9 images",
        "dataset.shots: 5, but class 'c' has 8 images",
    ]
    with pytest.raises(UserError, match="class 'b' has 9 images"):
        splits(GIVEN, 100, 9, 8)


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        ({"shots": 5, "train_fraction": 0.1}, r"dataset\.train_fraction: 0\.1; allowed with shots: null"),
        ({"shots": 5, "held_out_like": 0.1}, r"dataset\.held_out_like: 0\.1; allowed with shots: null"),
        ({"train_fraction": None}, r"dataset\.train_fraction: null; allowed without shots: a share"),
        (
            {"validation_shots": 5, "validation_fraction": 0.1},
            r"dataset\.validation_shots: 5; allowed with validation_fr",
        ),
        ({"shots": 0}, r"dataset\.shots: 0; allowed: .*1"),
        ({"imbalance": 1}, r"dataset\.imbalance: 1; allowed"),
    ],
)
def test_keys_that_exclude_each_other_are_one_line(dataset: dict[str, Any], said: str) -> None:
    for kind in ({}, {"kind": "caltech256", "root": "c"}, {"kind": "parquet", "root": "p"}):
        with pytest.raises(UserError, match=said) as caught:
            parse_study({**LEAST_STUDY, "dataset": {"kind": "fashion_mnist", **kind, **dataset}})
        assert "\n" not in str(caught.value)


def test_every_kind_of_data_set_takes_shots_and_they_read_back_from_a_resolved_config() -> None:
    for kind in ("fashion_mnist", "image_folder", "parquet", "caltech256"):
        root = {} if kind == "fashion_mnist" else {"root": "r"}
        study = parse_study({**LEAST_STUDY, "dataset": {"kind": kind, **root, "shots": 5}})
        assert study.dataset.train_fraction is None and study.dataset.validation_images == 5
        assert parse_study(recipes.config_recipe(study)) == study
    assert Caltech256(kind="caltech256", root="r").train_fraction == 0.8


# --- imbalance -------------------------------------------------------------------------------------


def splits(dataset: Any, *pools: int) -> dict[str, Split]:
    def listed(folder: str, class_id: str, size: int) -> ImageList:
        ids = [f"{folder}/{class_id}/{i:04d}.png" for i in range(size)]
        return ImageList(ids, ids)

    images = [
        ClassImages(class_id, listed("train", class_id, pool), test=listed("val", class_id, 4))
        for class_id, pool in zip(IDS, pools, strict=False)
    ]
    classes = [ClassInfo(found.class_id, (found.class_id,)) for found in images]
    return make_splits(
        classes, images, dataset, 0, {"train2x", "full", *(["train_draw1"] if dataset.draws > 1 else [])}
    )


def test_a_long_tail_has_the_published_sizes() -> None:
    # CIFAR-10-LT with ratio 100 (Cui et al., 2019; Cao et al., 2019)
    published = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    study = study_of({"shots": 5000, "imbalance": 100.0})
    assert [size.train for size in sizes_of_splits(study, counts(*[20_000] * 10)).values()] == published


def test_a_long_tail_is_in_training_alone_and_part_of_the_whole_split() -> None:
    whole = ImageFolder(**FOLDER, test_folder="val", train_fraction=0.2)
    tail = whole.model_copy(update={"imbalance": 16.0, "draws": 2})
    plain, made = splits(whole, 80, 100, 120), splits(tail, 80, 100, 120)
    # the smallest class has 16 of 80 images; 16 / 16^(1/2) = 4, 16 / 16 = 1
    assert np.bincount(made["train"].labels).tolist() == [16, 4, 1]
    assert np.bincount(made["train2x"].labels).tolist() == [32, 8, 2]
    assert np.bincount(made["train_draw1"].labels).tolist() == [16, 4, 1]
    for name in ("val", "test", "full"):
        assert made[name].image_ids == plain[name].image_ids
    for name in ("train", "train2x"):
        assert {*made[name].image_ids} < {*plain[name].image_ids}


def test_a_class_that_would_have_no_image_is_named() -> None:
    said = r"dataset\.imbalance: 51, but class 'c' would have 0 of 50 training images; allowed: at most 50"
    study = study_of({"shots": 50, "imbalance": 51.0})
    with pytest.raises(UserError, match=said):
        sizes_of_splits(study, counts(1000, 1000, 1000))
    with pytest.raises(UserError, match=said):
        splits(GIVEN.model_copy(update={"shots": 50, "imbalance": 51.0}), 1000, 1000, 1000)
    fifty = study_of({"shots": 50, "imbalance": 50.0})
    assert [size.train for size in sizes_of_splits(fifty, counts(1000, 1000, 1000)).values()] == [50, 7, 1]


# --- fill_to ---------------------------------------------------------------------------------------


def test_classes_are_filled_up_and_one_with_enough_gets_nothing() -> None:
    real = {"a": 50, "b": 12, "c": 5}
    assert needed_by_class(real, 1.0) == real
    assert needed_by_class(real, 0.5) == {"a": 25, "b": 6, "c": 3}
    assert needed_by_class(real, 1.0, 20) == {"a": 0, "b": 8, "c": 15}
    assert needed_by_class(real, 1.0, "largest") == {"a": 0, "b": 38, "c": 45}


def test_a_set_has_the_images_that_fill_its_classes_up() -> None:
    pool = pool_of({"a": 30, "b": 30, "c": 30})
    filled = draw(pool, {"a": 12, "b": 5, "c": 12}, 1, 0, drawing=Drawing(fill_to="largest"))
    assert Counter(filled.column("class_id").to_pylist()) == {"b": 7}
    to_14 = draw(pool, {"a": 12, "b": 5, "c": 20}, 1, 0, drawing=Drawing(fill_to=14))
    assert Counter(to_14.column("class_id").to_pylist()) == {"a": 2, "b": 9}
    with pytest.raises(UserError, match=r"too few images for 1 class.*: b 30 of 35"):
        draw(pool, {"a": 12, "b": 5}, 1, 0, drawing=Drawing(fill_to=40))


def filling(fill_to: Any = "largest", **changes: Any) -> Study:
    rows = {
        "none": {"mechanism": "real"},
        "clip_prompts": {**SMALL_STUDY["methods"]["clip_prompts"], "fill_to": fill_to},
        "retrieval": {"mechanism": "retrieve", "fill_to": fill_to},
        "filled": {"mechanism": "draw", "pool": "retrieval", "fill_to": fill_to},
    }
    return study_of({"shots": 10, "imbalance": 2.0}, methods=rows, **changes)


REAL = {"a": 10, "b": 7, "c": 5}


def test_retrieval_keeps_as_many_images_as_fill_a_class_up() -> None:
    study = filling()
    assert wanted_images(study.retrieved["retrieval"], REAL) == {"a": 0, "b": 3, "c": 5}
    assert wanted_images(study_of().retrieved["retrieval"], REAL) == dict.fromkeys("abc", 10)
    kept = {"retrieval": {"a": 0, "b": 2, "c": 5}}
    assert shortfall(study, kept, REAL) == {"b": {"retrieval": {"kept": 2, "needed": 3}}}


def test_the_check_counts_what_fills_classes_up() -> None:
    assert pass_images(filling(), "clip_prompts", REAL) == 30
    assert pass_images(filling(8), "filled", REAL) == 22 + 0 + 1 + 3
    assert list(added_image_problems(filling(15), REAL)) == []
    assert [str(problem) for problem in added_image_problems(filling(40), REAL)] == [
        "augmentation.images_per_class: 20; allowed: at least 35; class 'c' has 5 training images and is "
        "filled"
        " to 40"
    ]
    balanced = [str(problem) for problem in added_image_problems(filling(), {"a": 5, "b": 5})]
    assert balanced[0] == (
        "methods.clip_prompts.fill_to: largest; allowed: more; every class has at least 5 training images, "
        "so no"
        " image would be added"
    )
    short = parse_study(
        {
            **filling().model_dump(),
            "methods": {**filling().model_dump()["methods"], "retrieval": {"mechanism": "retrieve"}},
        }
    )
    assert [str(problem) for problem in added_image_problems(short, {"a": 10, "b": 7, "c": 3})] == [
        "methods.filled.pool: 'retrieval'; allowed: as many as its pool; retrieval keeps 3 of class 'c', and "
        "7"
        " are added"
    ]


@pytest.mark.parametrize(
    ("row", "augmentation", "said"),
    [
        (
            {"fill_to": 5, "added_per_training_image": 2},
            {},
            "added_per_training_image: 2; not allowed with fill",
        ),
        ({"fill_to": 0}, {}, r"fill_to: 0; allowed"),
        ({"fill_to": "smallest"}, {}, r"fill_to: 'smallest'; allowed"),
        (
            {"fill_to": 5},
            {"images_per_training_image": 3},
            "fill_to: 5; goes with augmentation.images_per_class",
        ),
    ],
)
def test_an_amount_that_is_none_is_one_line(row: Any, augmentation: Any, said: str) -> None:
    data = {**LEAST_STUDY, "methods": {"clip": {"mechanism": "sample", **row}}}
    with pytest.raises(UserError, match=said) as caught:
        parse_study({**data, "augmentation": augmentation or {"images_per_class": 9}})
    assert "\n" not in str(caught.value)


def test_the_plan_counts_every_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    study = filling()
    dataset = study.dataset.model_copy(update={"classes": "fashion_mnist"})
    estimate = estimate_study(study.model_copy(update={"study": "unmade", "dataset": dataset}), device="h200")
    # 10 / 2^(i / 9), i = 0 ... 9, rounded down
    tail = [10, 9, 8, 7, 7, 6, 6, 5, 5, 5]
    assert [*estimate.sizes.by_class.values()] == tail and estimate.sizes.train == sum(tail)
    assert estimate.added_images("clip_prompts") == sum(10 - size for size in tail)
    assert estimate.pool_size("filled") == estimate.pool_size("retrieval") == sum(10 - size for size in tail)
    assert estimate.pool_size("clip_prompts") == 10 * 20
    assert estimate.pass_images("clip_prompts") == 100


def test_rows_that_fill_up_have_no_place_in_figure_5b_and_keep_their_amount_in_further_draws() -> None:
    study = filling()
    assert Plan(study, IDS).scaling == {}
    twice = filling().model_copy(update={"dataset": study.dataset.model_copy(update={"draws": 2})}).unfolded
    assert twice.methods["retrieval_draw1"].fill_to == "largest"
    assert Drawing.of(twice, "clip_prompts_draw1").fill_to == "largest"


# --- macro and tail accuracy -----------------------------------------------------------------------


def test_thirds_are_by_training_images_and_ties_by_label() -> None:
    assert thirds({"a": 5, "b": 9, "c": 5, "d": 5}) == {"b": "head", "a": "head", "c": "middle", "d": "tail"}
    assert thirds({"a": 1, "b": 2, "c": 3}) == {"c": "head", "b": "middle", "a": "tail"}
    assert thirds({"a": 5, "b": 5, "c": 5}) == {} and thirds({"a": 5, "b": 4}) == {}
    ten = thirds(dict(zip(IDS, [10, 9, 8, 7, 7, 6, 6, 5, 5, 5], strict=True)))
    assert [*Counter(ten.values()).items()] == [("head", 4), ("middle", 3), ("tail", 3)]


# of four classes: 4, 2, 1 and 1 test images; class b is the largest, then a and c, then d
LABELS = np.array([0, 0, 0, 0, 1, 1, 2, 3])
TRAIN = {"a": 5, "b": 9, "c": 5, "d": 2}
HITS = {
    "none": {0: np.array([1, 1, 1, 1, 0, 1, 0, 0]), 1: np.array([1, 1, 0, 0, 1, 1, 0, 0])},
    "more": {0: np.array([1, 1, 1, 1, 1, 1, 1, 1]), 1: np.array([1, 1, 0, 0, 0, 1, 1, 1])},
}


def groups_of(train: dict[str, int]) -> list[class_groups.Row]:
    runs = [
        RunRow(name, run, 100 * float(own[run].mean()), 0.0, 1, 1, 21, 0, 4, 8)
        for name, own in HITS.items()
        for run in own
    ]
    table = [
        Table1Row(name, name, family, "train", 50.0, 1.0, 2, 5.0, 0.0, None, None, None)
        for name, family in (("none", "real"), ("more", "retrieval"))
    ]
    labels = {class_id: label for label, class_id in enumerate("abcd")}
    report = study_of().report
    return class_groups.build_rows(table, runs, HITS, LABELS, train, labels, 0, report)


def test_macro_head_and_tail_accuracies_are_the_hand_computed_means_of_recalls() -> None:
    found = {(row.method, row.measure): row for row in groups_of(TRAIN)}
    # recalls of a, b, c, d without added images: 1, 1/2, 0, 0 in run 0; 1/2, 1, 0, 0 in run 1
    assert found["none", "macro"].mean_percent == pytest.approx(100 * 1.5 / 4)
    assert found["none", "macro"].stderr_percent == pytest.approx(0.0, abs=1e-9)
    # head is b and a: 3/4 and 3/4; middle is c, tail is d
    assert found["none", "head"].mean_percent == pytest.approx(75.0)
    assert found["none", "middle"].mean_percent == found["none", "tail"].mean_percent == 0.0
    # with added images: 1, 1, 1, 1 in run 0; 1/2, 1/2, 1, 1 in run 1
    more = found["more", "macro"]
    assert more.mean_percent == pytest.approx(87.5) and more.stderr_percent == pytest.approx(12.5)
    assert more.baseline_points == pytest.approx(50.0) and more.n_test == 8
    tail = found["more", "tail"]
    assert (tail.mean_percent, tail.baseline_points, tail.n_test, tail.classes) == (100.0, 100.0, 1, 1)
    assert found["more", "head"].classes == 2 and found["more", "head"].n_test == 6
    assert more.baseline_images_low is not None and more.baseline_images_low < 50 < more.baseline_images_high


def test_without_differences_between_classes_macro_stands_alone_and_equals_top_1_on_a_balanced_test() -> None:
    assert {row.measure for row in groups_of(dict.fromkeys("abcd", 5))} == {"macro"}
    balanced = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    assert class_groups.weights_of(balanced, [0, 1, 2, 3]).tolist() == [1.0] * 8
    assert class_groups.weights_of(LABELS, [1, 3]).tolist() == [0, 0, 0, 0, 0.75, 0.75, 0, 1.5]


def test_the_tables_show_them_and_name_what_they_are(tmp_path: Path) -> None:
    rows = groups_of(TRAIN)
    table = [
        Table1Row(row.method, row.method, "real", "train", 50.0, 1.0, 2, 5.0, 0.0, None, None, None)
        for row in rows
        if row.measure == "macro"
    ]
    outs = {kind: tmp_path / f"class_groups.{kind}" for kind in ("csv", "md", "tex")}
    class_groups.write_class_groups("s", table, rows, outs)
    assert read_csv(outs["csv"], class_groups.Row) == rows
    shown = read_markdown(outs["md"], "t")
    assert shown.header == (
        "Method", "n", "Top-1 (%)", "Macro (%)", "Macro 95%", "Macro against baseline", "Head (%)",
        "Middle (%)", "Tail (%)", "Tail 95%", "Tail against baseline",
    )  # fmt: skip
    assert shown.cells[1][3] == "87.5 ± 12.5" and shown.cells[1][8] == "100.0 ± 0.0"
    assert "head 2, middle 1, tail 1" in shown.notes[1]


def test_the_sizes_of_the_classes_are_those_of_the_manifests(tmp_path: Path) -> None:
    made = splits(GIVEN.model_copy(update={"shots": 4, "imbalance": 4.0, "draws": 2}), 40, 40, 40, 40)
    for name, one in made.items():
        write_split(one, tmp_path / f"{name}.parquet")
    sizes = Counter(made["train"].class_ids)
    assert sizes == {"a": 4, "b": 2, "c": 1, "d": 1}  # 4 / 4^(i / 3), i = 0 ... 3, rounded down
    pool = pool_of(dict.fromkeys("abcd", 9))
    for run in range(2):
        drawn = draw(pool, {**sizes, "b": 2 + run}, run, 0, drawing=Drawing(fill_to=4, first_part=False))
        pq.write_table(drawn, tmp_path / f"{run}.parquet")
    rows = class_sizes.build_rows(
        parse_study(
            {**LEAST_STUDY, "methods": {"none": {"mechanism": "real"}, "clip": {"mechanism": "sample"}}}
        ),
        {name: tmp_path / f"{name}.parquet" for name in ("train", "val", "test")},
        {"none": tmp_path / "train2x.parquet", "clip": tmp_path / "train.parquet"},
        {"clip": {str(tmp_path / "0.parquet"): 0.0, str(tmp_path / "1.parquet"): 0.0}},
        excluded=["d"],
    )
    assert [(row.method, row.class_id, row.third, row.real, row.added) for row in rows] == [
        ("none", "a", "head", 8, 0.0), ("none", "b", "middle", 4, 0.0), ("none", "c", "tail", 2, 0.0),
        ("clip", "a", "head", 4, 0.0), ("clip", "b", "middle", 2, 1.5), ("clip", "c", "tail", 1, 3.0),
    ]  # fmt: skip
    assert {(row.validation, row.test) for row in rows} == {(4, 4)}
    class_sizes.write_class_sizes("s", rows, {kind: tmp_path / f"sizes.{kind}" for kind in ("csv", "md")})
    assert read_csv(tmp_path / "sizes.csv", class_sizes.Row) == rows
    assert read_markdown(tmp_path / "sizes.md", "t").cells[1] == (
        "b",
        "middle",
        "2",
        "4",
        "4",
        "4",
        "2 + 1.5",
    )


def test_sizes_are_those_after_added_images_have_replaced_real_ones(tmp_path: Path) -> None:
    """Half of 5, 4 and 1 real images, rounded up, but run 0 has one added image of b, and run 1 none."""
    ids = [f"{name}{i}" for name, size in (("a", 5), ("b", 4), ("c", 1)) for i in range(size)]
    labels = np.array(["abc".index(one[0]) for one in ids], dtype=np.int32)
    for name in ("train", "val", "test"):
        write_split(Split(ids, [one[0] for one in ids], labels, ids), tmp_path / f"{name}.parquet")
    pool = pool_of(dict.fromkeys("abc", 9))
    for run, counts in enumerate(({"a": 4, "b": 1, "c": 2}, {"a": 4, "c": 2})):
        taken = [pool.slice(9 * "abc".index(name), count) for name, count in counts.items()]
        pq.write_table(pa.concat_tables(taken), tmp_path / f"{run}.parquet")
    methods = {"clip": {"mechanism": "sample", "use": {"replace": 0.5}}}
    study = parse_study({**LEAST_STUDY, "methods": {"none": {"mechanism": "real"}, **methods}})
    paths = {name: tmp_path / f"{name}.parquet" for name in ("train", "val", "test")}
    real = dict.fromkeys(study.methods, tmp_path / "train.parquet")
    sets = {"clip": {str(tmp_path / f"{run}.parquet"): 0.5 for run in range(2)}}
    rows = class_sizes.build_rows(study, paths, real, sets)
    assert [(row.class_id, row.train, row.real, row.added) for row in rows if row.method == "clip"] == [
        ("a", 5, 2.0, 3.0), ("b", 4, 3.5, 0.5), ("c", 1, 0.0, 1.0),
    ]  # fmt: skip
    class_sizes.write_class_sizes("s", rows, {"md": tmp_path / "sizes.md"})
    cells = [line[-1] for line in read_markdown(tmp_path / "sizes.md", "t").cells]
    assert cells == ["2 + 3", "3.5 + 0.5", "0 + 1"]


def test_the_sets_of_a_row_that_chooses_have_the_chosen_rows_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    clip = {"mechanism": "sample"}
    methods = {
        "none": {"mechanism": "real"}, "clip": clip, "half": {**clip, "use": {"replace": 0.5}},
        "best": {"mechanism": "choose", "among": ["clip", "half"]},
    }  # fmt: skip
    dataset = {**LEAST_STUDY["dataset"], "draws": 2}
    plan = Plan(parse_study({**LEAST_STUDY, "dataset": dataset, "methods": methods}), ())
    for name, chosen in (("best", "clip"), ("best_draw1", "half_draw1")):
        Path(plan.selected(name)).parent.mkdir(exist_ok=True, parents=True)
        Path(plan.selected(name)).write_text(json.dumps({"selected": chosen}))
    found = class_sizes.sets_of(plan)
    assert {*found["clip"].values()} == {0.0} and {*found["half"].values()} == {0.5}
    shares = {"best": 0.0, "best_draw1": 0.5}
    assert found["best"] == {plan.resample(name, run): shares[name] for name in shares for run in plan.runs}


def test_a_note_gives_the_ratio_of_a_long_tail_without_classes_that_are_left_out(tmp_path: Path) -> None:
    made = splits(GIVEN.model_copy(update={"shots": 8, "imbalance": 8.0}), 40, 40, 40, 40)["train"]
    write_split(made, tmp_path / "train.parquet")  # 8, 4, 2 and 1
    dataset = {**LEAST_STUDY["dataset"], "shots": 8}
    plain = parse_study({**LEAST_STUDY, "dataset": dataset})
    study = parse_study({**LEAST_STUDY, "dataset": {**dataset, "imbalance": 8.0}})
    (note,) = class_sizes.tail_notes(study, tmp_path / "train.parquet", ["d"])
    assert "the largest has 4 times the training images of the smallest, not 8" in note
    assert class_sizes.tail_notes(study, tmp_path / "train.parquet", ["b"]) == ()
    assert class_sizes.tail_notes(plain, tmp_path / "train.parquet", ["d"]) == ()


def test_only_studies_whose_classes_may_differ_have_the_tables() -> None:
    even = Plan(load_study([PROJECT / "config/demo.yaml"]), IDS)
    assert even.class_sizes == even.class_groups == {} and "class_groups" not in even.report_tables
    assert Plan(study_of(), IDS).class_groups == {}, "shots are as many in every class"
    assert {*Plan(filling(), IDS).class_groups} == {"csv", "md", "tex"}
    caltech = load_study([PROJECT / "config/caltech256.yaml"])
    few = Caltech256(kind="caltech256", root="x", shots=5, train_fraction=None)
    assert Plan(caltech, IDS).class_sizes
    assert Plan(caltech.model_copy(update={"dataset": few}), IDS).class_groups, "half of each class is tested"


# --- recipes ---------------------------------------------------------------------------------------

NEW_KEYS = ("'shots'", "imbalance", "validation_shots", "fill_to")


@pytest.mark.parametrize("name", ["demo", "mini", "imagenet10", "imagenet_full", "caltech256"])
def test_shipped_configs_have_none_of_the_new_keys_in_any_recipe(name: str) -> None:
    study = load_study([PROJECT / f"config/{name}.yaml"])
    found = [recipes.table_recipe(study), recipes.splits_recipe(study), recipes.shortfall_recipe(study)]
    for row in study.augmented:
        found += [recipes.resample_recipe(study, row), recipes.figure_data_recipe(study, [row])]
    for row in study.retrieved:
        found += [recipes.search_recipe(study, row), recipes.retrieve_recipe(study, row)]
    assert not [key for key in NEW_KEYS if key in str(found)]


def test_an_amount_is_in_the_recipes_that_it_shapes_and_a_kept_number_hides_it() -> None:
    study = filling()
    assert recipes.resample_recipe(study, "filled")["fill_to"] == "largest"
    assert recipes.search_recipe(study, "retrieval")["asked"]["fill_to"] == "largest"
    assert "fill_to" not in str(recipes.retrieve_recipe(study, "retrieval"))
    rows = {"retrieval": {"mechanism": "retrieve", "images_per_class": 20, "fill_to": 15}}
    kept = study_of(methods=rows)
    assert "fill_to" not in str(recipes.search_recipe(kept, "retrieval")["asked"])


OVERLAYS = ("shots_5", "shots_20", "long_tail")


@pytest.mark.parametrize("base", ["demo", "mini", "miniature"])
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlays_share_the_images_of_prompts_and_retrieval_with_their_study(
    base: str, overlay: str, tmp_path: Path
) -> None:
    plain, study = (
        load_study([PROJECT / f"config/{base}.yaml", *more])
        for more in ([], [PROJECT / f"config/overlays/{overlay}.yaml"])
    )
    shared = [name for name, row in study.pooled.items() if not row.depends_on_training_images]
    assert {"clip_prompts", "retrieval"} <= set(shared)
    for name in shared:
        assert recipes.prompts_recipe(study, name) == recipes.prompts_recipe(plain, name)
        made = (
            (recipes.search_recipe, recipes.retrieve_recipe)
            if study.pooled[name].retrieves_images
            else (recipes.generate_recipe,)
        )
        assert all(recipe(study, name) == recipe(plain, name) for recipe in made)
    assert wanted_images(study.retrieved["retrieval"], {"a": 5}) == wanted_images(
        plain.retrieved["retrieval"], {"a": 100}
    )
    for which, images in ((plain, 50), (study, 5)):
        ids = {"a": [f"{number}" for number in range(images)]}
        path = tmp_path / f"{which.study}.parquet"
        write_prompts(which, "clip_prompts", [ClassInfo("a", ("cat",))], ids, path)
    assert (tmp_path / f"{study.study}.parquet").read_bytes() == (tmp_path / f"{base}.parquet").read_bytes()


@pytest.mark.parametrize("base", ["demo", "mini"])
def test_overlays_pass_the_check_of_their_counts(base: str) -> None:
    for overlay in OVERLAYS:
        study = load_study([PROJECT / f"config/{base}.yaml", PROJECT / f"config/overlays/{overlay}.yaml"])
        found = sizes_of_splits(study, [ClassCounts(class_id, 1000, None, 1000) for class_id in IDS])
        train = {class_id: size.train for class_id, size in found.items()}
        assert list(added_image_problems(study, train)) == []
        if overlay == "long_tail":
            # 50 / 10^(i / 9) or 100 / 10^(i / 9), i = 0 ... 9, rounded down
            assert [*train.values()] == (
                [50, 38, 29, 23, 17, 13, 10, 8, 6, 5]
                if base == "demo"
                else [100, 77, 59, 46, 35, 27, 21, 16, 12, 10]
            )


@pytest.mark.full
@pytest.mark.long
def test_a_long_tail_of_shots_over_two_draws_runs_to_its_end(workspace: Workspace) -> None:
    small = SMALL_STUDY["methods"]
    methods = {
        **{name: small[name] for name in ("none", "real_20pct", "boomerang")},
        "clip_prompts": {**small["clip_prompts"], "fill_to": "largest"},
        # keeps no image of the first class, which has 8 real ones
        "retrieval": {"mechanism": "retrieve", "fill_to": 8, "duplicate_threshold": 0.999},
        "half": {"mechanism": "draw", "pool": "clip_prompts", "added_per_training_image": 0.5},
    }
    dataset = {
        name: value for name, value in SMALL_STUDY["dataset"].items() if not name.endswith("_fraction")
    }
    study = {
        **SMALL_STUDY,
        "methods": methods,
        "dataset": {**dataset, "shots": 8, "validation_shots": 3, "imbalance": 4, "draws": 2},
        "augmentation": {**SMALL_STUDY["augmentation"], "resamples": 1},
        "execution": {**SMALL_STUDY["execution"], "classes_per_job": 10},
    }
    workspace.write_study(study)
    workspace.run()
    tail = [8, 6, 5, 5, 4, 3, 3, 2, 2, 2]  # 8 / 4^(i / 9), rounded down
    sizes: dict[str, list[dict[str, str]]] = {}
    for line in _rows(workspace.results / "tables/class_sizes.csv"):
        sizes.setdefault(line["method"], []).append(line)
    assert [int(row["train"]) for row in sizes["none"]] == tail
    assert [int(row["real"]) for row in sizes["real_20pct"]] == [2 * size for size in tail]
    assert [float(row["added"]) for row in sizes["boomerang"]] == tail
    assert [float(row["added"]) for row in sizes["half"]] == [4, 3, 3, 3, 2, 2, 2, 1, 1, 1]
    for name in ("clip_prompts", "retrieval"):
        assert [float(row["added"]) for row in sizes[name]] == [8 - size for size in tail]
    assert {(row["validation"], row["test"]) for row in sizes["half"]} == {("3", "20")}
    groups = read_csv(workspace.results / "tables/class_groups.csv", class_groups.Row)
    assert len(groups) == len(methods) * 4 and {row.n for row in groups} == {2}
    top1 = {row["method"]: row for row in _rows(workspace.results / "tables/table1.csv")}
    for row in groups:
        if row.measure == "macro":  # the test split is balanced
            assert row.mean_percent == pytest.approx(float(top1[row.method]["top1_percent"]))
    assert "Macro accuracy" in (workspace.results / "report.html").read_text()
    assert workspace.plan() == {}


def _rows(path: Path) -> list[dict[str, str]]:
    text = "".join(line for line in path.read_text().splitlines(True) if not line.startswith("#"))
    return list(csv.DictReader(StringIO(text)))
