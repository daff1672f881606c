"""Mixtures of pools, filters of pools, and rows that choose among rows by validation accuracy."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import SMALL_STUDY, Workspace
from test_resample import pool_of

from augbench.artifacts.pool import SCHEMA, Lack, index_of, lacks_by_pool, lacks_of, read_index
from augbench.artifacts.shards import Lacking, ShardRow, write_shard
from augbench.commands.check.methods import added_image_problems
from augbench.config.methods import Keep
from augbench.config.study import Study, parse_study
from augbench.errors import UserError
from augbench.plan import recipes
from augbench.plan.paths import Plan
from augbench.pools.choice import adopt, choose
from augbench.pools.keep import keep_best
from augbench.pools.scores import own_class_probability, read_scores
from augbench.report.tables.cost import read_rows as read_costs
from augbench.report.tables.diagnostics import read_rows as read_diagnostics
from augbench.report.tables.leakage import read_rows as read_leakage
from augbench.report.tables.table1 import choice_notes, composition_notes
from augbench.resample import Drawing, draw, share_counts

IDS = ("a", "b")
SIZES = {"a": 4, "b": 3}
HALVES = {"mechanism": "draw", "pools": {"retrieval": 0.5, "simple_prompt": 0.5}}
BY_CLIP = {"mechanism": "draw", "pool": "retrieval", "keep": {"by": "clip", "share": 0.5}}
BY_CLASSIFIER = {"mechanism": "draw", "pool": "simple_prompt", "keep": {"by": "classifier", "share": 0.5}}
BEST = {"mechanism": "choose", "among": ["halves", "by_clip"]}


def study_of(draws: int = 1, **rows: Any) -> Study:
    data = copy.deepcopy(SMALL_STUDY)
    data["dataset"]["draws"] = draws
    data["methods"] = {
        **{name: data["methods"][name] for name in ("none", "simple_prompt", "retrieval")},
        **rows,
    }
    return parse_study(data)


def pool(name: str, images: int = 12) -> pa.Table:
    """Index of a pool with ``images`` of each class, in two parts."""
    rows = pool_of({"a": images, "b": images}, part_size=6)
    paths = [f"shards/{name}/selected/{path}" for path in rows.column("path").to_pylist()]
    hashes = [f"{name}{sha}" for sha in rows.column("sha256").to_pylist()]
    rows = rows.set_column(SCHEMA.get_field_index("path"), SCHEMA.field("path"), [paths])
    return rows.set_column(SCHEMA.get_field_index("sha256"), SCHEMA.field("sha256"), [hashes])


def mixed(*names: str) -> pa.Table:
    """Index of several pools, sorted as :func:`build_index` does."""
    rows = [row for name in names for row in pool(name).to_pylist()]
    return pa.Table.from_pylist(sorted(rows, key=lambda row: row["label"]), schema=SCHEMA)


# --- mixtures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "shares", "counts"),
    [
        (10, {"x": 0.7, "y": 0.3}, [7, 3]),
        (9, {"x": 0.5, "y": 0.5}, [5, 4]),  # 4.5 and 4.5: the first
        (5, {"x": 0.5, "y": 0.3, "z": 0.2}, [3, 1, 1]),  # 2.5, 1.5 and 1: the first
        (7, {"x": 0.2, "y": 0.2, "z": 0.6}, [2, 1, 4]),  # 1.4, 1.4 and 4.2
        (3, {"x": 0.333333, "y": 0.333333, "z": 0.333334}, [1, 1, 1]),
        (100, {"x": 0.29, "y": 0.71}, [29, 71]),  # 100 * 0.29 is less than 29 in binary numbers
        (1, {"x": 0.5, "y": 0.5}, [1, 0]),
        (6, {"x": 1.0}, [6]),
    ],
)
def test_shares_become_counts_by_the_largest_remainder(
    size: int, shares: dict[str, float], counts: list[int]
) -> None:
    assert list(share_counts(size, shares).values()) == counts


def test_one_pool_at_share_1_gives_the_rows_of_that_pool() -> None:
    for run in range(3):
        plain = draw(pool("x"), SIZES, run, 7, drawing=Drawing(2.0, first_part=False))
        one = draw(pool("x"), SIZES, run, 7, drawing=Drawing(2.0, first_part=False, pools={"x": 1.0}))
        assert one.equals(plain, check_metadata=True)


def test_a_mixture_takes_the_first_images_that_each_pools_own_set_would_have() -> None:
    shares = {"x": 0.75, "y": 0.25}
    rows = draw(mixed("x", "y"), SIZES, 1, 7, drawing=Drawing(2.0, first_part=False, pools=shares))
    found = Counter((row["class_id"], row["path"].split("/")[1]) for row in rows.to_pylist())
    assert found == {("a", "x"): 6, ("a", "y"): 2, ("b", "x"): 5, ("b", "y"): 1}, (
        "8 and 6 images; 4.5 and 1.5"
    )
    for name, share in shares.items():
        mine = {row["sha256"] for row in rows.to_pylist() if f"/{name}/" in row["path"]}
        whole = draw(pool(name), SIZES, 1, 7, drawing=Drawing(2.0, first_part=False))
        assert mine < {row["sha256"] for row in whole.to_pylist()}
        if share == 0.75:  # as many of the same set as a smaller set would have
            smaller = draw(pool(name), SIZES, 1, 7, drawing=Drawing(1.5, first_part=False))
            assert mine == {row["sha256"] for row in smaller.to_pylist()}


def test_a_ranked_mixture_takes_the_first_images_and_a_placebo_keeps_the_counts_of_classes() -> None:
    shares = {"x": 0.5, "y": 0.5}
    ranked = draw(
        mixed("x", "y"), SIZES, 1, 7, drawing=Drawing(1.0, ranked=True, first_part=False, pools=shares)
    )
    first = [(row["path"].split("/")[1], row["index"]) for row in ranked.to_pylist()][:4]
    assert first == [("x", 0), ("x", 1), ("y", 0), ("y", 1)], "of class a"
    plain, shuffled = (
        draw(
            mixed("x", "y"),
            SIZES,
            1,
            7,
            drawing=Drawing(2.0, first_part=False, shuffled=placebo, pools=shares),
        )
        for placebo in (False, True)
    )
    assert Counter(shuffled.column("class_id").to_pylist()) == Counter(plain.column("class_id").to_pylist())
    assert shuffled.column("sha256") == plain.column("sha256") != shuffled.column("class_id")


def test_a_pool_that_is_too_small_is_named_or_gives_what_it_has() -> None:
    drawing = Drawing(6.0, first_part=False, pools={"x": 0.2, "y": 0.8})
    with pytest.raises(
        UserError, match=r"too few images for 2 class\(es\): a 12 of 19 from y, b 12 of 14 from y"
    ):
        draw(mixed("x", "y"), SIZES, 0, 7, drawing=drawing)
    short = draw(mixed("x", "y"), SIZES, 0, 7, drawing=Drawing(6.0, False, True, False, pools=drawing.pools))
    assert Counter(short.column("class_id").to_pylist()) == {"a": 5 + 12, "b": 4 + 12}


def lacking(images: dict[str, int], lack: dict[str, int]) -> pa.Table:
    """Index of pools with these numbers of images of class a, some of which their shards lack as flagged."""
    with TemporaryDirectory() as folder:
        paths = []
        for name, count in images.items():
            rows = [ShardRow(f"{name}{i}".encode(), 0, "a", i, "a prompt", "model") for i in range(count)]
            missing = lack.get(name, 0)
            flagged = Lacking(count + missing, {count + i: 2 for i in range(missing)}) if missing else None
            paths.append(Path(folder) / f"shards/{name}/selected/a/0.parquet")
            write_shard(paths[-1], rows, {}, flagged)
        return index_of(paths, folder, "index")


def test_a_flagged_image_of_one_pool_hides_no_shortage_of_another() -> None:
    drawing = Drawing(1.0, pools={"x": 0.5, "y": 0.5})
    flagged = lacking({"x": 9, "y": 10}, {"x": 1})
    assert lacks_of(flagged) == {"a": Lack(1, 20, 2)}
    assert lacks_by_pool(flagged) == {("x", "a"): Lack(1, 10, 2)}
    drawn = draw(flagged, {"a": 20}, 0, 7, drawing=drawing)
    assert drawn.num_rows == 19 and lacks_of(drawn) == {"a": Lack(1, 20, 2)}
    short = lacking({"x": 9, "y": 7}, {"x": 1})
    with pytest.raises(UserError, match=r"too few images for 1 class\(es\): a 7 of 10 from y;"):
        draw(short, {"a": 20}, 0, 7, drawing=drawing)
    with pytest.raises(UserError, match=r"a 9 of 11 from x"):
        draw(lacking({"x": 9, "y": 11}, {"x": 1}), {"a": 22}, 0, 7, drawing=drawing)
    assert lacks_by_pool(lacking({"x": 9}, {"x": 1})) == {("x", "a"): Lack(1, 10, 2)}
    with pytest.raises(UserError, match=r"a 9 of 12;"):
        draw(lacking({"x": 9}, {"x": 1}), {"a": 12}, 0, 7)


# --- filters ------------------------------------------------------------------------------------------------


def test_the_score_is_the_softmax_probability_of_the_own_class() -> None:
    logits = np.log([[1.0, 3.0], [1.0, 1.0], [9.0, 1.0]])
    assert own_class_probability(logits, np.array([1, 0, 1])) == pytest.approx([0.75, 0.5, 0.1])


def scores_of(index: pa.Table, score: dict[int, float]) -> dict[tuple[str, int, str], float]:
    rows = index.to_pylist()
    return {(row["class_id"], row["index"], row["sha256"]): score.get(row["index"], 0.0) for row in rows}


def test_a_filter_keeps_the_best_share_of_each_pool_and_class_and_of_equal_scores_the_first() -> None:
    x, y = pool("x", 5), pool("y", 4)
    rows = [*x.to_pylist(), *y.to_pylist()]
    index = pa.Table.from_pylist(sorted(rows, key=lambda row: row["label"]), schema=SCHEMA)
    scores = {"x": scores_of(x, {4: 0.9, 1: 0.5, 3: 0.5, 0: 0.2}), "y": scores_of(y, {})}
    kept = keep_best(index, scores, Keep(by="clip", share=0.5))
    assert [(row["class_id"], row["path"].split("/")[1], row["index"]) for row in kept.to_pylist()] == [
        (name, *image) for name in IDS for image in (("x", 1), ("x", 3), ("x", 4), ("y", 0), ("y", 1))
    ], "3 of 5, rounded up, and 2 of 4"
    whole = keep_best(index, scores, Keep(by="clip", share=1.0))
    assert whole.equals(index, check_metadata=True)
    left_out = keep_best(index, {"x": {}, "y": {}}, Keep(by="clip", share=0.5), excluded=IDS)
    assert left_out.equals(index), "classes that the study leaves out have no scores"
    with pytest.raises(UserError, match="image 0 of class 'a' in y has no score"):
        keep_best(index, {"x": scores["x"], "y": {}}, Keep(by="clip", share=0.5))


@pytest.mark.parametrize(("share", "images", "kept"), [(0.5, 5, 3), (0.1, 10, 1), (0.3, 10, 3), (1.0, 7, 7)])
def test_the_number_of_kept_images_is_rounded_up(share: float, images: int, kept: int) -> None:
    keep = Keep(by="clip", share=share)
    assert keep.kept(images) == kept
    least = keep.needed(kept)
    assert keep.kept(least) >= kept > keep.kept(least - 1)


# --- choice -------------------------------------------------------------------------------------------------


def write_run(plan: Plan, row: str, run: str, validation: float, test: float) -> None:
    result, history, predictions, model = map(Path, plan.run_files(row, run))
    result.parent.mkdir(parents=True)
    result.write_text(json.dumps({"method": row, "run": int(run), "val_top1": validation, "test_top1": test}))
    history.write_text(json.dumps({"val_top1": validation}))
    result.with_name("timing.json").write_text("{}")
    for path in (predictions, model, Path(plan.resample(row, run)), Path(plan.pool(row))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{path.name} of {row}, {run}")


def test_a_choice_is_by_mean_validation_accuracy_alone_and_its_files_are_the_chosen_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = Plan(study_of(halves=HALVES, by_clip=BY_CLIP, best=BEST), IDS)
    for row, runs in {"halves": [(0.5, 0.9), (0.6, 0.9)], "by_clip": [(0.9, 0.1), (0.3, 0.1)]}.items():
        for run, (validation, test) in enumerate(runs):
            write_run(plan, row, str(run), validation, test)
    histories = {row: [plan.run_files(row, run)[1] for run in plan.runs] for row in ("halves", "by_clip")}
    out = Path(plan.selected("best"))
    assert choose("best", histories, out) == "by_clip", "0.6 against 0.55, whatever the test accuracy"
    assert json.loads(out.read_text())["candidates"][1] == {
        "candidate": "by_clip", "val_top1": pytest.approx(0.6), "runs": [0.9, 0.3],
    }  # fmt: skip
    same = {row: histories["halves"] for row in ("halves", "by_clip")}
    assert choose("best", same, tmp_path / "same.json") == "halves", "of equal ones the first"
    adopt(plan, "best", "by_clip")
    result = json.loads(Path(plan.run_files("best", "1")[0]).read_text())
    assert result == {"method": "best", "chosen": "by_clip", "run": 1, "val_top1": 0.3, "test_top1": 0.1}
    assert Path(plan.run_files("best", "1")[3]).samefile(plan.run_files("by_clip", "1")[3]), "linked"
    assert Path(plan.resample("best", "0")).read_text() == "0.parquet of by_clip, 0"
    (note,) = choice_notes(plan.study, [out])
    assert note.endswith("Chosen: by_clip (halves 55.0%, by_clip 60.0%).")


def test_each_draw_names_its_choice(tmp_path: Path) -> None:
    study = study_of(2, halves=HALVES, by_clip=BY_CLIP, best=BEST)
    files = []
    for draw_number, name in enumerate(("best", "best_draw1")):
        among, histories = study.unfolded.choosing[name].among, {}
        for place, row in enumerate(among):
            histories[row] = [tmp_path / f"{row}.json"]
            histories[row][0].write_text(json.dumps({"val_top1": 0.5 + 0.1 * (place == draw_number)}))
        files.append(tmp_path / f"selected_{name}.json")
        choose(name, histories, files[-1])
    (note,) = choice_notes(study, files)
    assert note.endswith(
        "Chosen: draw 0: halves (halves 60.0%, by_clip 50.0%); draw 1: by_clip (halves 50.0%, by_clip 60.0%)."
    )


@pytest.mark.full
def test_two_draws_that_drop_near_duplicates_plan_filters_choices_and_what_is_made_from_them(
    workspace: Workspace,
) -> None:
    rows = {name: SMALL_STUDY["methods"][name] for name in ("none", "simple_prompt", "retrieval")}
    rows |= {"halves": HALVES, "by_clip": BY_CLIP, "by_classifier": BY_CLASSIFIER}
    rows["edited"] = {"mechanism": "sample", "start": {"pool": "by_classifier"}, "noise": 0.5}
    rows["best"] = {**BEST, "among": ["halves", "edited"]}
    data = {**SMALL_STUDY, "methods": rows, "dataset": {**SMALL_STUDY["dataset"], "draws": 2}}
    workspace.write_study({**data, "leakage": {**SMALL_STUDY["leakage"], "action": "drop"}})
    jobs = workspace.plan()
    for best, edited, real in (("best", "edited", "none"), ("best_draw1", "edited_draw1", "none_draw1")):
        assert jobs[f"choose_{best}"] == jobs[f"adopt_{best}"] == jobs[f"generate_{edited}_000"] == 1
        assert jobs[f"score_by_{real}_simple_prompt"] == 1
    assert jobs["score_retrieval"] == 1, "CLIP's scores are those of all draws"
    assert jobs["classify_000"] == 2 * (len(rows) - 1), "a row that chooses trains nothing"


@pytest.mark.full
@pytest.mark.long
def test_a_study_with_a_mixture_filters_and_a_choice_runs_to_its_report(workspace: Workspace) -> None:
    rows = {name: SMALL_STUDY["methods"][name] for name in ("none", "simple_prompt", "retrieval")}
    rows["retrieval"] = {**rows["retrieval"], "images_per_class": 20}
    rows |= {
        "plain": {"mechanism": "draw", "pool": "simple_prompt"},
        "one": {"mechanism": "draw", "pools": {"simple_prompt": 1.0}},
        "all": {"mechanism": "draw", "pool": "simple_prompt", "keep": {"by": "classifier", "share": 1.0}},
        "halves": HALVES,
        "by_clip": BY_CLIP,
        "by_classifier": BY_CLASSIFIER,
        "best": {**BEST, "among": ["halves", "by_clip", "by_classifier"]},
    }
    workspace.write_study({**SMALL_STUDY, "methods": rows})
    workspace.run()
    assert workspace.plan() == {}
    study = parse_study(workspace.study)
    results = workspace.results

    def sets(row: str) -> list[pa.Table]:
        return [read_index(results / f"resamples/{row}/selected/{run}.parquet") for run in range(2)]

    def result(row: str, run: int = 0) -> dict[str, Any]:
        return json.loads((results / f"classifiers/{row}/selected/{run}/result.json").read_text())

    assert sets("one") == sets("all") == sets("plain")
    assert {result(row)["test_top1"] for row in ("one", "all", "plain")} == {result("plain")["test_top1"]}
    for row, name in (("by_clip", "clip/retrieval"), ("by_classifier", "classifier/none/simple_prompt")):
        scores = read_scores(results / f"scores/{name}.parquet")
        kept = {
            (one["class_id"], one["index"], one["sha256"])
            for one in read_index(results / f"shards/{row}/selected/index.parquet").to_pylist()
        }
        for class_id in {key[0] for key in scores}:
            own = {key: score for key, score in scores.items() if key[0] == class_id}
            worst = min(score for key, score in own.items() if key in kept)
            assert len(own.keys() & kept) == len(own) / 2 == 10
            assert all(score <= worst for key, score in own.items() if key not in kept)
    record = json.loads((results / "selected/best.json").read_text())
    means = {
        row: np.mean([result(row, run)["val_top1"] for run in range(2)]) for row in rows["best"]["among"]
    }
    chosen = max(means, key=lambda row: means[row])
    assert record["selected"] == chosen == result("best")["chosen"]
    assert result("best", 1) == {**result(chosen, 1), "method": "best", "chosen": chosen}
    trained = len([*(workspace.store / "classifiers").glob("*.safetensors")])
    # one and all are plain, best is another row, and set 1 of a pool is that of the row that draws from it
    assert trained == 2 * (len(rows) - 3) - 1
    footer = (results / "tables/table1.md").read_text().replace("\\_", "_")
    for text in ("halves: a mixture", "by_clip: filtered", f"Chosen: {chosen} ("):
        assert text in footer
    costs = {row.method: row for row in read_costs(results / "tables/cost.csv")}
    for part in ("simple_prompt", "retrieval"):
        assert costs["halves"].make_wall_hours > costs[part].make_wall_hours
    assert costs["by_classifier"].make_wall_hours > costs["plain"].make_wall_hours, (
        "scores and their classifier"
    )
    assert costs["best"].make_wall_hours > costs["by_clip"].make_wall_hours
    checked = {row.method: row.checked for row in read_leakage(results / "tables/leakage.csv")}
    assert {*checked} == {*rows} - {"none", "plain"} and checked["best"] == checked[chosen]
    assert checked["halves"] == 2 * checked["retrieval"] == 4 * checked["by_clip"] == 400
    assert {row.method for row in read_diagnostics(results / "tables/diagnostics.csv")} >= {
        "halves",
        "by_clip",
    }
    assert study.methods["best"].group in ("hybrid", "retrieval", "prompting")
    done = workspace.augbench("plan", "--configfile", "study.yaml")
    assert "Nothing is left to do." in done.stdout, done.stdout[-3000:] + done.stderr


# --- config and plan ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({**HALVES, "pool": "retrieval"}, r"methods\.new\.pools: .*; allowed only without pool"),
        ({"mechanism": "draw"}, r"methods\.new: .*; allowed: with pool, or with pools for a mixture"),
        ({**HALVES, "pools": {"retrieval": 0.5}}, r"methods\.new\.pools: .*sum to 0\.5; allowed: shares that sum to 1"),
        ({**HALVES, "pools": {"retrieval": 0.5, "none": 0.5}}, r"methods\.new\.pools\.none: .*allowed: a row that makes"),
        ({**HALVES, "pools": {"retrieval": 0, "simple_prompt": 1}}, r"methods\.new\.pools\.retrieval: 0; allowed: greater than 0"),
        ({**HALVES, "pools": {}}, r"methods\.new\.pools: \{\}; allowed: "),
        ({**HALVES, "ranked": True}, r"methods\.new\.ranked: true; goes with a row that retrieves; simple_prompt generates"),
        ({**BY_CLIP, "keep": {"by": "eye", "share": 0.5}}, r"methods\.new\.keep\.by: 'eye'; allowed: 'clip' or 'classifier'"),
        ({**BY_CLIP, "keep": {"by": "clip", "share": 2}}, r"methods\.new\.keep\.share: 2; allowed: .*1"),
        ({**BY_CLIP, "keep": {"by": "clip", "share": 1, "row": "none"}}, r"methods\.new\.keep\.row: .*only with by: classifier"),
        (
            {**BY_CLIP, "keep": {"by": "classifier", "share": 1, "row": "retrieval"}},
            r"methods\.new\.keep\.row: 'retrieval'; allowed: a row of mechanism real: none",
        ),
        ({**BEST, "among": ["retrieval", "none"]}, r"methods\.new\.among\.1: 'none'; allowed: a row with images"),
        ({**BEST, "among": ["retrieval"]}, r"methods\.new\.among: .*allowed: at least 2 rows"),
        ({**BEST, "among": ["retrieval", "retrieval"]}, r"methods\.new\.among: .*an entry occurs twice"),
        ({**BEST, "among": ["retrieval", "new"]}, r"methods\.new\.among\.1: 'new'; allowed: a row with images"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_drawn_is_one_line_that_names_the_key(row: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line) as raised:
        study_of(new=row)
    assert "\n" not in str(raised.value)


def test_a_classifier_filters_only_if_there_is_a_row_of_real_images() -> None:
    rows = {"simple_prompt": SMALL_STUDY["methods"]["simple_prompt"], "new": BY_CLASSIFIER}
    with pytest.raises(UserError, match=r"methods\.new\.keep\.by: .*needs a row .mechanism: real.*keep\.row"):
        parse_study({**SMALL_STUDY, "methods": rows})


def test_rows_that_mix_filter_or_choose_have_the_family_of_what_they_are_made_of() -> None:
    study = study_of(
        best=BEST,
        same={**BEST, "among": ["retrieval", "by_clip"]},
        halves=HALVES,
        by_clip=BY_CLIP,
        by_classifier=BY_CLASSIFIER,
        placebo={**HALVES, "labels": "shuffled"},
        plain={"mechanism": "draw", "pool": "retrieval"},
        named={**HALVES, "family": "retrieval"},
    )
    assert {name: row.group for name, row in study.methods.items() if row.adds_images} == {
        "simple_prompt": "prompting",
        "retrieval": "retrieval",
        "best": "hybrid",
        "same": "retrieval",
        "halves": "hybrid",
        "by_clip": "retrieval",
        "by_classifier": "prompting",
        "placebo": "control",
        "plain": "scaling",
        "named": "retrieval",
    }
    plan = Plan(study, IDS)
    assert list(plan.scaling) == ["retrieval", "plain"], "Figure 5B is about numbers of images alone"
    assert {*plan.guarded} == {*study.augmented} - {"plain"}
    assert composition_notes(study) and len([*composition_notes(study)]) == 5


def test_a_mixture_and_a_filter_draw_from_as_many_files_as_they_need() -> None:
    many = study_of(many={**BY_CLASSIFIER, "images_per_class": 40}, halves={**HALVES, "images_per_class": 40})
    assert many.parts_drawn("many") == many.parts_drawn("halves", "simple_prompt") == 4
    assert many.parts_drawn("halves", "retrieval") == many.parts_drawn("retrieval") == 1
    plan = Plan(many, IDS)
    assert many.parts_made("simple_prompt") == 4 and len(plan.scored_shards("simple_prompt", "none")) == 8
    assert plan.shards("halves") == [
        plan.shard("retrieval", "a", "0"),
        plan.shard("retrieval", "b", "0"),
        *(plan.shard("simple_prompt", name, str(part)) for name in IDS for part in range(4)),
    ]
    data = {**SMALL_STUDY, "augmentation": {"images_per_training_image": 2, "resamples": 2}}
    rows = {**{name: data["methods"][name] for name in ("none", "simple_prompt")}, "some": BY_CLASSIFIER}
    multiple = parse_study({**data, "methods": rows})
    assert multiple.parts_drawn("some") == 2, "half of two images per training image is one"


def test_blocks_of_another_size_change_nothing_of_mixtures_filters_and_scores() -> None:
    study = study_of(halves=HALVES, by_clip=BY_CLIP, by_classifier=BY_CLASSIFIER, best=BEST)
    sizes = {"classes_per_job": 10, "batch_size": 1, "runs_per_job": 1}
    execution = study.execution.model_copy(update=sizes)
    ids = tuple("abcdefghijkl")
    plan = Plan(study, ids)
    blocks = Plan(study.model_copy(update={"execution": execution}), ids)
    assert len(blocks.generate_jobs) < len(plan.generate_jobs)
    for row in ("halves", "by_clip", "by_classifier"):
        assert plan.shards(row) == blocks.shards(row) and plan.scores_of(row) == blocks.scores_of(row)
        assert recipes.resample_recipe(study, row) == recipes.resample_recipe(blocks.study, row)
    for pool_and_scorer in plan.scorers:
        assert plan.scored_shards(*pool_and_scorer) == blocks.scored_shards(*pool_and_scorer)


def test_check_names_a_pool_that_is_too_small_after_the_filter() -> None:
    study = study_of(
        by_clip=BY_CLIP,
        by_classifier={**BY_CLASSIFIER, "keep": {"by": "classifier", "share": 0.4}},
        halves={**HALVES, "added_per_training_image": 3},
    )
    lines = [str(problem) for problem in added_image_problems(study, {"a": 9, "b": 8})]
    assert [line.partition("; class")[0] for line in lines] == [
        "methods.retrieval.images_per_class: 10; allowed: at least 17, because by_clip draws from it",
        "methods.by_classifier.images_per_class: 20; allowed: at least 21",
        "methods.retrieval.images_per_class: 10; allowed: at least 14, because halves draws from it",
    ]
    assert "keep.share is 0.5" in lines[0] and "14 of them from retrieval" in lines[2]


def test_draws_filter_by_their_own_classifier_and_choose_among_their_own_rows() -> None:
    study = study_of(2, halves=HALVES, by_clip=BY_CLIP, by_classifier=BY_CLASSIFIER, best=BEST).unfolded
    rows = study.methods
    assert rows["halves_draw1"].pool_rows == ("retrieval", "simple_prompt"), "pools are made once"
    assert rows["best_draw1"].built_on == ("halves_draw1", "by_clip_draw1")
    assert study.filtering_row("by_classifier_draw1") == "none_draw1"
    plan = Plan(study, IDS)
    assert plan.scorers == [("retrieval", None), ("simple_prompt", "none"), ("simple_prompt", "none_draw1")]
    assert plan.scores_of("by_clip_draw1") == plan.scores_of("by_clip")
    assert plan.choices == ["results/small/selected/best.json", "results/small/selected/best_draw1.json"]
    assert {row.group for name, row in rows.items() if name.startswith(("halves", "best"))} == {"hybrid"}
    boomerang = {**SMALL_STUDY["methods"]["boomerang"]}
    mine = {"mechanism": "draw", "pools": {"boomerang": 0.5, "retrieval": 0.5}}
    follows = study_of(2, boomerang=boomerang, mine=mine).unfolded
    assert follows.methods["mine_draw1"].shares == {"boomerang_draw1": 0.5, "retrieval": 0.5}


def test_recipes_of_plain_rows_are_as_they_were_and_new_keys_enter_where_they_are_set() -> None:
    study = study_of(
        plain={"mechanism": "draw", "pool": "retrieval"},
        halves=HALVES,
        by_clip=BY_CLIP,
        by_classifier=BY_CLASSIFIER,
    )
    assert recipes.resample_recipe(study, "plain") == {
        "version": 2,
        "seed": 0,
        "added_per_training_image": 1.0,
        "ranked": False,
        "may_fall_short": False,
        "pool": "retrieval",
    }
    assert recipes.resample_recipe(study, "halves")["pools"] == HALVES["pools"]
    assert recipes.resample_recipe(study, "by_clip")["keep"]["share"] == 0.5
    assert recipes.filter_recipe(study, "plain") is None
    assert recipes.filter_recipe(study, "by_clip") != recipes.filter_recipe(study, "by_classifier")
