"""The workflow as users see it: jobs that a change plans, files that a rerun makes, a finished study."""

from __future__ import annotations

import copy
import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from conftest import SMALL_STUDY, Workspace

from augbench.config.methods import PersonaliseMethod
from augbench.config.study import load_study
from augbench.errors import UserError

ADDED = ("simple_prompt", "clip_prompts", "boomerang", "pseudoword_clip", "imagic_k2", "retrieval")
HEAVY = {
    "corpus",
    "embed_corpus",
    "search",
    "leakage",
    "repeats",
    "cluster",
    "finetune",
    "candidates",
    "classify_candidates",
    "generate",
    "retrieve",
    "classify",
    "diagnostics",
}
# jobs that a new accuracy causes
FROM_TABLE1 = {
    "table1_files": 1,
    "statistics": 1,
    "table1_text": 1,
    "paper_tables": 1,
    "cost": 1,
    "figure1_files": 1,
    "forest_files": 1,
    "report_images": 1,
    "report_html": 1,
}
FROM_PREDICTIONS = {
    **FROM_TABLE1,
    "per_class": 1,
    "figure5a_data": 1,
    "figure5a_files": 1,
    "learning_curves_data": 1,
    "learning_curves_files": 1,
}
PERSONALISED = {"pseudoword_clip": ("val_loss", "epoch1"), "imagic_k2": ("epoch1", "epoch2")}


def selected(workspace: Workspace, method: str) -> dict[str, Any]:
    """Read the result of selection."""
    return json.loads((workspace.results / f"selected/{method}.json").read_text())


@pytest.fixture
def study(finished: Workspace) -> Iterator[Workspace]:
    """The finished study; config and class table are restored afterwards."""
    table = (finished.folder / "classes.yaml").read_text()
    yield finished
    finished.write_study(SMALL_STUDY)
    if (finished.folder / "classes.yaml").read_text() != table:
        (finished.folder / "classes.yaml").write_text(table)


@pytest.fixture
def current(current: Workspace, study: Workspace) -> Workspace:
    """The finished study with everything up to date; config and class table are restored afterwards."""
    return study


def shards(workspace: Workspace, method: str) -> dict[str, tuple[int, float]]:
    """Inode and modification time of a method's shards; the same inode means that it was not remade."""
    found = sorted((workspace.results / "shards" / method).rglob("[0-9]*.parquet"))
    return {str(path.relative_to(workspace.results)): (path.stat().st_ino, 0.0) for path in found}


def test_a_finished_study_has_its_table_figure_and_config(finished: Workspace) -> None:
    for name in ("table1.csv", "table1.md", "table1.tex", "table1.txt"):
        assert (finished.results / "tables" / name).stat().st_size > 0
    for name in ("figure1", "forest", "figure3", "figure4", "figure5a"):
        for kind in ("pdf", "png"):
            assert (finished.results / f"figures/{name}.{kind}").stat().st_size > 0
    for name in ("statistics.csv", "contrasts.tex", "components.md", "imagenet_full.tex", "cost.csv"):
        assert (finished.results / "tables" / name).stat().st_size > 0
    report = (finished.results / "report.html").read_text()
    assert "study small" in report and report.count('<template id="class-') == 10
    resolved = yaml.safe_load((finished.results / "config.yaml").read_text())
    assert resolved["classifier"]["momentum"] == 0.9


def test_every_training_set_doubles_the_real_images(finished: Workspace) -> None:
    for method in ADDED:
        for run in range(2):
            result = json.loads(
                (finished.results / f"classifiers/{method}/selected/{run}/result.json").read_text()
            )
            assert result["n_real"] == result["n_added"] == 80
            assert result["n_test"] == 200


def test_a_finished_study_has_nothing_to_do(finished: Workspace) -> None:
    assert finished.plan() == {}


