"""Jobs start quickly because libraries are imported only where needed, and end without teardown."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import LEAST_STUDY

PROJECT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((PROJECT / "workflow/scripts").glob("*.py"))
TRAINING = (
    "classify",
    "classify_candidates",
    "score_further",
    "corpus",
    "assemble_models",
    "measure_models",
    "pretrain_autoencoder",
    "pretrain_clip",
    "pretrain_reference",
    "pretrain_unet",
)
DRAWING = (
    "draw_figure",
    "figure1",
    "forest",
    "further_figures",
    "figure3_data",
    "figure4_data",
    "figure5a_data",
    "figure5b_data",
    "learning_curves_data",
    "report_images",
    "report_html",
)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_no_script_is_taken_for_a_library(script: Path) -> None:
    """Snakemake puts the folder of scripts first on the path.

    A library would import our script instead of a module of the same name (`kernels`: an extra of
    transformers).
    """
    assert importlib.util.find_spec(script.stem) is None and script.stem not in {"kernels"}


def imports_of(script: Path) -> str:
    nodes = [
        node
        for node in ast.walk(ast.parse(script.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    return "; ".join(ast.unparse(node) for node in nodes)


def packages_after(scripts: list[Path]) -> dict[str, list[str]]:
    """Top-level packages that are loaded after the imports of each script, in one process in turn."""
    lines = ["import json, sys", "found = {}"]
    for script in scripts:
        lines += [
            imports_of(script),
            f"found[{script.stem!r}] = sorted({{name.partition('.')[0] for name in sys.modules}})",
        ]
    code = "\n".join([*lines, "print(json.dumps(found))"])
    return json.loads(
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=PROJECT
        ).stdout
    )


def test_scripts_that_do_not_train_start_without_torch_pandas_scipy_or_matplotlib() -> None:
    light = [script for script in SCRIPTS if script.stem not in (*TRAINING, *DRAWING)]
    assert len(light) > 25
    heavy = {
        "torch",
        "torchvision",
        "transformers",
        "diffusers",
        "pandas",
        "scipy",
        "sklearn",
        "matplotlib",
        "cv2",
        "faiss",
    }
    assert {
        name: heavy & set(packages)
        for name, packages in packages_after(light).items()
        if heavy & set(packages)
    } == {}


def test_figures_and_the_report_are_made_without_torch() -> None:
    (*_, (_, packages)) = packages_after([script for script in SCRIPTS if script.stem in DRAWING]).items()
    assert "matplotlib" in packages and not {"torch", "diffusers", "transformers"} & set(packages)


def test_a_classifier_is_trained_without_diffusers_and_transformers() -> None:
    (packages,) = packages_after([script for script in SCRIPTS if script.stem == "classify"]).values()
    assert "torch" in packages and not {"diffusers", "transformers", "sklearn", "matplotlib"} & set(packages)


JOB = """
import atexit, json, os, sys
from types import SimpleNamespace
from augbench.runtime.job import running
config = json.loads(sys.argv[1])
with running(SimpleNamespace(threads=1, resources={{}}, log=["results/s/logs/job.log"], config=config, rule="job")) as job:
    atexit.register(lambda: open("asked", "w").write("yes"))
    print("printed", end="")
    class Kept:
        def __del__(self, mkdir=os.mkdir): mkdir("taken apart")
    kept = Kept()
    if {fails}: raise ValueError("no luck")
if {fails_later}: raise ValueError("too late")
"""


def run_job(folder: Path, fails: bool = False, fails_later: bool = False) -> int:
    code = JOB.format(fails=fails, fails_later=fails_later)
    return subprocess.run([sys.executable, "-c", code, json.dumps(LEAST_STUDY)], cwd=folder).returncode


@pytest.mark.parametrize("fails", [False, True])
def test_a_job_does_what_was_asked_for_its_end_and_is_not_taken_apart_once_it_is_done(
    tmp_path: Path, fails: bool
) -> None:
    assert run_job(tmp_path, fails) == fails
    log = (tmp_path / "results/s/logs/job.log").read_text()
    assert "printed" in log and ("no luck" in log) == fails and ("ended; torch not imported" in log) != fails
    assert (tmp_path / "asked").read_text() == "yes"
    assert (tmp_path / "taken apart").exists() == fails


def test_a_job_that_fails_after_its_work_has_failed(tmp_path: Path) -> None:
    assert run_job(tmp_path, fails_later=True) == 1
