"""Splits: protocol, section 1 (paper, section 3)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from augbench.config.data import Caltech256, ImageFolder
from augbench.data.classes import ClassInfo
from augbench.data.source import ClassImages, ImageList
from augbench.data.splits import (
    Split,
    check_labels,
    class_generator,
    make_splits,
    read_split,
    split_class,
    write_split,
)
from augbench.errors import UserError

IMAGENET10 = ImageFolder(
    kind="image_folder", root="ilsvrc2012", train_folder="train", test_folder="val", train_fraction=0.1
)
CALTECH256 = Caltech256(kind="caltech256", root="256_ObjectCategories")
ALL = {"train2x", "full"}


def split(
    pool: int,
    dataset: Any = IMAGENET10,
    validation: int | None = None,
    test: int | None = 50,
    needed: set[str] = ALL,
) -> dict[str, set[int]]:
    found = split_class("n01440764", pool, dataset, validation, test, class_generator(0, "n01440764"), needed)
    return {name: set(indices.tolist()) for name, indices in found.items()}


@pytest.mark.parametrize(("pool", "train"), [(732, 74), (1300, 130), (1000, 100), (1001, 101), (70, 7)])
def test_train_is_the_ceiling_of_the_fraction(pool: int, train: int) -> None:
    # 74 to 130 images per class, as in the paper for ImageNet's 732 to 1300; 0.07 x 100 in floats is 7.0...01
    assert len(split(pool)["train"]) == train
    assert len(split(100, IMAGENET10.model_copy(update={"train_fraction": 0.07}))["train"]) == 7


@pytest.mark.parametrize("pool", [30, 732, 1300])
def test_validation_is_as_large_as_train_where_test_images_are_given(pool: int) -> None:
    found = split(pool)
    assert len(found["val"]) == len(found["train"])
    assert found["test"] == set(range(50))


@pytest.mark.parametrize("pool", [30, 732, 1300])
def test_train2x_is_train_and_as_much_again_and_shares_nothing_with_validation(pool: int) -> None:
    found = split(pool)
    assert found["train"] < found["train2x"]
    assert len(found["train2x"]) == 2 * len(found["train"])
    assert not found["train2x"] & found["val"]
    assert not found["train"] & found["val"]


def test_full_is_all_but_validation() -> None:
    found = split(1300)
    assert found["full"] == set(range(1300)) - found["val"]


@pytest.mark.parametrize("pool", [80, 81, 83, 99, 100, 827])
def test_caltech256_is_80_percent_train_and_the_rest_in_even_halves(pool: int) -> None:
    found = split(pool, CALTECH256, test=None, needed={"full"})
    assert len(found["train"]) == math.ceil(pool * 8 / 10)
    assert abs(len(found["val"]) - len(found["test"])) <= 1
    assert found["train"] | found["val"] | found["test"] == set(range(pool))
    assert len(found["train"]) + len(found["val"]) + len(found["test"]) == pool
    assert found["full"] == found["train"]


FULL = IMAGENET10.model_copy(update={"train_fraction": 0.9, "held_out_like": 0.1})


@pytest.mark.parametrize("pool", [2, 9, 30, 732, 1299, 1300])
def test_the_full_study_holds_out_the_very_images_of_the_10_percent(pool: int) -> None:
    ten, full = split(pool, needed={"full"}), split(pool, FULL, needed={"full"})
    assert (full["val"], full["test"], full["full"]) == (ten["val"], ten["test"], ten["full"])
    assert ten["train"] <= full["train"] <= full["full"]
    assert len(full["train"]) == min(math.ceil(pool * 9 / 10), pool - len(ten["val"]))
    without = FULL.model_copy(update={"held_out_like": None, "validation_fraction": 0.1})
    assert pool < 732 or split(pool, without, needed=set())["val"] != ten["val"]


def test_held_out_test_images_are_the_other_studys_too_and_its_own_fraction_changes_nothing() -> None:
    fifth = CALTECH256.model_copy(update={"train_fraction": 0.2})
    half = CALTECH256.model_copy(update={"train_fraction": 0.1, "held_out_like": 0.2})
    theirs, ours = (split(100, config, test=None, needed={"full"}) for config in (fifth, half))
    assert all(ours[name] == theirs[name] for name in ("val", "test", "full"))
    assert len(ours["train"]) == 10 and ours["train"] < theirs["train"]
    for config in (IMAGENET10, CALTECH256):
        same = config.model_copy(update={"held_out_like": config.train_fraction})
        test = 50 if config is IMAGENET10 else None
        assert split(732, same, test=test, needed=set()) == split(732, config, test=test, needed=set())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"held_out_like": 0.95}, r"dataset\.held_out_like: 0\.95 beside 0\.1 .*; allowed: at most 0\.9$"),
        ({"train_fraction": 0.95, "held_out_like": 0.1}, r"dataset\.validation_fraction: 0\.1 beside train"),
    ],
)
def test_held_out_images_that_do_not_fit_are_one_line(changes: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        split(100, FULL.model_copy(update={"validation_fraction": 0.1, **changes}))


def test_a_data_set_that_gives_all_held_out_images_has_none_to_choose() -> None:
    folders = {"validation_folder": "a", "test_folder": "b"}
    with pytest.raises(ValueError, match="held_out_like: goes with held-out images that are sampled"):
        ImageFolder(kind="image_folder", root="data", held_out_like=0.1, **folders)


def test_given_validation_images_leave_the_pool_alone() -> None:
    found = split(100, validation=20)
    assert found["val"] == set(range(20))
    assert found["full"] == set(range(100))


def test_full_leaves_out_the_whole_sampled_test_split_even_where_it_is_cut() -> None:
    fifths = {"train_fraction": 0.2, "validation_fraction": 0.2, "test_fraction": 0.2}
    whole = split(100, CALTECH256.model_copy(update=fifths), test=None)
    cut = split(100, CALTECH256.model_copy(update={**fifths, "test_images_per_class": 5}), test=None)
    assert len(whole["test"]) == 20
    assert len(cut["test"]) == 5
    assert cut["test"] < whole["test"]
    assert cut["full"] == set(range(100)) - whole["val"] - whole["test"]


def test_a_smaller_cut_of_given_test_images_is_part_of_a_larger_one() -> None:
    ten, twenty = (
        split(100, IMAGENET10.model_copy(update={"test_images_per_class": size}))["test"] for size in (10, 20)
    )
    assert (len(ten), len(twenty)) == (10, 20)
    assert ten < twenty


def test_only_needed_splits_are_made_and_they_do_not_change_the_others() -> None:
    plain = split(100, needed=set())
    assert set(plain) == {"train", "val", "test"}
    assert plain == {name: indices for name, indices in split(100).items() if name in plain}


def test_each_class_has_a_generator_of_its_own() -> None:
    first, again, other, seed = (
        class_generator(*key).permutation(50).tolist()
        for key in ((0, "ak47"), (0, "ak47"), (0, "zebra"), (1, "ak47"))
    )
    assert first == again
    assert first != other
    assert first != seed


@pytest.mark.parametrize(
    ("pool", "dataset", "test", "needed", "said"),
    [
        (1, IMAGENET10, 50, set(), ["n01440764", "has 1 image", "2 are enough for train, val"]),
        (9, CALTECH256, None, set(), ["has 9 images", "10 are enough for train, val, test"]),
        (2, IMAGENET10, 50, {"train2x"}, ["has 2 images", "3 are enough for train, val, train2x"]),
        (100, IMAGENET10, 0, set(), ["has 0 test images", "at least 1"]),
        (
            100,
            IMAGENET10.model_copy(update={"train_fraction": 0.6}),
            50,
            set(),
            ["dataset.validation_fraction", "0.6", "at most 0.4"],
        ),
        (
            100,
            IMAGENET10.model_copy(update={"train_fraction": 0.4}),
            50,
            {"train2x"},
            ["dataset.train_fraction", "0.4", "at most the 0.2"],
        ),
    ],
)
def test_a_class_that_is_too_small_is_one_clear_error(
    pool: int, dataset: Any, test: int | None, needed: set[str], said: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        split(pool, dataset, test=test, needed=needed)
    assert all(text in str(caught.value) for text in said), str(caught.value)
    assert "\n" not in str(caught.value)


# --- manifests ------------------------------------------------------------------------------------

CLASSES = [ClassInfo("wolf", ("wolf",)), ClassInfo("ant", ("ant",))]


def images(class_id: str, count: int) -> ClassImages:
    def listed(folder: str, size: int) -> ImageList:
        ids = [f"{folder}/{class_id}/{i:03d}.png" for i in range(size)]
        return ImageList(ids, ids)

    return ClassImages(class_id, listed("train", count), test=listed("val", 4))


def splits(seed: int = 0) -> dict[str, Split]:
    return make_splits(CLASSES, [images("wolf", 60), images("ant", 30)], IMAGENET10, seed, ALL)


def test_manifests_keep_the_imbalance_of_the_classes() -> None:
    assert {name: np.bincount(made.labels).tolist() for name, made in splits().items()} == {
        "train": [6, 3],
        "val": [6, 3],
        "test": [4, 4],
        "train2x": [12, 6],
        "full": [54, 27],
    }


def test_test_images_come_from_the_test_folder_and_training_images_do_not() -> None:
    made = splits()
    assert all(source.startswith("val/") for source in made["test"].sources)
    assert all(
        source.startswith("train/")
        for name in ("train", "train2x", "full", "val")
        for source in made[name].sources
    )


def test_a_manifest_is_read_as_it_was_written_sorted_by_label_and_id(tmp_path: Any) -> None:
    made = splits()["train2x"]
    write_split(made, tmp_path / "train2x.parquet")
    read = read_split(tmp_path / "train2x.parquet")
    assert pq.read_schema(tmp_path / "train2x.parquet").names == ["image_id", "class_id", "label", "source"]
    assert read.labels.dtype == np.int32
    rows = list(zip(read.labels.tolist(), read.image_ids, read.class_ids, read.sources, strict=True))
    assert rows == sorted(
        zip(made.labels.tolist(), made.image_ids, made.class_ids, made.sources, strict=True)
    )


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_images(tmp_path: Any) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_split(splits(seed)["train"], tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert read_split(tmp_path / "a").image_ids != read_split(tmp_path / "c").image_ids


def test_class_order_is_checked_by_id() -> None:
    made = splits()["train"]
    check_labels(made, CLASSES)
    with pytest.raises(UserError, match=r"label 0 is class 'wolf'; the class table says 'ant'"):
        check_labels(made, CLASSES[::-1])
    with pytest.raises(UserError, match=r"label 1 is class 'ant'; the class table says None"):
        check_labels(made, CLASSES[:1])


@pytest.mark.parametrize("defect", ["truncated", "foreign", "missing value", "image twice"])
def test_a_damaged_manifest_is_refused(tmp_path: Any, defect: str) -> None:
    path = tmp_path / "train.parquet"
    write_split(splits()["train"], path)
    table = pq.read_table(path)
    if defect == "truncated":
        path.write_bytes(path.read_bytes()[:-20])
    elif defect == "foreign":
        pq.write_table(pa.table({"x": [1]}), path)
    elif defect == "missing value":
        pq.write_table(table.set_column(3, "source", pa.array([None] * len(table), pa.string())), path)
    else:
        pq.write_table(pa.concat_tables([table, table]), path)
    with pytest.raises(UserError, match=r"train\.parquet: .*; .*delete it and run again"):
        read_split(path)
