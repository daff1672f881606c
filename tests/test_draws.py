"""A study repeated over draws of the training images: what is made once, what per draw, and the tables."""

from __future__ import annotations

import copy
import csv
from collections import Counter
from dataclasses import asdict
from io import StringIO
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import SMALL_STUDY, Workspace

from augbench.commands.check.dataset import summary_of_sizes
from augbench.commands.plan.estimate import estimate_study
from augbench.config.draws import drawn_name, fold
from augbench.config.study import Study, load_study, parse_study
from augbench.data.splits import SplitSizes, class_generator, read_split, split_class
from augbench.errors import UserError
from augbench.files import PROJECT, write_json
from augbench.leakage import records
from augbench.leakage.records import summarise
from augbench.plan import recipes
from augbench.plan.paths import Plan
from augbench.report.inference.images import average_hits
from augbench.report.tables import components, leakage
from augbench.report.tables.table1 import Row, RunRow, average_draws

IDS = ("a", "b")
DRAWS = 3


def study_of(draws: int = DRAWS, **changes: Any) -> Study:
    data = copy.deepcopy(SMALL_STUDY)
    data["dataset"]["draws"] = draws
    return parse_study({**data, **changes})


def test_rows_that_depend_on_the_training_images_are_repeated_and_others_draw_from_one_pool() -> None:
    study = study_of().unfolded
    assert len(study.methods) == DRAWS * len(SMALL_STUDY["methods"])
    assert study.methods["boomerang_draw1"].from_images and study.methods["imagic_k2_draw2"].learns
    for name in ("clip_prompts", "retrieval"):
        assert study.methods[name].mechanism in ("sample", "retrieve")
        assert study.pool_row(f"{name}_draw2") == name
        assert study.methods[f"{name}_draw2"].group == study.methods[name].group
    assert {*study.pooled} == {*study_of().pooled} | {
        f"{name}_draw{draw}"
        for name in ("boomerang", "pseudoword_clip", "imagic_k2")
        for draw in range(1, DRAWS)
    }
    assert study.folded == study_of() and study.unfolded is study


def test_a_row_that_draws_from_a_pool_follows_it_into_its_draw() -> None:
    rows = {
        "boomerang": SMALL_STUDY["methods"]["boomerang"],
        "simple_prompt": SMALL_STUDY["methods"]["simple_prompt"],
        "few": {"mechanism": "draw", "pool": "boomerang", "added_per_training_image": 0.5},
        "placebo": {"mechanism": "draw", "pool": "simple_prompt", "labels": "shuffled"},
    }
    study = study_of(methods=rows).unfolded
    assert study.pool_row("few_draw1") == "boomerang_draw1"
    assert study.pool_row("placebo_draw1") == "simple_prompt"
    assert study.methods["placebo_draw1"].shuffles_labels


def test_one_draw_changes_no_file_and_no_recipe() -> None:
    plain, one = parse_study(SMALL_STUDY), study_of(1)
    assert one.unfolded is one
    assert Plan(one, IDS).unfolded == Plan(plain, IDS)
    assert recipes.table_recipe(one) == recipes.table_recipe(plain)
    assert "draws" not in recipes.table_recipe(one)["study"]["dataset"]
    assert recipes.splits_recipe(study_of()) == recipes.splits_recipe(plain), "more draws make no split again"
    assert recipes.table_recipe(study_of())["study"]["dataset"]["draws"] == DRAWS


def test_draws_differ_in_their_seeds_and_the_first_is_the_study_itself() -> None:
    study = study_of().unfolded
    seeds = {name: study.seed_of(name) for name in study.methods}
    assert seeds["none"] == study.seed and seeds["none_draw1"] != seeds["none_draw2"]
    assert seeds["none_draw1"] == seeds["boomerang_draw1"], "rows of a draw are paired"
    for recipe in (recipes.generate_recipe, recipes.prompts_recipe, recipes.resample_recipe):
        assert recipe(study, "boomerang_draw1")["seed"] == seeds["none_draw1"]
    assert recipes.classifier_recipe(study, "retrieval_draw2")["seed"] == seeds["none_draw2"]


