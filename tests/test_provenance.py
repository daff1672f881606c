"""The provenance record of a study's results, which never causes a remake."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import snakemake
import torch
from conftest import SMALL_STUDY, Workspace

from augbench import __version__
from augbench.artifacts.store import Store
from augbench.config.study import parse_study
from augbench.files import write_json
from augbench.runtime import provenance
from augbench.runtime.provenance import (
    package_versions,
    record_surroundings,
    revision,
    shared_files,
    write_provenance,
)
from augbench.seeds import derive_seed

STAGES = {
    "embed_corpus",
    "search",
    "cluster",
    "finetune",
    "candidates",
    "classify_candidates",
    "generate",
    "retrieve",
    "classify",
    "diagnostics",
    "leakage",
    "repeats",
}


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository with one commit, and with a tag."""
    folder = tmp_path / "clone"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "code.py").write_text("1")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "first")
    git(folder, "tag", "-a", "v1", "-m", "one")
    return folder


def test_the_revision_is_what_git_says_and_tells_uncommitted_changes(repository: Path) -> None:
    assert revision(repository) == "v1"
    (repository / "code.py").write_text("2")
    assert revision(repository) == "v1-dirty"
    git(repository, "commit", "-q", "-a", "-m", "second")
    assert (revision(repository) or "").startswith("v1-1-g")


def test_there_is_no_revision_without_a_repository_of_our_own_or_without_git(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "below").mkdir()
    assert revision(repository / "below") is None  # another project's revision is not ours
    monkeypatch.setenv("PATH", "")
    assert revision(repository) is None


def test_packages_are_those_that_the_project_requires(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = package_versions()
    assert {"torch", "diffusers", "transformers", "open_clip_torch", "clip-retrieval", "snakemake"} <= set(
        versions
    )
    assert (
        versions["torch"] == torch.__version__.partition("+")[0]
        and versions["snakemake"] == snakemake.__version__
    )
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["torch>=2", "nobody-has-this"]')
    monkeypatch.setattr(provenance, "PROJECT", tmp_path)
    assert package_versions() == {"torch": versions["torch"], "nobody-has-this": None}


def write(folder: Path) -> dict[str, Any]:
    """Write the provenance of a study with one model record, one config and one benchmark file."""
    study = parse_study(SMALL_STUDY)
    (folder / "config.yaml").write_text("study: small\n")
    write_json(
        folder / "models/clip.json",
        {"id": "abc", "folder": "clip", "revision": "1234", "files": {"config.json": "0"}},
    )
    for job, seconds in (("a", 1.25), ("b", 2.5)):
        path = folder / f"benchmarks/generate/{job}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"s\th:m:s\n{seconds}\t0:00:01\n")
    (folder / "benchmarks/table1.tsv").write_text("s\th:m:s\n4\t0:00:04\n")
    store, out = Store(folder.parent / ".store", folder), folder / "provenance.json"
    write_provenance(study, store, folder / "config.yaml", [folder / "models/clip.json"], out)
    return json.loads((folder / "provenance.json").read_text())


def test_config_code_packages_seeds_models_and_times_are_in_it(tmp_path: Path) -> None:
    made = write(tmp_path)
    assert made["study"] == "small"
    assert made["config"]["sha256"] == hashlib.sha256(b"study: small\n").hexdigest()
    assert (
        made["version"] == __version__
        and made["packages"] == package_versions()
        and made["revision"] == revision()
    )
    assert made["seeds"] == {
        "study": 0,
        "classifiers": {str(run): derive_seed(0, "classifier", run) for run in range(2)},
    }
    assert made["models"] == {"clip": {"id": "abc", "folder": "clip", "revision": "1234"}}
    assert made["job_seconds"] == {"generate": 3.8, "table1": 4.0}
    assert made["cpu"] and made["platform"] and made["python"] and made["written"].endswith("+00:00")
    assert made["computed"] == [] and made["shared"] == {}


def test_jobs_of_a_stage_in_equal_surroundings_leave_one_record_and_others_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for log in ("generate/a.log", "generate/b.log", "leakage.log"):
        record_surroundings(tmp_path, tmp_path / "logs" / log)
    monkeypatch.setattr(provenance, "_gpus", lambda: ["NVIDIA H200"])
    record_surroundings(tmp_path, tmp_path / "logs/classify/c.log")
    assert len(list((tmp_path / provenance.RECORDS).iterdir())) == 3
    computed = {tuple(record["gpus"]): record for record in write(tmp_path)["computed"]}
    assert set(computed[()]["stages"]) == {"generate", "leakage"} and set(
        computed["NVIDIA H200",]["stages"]
    ) == {"classify"}
    assert computed[()]["packages"] == package_versions()


def test_a_study_that_shares_files_names_the_other_study_and_what_it_ran_on(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    for folder in (other, mine):
        store = Store(tmp_path / ".store", folder)
        store.provide("texts", {}, folder / "a.txt", lambda path: path.write_text("x") and None)
    record_surroundings(other, other / "logs/generate/a.log")
    assert shared_files(Store(tmp_path / ".store", mine)) == {str(other): 1}
    shared = write(mine)["shared"]["other"]
    assert shared["files"] == 1 and set(shared["computed"][0]["stages"]) == {"generate"}


def test_a_finished_study_says_what_made_it(current: Workspace) -> None:
    made = json.loads((current.results / "provenance.json").read_text())
    (computed,) = made["computed"]
    assert set(computed["stages"]) >= STAGES and "table1" not in computed["stages"]
    assert set(made["models"]) == {"diffusion", "clip"}
    assert (
        made["config"]["sha256"] == hashlib.sha256((current.results / "config.yaml").read_bytes()).hexdigest()
    )
    assert {"generate", "classify", "splits", "table1"} <= set(made["job_seconds"])


def test_another_revision_of_the_code_plans_nothing(
    current: Workspace, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = revision()
    monkeypatch.setenv("GIT_DIR", str(repository / ".git"))
    assert before is None or revision() not in (None, before)  # a copy without history has no revision
    assert current.plan() == {}


def test_it_is_made_again_when_it_is_gone_and_remakes_nothing_but_the_report(current: Workspace) -> None:
    shutil.move(current.results / "provenance.json", current.folder / "provenance.json")
    assert current.plan() == {"provenance": 1, "report_html": 1}
    shutil.move(current.folder / "provenance.json", current.results / "provenance.json")
    assert current.plan() == {}