def test_snakemake_n_shows_the_whole_study_before_anything_ran(workspace: Workspace) -> None:
    plan = workspace.plan()
    assert plan["prompts"] == len(ADDED)
    blocks = ("000", "001")  # of classes
    assert all(plan[f"generate_{method}_{block}"] == 1 for method in ADDED[:-1] for block in blocks)
    assert all(
        plan[f"retrieve_retrieval_{block}"] == plan[f"finetune_pseudoword_clip_lr1_{block}"] == 1
        for block in blocks
    )
    # all classes share a U-Net
    assert plan["finetune_imagic_k2_lr1_all"] == plan["finetune_imagic_k2_lr3_all"] == 1
    assert all(plan[f"candidates_imagic_k2_{block}"] == 1 for block in blocks)  # all candidates in one job
    assert plan["classify_000"] == 2 + len(ADDED)
    assert (
        plan["table1_files"]
        == plan["figure1_files"]
        == plan["statistics"]
        == plan["table1_text"]
        == plan["forest_files"]
        == plan["per_class"]
        == plan["cost"]
        == 1
    )
    assert all(
        plan[f"{figure}_{step}"] == 1
        for figure in ("figure3", "figure4", "figure5a")
        for step in ("data", "files")
    )
    assert not any(rule.startswith("figure5b") for rule in plan), (
        "no row of this study draws from another one's pool"
    )


def test_another_guidance_scale_plans_that_methods_shards_and_what_follows(current: Workspace) -> None:
    changed = copy.deepcopy(SMALL_STUDY)
    changed["methods"]["clip_prompts"]["guidance_scale"] = 4.0
    current.write_study(changed)
    plan = current.plan()
    assert plan.pop("resolved_config") == plan.pop("provenance") == 1
    assert plan == {
        "generate_clip_prompts_000": 1,
        "generate_clip_prompts_001": 1,
        "resample_clip_prompts": 1,
        "classify_000": 1,
        **FROM_PREDICTIONS,
        "figure4_data": 1,
        "figure4_files": 1,
        "diagnostics": 1,
        "leakage": 1,
        "near_duplicates": 1,
        "repeats": 1,
    }


def test_controls_plan_a_draw_and_classifiers_and_no_images(current: Workspace) -> None:
    changed = copy.deepcopy(SMALL_STUDY)
    changed["methods"]["again"] = {"mechanism": "real", "repeat": 2}
    changed["methods"]["placebo"] = {"mechanism": "draw", "pool": "retrieval", "labels": "shuffled"}
    changed["methods"]["mixed"] = {"mechanism": "draw", "pool": "retrieval", "use": {"mixup": 0.2}}
    current.write_study(changed)
    plan = current.plan()
    assert {
        rule for rule in plan if rule.startswith(("generate", "retrieve_", "finetune", "prompts"))
    } == set()
    assert plan["classify_000"] == 3 and plan["resample_placebo"] == plan["resample_mixed"] == 1
    assert "figure5b_data" not in plan


@pytest.mark.parametrize(
    "report",
    [
        {"contrasts": [{"row": "retrieval", "against": "clip_prompts"}]},
        {"margin": 0.5},
        {"error": "pooled"},
    ],
    ids=["contrasts", "margin", "error"],
)
def test_another_contrast_or_margin_plans_the_reports_own_tables(
    current: Workspace, report: dict[str, Any]
) -> None:
    current.write_study({**SMALL_STUDY, "report": {**SMALL_STUDY["report"], **report}})
    assert current.plan() == {
        "statistics": 1,
        "table1_text": 1,
        "forest_files": 1,
        "resolved_config": 1,
        "provenance": 1,
        "report_html": 1,
    }


def test_without_the_paper_beside_it_a_study_makes_tables_figures_and_report_again_and_nothing_else(
    current: Workspace,
) -> None:
    current.write_study({name: value for name, value in SMALL_STUDY.items() if name != "report"})
    plan = current.plan()
    assert {"table1_files", "table1_text", "resolved_config", "report_html"} <= set(plan)
    made = ("prompts", "finetune", "candidates", "select", "generate", "retrieve", "resample", "classify")
    assert not any(rule.startswith(made) for rule in plan) and "paper_tables" not in plan


def test_the_answer_is_printed_last_and_stands_on_top_of_table_1(finished: Workspace) -> None:
    text = (finished.results / "tables/table1.txt").read_text(encoding="utf-8")
    answer = text.partition("\n\n")[0]
    assert answer.startswith("With 8 real images per class, ")
    done = finished.run()
    assert done.stdout.partition("Done in")[0].rstrip().endswith(answer)


