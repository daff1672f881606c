"""Table 1 of a cut-down demo: the same with other CPU kernels, within chance, and the same as on record.

Another machine computes with other kernels, which round differently, and training makes large differences of
small ones. An answer that changes with them is no answer.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from math import sqrt
from pathlib import Path
from statistics import fmean, variance
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import PROJECT, Workspace, make_workspace

from augbench.report.inference.paired import ALPHA, ErrorTerm, compare, holm
from augbench.report.render import read_csv
from augbench.report.tables.table1 import RunRow

ROWS = (
    "none",
    "clip_prompts",
    "retrieval",
)  # other kernels take three times as long: no more rows than these
RUNS = 3
# the plainest kernels of ATen, oneDNN and MKL, as an old processor would take
OTHER_KERNELS = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"}
# Mean accuracy in percent of the rows on one machine (CPU, 2026-11-30). Means of three runs on two machines
# differ by 0.8 points in standard deviation if a run's is 1.0.
ON_RECORD = {"none": 79.0, "clip_prompts": 77.8, "retrieval": 79.2}
TOLERANCE = 2.5  # three of these standard deviations
Accuracies = Mapping[str, Mapping[int, float]]  # by row and run, in percent


def cut_down() -> dict[str, Any]:
    """The demo with three of its rows and a small corpus."""
    study = yaml.safe_load((PROJECT / "config/demo.yaml").read_text(encoding="utf-8"))
    study["methods"] = {name: row if name in ROWS else None for name, row in study["methods"].items()}
    fraction = 50 / 5600  # 50 images per class, as in the demo: what is not in the corpus is larger
    return {
        **study,
        "dataset": {**study["dataset"], "train_fraction": fraction, "validation_fraction": fraction},
        "corpus": {**study["corpus"], "images": 4000, "distractors": 400, "search": "exact"},
        "leakage": {"action": "off"},
    }


def accuracies(workspace: Workspace, kernels: Mapping[str, str]) -> Accuracies:
    """Run the cut-down demo up to Table 1 with these kernels, and read the accuracy of every run."""
    workspace.write_study(cut_down())
    table = "results/demo/tables/table1_runs.csv"
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--configfile", "study.yaml", "--", table]
    done = subprocess.run(
        command,
        cwd=workspace.folder,
        env={**workspace.environment(), **kernels},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, dict[int, float]] = {}
    for run in read_csv(workspace.folder / table, RunRow):
        found.setdefault(run.method, {})[run.run] = run.test_top1_percent
    return found


def differing(ours: Accuracies, theirs: Accuracies) -> list[str]:
    """Rows whose accuracy differs by more than chance: t tests, paired by run, Holm over rows.

    The spread of a difference is pooled over rows, for three runs of one row know little of it.
    """
    differences = {name: [ours[name][run] - theirs[name][run] for run in ours[name]] for name in ours}
    spread = ErrorTerm(
        sqrt(fmean(map(variance, differences.values()))),
        sum(len(values) - 1 for values in differences.values()),
    )
    if spread.sd == 0:
        return [name for name, values in differences.items() if values[0] != 0]
    pairs = {name: compare(ours[name], theirs[name], 1.0, spread) for name in ours}
    corrected = holm([pair.p for pair in pairs.values()])
    return [name for name, p in zip(pairs, corrected, strict=True) if p < ALPHA]


def moved(means: Mapping[str, float]) -> list[str]:
    """Rows whose mean accuracy is not the one on record."""
    return [name for name, mean in means.items() if abs(mean - ON_RECORD[name]) > TOLERANCE]


def simulated(rng: np.random.Generator, shift: Mapping[str, float]) -> Accuracies:
    """Accuracies of runs with a standard deviation of 0.5 points, shifted for some rows."""
    return {
        name: dict(enumerate(78 + shift.get(name, 0.0) + 0.5 * rng.standard_normal(RUNS))) for name in ROWS
    }


def test_a_row_that_moved_is_named_and_chance_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gc.collect", lambda: 0)  # statsmodels collects garbage in every correction
    rng = np.random.default_rng(0)
    alarms = sum(bool(differing(simulated(rng, {}), simulated(rng, {}))) for _ in range(400))
    assert alarms <= 0.08 * 400
    assert differing(simulated(rng, {}), simulated(rng, {"clip_prompts": 4.0})) == ["clip_prompts"]
    same = simulated(rng, {})
    assert differing(same, same) == []
    constant = {**same, "none": {run: value + 1 for run, value in same["none"].items()}}
    assert differing(same, constant) == ["none"]


def test_accuracies_of_classifiers_that_have_not_learned_are_not_those_on_record() -> None:
    # the demo of version 0.1.0, whose classifiers ended after 60 to 120 steps
    assert "none" in moved({"none": 72.7, "clip_prompts": 75.2, "retrieval": 75.0})


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Accuracies:
    """Accuracies with this machine's own kernels."""
    return accuracies(make_workspace(tmp_path_factory.mktemp("own")), {})


@pytest.mark.full
def test_the_table_is_the_one_on_record(own: Accuracies) -> None:
    means = {name: fmean(runs.values()) for name, runs in own.items()}
    assert set(means) == set(ROWS)
    assert moved(means) == [], means


@pytest.mark.full
@pytest.mark.long
def test_other_kernels_give_the_same_table(own: Accuracies, tmp_path: Path) -> None:
    other = accuracies(make_workspace(tmp_path), OTHER_KERNELS)
    assert own != other, "other kernels compute other last digits"
    assert differing(own, other) == [], (own, other)
