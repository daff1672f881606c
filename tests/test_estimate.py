"""Cost estimates: figures computed by hand, finished and remaining work, the user's own table of rates."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import PROJECT, SMALL_STUDY, Workspace

from augbench.commands.plan.estimate import Estimate, estimate_study
from augbench.commands.plan.memory import needs_of, shortages
from augbench.commands.plan.show import as_json, render
from augbench.commands.plan.steps import Step, hours_left
from augbench.commands.plan.throughput import read_throughput
from augbench.config.study import load_study, parse_study, read_yaml
from augbench.data.classes import load_class_table
from augbench.errors import UserError
from augbench.plan.load import load_plan
from augbench.plan.paths import Plan

# rates that are easy to divide by; the pool has 10 classes with 1000 images each, as in Fashion-MNIST
RATES = {
    "generate": 10,
    "finetune_vectors": 100,
    "finetune_unet": 50,
    "classify": 1000,
    "embed": 500,
    "start": 36,
}
# hours of encoding 1000 training images with their mirror images, and 1000 validation images without
ENCODING = 3000 * 1117 / 1669 / RATES["finetune_vectors"] / 3600
STUDY: dict[str, Any] = {
    "study": "reckoned",
    "dataset": {"kind": "fashion_mnist", "train_fraction": 0.1},
    "corpus": {"kind": "embeddings", "folder": "corpus", "clip": "openai/clip-vit-large-patch14"},
    "diffusion": {"model": "CompVis/stable-diffusion-v1-4"},
    "clip": {"model": "openai/clip-vit-large-patch14"},
    "methods": {
        "none": {"mechanism": "real"},
        "prompted": {"mechanism": "sample"},
        "boomerang": {
            "mechanism": "sample",
            "start": "training_images",
            "noise": 0.17,
            "steps": 300,
            "guidance_scale": 1.0,
            "prompt": {"templates": "empty"},
        },
        "learned": {
            "mechanism": "personalise",
            "learn": "pseudoword",
            "train_unet": True,
            "lr_grid": [1.0, 3.0],
            "candidates": [1, 2],
        },
        "learned_lr3": {"mechanism": "personalise", "learn": "conditioning", "candidates": [1]},
        "found": {"mechanism": "retrieve", "images_per_class": 120},
        "larger": {
            "mechanism": "draw",
            "pool": "learned",
            "added_per_training_image": 4,
            "images_per_class": 500,
        },
    },
    "augmentation": {"images_per_class": 300, "images_per_part": 100, "image_format": "jpeg", "resamples": 3},
    "execution": {"classes_per_job": 5, "runs_per_job": 1},
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    figures: dict[str, Any] = {
        "name": "Round numbers",
        **{name: {"value": value, "measured": True} for name, value in RATES.items()},
    }
    path = tmp_path / "mine.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "devices": {"round": figures},
                "assumed": {"finetune_epochs": 10, "classifier_epochs": {"value": 50}},
            }
        )
    )
    return path


def estimate_of(table: Path, **changes: Any) -> Estimate:
    return estimate_study(parse_study({**copy.deepcopy(STUDY), **changes}), "round", table)


def step(estimate: Estimate, stage: str, method: str) -> Step:
    (found,) = [step for step in estimate.steps if (step.stage, step.method) == (stage, method)]
    return found


def put(*paths: str) -> None:
    for path in paths:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()


def seconds_of(path: str, seconds: float) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(f"s\th:m:s\n{seconds}\t0:00:00\n")


# --- by hand --------------------------------------------------------------------------------------


def test_hours_of_generation_are_images_by_rate_and_calls_of_the_unet(table: Path) -> None:
    estimate = estimate_of(table)
    # 10 classes x 300 images at 10 per second, and two jobs that take 36 s to start
    assert step(estimate, "generate", "prompted").images == 3000
    assert step(estimate, "generate", "prompted").gpu_hours == pytest.approx(3000 / 10 / 3600 + 2 * 36 / 3600)
    # 17% of 300 steps without guidance: 51 calls; images of the table's rate take 51 x 2
    assert step(estimate, "generate", "boomerang").gpu_hours == pytest.approx(
        3000 * 0.5 / 10 / 3600 + 2 * 36 / 3600
    )


def test_part_0_of_a_fine_tuned_method_is_its_winners_and_a_row_that_draws_makes_the_pool_larger(
    table: Path,
) -> None:
    estimate = estimate_of(table)
    assert step(estimate, "candidates", "learned").images == 2 * 10 * 100
    # parts 1 and 2 of the pool, and 200 more images for the row `larger`
    assert step(estimate, "generate", "learned").images == 10 * (500 - 100)
    assert step(estimate, "generate", "learned_lr3").images == 10 * (300 - 100)
    assert not [
        found
        for found in estimate.steps
        if found.method == "larger" and found.stage not in ("resample", "classify")
    ]


def test_hours_of_fine_tuning_are_images_seen_by_rate(table: Path) -> None:
    methods = copy.deepcopy(STUDY["methods"])
    for row in ("learned", "learned_lr3"):
        methods[row]["candidates"] = ["val_loss", 1]
    estimate = estimate_of(table, methods=methods)
    # 10 epochs at 2 learning rates of 1000 training images and (forward only) 1000 validation images;
    # one job for each rate
    assert step(estimate, "finetune", "learned").gpu_hours == pytest.approx(
        10 * 2 * (1000 + 1000 / 3) / 50 / 3600 + ENCODING + 2 * 36 / 3600
    )
    # the U-Net is frozen: two jobs of classes at one learning rate
    assert step(estimate, "finetune", "learned_lr3").gpu_hours == pytest.approx(
        10 * (1000 + 1000 / 3) / 100 / 3600 + 2 * 36 / 3600
    )
    assert [step(estimate, "finetune", name).jobs for name in ("learned", "learned_lr3")] == [2 + 1, 2 + 1]


def test_fine_tuning_whose_candidates_are_all_epochs_is_planned_to_the_last_of_them(table: Path) -> None:
    assert step(estimate_of(table), "finetune", "learned").gpu_hours == pytest.approx(
        2 * 2 * (1000 + 1000 / 3) / 50 / 3600 + ENCODING + 2 * 36 / 3600
    )


def test_latents_are_counted_once_for_all_rows_and_rates(table: Path) -> None:
    shown = render(estimate_of(table))
    # 2 x 4 x 64 x 64 values of 4 bytes each
    assert "Latents: 3,000 images and mirror images are encoded once," in shown
    assert f"{3000 * 131072 / 1e6:.3g} MB); `augbench clean` frees them" in shown
    half = estimate_of(table, finetune={"dtype": "bfloat16", "flip": 0.0})
    assert half.latents("learned") == 2000 and half.latents("learned_lr3") == 0
    assert half.latents_bytes(2000) == 2000 * 65536


def test_hours_of_classifiers_are_images_by_epochs_and_their_validation(table: Path) -> None:
    estimate = estimate_of(table)

    def hours(images: int, runs: int, jobs: int) -> float:
        return runs * 50 * (images + 1000 / 3) / 1000 / 3600 + jobs * 36 / 3600

    assert step(estimate, "classify", "none").gpu_hours == pytest.approx(hours(1000, 3, 3))
    assert step(estimate, "classify", "prompted").gpu_hours == pytest.approx(hours(2000, 3, 3))
    assert step(estimate, "classify", "larger").gpu_hours == pytest.approx(hours(5000, 3, 3))
    assert step(estimate, "select", "learned").gpu_hours == pytest.approx(hours(2000, 2, 1))
    assert step(estimate, "classify", "learned").gpu_hours == pytest.approx(hours(2000, 2, 3)), (
        "one of the three is the winner's"
    )
    small = estimate_of(table, classifier={"resolution": 112, "base_width": 32, "max_epochs": 20})
    assert step(small, "classify", "none").gpu_hours == pytest.approx(
        3 * 20 * (1000 + 1000 / 3) / 16 / 1000 / 3600 + 3 * 36 / 3600
    )


def test_steps_are_counted_per_row_and_decide_the_hours_of_a_fixed_schedule(table: Path) -> None:
    methods = {**copy.deepcopy(STUDY["methods"]), "again": {"mechanism": "real", "repeat": 2}}
    plateau = estimate_of(table, methods=methods)
    # batches of 256: 1000 images are 4 steps per epoch, 2000 are 8; the table assumes 50 epochs
    names = ("none", "prompted", "again")
    assert [step(plateau, "classify", name).training_steps for name in names] == [200, 400, 400]
    assert step(plateau, "classify", "again").gpu_hours == step(plateau, "classify", "prompted").gpu_hours
    fixed = estimate_of(
        table, methods=methods, classifier={"schedule": "steps", "steps": 300, "validate_every": 50}
    )
    assert [step(fixed, "classify", name).training_steps for name in names] == [300] * 3
    assert step(fixed, "select", "learned").training_steps == 300
    # none: 75 passes over 1000 images; prompted: 37.5 over 2000; 6 validations of 1000 images
    for name in ("none", "prompted"):
        assert step(fixed, "classify", name).gpu_hours == pytest.approx(
            3 * (75_000 + 6 * 1000 / 3) / 1000 / 3600 + 3 * 36 / 3600
        )
    assert "steps: optimiser steps of each classifier" in render(fixed)


def test_downloads_are_links_that_still_give_an_image(table: Path) -> None:
    found = step(estimate_of(table), "retrieve", "found")
    # 10 classes x 120 images of 250 kB; dead links need no space; downloads are kept beside the shards
    assert (found.images, found.download_bytes) == (1200, pytest.approx(1200 * 250_000))
    assert found.disk_bytes == pytest.approx(1200 * (200_000 + 250_000))
    assert step(
        estimate_of(table, retrieval={"download": {"keep": False}}), "retrieve", "found"
    ).disk_bytes == pytest.approx(1200 * 200_000)


def test_files_of_the_corpus_that_are_to_be_fetched_are_counted(table: Path) -> None:
    corpus = {**STUDY["corpus"], "fetch": ["http://a/one.parquet", "http://a/two.parquet?x=1"]}
    Path("corpus").mkdir()
    Path("corpus/one.parquet").write_bytes(bytes(1000))
    found = step(estimate_of(table, corpus=corpus), "fetch", "corpus")
    # the file that is missing counts as one of LAION-5B's public subset
    assert (found.jobs, found.jobs_done, found.download_bytes) == (2, 1, 1000 + 32_100_000_000)


@pytest.fixture(scope="module")
def imagenet10() -> Estimate:
    """The paper's main study, without its data."""
    return estimate_study(load_study([PROJECT / "config/imagenet10.yaml"]))