@pytest.mark.parametrize("name", ["figure1", "forest", "figure3", "figure4", "figure5a"])
def test_a_deleted_figure_plans_one_job(current: Workspace, name: str) -> None:
    figure = current.results / f"figures/{name}.pdf"
    content = figure.read_bytes()
    figure.unlink()
    assert current.plan(name) == {f"{name}_files": 1, name: 1}
    assert current.plan() == {f"{name}_files": 1}
    current.run()
    assert figure.read_bytes() == content


def test_the_page_is_made_anew_without_its_images(current: Workspace) -> None:
    page = current.results / "report.html"
    page.unlink()
    assert current.plan("report") == {"report_html": 1, "report": 1}
    current.run("--target", "report")
    assert page.exists()


def test_another_block_size_or_batch_size_plans_nothing(current: Workspace) -> None:
    changed = copy.deepcopy(SMALL_STUDY)
    changed["execution"] = {"classes_per_job": 3, "runs_per_job": 1, "batch_size": 7}
    current.write_study(changed)
    assert current.plan() == {}


def test_a_named_target_makes_what_it_needs_only(current: Workspace) -> None:
    (current.results / "figures/figure1.png").unlink()
    (current.results / "config.yaml").unlink()
    current.run("--target", "figure1")
    assert (current.results / "figures/figure1.png").exists() and not (
        current.results / "config.yaml"
    ).exists()
    current.run()


def test_a_newer_script_or_readme_plans_nothing(current: Workspace) -> None:
    scripts = current.folder / "workflow"
    scripts.unlink()
    source = Path(__file__).resolve().parents[1] / "workflow"
    shutil.copytree(source, scripts)
    try:
        script = scripts / "scripts/generate.py"
        script.write_text(script.read_text() + "\n# a comment\n")
        (current.folder / "README.md").write_text("changed")
        assert current.plan() == {}
    finally:
        shutil.rmtree(scripts)
        scripts.symlink_to(source)


def test_figure5b_of_rows_that_draw_is_drawn_alone(study: Workspace) -> None:
    changed = copy.deepcopy(SMALL_STUDY)
    changed["methods"]["retrieval_200"] = {
        "mechanism": "draw",
        "pool": "retrieval",
        "added_per_training_image": 2,
        "ranked": True,
        "may_fall_short": True,
    }
    study.write_study(changed)
    study.run("--target", "figure5b")
    rows = {
        row["method"]: row
        for row in csv.DictReader((study.results / "figures/figure5b.csv").read_text().splitlines())
    }
    short = rows["retrieval_200"]
    # ten images of each class were kept, and sixteen requested
    assert (short["added_images"], short["short_classes"]) == ("100", "10")
    assert (short["worst_percent"], short["best_percent"]) == ("0.0", "100.0")
    (study.results / "figures/figure5b.pdf").unlink()
    assert study.plan("figure5b") == {"figure5b_files": 1, "figure5b": 1}
    study.leave_behind()  # Table 1 has the new row


def test_one_deleted_shard_is_taken_from_the_store(study: Workspace) -> None:
    before = shards(study, "simple_prompt")
    gone = study.results / "shards/simple_prompt/selected/bag/1.parquet"
    gone.unlink()
    assert study.plan()["generate_simple_prompt_001"] == 1
    study.run("--target", f"results/small/{gone.relative_to(study.results)}")
    assert shards(study, "simple_prompt") == before
    log = (study.results / "logs/generate/simple_prompt_001.log").read_text()
    assert "0 made, 10 taken from the store" in log and "torch not imported" in log
    study.leave_behind()


