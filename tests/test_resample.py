"""The pool's index, the resampled sets and their overlap."""

from __future__ import annotations

import copy
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import SMALL_STUDY
from PIL import Image

from augbench.artifacts.pool import SCHEMA, Lack, build_index, lacks_of, load_images, read_index
from augbench.artifacts.shards import Lacking, ShardRow, write_shard
from augbench.config.study import parse_study
from augbench.data.splits import Split, write_split
from augbench.errors import UserError
from augbench.resample import Drawing, draw, overlap, resample


def png(value: int) -> bytes:
    stream = BytesIO()
    Image.new("RGB", (4, 4), (value % 256, value // 256, 7)).save(stream, "PNG")
    return stream.getvalue()


def shard(
    study: Path,
    class_id: str,
    label: int,
    part: int,
    indices: range,
    folder: str | None = None,
    shift: int = 0,
) -> Path:
    path = study / "shards/m/selected" / (folder or class_id) / f"{part}.parquet"
    rows = [
        ShardRow(
            png(1000 * label + i + shift),
            label,
            class_id,
            i,
            "a prompt",
            "model",
            seed=i,
            similarity=i / 10,
        )
        for i in indices
    ]
    write_shard(path, rows, {"part": part})
    return path


def pool_of(counts: dict[str, int], part_size: int = 1000) -> pa.Table:
    rows = [
        {
            "class_id": name,
            "label": label,
            "index": i,
            "path": f"{name}/{i // part_size}.parquet",
            "row": i,
            "sha256": f"{name}{i}",
            "similarity": None,
        }
        for label, (name, count) in enumerate(counts.items())
        for i in range(count)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def chosen(table: pa.Table, class_id: str) -> list[int]:
    return [row["index"] for row in table.to_pylist() if row["class_id"] == class_id]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    shard(tmp_path, "b", 1, 0, range(3))
    shard(tmp_path, "a", 0, 1, range(2, 5))
    shard(tmp_path, "a", 0, 0, range(2))
    return tmp_path


def paths(study: Path) -> list[Path]:
    return sorted(study.glob("shards/m/selected/*/*.parquet"), reverse=True)


def test_index_lists_every_image_by_label_and_index(study: Path) -> None:
    build_index(paths(study), study, study / "index.parquet")
    index = read_index(study / "index.parquet")
    assert [(row["class_id"], row["label"], row["index"]) for row in index.to_pylist()] == [
        ("a", 0, i) for i in range(5)
    ] + [("b", 1, i) for i in range(3)]
    third = index.to_pylist()[2]
    assert (third["path"], third["row"], third["similarity"]) == (
        "shards/m/selected/a/1.parquet",
        0,
        pytest.approx(0.2),
    )


def test_images_come_back_in_the_order_of_the_rows(study: Path) -> None:
    build_index(paths(study), study, study / "index.parquet")
    rows = read_index(study / "index.parquet").take([7, 0, 3])
    values = [
        np.asarray(image)[0, 0, 0] + 256 * np.asarray(image)[0, 0, 1].astype(int)
        for image in load_images(rows, study)
    ]
    assert values == [1002, 0, 3]


def test_images_remade_after_the_index_are_refused(study: Path) -> None:
    build_index(paths(study), study, study / "index.parquet")
    shard(study, "a", 0, 0, range(2), shift=500)
    with pytest.raises(UserError, match="not the image of the index"):
        list(load_images(read_index(study / "index.parquet"), study))


def test_an_image_in_two_shards_is_refused(study: Path) -> None:
    shard(study, "a", 0, 2, range(4, 6))
    with pytest.raises(UserError, match="image 4 of class 'a' is in two shards"):
        build_index(paths(study), study, study / "index.parquet")


def test_a_class_with_two_labels_is_refused(study: Path) -> None:
    shard(study, "a", 2, 2, range(8, 9))
    with pytest.raises(UserError, match="class_id 'a' is in more than one of the pairs"):
        build_index(paths(study), study, study / "index.parquet")


def test_a_shard_in_another_class_folder_is_refused(study: Path) -> None:
    shard(study, "b", 1, 3, range(8, 9), folder="a")
    with pytest.raises(UserError, match="a shard of class 'a' only"):
        build_index(paths(study), study, study / "index.parquet")


def test_a_set_has_as_many_images_as_the_class_has_real_ones_without_repeats() -> None:
    drawn = draw(pool_of({"a": 30, "b": 40}), {"a": 10, "b": 13}, 0, 7)
    assert [len(set(chosen(drawn, name))) for name in ("a", "b")] == [10, 13] and drawn.num_rows == 23
    assert chosen(drawn, "a") == sorted(chosen(drawn, "a"))


def test_sets_are_drawn_independently_of_each_other() -> None:
    pool, counts = pool_of({"a": 400}), np.zeros(400)
    sets = [draw(pool, {"a": 100}, run, 0) for run in range(40)]
    for drawn in sets:
        counts[chosen(drawn, "a")] += 1
    # binomial(40, 1/4): the mean is 10, the standard deviation 2.7
    assert abs(counts.std() - np.sqrt(7.5)) < 0.4
    assert overlap(sets) == pytest.approx(0.25, abs=0.01)


def test_set_0_is_drawn_from_part_0_so_that_a_candidate_of_one_part_gives_the_same_set() -> None:
    whole, part = pool_of({"a": 40}, part_size=12), pool_of({"a": 12}, part_size=12)
    assert draw(whole, {"a": 9}, 0, 3).equals(draw(part, {"a": 9}, 0, 3))
    assert max(chosen(draw(whole, {"a": 9}, 1, 3), "a")) >= 12


def test_methods_with_pools_of_one_size_share_the_draw() -> None:
    other = pool_of({"a": 30}).set_column(5, "sha256", pa.array([f"other {i}" for i in range(30)]))
    assert chosen(draw(pool_of({"a": 30}), {"a": 9}, 3, 1), "a") == chosen(draw(other, {"a": 9}, 3, 1), "a")


def test_a_class_draws_the_same_whatever_other_classes_there_are() -> None:
    alone = draw(pool_of({"a": 30}), {"a": 9}, 2, 1)
    assert chosen(alone, "a") == chosen(draw(pool_of({"a": 30, "b": 5}), {"a": 9, "b": 5}, 2, 1), "a")


def test_a_pool_of_just_the_size_gives_the_same_set_each_time() -> None:
    sets = [draw(pool_of({"a": 6}), {"a": 6}, run, 0) for run in range(3)]
    assert overlap(sets) == 1.0


def test_too_small_pools_are_listed_with_their_counts() -> None:
    with pytest.raises(UserError, match=r"2 class\(es\): a 3 of 5, c 0 of 1"):
        draw(pool_of({"a": 3, "b": 9}), {"a": 5, "b": 5, "c": 1}, 0, 0)


def test_overlap_is_the_mean_over_pairs() -> None:
    pool = pool_of({"a": 9})
    sets = [pool.take(rows) for rows in ([0, 1, 2, 3], [2, 3, 4, 5], [3, 5, 6, 7])]
    assert overlap(sets) == pytest.approx((2 / 4 + 1 / 4 + 2 / 4) / 3)
    assert overlap(sets[:1]) is None


def train_split(path: Path, labels: dict[str, int], count: int) -> None:
    ids = [f"{name}/{i}" for name in labels for i in range(count)]
    classes = [name for name in labels for _ in range(count)]
    write_split(Split(ids, classes, np.array([labels[name] for name in classes], dtype=np.int32), ids), path)


def test_manifests_are_named_by_their_run(study: Path) -> None:
    build_index(paths(study), study, study / "index.parquet")
    train_split(study / "train.parquet", {"a": 0, "b": 1}, 2)
    outs = [study / "resamples" / f"{run}.parquet" for run in (4, 1)]
    resample(study / "index.parquet", study / "train.parquet", outs, 0)
    pool = read_index(study / "index.parquet")
    assert all(read_index(out).equals(draw(pool, {"a": 2, "b": 2}, int(out.stem), 0)) for out in outs)


def test_a_pool_with_other_labels_than_the_split_is_refused(study: Path) -> None:
    build_index(paths(study), study, study / "index.parquet")
    train_split(study / "train.parquet", {"a": 1, "b": 0}, 2)
    with pytest.raises(UserError, match="class 'a' has label 0; the training split says 1"):
        resample(study / "index.parquet", study / "train.parquet", [study / "0.parquet"], 0)


def test_more_than_one_image_can_be_added_for_each_real_one() -> None:
    table = draw(pool_of({"a": 30, "b": 30}), {"a": 4, "b": 3}, 1, 0, drawing=Drawing(added=2.5))
    assert [len(chosen(table, name)) for name in "ab"] == [10, 8]


def test_ranked_sets_hold_the_first_images_of_the_pool_in_every_set() -> None:
    sets = [draw(pool_of({"a": 30}), {"a": 4}, run, 0, drawing=Drawing(ranked=True)) for run in range(3)]
    assert [chosen(table, "a") for table in sets] == [[0, 1, 2, 3]] * 3


def test_shuffled_labels_say_nothing_about_the_images_and_keep_the_size_of_each_class() -> None:
    pool, sizes = pool_of({name: 60 for name in "abcd"}), {name: 50 for name in "abcd"}
    true = draw(pool, sizes, 1, 0)
    shuffled = draw(pool, sizes, 1, 0, drawing=Drawing(shuffled=True))
    images = [f"{name}{i}" for name in "abcd" for i in chosen(true, name)]
    assert shuffled.column("sha256").to_pylist() == images  # the same images in the same places
    labels, ids = (shuffled.column(name).to_pylist() for name in ("label", "class_id"))
    assert Counter(ids) == Counter(sizes) and ["abcd"[label] for label in labels] == ids
    # 200 images of 4 classes: 50 keep their class by chance, with a standard deviation of about 6
    kept = sum(name == image[0] for name, image in zip(ids, images, strict=True))
    assert 30 < kept < 70
    other = draw(pool, sizes, 2, 0, drawing=Drawing(shuffled=True))
    assert other.column("label").to_pylist() != labels
    assert overlap([true, shuffled]) == 1.0  # labels do not matter to it
    assert draw(pool, sizes, 1, 0, drawing=Drawing(shuffled=True)).equals(shuffled)


def test_a_class_may_fall_short_where_the_method_says_so() -> None:
    pool = pool_of({"a": 30, "b": 2})
    with pytest.raises(UserError, match=r"too few images for 1 class\(es\): b 2 of 8"):
        draw(pool, {"a": 4, "b": 4}, 1, 0, drawing=Drawing(added=2))
    table = draw(pool, {"a": 4, "b": 4}, 1, 0, drawing=Drawing(added=2, may_fall_short=True))
    assert len(chosen(table, "a")) == 8 and chosen(table, "b") == [0, 1]


def test_a_class_that_the_safety_checker_kept_short_stays_and_the_set_says_so(tmp_path: Path) -> None:
    shard(tmp_path, "b", 1, 0, range(9))
    full = shard(tmp_path, "a", 0, 0, range(6))
    rows = [row for row in pq.read_table(full).to_pylist() if row["index"] in (1, 4)]
    kept = [
        ShardRow(row["image"]["bytes"], row["label"], "a", row["index"], "a prompt", "model") for row in rows
    ]
    write_shard(full, kept, {"part": 0}, Lacking(3, {0: 5, 2: 4, 3: 4, 5: 3}))
    build_index(paths(tmp_path), tmp_path, tmp_path / "index.parquet")
    train_split(tmp_path / "train.parquet", {"a": 0, "b": 1}, 3)
    resample(tmp_path / "index.parquet", tmp_path / "train.parquet", [tmp_path / "out/0.parquet"], 0)
    drawn = read_index(tmp_path / "out/0.parquet")
    assert chosen(drawn, "a") == [1, 4] and len(chosen(drawn, "b")) == 3
    assert lacks_of(drawn) == {"a": Lack(images=1, wanted=3, flagged=16)}
    # a class that lacks images for any other reason is an error, as before
    with pytest.raises(UserError, match=r"too few images for 1 class\(es\): b 9 of 10;"):
        draw(read_index(tmp_path / "index.parquet"), {"a": 3, "b": 10}, 0, 0)


def test_a_class_that_may_fall_short_is_named_in_the_set() -> None:
    drawn = draw(pool_of({"a": 30, "b": 2}), {"a": 4, "b": 4}, 1, 0, drawing=Drawing(may_fall_short=True))
    assert lacks_of(drawn) == {"b": Lack(images=2, wanted=4)}
    assert lacks_of(draw(pool_of({"a": 30}), {"a": 4}, 1, 0)) == {}


def sources_of_sets(name: str, seeds: int = 150) -> np.ndarray:
    """Number of distinct training images that the sets of a row's class start from, mean over seeds.

    The pool has 3 parts of 12 images, and 12 training images that take turns.
    """
    config = copy.deepcopy(SMALL_STUDY)
    config["augmentation"] = {"images_per_class": 36, "images_per_part": 12}
    drawing, pool = Drawing.of(parse_study(config), name), pool_of({"a": 36}, part_size=12)
    return np.array(
        [
            [
                len({index % 12 for index in chosen(draw(pool, {"a": 12}, run, seed, drawing=drawing), "a")})
                for run in range(3)
            ]
            for seed in range(seeds)
        ]
    ).mean(0)


def test_no_set_of_boomerang_has_more_distinct_sources_than_the_others() -> None:
    # 12 of 36 images, 3 of each source: 12 x (1 - C(33, 12) / C(36, 12)) = 8.6 distinct sources
    assert sources_of_sets("boomerang") == pytest.approx([8.6] * 3, abs=0.3)
    # of a row whose images are independent, set 0 is drawn from part 0, which holds each index mod 12 once
    assert sources_of_sets("simple_prompt")[0] == 12


def test_classes_that_are_left_out_and_images_that_leak_are_in_no_set(study: Path) -> None:
    from augbench.leakage.records import SCHEMA as LEAKS

    build_index(paths(study), study, study / "index.parquet")
    index = read_index(study / "index.parquet")
    write_split(
        Split(["x", "y", "z"], ["a", "a", "b"], np.array([0, 0, 1], dtype=np.int32), ["x", "y", "z"]),
        study / "train.parquet",
    )
    resample(study / "index.parquet", study / "train.parquet", [study / "out/1.parquet"], 0, excluded={"b"})
    assert set(read_index(study / "out/1.parquet").column("class_id").to_pylist()) == {"a"}
    leaking = {
        "method": "m",
        "class_id": "a",
        "index": 3,
        "sha256": index.column("sha256")[3].as_py(),
        "split": "test",
        "image_id": "t",
        "real_class_id": "a",
    }
    pq.write_table(pa.Table.from_pylist([leaking], schema=LEAKS), study / "leaks.parquet")
    for run in range(1, 6):
        resample(
            study / "index.parquet",
            study / "train.parquet",
            [study / f"out/{run}.parquet"],
            0,
            excluded={"b"},
            leaks_path=study / "leaks.parquet",
        )
        assert 3 not in chosen(read_index(study / f"out/{run}.parquet"), "a")
