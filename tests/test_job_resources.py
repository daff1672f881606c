"""Resources of jobs: growth with the attempt, a site's settings, a dry run of the profile without Slurm."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import LEAST_STUDY, Workspace

from augbench.config.corpus import ServerCorpus
from augbench.config.study import Study, load_study, parse_study
from augbench.errors import UserError
from augbench.plan.needs import Needs, Site, load_needs, read_site

PROJECT = Path(__file__).resolve().parents[1]
IMAGENET, DEMO = (load_study([PROJECT / f"config/{name}.yaml"]) for name in ("imagenet10", "demo"))

# a logger plugin of Snakemake that writes the resources of jobs, which a dry run does not print
ASKED = """
import json, os
from dataclasses import dataclass
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent
from snakemake_interface_logger_plugins.settings import LogHandlerSettingsBase

@dataclass
class LogHandlerSettings(LogHandlerSettingsBase):
    pass

class LogHandler(LogHandlerBase):
    writes_to_stream = writes_to_file = has_filter = has_formatter = needs_rulegraph = False

    def emit(self, record):
        if getattr(record, "event", None) == LogEvent.JOB_INFO:
            with open(os.environ["ASKED"], "a") as out:
                asked = {"threads": record.threads, **dict(record.resources.items())}
                plain = {name: value for name, value in asked.items() if isinstance(value, (int, str))}
                out.write(json.dumps([record.rule_name, plain]) + "\\n")