@pytest.mark.full
def test_a_listed_shard_that_is_gone_is_made_for_one_file_too(workspace: Workspace) -> None:
    methods = {name: SMALL_STUDY["methods"][name] for name in ("none", "simple_prompt")}
    workspace.write_study({**SMALL_STUDY, "methods": methods})
    index = "results/small/shards/simple_prompt/selected/index.parquet"
    workspace.run("--target", index)
    gone = workspace.results / "shards/simple_prompt/selected/bag/1.parquet"
    before = (workspace.folder / index).read_bytes()
    assert workspace.plan(index) == {}
    gone.unlink()
    (workspace.folder / index).unlink()
    needed = {"generate_simple_prompt_001": 1, "resample_simple_prompt": 1}
    for target in (index, "table1", "figure1", "report"):
        assert needed.items() <= workspace.plan(target).items()
    workspace.run("--target", index)
    assert gone.is_file() and (workspace.folder / index).read_bytes() == before


@pytest.mark.full
@pytest.mark.long
def test_a_study_that_was_finished_before_there_were_lists_of_shards_makes_nothing_again(
    workspace: Workspace,
) -> None:
    """In earlier versions every shard was a target, and the jobs that draw sets had the shards as inputs."""
    methods = {name: SMALL_STUDY["methods"][name] for name in ("none", "simple_prompt", "pseudoword_clip")}
    methods["larger"] = {"mechanism": "draw", "pool": "simple_prompt", "images_per_class": 40}
    workspace.write_study({**SMALL_STUDY, "methods": methods})
    workspace.run()
    results = workspace.results
    drawn = [
        *results.glob("resamples/*/selected/*.parquet"),
        *results.glob("shards/*/selected/index.parquet"),
    ]
    linked = sorted(results.glob("classifiers/*/selected/*/model.safetensors"))

    def made() -> tuple[object, ...]:
        inodes = [path.stat().st_ino for path in linked]
        return shards(workspace, "simple_prompt"), inodes, [path.read_bytes() for path in drawn]

    before = made()
    for lists in results.glob("shards/*/lists"):
        shutil.rmtree(lists)
    planned = workspace.plan()
    assert not {"prompts", "search", "fingerprint"} & {*planned} and not any(
        "finetune" in job for job in planned
    )
    workspace.run()
    logs = [path.read_text() for path in results.glob("logs/generate/*.log")]
    assert len(logs) == 6 and all("done: 0 made, " in log and "torch not imported" in log for log in logs)
    assert made() == before and len(linked) == 8
    assert workspace.plan() == {}


def test_one_shard_deleted_from_store_and_results_remakes_only_its_own_images(study: Workspace) -> None:
    before = shards(study, "simple_prompt")
    gone = study.results / "shards/simple_prompt/selected/bag/1.parquet"
    content, inode = gone.read_bytes(), gone.stat().st_ino
    (kept,) = [path for path in (study.store / "shards").iterdir() if path.stat().st_ino == inode]
    kept.unlink()
    gone.unlink()
    study.run("--target", f"results/small/{gone.relative_to(study.results)}")
    after = shards(study, "simple_prompt")
    changed = [name for name in before if before[name] != after[name]]
    # empty if the file system reuses the inode
    assert changed in ([], ["shards/simple_prompt/selected/bag/1.parquet"])
    assert (
        "1 made, 9 taken from the store"
        in (study.results / "logs/generate/simple_prompt_001.log").read_text()
    )
    assert gone.read_bytes() == content
    study.leave_behind()


@pytest.mark.parametrize("method", PERSONALISED)
def test_the_best_candidate_on_validation_images_goes_on_and_is_not_remade(
    finished: Workspace, method: str
) -> None:
    choice = selected(finished, method)
    figures = {row["candidate"]: row["val_top1"] for row in choice["candidates"]}
    assert tuple(figures) == PERSONALISED[method]
    winner = choice["selected"]
    assert figures[winner] == max(figures.values())
    for folder, class_id in (("000", "trouser"), ("001", "bag")):
        part = finished.results / f"shards/{method}/{winner}/{folder}/{class_id}/0.parquet"
        assert part.samefile(finished.results / f"shards/{method}/selected/{class_id}/0.parquet")
    weights = finished.results / f"classifiers/{method}/{winner}/0/model.safetensors"
    assert weights.samefile(finished.results / f"classifiers/{method}/selected/0/model.safetensors")
    assert not (weights.parent / "predictions.parquet").exists()


