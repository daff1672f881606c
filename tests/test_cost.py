"""Costs from benchmark files, timings and sizes of a made-up study."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from augbench.config.study import parse_study
from augbench.errors import UserError
from augbench.files import write_json, write_text
from augbench.plan.jobs import job_files, read_seconds
from augbench.plan.paths import Plan
from augbench.report.render import render_csv
from augbench.report.tables import cost, table1

METHODS: dict[str, dict[str, Any]] = {
    "none": {"mechanism": "real", "label": "no added data"},
    "clip_prompts": {"mechanism": "sample", "label": "CLIP prompts"},
    "ft_cluster_conditioning_k5": {"mechanism": "personalise", "learn": "conditioning", "clusters": 5},
    "ft_500": {
        "mechanism": "draw",
        "pool": "ft_cluster_conditioning_k5",
        "added_per_training_image": 5,
        "images_per_class": 60,
    },
    "retrieval": {"mechanism": "retrieve", "label": "Retrieval"},
}
TOP1 = {
    "none": 60.0,
    "clip_prompts": 62.0,
    "ft_cluster_conditioning_k5": 63.0,
    "ft_500": 66.0,
    "retrieval": 64.0,
}
# seconds of wall time and of CPU time, by benchmark file
BENCHMARKS = {
    "prompts/clip_prompts": (36, 18),
    "generate/clip_prompts_000": (360, 720),
    "generate/clip_prompts_001": (324, 342),
    "finetune/ft_cluster_conditioning_k5_000_lr0.3": (1800, 3600),
    "finetune/ft_cluster_conditioning_k5_000_lr1": (1800, 3600),
    "classify_candidates/ft_cluster_conditioning_k5": (720, 720),
    "generate/ft_cluster_conditioning_k5_000": (1080, 1080),
    "generate/ft_cluster_conditioning_k5_000_part2": (3600, 3600),
    "generate/ft_cluster_conditioning_k5_000_part9": (7200, 7200),
    "search/retrieval": (180, 360),
    "retrieve/retrieval_000": (180, 0),
    "resample/retrieval": (36, 36),
    "classify/none_000": (720, 720),
    "classify/retrieval_000": (720, 720),
    "classify/retrieval_001": (720, 720),
    "embed_corpus": (3240, 3240),
    "cluster": (360, 360),
    "classes": (36, 36),
    "table1": (99999, 99999),
}


def make_plan(**changes: Any) -> Plan:
    config: dict[str, Any] = {
        "study": "costly",
        "dataset": {"kind": "fashion_mnist"},
        "corpus": {"kind": "miniature"},
        "diffusion": {"model": "resources/mini/stable-diffusion", "resolution": 32},
        "clip": {"model": "resources/mini/clip"},
        "methods": METHODS,
        "finetune": {"features": "clip"},
        "augmentation": {"images_per_class": 20, "images_per_part": 10, "resamples": 2},
        "classifier": {"arch": "resnet18", "resolution": 32},
    }
    return Plan(parse_study({**config, **changes}), ())


def write_benchmark(plan: Plan, name: str, seconds: float, cpu: float | str) -> Path:
    path = Path(plan.path("benchmarks", f"{name}.tsv"))
    write_text(path, f"s\th:m:s\tmax_rss\tcpu_time\n{seconds}\t0:00:01\t-\t{cpu}\n")
    return path


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.chdir(tmp_path)
    plan = make_plan()
    entries = [
        table1.Row(
            name, name, plan.study.methods[name].group, "train", top1, None, 1, 50, 50, None, None, None
        )
        for name, top1 in TOP1.items()
    ]
    write_text(plan.table1["csv"], render_csv(entries))
    for name, (seconds, cpu) in BENCHMARKS.items():
        write_benchmark(plan, name, seconds, cpu or "NA")
    return plan


def rows_of(plan: Plan) -> dict[str, cost.Row]:
    return {row.method or row.label: row for row in cost.build_rows(plan, plan.table1["csv"])}


def test_a_methods_hours_are_those_of_all_its_jobs(plan: Plan) -> None:
    rows = rows_of(plan)
    assert [*rows][:5] == [*METHODS]
    clip = rows["clip_prompts"]
    assert (clip.make_wall_hours, clip.make_cpu_hours, clip.make_gpu_hours) == (
        pytest.approx(0.2),
        pytest.approx(0.3),
        0,
    )
    assert rows["ft_cluster_conditioning_k5"].make_wall_hours == pytest.approx(1.5)
    assert (rows["retrieval"].make_wall_hours, rows["retrieval"].make_cpu_hours) == (
        pytest.approx(0.1),
        pytest.approx(0.1),
    )
    assert (rows["none"].make_wall_hours, rows["none"].train_wall_hours) == (0, pytest.approx(0.2))
    assert rows["retrieval"].train_wall_hours == pytest.approx(0.41)


def test_a_row_that_draws_from_a_pool_is_charged_for_the_pool_and_the_parts_it_needs(plan: Plan) -> None:
    assert plan.parts("ft_500") == [str(part) for part in range(6)]
    # fine-tuning, selection and pool of the other row, and the part from image 2 on, not that from 9 on
    assert rows_of(plan)["ft_500"].make_wall_hours == pytest.approx(1.5 + 1)


def test_accuracy_per_hour_is_given_with_and_without_what_is_shared(plan: Plan) -> None:
    rows = rows_of(plan)
    retrieval = rows["retrieval"]
    assert (retrieval.gain_points, retrieval.points_per_hour) == (pytest.approx(4), pytest.approx(40))
    # shared: the corpus and the class table
    assert retrieval.points_per_hour_with_shared == pytest.approx(4 / (0.1 + 0.9 + 0.01))
    assert rows["clip_prompts"].points_per_hour_with_shared == pytest.approx(2 / (0.2 + 0.01))
    assert rows["ft_cluster_conditioning_k5"].points_per_hour_with_shared == pytest.approx(
        3 / (1.5 + 0.1 + 0.01)
    )
    assert (rows["none"].gain_points, rows["none"].points_per_hour) == (None, None)


def test_shared_steps_stand_apart_and_reports_are_left_out(plan: Plan) -> None:
    shared = {
        row.label: (row.needed_by, row.make_wall_hours)
        for row in cost.build_rows(plan, plan.table1["csv"])
        if not row.method
    }
    assert shared == {
        "data": (cost.ALL, pytest.approx(0.01)),
        "clusters": (cost.CLUSTERED, pytest.approx(0.1)),
        "corpus": (cost.RETRIEVAL, pytest.approx(0.9)),
    }


@pytest.mark.parametrize(("gpus", "sampling", "training"), [(0, 0, 0), (1, 1, 1), (4, 1, 4)])
def test_gpu_hours_follow_from_what_the_classifiers_trained_on(
    plan: Plan, gpus: int, sampling: int, training: int
) -> None:
    timing = Path(plan.run_files("none", "0")[0]).with_name("timing.json")
    write_json(
        timing,
        {"device": "", "processes": max(gpus, 1), "gpus": gpus, "threads": 1, "seconds_per_epoch": [1.0]},
    )
    rows = rows_of(plan)
    assert cost.gpus_used(plan) == (sampling, training)
    # writing prompts needs no GPU
    assert rows["clip_prompts"].make_gpu_hours == pytest.approx(0.19 * sampling)
    assert rows["none"].train_gpu_hours == pytest.approx(0.2 * training)
    assert rows["retrieval"].train_gpu_hours == pytest.approx(0.4 * training)
    assert rows["ft_cluster_conditioning_k5"].make_gpu_hours == pytest.approx(1.3 * sampling + 0.2 * training)


def test_jobs_that_merge_what_others_computed_hold_no_gpu(plan: Plan) -> None:
    timing = Path(plan.run_files("none", "0")[0]).with_name("timing.json")
    write_json(timing, {"gpus": 1})
    write_benchmark(plan, "search_queries/retrieval", 36, 36)
    write_benchmark(plan, "search_block/retrieval_000", 360, 360)
    write_benchmark(plan, "embed_corpus_block/000", 720, 720)

    def gpu_hours(**jobs: int) -> tuple[float, float]:
        rows = rows_of(make_plan(execution=jobs))
        return rows["retrieval"].make_gpu_hours, rows["corpus"].make_gpu_hours

    alone, shared = gpu_hours(), gpu_hours(search_jobs=2, embed_jobs=2)
    merging = [BENCHMARKS[name][0] / 3600 for name in ("search/retrieval", "embed_corpus")]
    assert shared == pytest.approx([hours - own for hours, own in zip(alone, merging, strict=True)])
    assert shared[1] == pytest.approx(0.2) and merging[0] > 0


def test_a_file_with_two_names_counts_once_and_downloads_stand_apart(plan: Plan) -> None:
    folder = Path(plan.path("shards/clip_prompts"))
    (folder / "val_loss").mkdir(parents=True)
    (folder / "val_loss/0.parquet").write_bytes(b"x" * 3_000_000)
    os.link(folder / "val_loss/0.parquet", folder / "0.parquet")
    Path(plan.path("classifiers/clip_prompts")).mkdir(parents=True)
    Path(plan.path("classifiers/clip_prompts/model.safetensors")).write_bytes(b"x" * 500_000)
    fetched = Path(plan.path(".downloads/retrieval/ab"))
    fetched.mkdir(parents=True)
    (fetched / "cd").write_bytes(b"x" * 2_000_000)
    rows = rows_of(plan)
    assert (rows["clip_prompts"].disk_mb, rows["clip_prompts"].downloaded_mb) == (pytest.approx(3.5), None)
    assert (rows["retrieval"].disk_mb, rows["retrieval"].downloaded_mb) == (0, pytest.approx(2))


def test_names_of_benchmark_files_are_told_apart(plan: Plan) -> None:
    for name in (
        "generate/pseudoword_dm_000",
        "generate/pseudoword_dm_500_000",
        "generate/pseudoword_dm_1000",
        "finetune/imagic_all_lr0.3",
        "generate/a_000_part12",
    ):
        write_benchmark(plan, name, 1, 1)
    found = {
        (job.stage, job.path.stem): (job.method, job.part)
        for job in job_files(plan.path("benchmarks"), ("generate", "finetune"))
    }
    assert (
        found["generate", "pseudoword_dm_000"]
        == found["generate", "pseudoword_dm_1000"]
        == ("pseudoword_dm", 0)
    )
    assert found["generate", "pseudoword_dm_500_000"] == ("pseudoword_dm_500", 0)
    assert found["finetune", "imagic_all_lr0.3"] == ("imagic", 0) and found["generate", "a_000_part12"] == (
        "a",
        12,
    )


def test_processor_time_is_that_in_the_jobs_log_if_there_is_any(plan: Plan) -> None:
    path = write_benchmark(plan, "generate/boomerang_000", 10.0, 0.4)
    assert read_seconds(path) == (10.0, 0.4)
    log = Path(plan.path("logs", "generate/boomerang_000.log"))
    write_text(log, "an attempt that failed\nended; torch imported; 7.25 s of processor time\n")
    assert read_seconds(path) == (10.0, 7.25)


def test_a_damaged_benchmark_file_is_named(plan: Plan) -> None:
    path = write_benchmark(plan, "generate/clip_prompts_000", 1, "much")
    with pytest.raises(UserError, match=r"generate/clip_prompts_000\.tsv: not a benchmark file"):
        cost.hours_of(path, 0)
    write_text(plan.path("benchmarks/generate/clip_prompts.tsv"), "s\n1\n")
    with pytest.raises(UserError, match=r"generate/clip_prompts\.tsv: not a benchmark file of a block"):
        list(job_files(plan.path("benchmarks"), ("generate",)))


def test_the_files_say_what_is_counted_and_read_back(plan: Plan, tmp_path: Path) -> None:
    outs = {kind: tmp_path / f"cost.{kind}" for kind in ("csv", "md")}
    rows = cost.write_cost(plan, plan.table1["csv"], outs)
    assert cost.read_rows(outs["csv"]) == rows
    lines = outs["md"].read_text(encoding="utf-8").splitlines()
    assert "Images: job-hours" in lines[0] and {line.count("|") for line in lines[: 2 + len(rows)]} == {13}
    assert next(line for line in lines if line.startswith("| retrieval |")).split(" | ")[1] == "0.10"
    assert any("include that pool" in line for line in lines) and any(
        line.startswith("| shared by retrieval: corpus |") for line in lines
    )


def test_short_studies_are_shown_in_minutes(plan: Plan, tmp_path: Path) -> None:
    for name in BENCHMARKS:
        write_benchmark(plan, name, 60, 60)
    cost.write_cost(plan, plan.table1["csv"], {"md": tmp_path / "cost.md"})
    text = (tmp_path / "cost.md").read_text(encoding="utf-8")
    assert "Images: job-minutes" in text and "| clip\\_prompts | 3.00 | 3.00 | 0 |" in text