"""


def asked(workspace: Workspace, *arguments: str) -> dict[str, dict[str, object]]:
    """Resources of each rule's job in a dry run with the profile, on a machine without Slurm's commands."""
    plugin, out = workspace.folder / "plugins/snakemake_logger_plugin_asked", workspace.folder / "asked.jsonl"
    plugin.mkdir(parents=True)
    (plugin / "__init__.py").write_text(ASKED)
    (workspace.folder / "slurm").symlink_to(PROJECT / "slurm")
    commands = workspace.folder / "commands"
    commands.mkdir()
    for name in ("bash", "sh", "which"):
        (commands / name).symlink_to(shutil.which(name) or name)
    environment = {**workspace.environment(), "ASKED": str(out), "PATH": str(commands)}
    environment["PYTHONPATH"] += os.pathsep + str(plugin.parent)
    # without `--cores` a dry run assumes one core
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "-n",
        "--profile",
        "slurm",
        "--configfile",
        "study.yaml",
        "--logger",
        "asked",
        "--cores",
        "64",
        *arguments,
    ]
    done = subprocess.run(command, cwd=workspace.folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(map(json.loads, out.read_text().splitlines()))


# --- growth ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("study", "memory"),
    [(IMAGENET, [16000, 32000, 64000, 100000]), (DEMO, [3000, 6000, 12000, 24000])],
    ids=["full", "miniature"],
)
def test_each_attempt_asks_for_twice_the_memory_up_to_the_largest_job(
    study: Study, memory: list[int]
) -> None:
    needed = Needs(study, Site(largest_job=100_000)).job(3000, 16000, minutes=1)["mem_mb"]
    assert [needed(None, attempt) for attempt in (1, 2, 3, 4)] == memory


def test_fine_tuning_asks_for_memory_by_its_classes_and_not_by_their_images() -> None:
    row = IMAGENET.personalised["ft_cluster_conditioning_k15"]
    needs = Needs(IMAGENET, Site(largest_job=10**6))
    asked = [needs.finetune_job(row, classes)["mem_mb"](None, 1) for classes in (1, 250)]
    # of a class: 15 vectors of 0.24 MB, 16 times each, and 4 samples of 0.13 MB, 6 times each
    assert asked == [16060, 16000 + round(250 * (15 * 77 * 768 * 4 * 16 + 24 * 131072) / 1e6)]


def test_fine_tuning_another_model_asks_for_its_weights() -> None:
    generators = {"xl": {"model": "stabilityai/stable-diffusion-xl-base-1.0", "safety_checker": None}}
    methods = {"lora": {"mechanism": "personalise", "learn": "lora", "generator": "xl"}}
    study = parse_study({**LEAST_STUDY, "generators": generators, "methods": methods})
    asked = Needs(study, Site(largest_job=10**6)).finetune_job(study.personalised["lora"], 1)["mem_mb"]
    assert 16000 + 13900 < asked(None, 1) < 16000 + 13900 + 1000


def test_each_attempt_asks_for_twice_the_time_up_to_the_longest_job() -> None:
    needed = Needs(IMAGENET, Site(longest_job=600)).job(1, 1, minutes=240)["runtime"]
    assert [needed(None, attempt) for attempt in (1, 2, 3)] == [240, 480, 600]


def test_a_first_attempt_is_no_longer_than_the_longest_job() -> None:
    assert Needs(IMAGENET, Site(longest_job=60)).job(1, 1, minutes=240)["runtime"](None, 1) == 60


# --- sites ----------------------------------------------------------------------------------------


def test_a_profile_says_what_the_site_is() -> None:
    given = {
        "gpu_type": "a100",
        "gpu_partition": "'accelerated'",
        "gpus_per_job": "4",
        "threads_per_gpu": 12,
        "longest_job": 2880,
        "web_jobs": "login",
    }
    expected = Site(
        "a100", "accelerated", gpus_per_job=4, threads_per_gpu=12, longest_job=2880, web_jobs="login"
    )
    assert read_site({**given, "slurm_account": "p123", "mem_mb": "max(2 * input.size_mb, 1000)"}) == expected


@pytest.mark.parametrize("empty", ["", "None", None, "''"])
def test_what_is_empty_is_not_given(empty: object) -> None:
    assert read_site({"gpu_type": empty, "gpu_partition": empty, "gpus_per_job": empty}) == Site()


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        (
            "gpus_per_job",
            "two",
            "default-resources: gpus_per_job: 'two'; allowed: a whole number, at least 0",
        ),
        ("gpus_per_job", "-1", "default-resources: gpus_per_job: '-1'; allowed: a whole number, at least 0"),
        (
            "threads_per_gpu",
            "0",
            "default-resources: threads_per_gpu: '0'; allowed: a whole number, at least 1",
        ),
        ("longest_job", "24h", "default-resources: longest_job: '24h'; allowed: a whole number, at least 1"),
        (
            "largest_job",
            "64 GB",
            "default-resources: largest_job: '64 GB'; allowed: a whole number, at least 1",
        ),
        ("web_jobs", "laptop", "default-resources: web_jobs: 'laptop'; allowed: nodes, login"),
    ],
)
def test_a_bad_value_is_one_clear_line(name: str, value: str, line: str) -> None:
    with pytest.raises(UserError) as caught:
        read_site({name: value})
    assert str(caught.value) == line
    with pytest.raises(SystemExit) as ended:
        load_needs(DEMO, {name: value})
    assert ended.value.code == f"augbench: {line}"


def gpus_of(resources: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in resources.items() if name not in ("mem_mb", "runtime")}


def test_several_gpus_are_for_classifiers_only_and_on_one_node() -> None:
    needs = Needs(IMAGENET, Site("h100", gpus_per_job=4, threads_per_gpu=12))
    assert gpus_of(needs.gpu_job(1, 1, minutes=1)) == {
        "gpu": 1,
        "nodes": 1,
        "tasks_per_gpu": 0,
        "gpu_model": "h100",
    }
    assert gpus_of(needs.classifier_job(1, 1, minutes=1)) == {
        "gpu": 4,
        "nodes": 1,
        "tasks_per_gpu": 0,
        "gpu_model": "h100",
    }
    assert (needs.gpu_threads, needs.classifier_threads) == (12, 48)
    classifier = IMAGENET.classifier.model_copy(update={"train": "probe"})
    probe = Needs(IMAGENET.model_copy(update={"classifier": classifier}), needs.site)
    assert probe.classifier_job(1, 1, minutes=1)["gpu"] == 1 and probe.classifier_threads == 12


def test_a_site_without_gpus_is_asked_for_cpus() -> None:
    needs = Needs(IMAGENET, Site("h100", "accelerated", gpus_per_job=0, threads_per_gpu=16))
    assert gpus_of(needs.gpu_job(1, 1, minutes=1)) == gpus_of(needs.classifier_job(1, 1, minutes=1)) == {}
    assert (needs.gpu_threads, needs.classifier_threads) == (16, 16)


@pytest.mark.parametrize(("web_jobs", "local"), [("nodes", False), ("login", True)])
def test_where_nodes_have_no_internet_downloads_run_where_snakemake_does(web_jobs: str, local: bool) -> None:
    site = Site(web_jobs=web_jobs)
    assert (Needs(IMAGENET, site).download_is_local, Needs(IMAGENET, site).search_is_local) == (
        local,
        False,
    ), "its embeddings are on the disk"
    corpus = ServerCorpus(
        kind="clip_retrieval_server",
        url="https://example.org/knn-service",
        index="laion",
        clip="openai/clip-vit-large-patch14",
    )
    server = Needs(IMAGENET.model_copy(update={"corpus": corpus}), site)
    assert (server.download_is_local, server.search_is_local) == (local, local)


# --- the whole profile ----------------------------------------------------------------------------


def test_large_rules_ask_for_a_gpu_and_small_ones_do_not(workspace: Workspace) -> None:
    jobs = asked(
        workspace,
        "--default-resources",
        "gpu_type=a100",
        "slurm_account=p123",
        "gpus_per_job=2",
        "threads_per_gpu=4",
    )
    gpus = {rule: job["gpu"] for rule, job in jobs.items() if "gpu" in job}
    assert {rule for rule, count in gpus.items() if count == 2} == {
        "classify_000",
        "classify_candidates_pseudoword_clip",
        "classify_candidates_imagic_k2",
    }
    large = (
        "embed_corpus",
        "search",
        "cluster",
        "finetune_",
        "candidates_",
        "classify_",
        "generate_",
        "retrieve_",
        "leakage",
        "repeats",
        "diagnostics",
    )
    assert {rule for rule in jobs if rule.startswith(large)} == set(gpus)
    assert all(
        job["gpu_model"] == "a100" and job["tasks_per_gpu"] == 0 and job["threads"] == 4 * gpus[rule]
        for rule, job in jobs.items()
        if rule in gpus
    )
    assert all(job["slurm_account"] == "p123" for job in jobs.values())


def test_the_profile_as_shipped_asks_for_any_gpu_and_names_no_partition_or_account(
    workspace: Workspace,
) -> None:
    jobs = asked(workspace)
    assert jobs["generate_simple_prompt_000"]["gpu"] == 1
    assert not {
        (rule, name)
        for rule, job in jobs.items()
        for name in ("gpu_model", "slurm_partition", "slurm_account")
        if job.get(name)
    }


def test_jobs_of_a_site_without_gpus_ask_for_none(workspace: Workspace) -> None:
    assert not [
        rule
        for rule, job in asked(workspace, "--default-resources", "gpus_per_job=0").items()
        if "gpu" in job
    ]