def test_the_paper_knows_none_of_the_rows_that_yaml_alone_added(finished: Workspace) -> None:
    paper = (Path(__file__).resolve().parents[1] / "resources/paper/targets.csv").read_text()
    table = (finished.results / "tables/table1.csv").read_text()
    for method in PERSONALISED:
        assert f",{method}," not in paper and f"\n{method}," in table
    prompts = (
        pq.read_table(finished.results / "shards/pseudoword_clip/selected/bag/0.parquet")
        .column("prompt")
        .to_pylist()
    )
    assert all("<bag>" in prompt for prompt in prompts) and len(set(prompts)) > 3


def test_every_training_image_starts_as_many_boomerangs(finished: Workspace) -> None:
    sources = [
        source
        for part in range(2)
        for source in pq.read_table(finished.results / f"shards/boomerang/selected/bag/{part}.parquet")
        .column("source")
        .to_pylist()
    ]
    counts = {source: sources.count(source) for source in sources}
    assert len(counts) == 8 and set(counts.values()) == {2, 3}  # 20 images from 8


@pytest.mark.full
def test_dropped_candidates_are_not_planned_again(current: Workspace) -> None:
    method, winner = "pseudoword_clip", selected(current, "pseudoword_clip")["selected"]
    changed = copy.deepcopy(SMALL_STUDY)
    changed["execution"]["keep_candidates"] = False
    current.write_study(changed)
    assert current.plan() == {}
    (current.results / f"selected/{method}.json").unlink()
    before = shards(current, f"{method}/selected")
    current.run()
    assert selected(current, method)["selected"] == winner
    assert shards(current, f"{method}/selected") == before
    for candidate in PERSONALISED[method]:
        assert not list((current.results / f"shards/{method}/{candidate}").rglob("[0-9]*.parquet"))
    assert current.plan() == {}
    current.write_study(SMALL_STUDY)
    assert current.plan() == {}


def test_no_other_rule_imports_torch(finished: Workspace) -> None:
    logs = finished.results / "logs"
    heavy = {
        path.relative_to(logs).parts[0].removesuffix(".log")
        for path in logs.rglob("*.log")
        if "; torch imported" in path.read_text()
    }
    assert heavy <= HEAVY


def test_the_demo_starts_a_process_that_imports_torch_42_times_at_most(workspace: Workspace) -> None:
    study = load_study([workspace.folder / "config/demo.yaml"])
    rules = "|".join(sorted(HEAVY, key=len, reverse=True))
    starts = sum(
        count
        for rule, count in workspace.plan(configfiles=("config/demo.yaml",)).items()
        if re.fullmatch(rf"({rules})(_\w+)?", rule)
    )
    assert starts > 20
    # the winner's only part comes from the store: see the test of one deleted shard
    if study.augmentation.parts == 1:
        starts -= sum(isinstance(row, PersonaliseMethod) for row in study.methods.values())
    assert starts <= 42


@pytest.fixture
def spoilable(current: Workspace) -> Iterator[Path]:
    """The test split's manifest; it is restored with its old time afterwards."""
    path = current.results / "splits/test.parquet"
    content, stat = path.read_bytes(), path.stat()
    yield path
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_nothing_but_final_scoring_and_the_guard_depends_on_the_test_split(
    current: Workspace, spoilable: Path
) -> None:
    spoilable.write_bytes(spoilable.read_bytes() + b"another content")
    assert current.plan() == {
        "classify_000": 2 + len(ADDED),
        **FROM_PREDICTIONS,
        "leakage": 1,
        "near_duplicates": 1,
        "provenance": 1,
    }