def test_the_papers_main_study_declares_at_most_30000_files(imagenet10: Estimate) -> None:
    """Snakemake's time grows with the files that jobs declare; it declares lists in place of their shards."""
    plan = load_plan(read_yaml(PROJECT / "config/imagenet10.yaml"), PROJECT).unfolded
    lists = [shards for _, block in plan.generate_jobs for shards in block.lists.values()]
    declared = sum(one.files for one in imagenet10.steps) - sum(map(len, lists))
    assert 20_000 < declared <= 30_000  # snakemake --summary names 22,682


def test_the_papers_main_study_agrees_with_the_arithmetic_of_its_parts(imagenet10: Estimate) -> None:
    estimate = imagenet10
    # a tenth of 1,281,167 images, rounded up in each class; 390 images of each of 1000 classes,
    # each with 102 calls of 0.803 TFLOP, and 2.5 TFLOP to decode
    assert (estimate.sizes.classes, estimate.sizes.train, estimate.sizes.test) == (1000, 129_000, 50_000)
    assert step(estimate, "generate", "clip_prompts").gpu_hours == pytest.approx(
        390_000 * (102 * 0.8033 + 2.5145) / (0.5 * 790) / 3600, rel=0.02
    )
    assert step(estimate, "candidates", "imagic").images == 8 * 130 * 1000
    assert step(estimate, "generate", "pseudoword_dm").images == (3250 - 130) * 1000
    assert step(estimate, "classify", "pseudoword_dm_2500").images == 26 * 129_000


