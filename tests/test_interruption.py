"""Kill (-9) the run at three stages: a rerun completes, remakes nothing and gives the same table.

The killed study has no network besides, and the one that it is compared with has one.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from conftest import Workspace, make_workspace
from namespaces import OUTSIDE, not_allowed, with_loopback_alone

pytestmark = pytest.mark.full


def store_files(workspace: Workspace, kind: str) -> dict[str, int]:
    """Finished artifacts of a kind in the store: inode by name; a new inode means remade."""
    folder = workspace.store / kind
    return (
        {path.name: path.stat().st_ino for path in folder.glob("*") if not path.name.startswith(".")}
        if folder.exists()
        else {}
    )


def kill_all(process: subprocess.Popen[str]) -> None:
    """Kill (-9) the whole process group: the launcher, Snakemake and all jobs."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_until(workspace: Workspace, reached: Callable[[], bool], prefix: Sequence[str]) -> None:
    """Start the study, wait until ``reached``, kill everything."""
    command = [*prefix, sys.executable, "-m", "augbench.cli"]
    command += ["run", "--configfile", "study.yaml", "--cores", "2"]
    with (workspace.folder / "run.log").open("w") as log:
        process = subprocess.Popen(
            command,
            cwd=workspace.folder,
            env=workspace.environment(),
            stdout=log,
            stderr=log,
            text=True,
            start_new_session=True,
        )
        while not reached():
            assert process.poll() is None, (
                f"the run ended before the stage was reached: {Path(log.name).read_text()[-2000:]}"
            )
            time.sleep(0.05)
        kill_all(process)


def test_a_study_without_a_network_killed_at_three_stages_gives_the_same_table_and_makes_nothing_twice(
    current: Workspace, tmp_path: Path
) -> None:
    workspace, alone = make_workspace(tmp_path), with_loopback_alone()
    if alone:
        reach = f"import socket; print(socket.socket().connect_ex(('{OUTSIDE}', 80)))"
        said = subprocess.run([*alone, sys.executable, "-c", reach], capture_output=True, text=True).stdout
        assert said.strip() == str(errno.ENETUNREACH)
    stages: list[tuple[str, Callable[[], bool]]] = [
        ("embeddings", lambda: (workspace.results / "corpus/images").exists()),
        ("shards", lambda: len(store_files(workspace, "shards")) >= 3),
        ("classifiers", lambda: len(store_files(workspace, "predictions")) >= 3),
    ]
    kept: dict[str, dict[str, int]] = {}
    for _, reached in stages:
        run_until(workspace, reached, alone)
        for kind in ("shards", "classifiers", "predictions"):
            now = store_files(workspace, kind)
            before = kept.get(kind, {})
            assert {name: now.get(name) for name in before} == before
            kept[kind] = now
    assert len(kept["shards"]) >= 3 and len(kept["predictions"]) >= 3
    tables = [f"results/small/tables/{name}" for name in ("table1.csv", "table1_runs.csv")]
    workspace.run(*(argument for table in tables for argument in ("--target", table)), prefix=alone)
    for kind, before in kept.items():
        now = store_files(workspace, kind)
        assert {name: now.get(name) for name in before} == before, f"finished {kind} were made again"
    for table in tables:
        assert (workspace.folder / table).read_text() == (current.folder / table).read_text()
    left = workspace.plan()
    assert not [rule for rule in left if rule.startswith(("generate", "classify", "finetune"))], left
    if not alone:
        pytest.skip(f"passed, but with a network: {not_allowed('--net')}")


def test_a_second_run_beside_a_running_one_gets_one_clear_line(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    command = [sys.executable, "-m", "augbench.cli", "run", "--configfile", "study.yaml", "--cores", "1"]
    first = subprocess.Popen(
        command,
        cwd=workspace.folder,
        env=workspace.environment(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert first.stderr is not None
        assert any("steps to do" in line for line in iter(first.stderr.readline, ""))
        second = workspace.augbench("run", "--configfile", "study.yaml")
        assert second.returncode == 1
        assert second.stderr.strip().startswith("augbench: results/.locks/small/run: a run is under way here")
        assert len(second.stderr.strip().splitlines()) == 1
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()