def test_selection_never_opens_the_test_split(study: Workspace, spoilable: Path) -> None:
    method, stat = "pseudoword_clip", spoilable.stat()
    before = selected(study, method)
    classifiers = study.results / f"classifiers/{method}"
    shutil.rmtree(study.store / "classifiers")
    for candidate in PERSONALISED[method]:
        shutil.rmtree(classifiers / candidate)
    for path in (study.results / f"selected/{method}.json", classifiers / "selected/0/result.json"):
        path.unlink()
    (study.results / "tables/table1.csv").unlink()
    spoilable.write_bytes(b"no manifest")
    os.utime(spoilable, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    study.run("--target", f"results/small/selected/{method}.json")
    assert selected(study, method) == before
    # trained again, not taken from the store
    assert "; torch imported" in (study.results / f"logs/classify_candidates/{method}.log").read_text()
    scored = study.augbench("run", "--configfile", "study.yaml", "--cores", "2")
    assert scored.returncode == 1
    assert (
        "splits/test.parquet: not a whole Parquet file"
        in (study.results / f"logs/classify/{method}_000.log").read_text()
    )
    study.leave_behind()


def test_classes_that_are_left_out_are_in_no_training_set_and_no_score(
    finished: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from augbench.artifacts.store import Store
    from augbench.classifier.stage import train_block
    from augbench.resample import resample

    monkeypatch.chdir(finished.folder)
    study, results, gone = load_study(["study.yaml"]), Path("results/small"), {"bag", "pullover"}
    train, val, test = (results / f"splits/{name}.parquet" for name in ("train", "val", "test"))
    manifest = tmp_path / "0.parquet"
    resample(results / "shards/simple_prompt/selected/index.parquet", train, [manifest], 0, excluded=gone)
    rest = (
        study,
        Store(Path("results/.store"), results),
        "simple_prompt",
        train,
        val,
        test,
        results / "classes.parquet",
        [manifest],
        [tmp_path / "0"],
    )
    train_block(*rest, excluded=gone)
    result = json.loads((tmp_path / "0/result.json").read_text())
    assert [result[name] for name in ("classes", "n_real", "n_added", "n_val", "n_test")] == [
        8,
        64,
        64,
        96,
        160,
    ]
    predictions = pq.read_table(tmp_path / "0/predictions.parquet").to_pydict()
    names = pq.read_table(results / "classes.parquet").column("class_id").to_pylist()
    truth = dict(
        zip(*(pq.read_table(test).column(name).to_pylist() for name in ("image_id", "class_id")), strict=True)
    )
    assert [names[label] for label in predictions["label"]] == [
        truth[image] for image in predictions["image_id"]
    ]
    assert not gone & {names[label] for label in (*predictions["label"], *predictions["predicted"])}
    shutil.rmtree(tmp_path / "0")
    full = results / "resamples/simple_prompt/selected/0.parquet"
    with pytest.raises(UserError, match="which is left out"):
        train_block(*rest[:-2], [full], [tmp_path / "0"], excluded=gone)


def test_only_final_scoring_and_the_guard_are_given_the_test_split(finished: Workspace) -> None:
    command = [sys.executable, "-m", "snakemake", "--detailed-summary", "--configfile", "study.yaml"]
    done = subprocess.run(
        command, cwd=finished.folder, env=finished.environment(), capture_output=True, text=True
    )
    files = list(csv.DictReader(StringIO(done.stdout), delimiter="\t"))
    rules = {
        file["rule"]
        for file in files
        if any(path.endswith("splits/train.parquet") for path in file["input-file(s)"].split(","))
    }
    assert {
        "finetune_imagic_k2_lr1_all",
        "classify_candidates_imagic_k2",
        "classify_000",
        "resample_imagic_k2",
    } <= rules, "what a rule is given is listed"
    given = {
        file["rule"]
        for file in files
        if any(path.endswith("splits/test.parquet") for path in file["input-file(s)"].split(","))
    }
    assert given == {"classify_000", "leakage", "near_duplicates"}


# last in this file, because restoring the class table makes it newer than all files made from it
def test_one_edited_class_name_remakes_only_its_own_images(study: Workspace) -> None:
    before = shards(study, "clip_prompts")
    table = study.folder / "classes.yaml"
    table.write_text(table.read_text().replace("lemmas: [sandal]", "lemmas: [flip-flop]"))
    study.run(*(argument for name in before for argument in ("--target", f"results/small/{name}")))
    after = shards(study, "clip_prompts")
    changed = {Path(name).parent.name for name in before if before[name] != after[name]}
    assert changed == {"sandal"}
    prompts = (
        pq.read_table(study.results / "shards/clip_prompts/selected/sandal/0.parquet")
        .column("prompt")
        .to_pylist()
    )
    assert all("flip-flop" in prompt for prompt in prompts)