def test_a_row_trains_on_the_real_images_of_its_draw() -> None:
    plan = Plan(study_of(), IDS).unfolded
    assert plan.split_of("none_draw2").endswith("splits/train_draw2.parquet")
    assert plan.train_of("imagic_k2_draw1").endswith("splits/train_draw1.parquet")
    assert plan.train_of("imagic_k2").endswith("splits/train.parquet")
    assert plan.clusters_of("imagic_k2_draw1")[0].endswith("clusters/k2_draw1.parquet")
    assert plan.clusters_of("pseudoword_clip_draw1") == []


def test_with_one_run_a_draw_makes_the_one_part_that_the_run_uses() -> None:
    once = {**SMALL_STUDY["augmentation"], "resamples": 1}
    plan = Plan(study_of(augmentation=once), IDS).unfolded
    assert plan.parts("boomerang_draw1") == ["0"] and plan.parts("boomerang") == ["0"]
    assert plan.parts("clip_prompts_draw1") == plan.parts("clip_prompts") == ["0", "1"]
    assert plan.study.parts_made("clip_prompts") == 2
    rows = {name: SMALL_STUDY["methods"][name] for name in ("none", "boomerang")}
    rows["many"] = {"mechanism": "draw", "pool": "boomerang", "images_per_class": 60}
    many = Plan(study_of(augmentation=once, methods=rows), IDS).unfolded
    assert [block.parts for block in many.generate_blocks("boomerang_draw1")] == [
        ("0",), ("1", "2", "3", "4", "5"),
    ], "parts that only other rows need are made in jobs of their own"  # fmt: skip
    two = Plan(study_of(), IDS).unfolded
    assert two.parts("boomerang_draw1") == ["0", "1"]


def test_draws_share_no_more_than_chance_and_leave_validation_and_test_alone() -> None:
    dataset = study_of(20).dataset.model_copy(update={"train_fraction": 0.05, "validation_fraction": 0.05})
    names = [drawn_name(split, draw) for split in ("train", "train2x") for draw in range(20)]

    def split(which: Any) -> dict[str, np.ndarray]:
        return split_class("a", 1000, which, None, 100, class_generator(0, "a"), names)

    found = split(dataset)
    alone = split(dataset.model_copy(update={"draws": 1}))
    assert all(np.array_equal(found[name], alone[name]) for name in alone)
    draws = [set(found[drawn_name("train", draw)].tolist()) for draw in range(20)]
    assert {len(draw) for draw in draws} == {50}
    assert not set.union(*draws) & set(found["val"].tolist())
    shared = np.mean([len(one & other) / 50 for one, other in combinations(draws, 2)])
    assert shared == pytest.approx(50 / 950, abs=0.01), "two of 50 of the 950 that validation leaves"
    assert all(draws[k] < set(found[drawn_name("train2x", k)].tolist()) for k in range(20))


def test_draws_that_cannot_differ_are_an_error_that_names_the_key() -> None:
    dataset = study_of().dataset.model_copy(update={"train_fraction": 0.9, "validation_fraction": 0.1})
    with pytest.raises(UserError, match=r"dataset\.draws: 3, but class 'a' has no image besides"):
        split_class("a", 100, dataset, None, 10, class_generator(0, "a"))


def test_the_check_says_how_much_draws_share() -> None:
    sizes = {
        name: SplitSizes(50, 50, 300, 50, 0, room=room, before=50) for name, room in (("a", 900), ("b", 50))
    }
    assert "two of 15 draws share about 5 to 50% of their training images" in summary_of_sizes(
        sizes, None, 15
    )
    assert "draws" not in summary_of_sizes(sizes, None)


