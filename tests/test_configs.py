"""The shipped studies keep their promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from augbench.commands.check.methods import added_image_problems
from augbench.commands.check.training import LEAST_STEPS
from augbench.commands.plan.estimate import Estimate
from augbench.commands.plan.throughput import read_throughput
from augbench.config.methods import PersonaliseMethod, RetrieveMethod
from augbench.config.study import ConfigError, load_study
from augbench.plan.paths import Plan
from augbench.plan.recipes import method_sampling
from augbench.report.protocol import CANDIDATES, IMAGIC_CANDIDATES, Facts, differences, paper_results

PROJECT = Path(__file__).resolve().parents[1]
STUDIES = [*sorted((PROJECT / "config").glob("*.yaml")), PROJECT / "docs/examples/digits.yaml"]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_shipped_study_is_valid(path: Path) -> None:
    assert load_study([path]).study == path.stem


@pytest.mark.parametrize(
    "path", sorted((PROJECT / "config/overlays").glob("shift_*.yaml")), ids=lambda path: path.stem
)
def test_shifts_differ_in_nothing_but_the_corpus(path: Path) -> None:
    mild = load_study([PROJECT / "config/miniature.yaml"])
    study = load_study([PROJECT / "config/miniature.yaml", path])
    assert study.study == path.stem == f"shift_{study.miniature.shift}"
    same = ("study", "corpus", "report", "methods", "rows")
    theirs = {name: getattr(mild, name) for name in same}
    assert study.model_copy(update=theirs) == mild
    assert study.miniature.model_copy(update={"shift": "mild"}) == mild.miniature
    assert study.methods == {name: mild.methods[name] for name in study.methods}


@pytest.mark.parametrize(
    ("base", "overlay", "images"),
    [("miniature", "beyond", 52), ("imagenet10", "beyond_imagenet10", 130)],
)
def test_the_overlays_of_hybrid_rows_fit_their_study(base: str, overlay: str, images: int) -> None:
    study = load_study([PROJECT / f"config/{base}.yaml", PROJECT / f"config/overlays/{overlay}.yaml"])
    assert study.study == overlay
    train = {"largest": images, "smallest": min(74, images)}
    assert [str(problem) for problem in added_image_problems(study, train)] == []
    plan = Plan(study, ("a", "b")).unfolded
    dropping = plan.study.model_copy(update={"leakage": study.leakage.model_copy(update={"action": "drop"})})
    assert len(Plan(dropping, ("a", "b")).guard_levels) == 2, "what is made from other rows is searched later"
    assert {row.query.pool for row in study.retrieved.values()} == {"mean", "clusters", "each"}
    selections = {row.select for row in study.retrieved.values()}
    assert selections == {"nearest", "mmr", "k_center", "facility_location"}
    assert len(study.filters) == 4 and len(study.choosing) == 2
    assert "dm_on_retrieval" in plan.inheriting and len(plan.results()) >= 28


def test_hybrid_rows_of_imagenet10_retrieve_as_its_retrieval_does() -> None:
    base = load_study([PROJECT / "config/imagenet10.yaml"]).retrieved["retrieval"]
    overlay = PROJECT / "config/overlays/beyond_imagenet10.yaml"
    study = load_study([PROJECT / "config/imagenet10.yaml", overlay])
    own = {"label", "query", "select", "select_from", "images_per_class", "least_images", "copies"}
    for name, row in study.retrieved.items():
        assert row.model_dump(exclude=own) == base.model_dump(exclude=own)
        kept = 260 if name == "wide" else 130
        assert row.images_per_class == row.least_images == kept


def test_the_scaling_overlay_plans_figure5b() -> None:
    miniature, overlay = PROJECT / "config/miniature.yaml", PROJECT / "config/overlays/scaling.yaml"
    assert "figure5b" not in Plan(load_study([miniature]), ()).figures
    plan = Plan(load_study([miniature, overlay]), ())
    assert "figure5b" in plan.figures and len(plan.scaling) == 6


def test_rows_of_the_corpus_size_overlay_differ_in_nothing_but_the_share() -> None:
    study = load_study([PROJECT / "config/miniature.yaml", PROJECT / "config/overlays/corpus_size.yaml"])
    rows = [row for row in study.methods.values() if isinstance(row, RetrieveMethod)]
    assert [row.corpus_share for row in rows] == [1, 0.3, 0.1, 0.03, 0.01]
    assert all(
        row.model_copy(update={"label": rows[0].label, "corpus_share": 1.0}) == rows[0] for row in rows
    )


def test_the_demo_is_no_toy() -> None:
    study = load_study([PROJECT / "config/demo.yaml"])
    target_pool = (60_000 - 50_000) // 10
    assert study.dataset.train_fraction * target_pool >= 50  # real images per class, and as many added ones
    assert study.augmentation.resamples >= 3
    assert study.diffusion.steps >= 20
    assert {row.clusters for row in study.methods.values() if isinstance(row, PersonaliseMethod)} == {1, 5}
    compared = [
        name
        for name, row in study.methods.items()
        if isinstance(row, PersonaliseMethod) and len(row.candidates) >= 2
    ]
    assert compared == ["pseudoword_dm"], "selection is shown in one row; the others save its time"


@pytest.mark.parametrize("name", ["demo", "mini"])
def test_the_rows_of_the_papers_table_are_all_there(name: str) -> None:
    study, rows = load_study([PROJECT / f"config/{name}.yaml"]), set(paper_results("imagenet10"))
    missing = {"ft_cluster_conditioning_k10", "ft_cluster_conditioning_k15"} if name == "demo" else set()
    assert rows - set(study.methods) == missing


def test_the_full_miniature_keeps_the_papers_sizes() -> None:
    study = load_study([PROJECT / "config/mini.yaml"])
    assert (study.augmentation.images_per_class, study.augmentation.resamples, study.diffusion.steps) == (
        390,
        5,
        50,
    )
    assert (study.finetune.max_epochs, study.execution.keep_candidates) == (40, True)
    rows = {name: row.candidates for name, row in study.methods.items() if isinstance(row, PersonaliseMethod)}
    assert rows.pop("imagic") == IMAGIC_CANDIDATES and set(rows.values()) == {CANDIDATES}


@pytest.mark.parametrize("name", ["demo", "mini"])
def test_the_miniature_trains_every_row_for_as_many_steps_and_by_the_papers_rule_with_an_overlay(
    name: str,
) -> None:
    config = PROJECT / f"config/{name}.yaml"
    study = load_study([config])
    assert study.classifier.schedule == "steps" and study.classifier.total_steps >= LEAST_STEPS
    paper = load_study([config, PROJECT / "config/overlays/paper_schedule.yaml"]).classifier
    assert (paper.schedule, paper.plateau_patience, paper.stop_patience, paper.max_epochs) == (
        "plateau",
        10,
        20,
        270,
    )


def test_an_overlay_changes_and_removes(tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("augmentation: {resamples: 4}\nmethods: {retrieval: null}\n")
    study, demo = (
        load_study([PROJECT / "config/demo.yaml", overlay]),
        load_study([PROJECT / "config/demo.yaml"]),
    )
    assert study.augmentation == demo.augmentation.model_copy(update={"resamples": 4}) != demo.augmentation
    assert "retrieval" not in study.methods
    named = [(contrast.row, contrast.against) for contrast in study.report.contrasts]
    assert named == [("real_20pct", "none"), ("real_repeated", "none")], "those of a removed row go with it"


def test_an_overlay_names_the_rows_that_it_keeps(tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(
        "rows: [none, real_20pct, mixed]\nmethods: {mixed: {mechanism: real, use: {mixup: 1.0}}}\n"
    )
    study = load_study([PROJECT / "config/demo.yaml", overlay])
    assert list(study.methods) == ["none", "real_20pct", "mixed"]
    named = [(contrast.row, contrast.against) for contrast in study.report.contrasts]
    assert named == [("real_20pct", "none")]
    overlay.write_text("rows: [none, retreival]\n")
    with pytest.raises(ConfigError, match=r"rows: .*; 'retreival' is no row; allowed: names of `methods`"):
        load_study([PROJECT / "config/demo.yaml", overlay])


def test_the_fast_mode_takes_little_more_than_a_third_of_the_work_and_is_never_the_default() -> None:
    studies = [
        load_study([PROJECT / "config/imagenet10.yaml", *overlays])
        for overlays in ([], [PROJECT / "config/overlays/fast.yaml"])
    ]
    default, fast = (
        {
            name: method_sampling(study, name)
            for name in study.methods
            if name in ("clip_prompts", "boomerang")
        }
        for study in studies
    )
    assert (
        "guidance_interval" not in default["clip_prompts"] and default["clip_prompts"]["scheduler"] == "pndm"
    )
    assert fast["clip_prompts"] == default["clip_prompts"] | {
        "scheduler": "dpmsolver++",
        "steps": 20,
        "guidance_interval": [0.28, 5.42],
    }
    assert fast["boomerang"] == default["boomerang"]  # it has its own steps, and no guidance
    exact, cheap = (
        Estimate(Plan(study, ("n01440764",)), read_throughput()).unet_calls("clip_prompts")
        for study in studies
    )
    assert 0.3 < cheap / exact < 0.35
    named = {
        difference.what: difference.ours
        for difference in differences(studies[1], Facts(990, 128.0, 126_720, 49_500))
    }
    assert {
        "Sampler": "dpmsolver++",
        "Sampling steps": "20",
        "Noise levels with guidance": "0.28 to 5.42",
    }.items() <= named.items()


def test_exact_and_fast_rows_stand_side_by_side_in_the_miniature() -> None:
    study = load_study([PROJECT / "config/miniature.yaml", PROJECT / "config/overlays/fast_study.yaml"])
    rows = {name: method_sampling(study, name) for name in study.methods if name.startswith("clip_prompts")}
    exact = rows.pop("clip_prompts")
    assert exact == method_sampling(load_study([PROJECT / "config/miniature.yaml"]), "clip_prompts")
    both = {"scheduler": "dpmsolver++", "steps": 8, "guidance_interval": [0.28, 5.42]}
    assert rows == {
        "clip_prompts_few_steps": exact | {"scheduler": "dpmsolver++", "steps": 8},
        "clip_prompts_interval": exact | {"guidance_interval": [0.28, 5.42]},
        "clip_prompts_fast": exact | both,
    }
    named = {
        difference.what: difference.ours
        for difference in differences(study, Facts(10, 50.0, 500, 3_000))
        if "clip_prompts" in difference.what
    }
    assert named == {
        "Sampler of clip_prompts_few_steps, clip_prompts_fast": "dpmsolver++",
        "Sampling steps of clip_prompts_few_steps, clip_prompts_fast": "8",
        "Noise levels with guidance in clip_prompts_interval, clip_prompts_fast": "0.28 to 5.42",
    }
