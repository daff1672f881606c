"""Compiled generation: one cache for all jobs, no graph breaks, no recompilation, the same images."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import PROJECT, SMALL_STUDY, Workspace
from PIL import Image

from augbench.artifacts.shards import read_shard
from augbench.artifacts.store import Store
from augbench.config.study import parse_study
from augbench.errors import UserError
from augbench.generate.stage import compile_kernels
from augbench.runtime.compiling import VARIABLE, cache_folder, first_alone, share_cache
from augbench.runtime.job import Job

compiles = [
    pytest.mark.full,
    pytest.mark.skipif(
        shutil.which("cc") is None and shutil.which("gcc") is None,
        reason="torch.compile needs a C compiler, and there is none here",
    ),
]


def test_kernels_go_to_the_study_unless_the_environment_names_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "named"))
    share_cache(tmp_path / "study")
    assert cache_folder() == tmp_path / "named"
    monkeypatch.delenv(VARIABLE)
    share_cache(tmp_path / "study")
    assert cache_folder() == tmp_path / "study"
    monkeypatch.delenv(VARIABLE)  # set by share_cache


def test_the_first_job_compiles_alone_and_the_others_go_on_together(tmp_path: Path) -> None:
    entered, order, finish, together = (
        threading.Event(),
        [],
        threading.Event(),
        threading.Barrier(2, timeout=60),
    )

    def first() -> None:
        with first_alone(tmp_path, {"batch": 4}):
            entered.set()
            finish.wait(60)
            order.append("first")

    def later() -> None:
        with first_alone(tmp_path, {"batch": 4}):
            order.append("later")
            together.wait()  # both are inside at once

    threads = [threading.Thread(target=first)]
    threads[0].start()
    assert entered.wait(60)
    threads += [threading.Thread(target=later) for _ in range(2)]
    for thread in threads[1:]:
        thread.start()
    with first_alone(tmp_path, {"batch": 8}):  # another key does not wait
        order.append("else")
    finish.set()
    for thread in threads:
        thread.join(60)
    assert order == ["else", "first", "later", "later"]


def test_a_job_that_fails_leaves_the_compiling_to_the_next_one(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no compiler"), first_alone(tmp_path, "kernels"):
        raise RuntimeError("no compiler")
    assert not list(tmp_path.glob("*.done"))
    with first_alone(tmp_path, "kernels"):
        pass
    assert len(list(tmp_path.glob("*.done"))) == 1


def test_kernels_of_a_study_that_does_not_compile_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"execution\.compile.*set it to true"):
        compile_kernels(Job(parse_study(SMALL_STUDY), Store(tmp_path), 1), ["clip_prompts"])


class TestCompiled:
    pytestmark = compiles

    def test_there_are_no_graph_breaks_and_no_recompilations_and_a_second_process_finds_all_kernels(
        self, tmp_path: Path
    ) -> None:
        command = [
            sys.executable,
            str(PROJECT / "benchmarks/generate.py"),
            "--device",
            "cpu",
            "--size",
            "mini",
            "--steps",
            "4",
            "--largest-batch",
            "4",
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT / "src")}
        subprocess.run(
            [*command, "--compiling", "--json", str(tmp_path / "report.json")],
            check=True,
            env=environment,
            timeout=1800,
        )
        cold, warm = (
            json.loads((tmp_path / "report.json").read_text())["compiling"][name] for name in ("cold", "warm")
        )
        for run in (cold, warm):
            # two graphs: the U-Net with guidance, the decoder
            assert (run["graphs"], run["graphs_after_sampling"], run["graph_breaks"]) == (2, 2, 0)
        assert cold["kernels_from_cache"] == 0 < cold["kernels_compiled"]
        assert (warm["kernels_from_cache"], warm["kernels_compiled"]) == (cold["kernels_compiled"], 0)

    def test_a_study_that_compiles_makes_the_images_of_one_that_does_not(
        self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv(VARIABLE, raising=False)  # imports in this process may have set it
        # a shard of ten images makes two full batches and a padded one
        execution = SMALL_STUDY["execution"] | {"batch_size": 4}
        study: dict[str, Any] = SMALL_STUDY | {"execution": execution}
        images, compiled_by_small1 = {}, workspace.folder / "results/small1/.work/compiled"
        for compiled in (False, True):
            workspace.write_study(
                study
                | {"study": f"small{compiled:d}", "execution": study["execution"] | {"compile": compiled}}
            )
            if compiled:
                workspace.run("--target", "kernels")
                made = set(compiled_by_small1.glob("*.done"))
            target = f"results/small{compiled:d}/shards/clip_prompts/selected/bag/0.parquet"
            workspace.run("--target", target)
            table = read_shard(workspace.folder / target)
            images[compiled] = [
                np.asarray(Image.open(BytesIO(row["bytes"])), int)
                for row in table.column("image").to_pylist()
            ]
        assert (
            max(np.abs(one - other).max() for one, other in zip(images[False], images[True], strict=True))
            <= 2
        )
        assert len(made) == 2  # without guidance for Boomerang, with it for all other rows
        assert made == set(compiled_by_small1.glob("*.done"))  # the job that makes images compiled nothing
        assert not (workspace.folder / "results/small0/.work/compiled").exists()
