"""Two studies that share images, one after the other and at once, also under `kill -9`: each is made once."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from conftest import SMALL_STUDY, Workspace, make_workspace

from augbench.files import read_json

pytestmark = pytest.mark.full
ROWS = ("none", "simple_prompt", "pseudoword_clip", "imagic_k2", "retrieval")


def studies(workspace: Workspace) -> None:
    """Write two studies, which differ in the classifier, in a row's name and in its label."""
    first = copy.deepcopy(SMALL_STUDY)
    first["methods"] = {name: row for name, row in first["methods"].items() if name in ROWS}
    # one candidate each: another classifier may select another one
    first["methods"]["pseudoword_clip"]["candidates"] = [1]
    first["methods"]["imagic_k2"] |= {"candidates": [1], "lr_grid": [1.0]}
    first["corpus"] |= {"images": 1000, "distractors": 100}
    first["execution"]["classes_per_job"] = 10
    first["retrieval"] = {"exclude": "none"}
    first["leakage"] = {"action": "off"}
    second = copy.deepcopy(first)
    second["study"] = "second"
    second["classifier"]["lr"] = 0.01
    second["methods"]["prompts"] = {**second["methods"].pop("simple_prompt"), "label": "Prompts"}
    for study in (first, second):
        workspace.write_study(study)
        (workspace.folder / "study.yaml").rename(workspace.folder / f"{study['study']}.yaml")


def start(workspace: Workspace, name: str) -> subprocess.Popen[str]:
    arguments = [
        "run",
        "--target",
        f"results/{name}/provenance.json",
        "--configfile",
        f"{name}.yaml",
        "--cores",
        "1",
    ]
    command = [sys.executable, "-m", "augbench.cli", *arguments]
    log = (workspace.folder / f"{name}.log").open("a")
    environment = workspace.environment()
    return subprocess.Popen(
        command,
        cwd=workspace.folder,
        env=environment,
        stdout=log,
        stderr=log,
        text=True,
        start_new_session=True,
    )


def finish(workspace: Workspace, name: str, process: subprocess.Popen[str]) -> None:
    assert process.wait(timeout=600) == 0, (workspace.folder / f"{name}.log").read_text()[-4000:]


def made(workspace: Workspace) -> dict[str, int]:
    """Shards and learned vectors in the store: inode by name; a new inode means made again."""
    kept = [path for kind in ("shards", "finetune") for path in (workspace.store / kind).glob("[!.]*")]
    return {path.name: path.stat().st_ino for path in kept}


def targets(workspace: Workspace, study: str, row: str) -> dict[str, int]:
    folder = workspace.folder / f"results/{study}/shards/{row}/selected"
    return {str(path.relative_to(folder)): path.stat().st_ino for path in folder.glob("*/*.parquet")}


def check_both(workspace: Workspace, last: str) -> None:
    """Both studies have the same images, each its own table, and provenance under its own names.

    The study that ended ``last`` knows all that they share.
    """
    for row in ROWS[1:]:
        theirs = "prompts" if row == "simple_prompt" else row
        ours = targets(workspace, "small", row)
        assert ours and ours == targets(workspace, "second", theirs)
    accuracies = []
    for study, row in (("small", "simple_prompt"), ("second", "prompts")):
        results = workspace.folder / f"results/{study}"
        assert read_json(results / f"classifiers/{row}/selected/0/result.json")["method"] == row
        index = pq.read_table(results / f"shards/{row}/selected/index.parquet")
        assert all(path.startswith(f"shards/{row}/") for path in index.column("path").to_pylist())
        accuracies.append((results / "tables/table1.md").read_text())
    shared = read_json(workspace.folder / f"results/{last}/provenance.json")["shared"]
    assert shared["small" if last == "second" else "second"]["files"] > 50
    assert "Prompts" in accuracies[1] and "Prompts" not in accuracies[0]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = make_workspace(tmp_path)
    studies(made)
    return made


@pytest.mark.long
def test_a_second_study_makes_no_image_and_learns_nothing_again(workspace: Workspace) -> None:
    finish(workspace, "small", start(workspace, "small"))
    before = made(workspace)
    finish(workspace, "second", start(workspace, "second"))
    assert made(workspace) == before
    check_both(workspace, "second")
    for log in (workspace.folder / "results/second/logs/generate").glob("*.log"):
        assert "0 made" in log.read_text() and "torch not imported" in log.read_text()


@pytest.mark.long
def test_a_study_that_takes_shards_does_not_make_another_one_draw_its_sets_again(
    workspace: Workspace,
) -> None:
    """Both have the same file and see one time stamp, by which alone large files are compared."""
    targets = {}
    for name, row in (("small", "simple_prompt"), ("second", "prompts")):
        path = workspace.folder / f"{name}.yaml"
        study = yaml.safe_load(path.read_text())
        study["methods"] = {kept: study["methods"][kept] for kept in ("none", row)}
        study["augmentation"] |= {"images_per_class": 9, "images_per_part": 9}  # a shard is a target itself
        path.write_text(yaml.safe_dump(study, sort_keys=False))
        targets[name] = f"results/{name}/resamples/{row}/selected/0.parquet"

    def plan(name: str) -> dict[str, int]:
        return workspace.plan("--max-checksum-file-size", "1", targets[name], configfiles=[f"{name}.yaml"])

    for name, target in targets.items():
        done = workspace.augbench("run", "--target", target, "--configfile", f"{name}.yaml", "--cores", "1")
        assert done.returncode == 0, done.stderr[-4000:]
    assert plan("small") == {}
    assert plan("second") == {} == plan("small")


def test_two_studies_at_once_and_killed_make_each_image_once(workspace: Workspace) -> None:
    processes = {name: start(workspace, name) for name in ("small", "second")}
    deadline = time.monotonic() + 300
    while len(made(workspace)) < 8 and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(processes["small"].pid, signal.SIGKILL)
    processes["small"].wait()
    before = made(workspace)
    finish(workspace, "second", processes["second"])
    again = start(workspace, "small")
    finish(workspace, "small", again)
    after = made(workspace)
    assert {name: after.get(name) for name in before} == before
    check_both(workspace, "small")