def test_a_name_that_looks_like_a_draw_is_an_error_only_where_draws_are_used() -> None:
    rows = {"none": {"mechanism": "real"}, "mine_draw2": {"mechanism": "real"}}
    assert "mine_draw2" in study_of(1, methods=rows).methods
    with pytest.raises(UserError, match=r"methods\.mine_draw2.* may not end in _draw"):
        study_of(methods=rows)
    assert fold("a_draw12") == ("a", 12) and fold("draw_0") == ("draw_0", 0) and fold("a_draw0")[1] == 0


def test_the_guard_searches_rows_with_images_of_their_own_in_every_draw() -> None:
    plain, plan = Plan(parse_study(SMALL_STUDY), IDS), Plan(study_of(), IDS).unfolded
    own = ("boomerang", "pseudoword_clip", "imagic_k2")
    assert plan.guard_levels[0] == plain.guard_levels[0], (
        "the first draw's search is that of a study of one draw"
    )
    assert len(plan.guard_levels) == 2
    assert {*plan.guard_levels[1]} == {f"{name}_draw{draw}" for name in own for draw in (1, 2)}
    assert plan.further_guarded == {draw: [f"{name}_draw{draw}" for name in own] for draw in (1, 2)}
    rows = {
        "none": {"mechanism": "real"},
        "retrieval": SMALL_STUDY["methods"]["retrieval"],
        "best": {"mechanism": "draw", "pool": "retrieval", "keep": {"by": "classifier", "share": 0.5}},
        "half": {"mechanism": "draw", "pool": "retrieval", "keep": {"by": "clip", "share": 0.5}},
    }
    filtered = Plan(study_of(2, methods=rows), IDS).unfolded
    assert filtered.guarded_once == ["retrieval", "best", "half", "best_draw1"], (
        "each draw has its classifier"
    )
    dropping = study_of(2, leakage={"action": "drop"})
    assert "boomerang_draw1" in Plan(dropping, IDS).unfolded.guard_levels[0]
    assert Plan(study_of(leakage={"action": "off"}), IDS).unfolded.guarded_once == []


def found_in(folder: Path, study: Study, row: str, split: str, pairs: list[tuple[int, str]]) -> Path:
    """The guard's pairs of (index, real image) in a pool of 10 images, and for val and test their summary."""
    other = {"clip_similarity": 1.0, "hash_distance": 0, "correlation": 1.0, "kind": "copy"}
    table = pa.Table.from_pylist(
        [
            {"method": row, "class_id": "a", "index": index, "sha256": f"{index}", "split": split,
             "image_id": image, "real_class_id": "a", **other}
            for index, image in pairs
        ],
        schema=records.SCHEMA,
    )  # fmt: skip
    pq.write_table(table, folder / f"{split}_{row}.parquet")
    if split == "test":
        write_json(folder / f"{row}.json", asdict(summarise(row, 10, table, study.leakage)))
    return folder / f"{split}_{row}.parquet"


def leakage_rows(
    folder: Path, study: Study, leaks: dict[str, list[tuple[int, str]]], chosen: dict[str, str] | None = None
) -> dict[str, leakage.Row]:
    """Rows of the table; in draw k all classifiers are right in the test images t0 to tk of t0 to t3 only."""
    ids = ["t0", "t1", "t2", "t3"]
    predictions = {}
    for name in study.unfolded.methods:
        right = study.row_and_draw(name)[1] + 1
        path = folder / f"{name}_predictions.parquet"
        predicted = [0] * right + [1] * (4 - right)
        pq.write_table(pa.table({"image_id": ids, "label": [0] * 4, "predicted": predicted}), path)
        predictions[name] = [path]
    rows = leakage.build_rows(
        study,
        leaks={name: found_in(folder, study, name, "test", pairs) for name, pairs in leaks.items()},
        repeats={name: found_in(folder, study, name, "train", [(0, "r")]) for name in leaks},
        summaries={name: folder / f"{name}.json" for name in leaks},
        predictions=predictions,
        chosen=chosen,
    )
    return {row.method: row for row in rows}