# --- tables of figures ----------------------------------------------------------------------------


def test_a_users_table_is_read_over_the_shipped_one(tmp_path: Path, table: Path) -> None:
    assert read_throughput().device == "h200" and not read_throughput().is_measured
    mine = read_throughput(path=table)
    assert (mine.device, mine.name, mine.is_measured) == ("round", "Round numbers", True)
    assert (
        mine.assumed["finetune_epochs"].value == 10
        and mine.assumed["png_bytes"] == read_throughput().assumed["png_bytes"]
    )
    assert read_throughput("a100", table).rates == read_throughput("a100").rates
    Path("results").mkdir()
    Path("results/throughput.yaml").write_text(
        "devices: {a100: {generate: {value: 2.5, measured: true, source: here}}}"
    )
    found = read_throughput()
    assert (found.device, found.rates["generate"].value, found.rates["generate"].source) == (
        "a100",
        2.5,
        "here",
    )
    assert found.rates["classify"] == read_throughput("a100", table).rates["classify"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("devices: {h200: {generate: fast}}", r"devices\.h200\.generate: 'fast'; allowed: a number above 0"),
        ("devices: {h200: {generate: {value: 0}}}", r"devices\.h200\.generate: 0; allowed: a number above 0"),
        ("devices: {h200: {generate: .inf}}", r"devices\.h200\.generate: inf; allowed"),
        ("devices: {h200: {genrate: 3}}", r"devices\.h200: unknown figures genrate; allowed: generate, "),
        ("devices: {own: {generate: 3}}", r"devices\.own: no finetune_vectors, .*; give them in mine\.yaml"),
        ("assumed: {link_share: no}", r"assumed\.link_share: False; allowed"),
        ("devices: 3", r"mine\.yaml: not in the form of resources/throughput\.yaml"),
        ("devices: {h200: 3}", r"mine\.yaml: not in the form of resources/throughput\.yaml"),
        ("assumed:", r"mine\.yaml: not in the form of resources/throughput\.yaml"),
        ("- 3", r"mine\.yaml: holds a list"),
        ("{", r"mine\.yaml: not readable as YAML"),
    ],
)
def test_a_bad_table_is_named_in_one_line(text: str, message: str) -> None:
    Path("mine.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_throughput(path="mine.yaml")
    assert "\n" not in str(caught.value)


def test_an_unknown_device_and_a_missing_table_are_named_in_one_line(table: Path) -> None:
    with pytest.raises(UserError, match=r"--gpu: 'b300'; allowed: round, h200, a100, b200, "):
        read_throughput("b300", table)
    with pytest.raises(UserError, match=r"none\.yaml: no such file"):
        read_throughput(path="none.yaml")


def test_a_model_that_no_figure_is_known_for_gives_no_hours(table: Path) -> None:
    mini = {"model": str(PROJECT / "resources/mini/stable-diffusion"), "resolution": 32}
    estimate = estimate_of(table, diffusion=mini)
    assert (
        step(estimate, "generate", "prompted").gpu_hours is None
        and step(estimate, "finetune", "learned").gpu_hours is None
    )
    assert step(estimate, "classify", "none").gpu_hours
    said = "there is no figure for this row's diffusion model"
    assert said in render(estimate)
    other = render(estimate_of(table, classifier={"arch": "timm:test_vit"}))
    assert "there is no figure for timm:test_vit" in other and said not in other


# --- during a run ---------------------------------------------------------------------------------


def test_what_is_on_the_disk_is_done_and_the_rest_is_left(table: Path) -> None:
    plan = estimate_of(table).plan
    shards, lists = plan.shards("prompted"), [*plan.generated_targets("prompted")]
    put(*shards[:15], shards[-1])  # those of the first of two jobs, and one of the second
    unlisted = step(estimate_of(table), "generate", "prompted")
    assert (unlisted.jobs, unlisted.jobs_done, unlisted.files, unlisted.files_done) == (2, 0, 32, 16)
    put(lists[0])
    part_done = step(estimate_of(table), "generate", "prompted")
    assert (part_done.jobs, part_done.jobs_done, part_done.files, part_done.files_done) == (2, 1, 32, 17)
    assert part_done.gpu_hours is not None and part_done.gpu_hours_left == pytest.approx(
        part_done.gpu_hours * 15 / 32
    )
    put(*shards, *lists)
    done = step(estimate_of(table), "generate", "prompted")
    assert (done.jobs_done, done.gpu_hours_left) == (2, 0)
    assert "Nothing is left to do." not in render(estimate_of(table))


def test_finished_jobs_give_the_rate_of_their_own_method_only(table: Path) -> None:
    folder = "results/reckoned/benchmarks"
    seconds_of(f"{folder}/generate/learned_000.tsv", 1000)
    seconds_of(f"{folder}/generate/learned_000_part3.tsv", 2000)
    seconds_of(f"{folder}/finetune/learned_lr3_000_lr1.tsv", 7200)
    seconds_of(f"{folder}/classify_candidates/learned.tsv", 1800)
    Path(folder, "generate/prompted_000.tsv").write_text("being written")
    estimate = estimate_of(table)
    generated, tuned = step(estimate, "generate", "learned"), step(estimate, "finetune", "learned_lr3")
    assert (generated.measured, generated.jobs, generated.gpu_hours) == (
        True,
        4,
        pytest.approx(4 * 1500 / 3600),
    )
    assert (tuned.measured, tuned.gpu_hours) == (True, pytest.approx(2 * 2.0)), (
        "two jobs learn, the third chooses"
    )
    assert step(estimate, "select", "learned").gpu_hours == pytest.approx(0.5)
    assert not any(
        step(estimate, *names).measured
        for names in (("finetune", "learned"), ("generate", "learned_lr3"), ("generate", "prompted"))
    )


def test_on_a_cpu_hours_of_its_own_jobs_are_not_added_to_a_gpus(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds_of("results/reckoned/benchmarks/generate/learned_000.tsv", 3_600_000)
    monkeypatch.setattr("augbench.commands.plan.estimate.visible_gpus", lambda: [])
    study = parse_study(STUDY)
    here, there = (estimate_study(study, device, table) for device in (None, "round"))
    assert (here.on_cpu, there.on_cpu) == (True, False)
    text = render(here)
    assert "and 4,000 hours of the rows with *, as measured." in text
    assert "h or more. These are a GPU's figures: none is used here, and a CPU takes far longer." in text
    assert "a CPU takes" not in render(there) and "as measured" not in render(there)
    assert "and are in no sum" in text and "and are in no sum" not in render(there)
    total, stage = (as_json(here)[name] for name in ("total", "stages"))
    others = sum(one.gpu_hours or 0.0 for one in here.steps if not one.measured)
    assert total["gpu_hours"] == pytest.approx(others) and others < 4000
    assert stage["generate"]["gpu_hours"] < 4000 < as_json(there)["stages"]["generate"]["gpu_hours"]


def test_candidates_that_were_deleted_after_the_choice_are_done(table: Path) -> None:
    execution = {**STUDY["execution"], "keep_candidates": False}
    estimate = estimate_of(table, execution=execution)
    assert step(estimate, "candidates", "learned").jobs_done == 0
    put(estimate.plan.selected("learned"))
    assert step(estimate_of(table, execution=execution), "candidates", "learned").share_left == 0
    assert step(estimate_of(table), "candidates", "learned").share_left == 1


# --- against the workflow -------------------------------------------------------------------------


def test_jobs_and_files_are_those_of_the_workflow(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = copy.deepcopy(SMALL_STUDY)
    study["methods"]["larger"] = {
        "mechanism": "draw",
        "pool": "clip_prompts",
        "added_per_training_image": 3,
        "images_per_class": 40,
    }
    study["methods"]["retrieval"]["min_aesthetics"] = 4
    study["retrieval"] = {"aesthetics_weights": "results/weights.pth"}
    workspace.write_study(study)
    monkeypatch.chdir(workspace.folder)
    ours = estimate_study(load_study(["study.yaml"])).steps
    fetched = next(found for found in ours if found.method == "Fashion-MNIST")
    assert sum(found.jobs for found in ours) - fetched.jobs_done == sum(workspace.plan().values())
    command = [sys.executable, "-m", "snakemake", "--summary", "--configfile", "study.yaml"]
    summary = subprocess.run(
        command, env=workspace.environment(), capture_output=True, text=True, check=True
    ).stdout
    declared = {line.partition("\t")[0] for line in summary.splitlines() if line.startswith("results/")}
    ids = tuple(info.class_id for info in load_class_table("fashion_mnist"))
    plan = Plan(parse_study(study), ids)
    jobs = [block for _, block in plan.generate_jobs]
    lists = {path: shards for block in jobs for path, shards in block.lists.items()}
    assert len(lists) == 2 * len(plan.study.generated) + 2 and {*lists} < declared
    assert not declared & {shard for shards in lists.values() for shard in shards}, "lists stand for them"
    assert sum(found.files for found in ours) == len(declared) + sum(map(len, lists.values()))


def test_nothing_is_left_of_a_finished_study(current: Workspace) -> None:
    shown = current.augbench("plan", "--configfile", "study.yaml")
    assert shown.returncode == 0 and "Nothing is left to do." in shown.stdout, shown.stdout + shown.stderr
    found = json.loads(current.augbench("plan", "--configfile", "study.yaml", "--json").stdout)
    total = found["total"]
    assert total["jobs_done"] == total["jobs"] > 50 and total["files_done"] == total["files"]
    assert total["gpu_hours_left"] == 0 < total["gpu_hours"]
    assert any(step["measured"] for step in found["steps"]) and not total["measured"], "no GPU measured them"


def test_the_command_says_in_one_line_what_is_wrong(workspace: Workspace) -> None:
    for arguments, message in (
        (["--device", "b300"], "--gpu: 'b300'; allowed: h200, a100, b200, "),
        (["--throughput", "none.yaml"], "none.yaml: no such file"),
    ):
        done = workspace.augbench("plan", "--configfile", "study.yaml", *arguments)
        assert (
            done.returncode == 1
            and done.stderr.startswith(f"augbench: {message}")
            and done.stderr.count("\n") == 1
        )


# --- GPUs -----------------------------------------------------------------------------------------


def test_a_plan_says_the_run_time_on_several_gpus_and_what_does_not_fit(table: Path) -> None:
    study = parse_study(STUDY)
    text = render(estimate_study(study, "v100", table, 8))
    assert (
        f"Run time on 8 GPUs: {hours_left(estimate_study(study, 'v100', table).steps) / 8:.2g} h or" in text
    )
    slow = parse_study({**copy.deepcopy(STUDY), "classifier": {"schedule": "steps", "steps": 10_000_000}})
    hours = hours_left(estimate_study(slow, "v100", table).steps)
    assert f"Run time on 1 GPU: {hours:,.0f} h ({hours / 24:,.1f} days) or" in render(
        estimate_study(slow, "v100", table)
    )
    # 1 + 1.1 x (9.6 + 1.773 x 32), by the line nearest to the figures in float32
    assert (
        "Does not fit: finetune_unet: about 74.0 GiB with finetune.micro_batch: 32, but NVIDIA V100 32 GB has"
        " 31.7; set finetune.micro_batch to at most 10." in text
    )
    assert "GPU-hours: figures of NVIDIA V100 32 GB (estimates, not measured; --gpu)" in text


def test_memory_grows_with_the_batch_and_in_float32_and_is_shared_by_processes() -> None:
    def needs(**changes: Any) -> dict[str, float]:
        study = parse_study({**copy.deepcopy(STUDY), **changes})
        return {need.stage: round(need.gib, 1) for need in needs_of(study)}

    default = {"generate": 8.6, "finetune_vectors": 54.6, "finetune_unet": 74.0, "classify": 13.2}
    assert needs() == default
    assert needs(finetune={"dtype": "bfloat16"}) == {
        **default,
        "finetune_vectors": 27.8,
        "finetune_unet": 55.3,
    }
    shared = needs(execution={"batch_size": 8, "processes": 4})
    # the decoder works on at most 8 images, whatever the batch
    assert shared["generate"] == 7.3 == round(1 + 1.1 * 5.7, 1) and shared["classify"] == 4.3


@pytest.mark.parametrize(
    ("gib", "groups", "processes", "said"),
    [
        # 1 + 1.1 x 43.5 GiB; a part of 128 images takes 7.2
        (31.7, 8, 1, "4 of its 8 parts (classifier.batch_norm_groups) will run at once, to the same result"),
        (8.0, 8, 1, "1 of its 8 parts (classifier.batch_norm_groups) will run at once, to the same result"),
        (
            7.0,
            8,
            1,
            "set classifier.batch_size to at most 122, which changes results, or train on several GPUs",
        ),
        (15.8, 8, 2, "2 of its 4 parts (classifier.batch_norm_groups) will run at once, to the same result"),
        (
            31.7,
            1,
            1,
            "set classifier.batch_size to at most 654, which changes results, or train on several GPUs",
        ),
    ],
)
def test_a_classifiers_batch_may_run_in_its_parts(gib: float, groups: int, processes: int, said: str) -> None:
    study = {
        **copy.deepcopy(STUDY),
        "classifier": {"batch_size": 1024, "batch_norm_groups": groups},
        "execution": {"processes": processes},
    }
    (line,) = [line for line in shortages(parse_study(study), "GPU", gib) if line.startswith("classify: ")]
    assert said in line


def test_no_memory_is_named_for_networks_without_figures() -> None:
    small = {
        "classifier": {"arch": "resnet18"},
        "diffusion": {"model": str(PROJECT / "resources/mini/stable-diffusion")},
    }
    assert list(needs_of(parse_study({**copy.deepcopy(STUDY), **small}))) == []