def test_a_leak_of_one_draw_is_counted_and_left_out_of_that_draws_test_images_alone(tmp_path: Path) -> None:
    """Only draw 1's classifiers were given t0 and t1; they are right in both, and in no other image."""
    rows = {"none": {"mechanism": "real"}} | {
        name: SMALL_STUDY["methods"][name] for name in ("boomerang", "retrieval")
    }
    study = study_of(methods=rows)
    leaks = {"boomerang": [], "boomerang_draw1": [(0, "t0"), (1, "t1"), (2, "t1")], "boomerang_draw2": []}
    found = leakage_rows(tmp_path, study, {**leaks, "retrieval": [(5, "t3")]})
    own = found["boomerang"]
    assert (own.checked, own.test, own.test_images, own.train, own.test_left) == (30, 3, 2, 3, 2)
    assert own.either_percent == pytest.approx(10)
    assert own.top1_percent == pytest.approx(100 * (1 / 4 + 2 / 4 + 3 / 4) / 3)
    assert own.without_percent == pytest.approx(100 * (1 / 4 + 0 / 2 + 3 / 4) / 3)
    assert own.baseline_without_percent == own.without_percent, "the baseline of the same draws"
    shared = found["retrieval"]
    assert (shared.checked, shared.test, shared.test_images, shared.train) == (10, 1, 1, 1), (
        "one pool for all"
    )
    assert shared.without_percent == pytest.approx(100 * (1 / 3 + 2 / 3 + 3 / 3) / 3)


def test_a_choice_has_the_leaks_of_the_row_that_each_draw_chose(tmp_path: Path) -> None:
    rows = {
        "none": {"mechanism": "real"},
        "boomerang": SMALL_STUDY["methods"]["boomerang"],
        "retrieval": SMALL_STUDY["methods"]["retrieval"],
        "best": {"mechanism": "choose", "among": ["boomerang", "retrieval"]},
    }
    study = study_of(methods=rows)
    leaks = {"boomerang": [(0, "t0")], "boomerang_draw1": [(0, "t1")], "boomerang_draw2": [], "retrieval": []}
    chosen = {"best": "retrieval", "best_draw1": "boomerang_draw1", "best_draw2": "retrieval_draw2"}
    best = leakage_rows(tmp_path, study, leaks, chosen)["best"]
    assert (best.checked, best.test, best.test_images) == (20, 1, 1), "the pools of retrieval and of draw 1"
    assert best.without_percent == pytest.approx(100 * (1 / 4 + 1 / 3 + 3 / 4) / 3)


def run(method: str, number: int, top1: float) -> RunRow:
    return RunRow(method, number, top1, top1 - 1, 1, 1, 50, 0, 50, 100)


def test_runs_of_a_draw_count_as_one() -> None:
    runs = [run("none", 0, 70.0), run("none", 1, 72.0), run("none", 2, 80.0), run("none", 3, 84.0)]
    averaged = average_draws(runs, 2)
    assert [(row.run, row.test_top1_percent) for row in averaged] == [(0, 71.0), (1, 82.0)]
    hits = {"none": {k: np.array([k % 2 == 0, True]) for k in range(4)}}
    assert [mean.tolist() for mean in average_hits(hits, 2)["none"].values()] == [[0.5, 1.0], [0.5, 1.0]]


def test_components_separate_the_real_images_from_the_seed_where_a_draw_has_several_runs() -> None:
    rng = np.random.default_rng(0)
    draws, per_draw = 400, 2
    rows = ("none", "twice")
    images, seeds = rng.normal(0, 2.0, (2, draws)), rng.normal(0, 0.5, (2, draws, per_draw))
    runs = [
        run(name, draw * per_draw + k, 75 + images[row, draw] + seeds[row, draw, k])
        for row, name in enumerate(rows)
        for draw in range(draws)
        for k in range(per_draw)
    ]
    table = [Row(name, name, "real", "train", 75, 0.1, draws, 50, 0, None, None, None) for name in rows]
    found = {row.source: row for row in components.build_rows(table, runs, per_draw)}
    assert found["real images"].sd_points == pytest.approx(2.0, rel=0.1)
    assert found["seed"].sd_points == pytest.approx(0.5, rel=0.1)
    assert found["real images"].df == 2 * (draws - 1) and found["seed"].df == 2 * draws
    once = components.build_rows(table, [row for row in runs if row.run % per_draw == 0], 1)
    assert once[0].sd_points == pytest.approx(np.hypot(2.0, 0.5), rel=0.1)
    assert "not separable" in once[0].meaning


def test_the_estimate_counts_all_draws_in_one_line_per_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    demo = load_study([PROJECT / "config/demo.yaml"])
    many = demo.model_copy(update={"dataset": demo.dataset.model_copy(update={"draws": 4})})
    steps = [
        {(step.stage, step.method): step for step in estimate_study(study).steps} for study in (demo, many)
    ]
    assert steps[0].keys() == steps[1].keys()
    assert steps[1]["classify", "none"].jobs == 4 * steps[0]["classify", "none"].jobs
    assert steps[1]["generate", "clip_prompts"].jobs == steps[0]["generate", "clip_prompts"].jobs
    assert steps[1]["finetune", "imagic"].images == 4 * steps[0]["finetune", "imagic"].images


@pytest.mark.full
def test_a_study_of_two_draws_runs_to_its_report(workspace: Workspace) -> None:
    study = copy.deepcopy(SMALL_STUDY)
    study["dataset"]["draws"] = 2
    study["augmentation"]["resamples"] = 1
    names = ("none", "clip_prompts", "boomerang", "imagic_k2", "retrieval")
    study["methods"] = {name: study["methods"][name] for name in names}
    study["corpus"] |= {"images": 1000, "distractors": 100}
    study["execution"]["classes_per_job"] = 10
    study["methods"]["imagic_k2"] |= {"lr_grid": [1.0], "candidates": [1]}
    workspace.write_study(study)
    workspace.run()
    results = workspace.results
    runs = list(csv.DictReader(StringIO((results / "tables/table1_runs.csv").read_text())))
    assert Counter(row["method"] for row in runs) == dict.fromkeys(names, 2)
    unfolded = {drawn_name(name, draw) for name in names for draw in range(2)}
    assert {path.parts[-4] for path in results.glob("classifiers/*/selected/0/result.json")} == unfolded
    assert {path.parts[-4] for path in results.glob("shards/*_draw1/selected/*/0.parquet")} == {
        "boomerang_draw1",
        "imagic_k2_draw1",
    }, "pools that don't depend on the training images are made once"
    searched = {row.method: row for row in leakage.read_rows(results / "tables/leakage.csv")}
    assert searched["boomerang"].checked == searched["clip_prompts"].checked, "one part of two, in two draws"
    repeated = records.read_leaks(results / "leakage/train/boomerang_draw1.parquet")
    assert searched["boomerang"].train >= records.count_images(repeated, "train")
    first, second = (read_split(results / f"splits/{name}.parquet") for name in ("train", "train_draw1"))
    assert set(first.image_ids) != set(second.image_ids)
    text = " ".join((results / "tables/table1.txt").read_text().split())
    assert "over n draws of the training images" in text and "Two draws share" in text
    lines = (results / "tables/contrasts.csv").read_text().splitlines()
    contrasts = csv.DictReader(line for line in lines if not line.startswith("#"))
    assert {row["n"] for row in contrasts} == {"2"}
    assert (results / "report.html").is_file()
    assert workspace.plan() == {}, "a finished study plans nothing"

    study["dataset"]["draws"] = 3
    workspace.write_study(study)
    planned = workspace.plan()
    assert planned["splits_draw2"] == 1 and "splits" not in planned
    assert not any(name.startswith("generate_clip") or "_draw1" in name for name in planned)
