"""Studies side by side: what differs, tests between studies, and the answer, by hand-computed examples."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import PROJECT
from PIL import Image
from scipy import stats

from augbench.classifier.score import SCHEMA
from augbench.cli import main
from augbench.commands.compare import configs, differences
from augbench.commands.compare.answer import answer_of
from augbench.commands.compare.compare import compare, inputs_of
from augbench.commands.compare.configs import differing, factor_of, warnings_of
from augbench.commands.compare.differences import build_rows, pairs_of, unpaired_because
from augbench.commands.compare.figure import draw
from augbench.commands.compare.studies import folder_of, hits_of, open_studies
from augbench.commands.compare.tables import Row
from augbench.config.base import COMPLETE
from augbench.config.draws import drawn_name
from augbench.config.study import Study, merge, parse_study
from augbench.data.classes import ClassInfo, write_class_table
from augbench.data.splits import Split, write_split
from augbench.errors import UserError
from augbench.files import write_text
from augbench.plan.paths import Plan
from augbench.report.figures.style import styled
from augbench.report.inference.images import average_hits, read_hits
from augbench.report.inference.paired import ErrorTerm, holm
from augbench.report.inference.unpaired import compare_unpaired
from augbench.report.render import read_csv, read_notes, render_csv
from augbench.report.tables import table1
from augbench.report.tables.contrasts import write_contrasts
from augbench.report.tables.statistics import write_statistics
from augbench.report.tables.table1 import RunRow, average_draws

IMAGES = 200  # test images; half of each class
CLASSES = ("bag", "coat")
CONFIG: dict[str, Any] = {
    "study": "a",
    "dataset": {"kind": "fashion_mnist"},
    "corpus": {"kind": "miniature", "images": 3000},
    "diffusion": {"model": "resources/mini/stable-diffusion", "resolution": 32},
    "clip": {"model": "resources/mini/clip"},
    "methods": {
        "none": {"mechanism": "real", "label": "No added images"},
        "prompts": {"mechanism": "sample", "label": "Prompts"},
        "retrieval": {"mechanism": "retrieve", "label": "Retrieval"},
    },
    "augmentation": {"images_per_class": 4, "resamples": 3},
    "classifier": {"arch": "resnet18", "resolution": 32},
}
# accuracies in percent, steps of half a point: three runs of each row
BASE = {"none": (70.0, 71.0, 72.0), "prompts": (72.0, 73.5, 74.0), "retrieval": (76.0, 76.5, 78.0)}
OTHER = {"none": (75.0, 76.5, 77.5), "prompts": (75.0, 77.5, 78.5), "retrieval": (77.0, 78.5, 80.0)}


def finish(
    study: str,
    accuracies: Mapping[str, Sequence[float]] = BASE,
    config: Mapping[str, Any] | None = None,
    train: str = "train",
    test: str = "test",
    cut: Sequence[str] = (),
) -> Path:
    """Write what a finished study leaves in ``results/{study}``, with these accuracies by row and run."""
    done = parse_study(merge(merge(copy.deepcopy(CONFIG), config or {}), {"study": study}))
    plan, draws, per_draw = Plan(done, ()), done.dataset.draws, done.augmentation.resamples
    dumped = done.model_dump(mode="json", exclude={"execution", "pretrain"}, context=COMPLETE)
    write_text(plan.config, yaml.safe_dump(dumped, sort_keys=False))
    write_class_table([ClassInfo(name, (name,)) for name in CLASSES], Path(plan.classes))
    for draw in range(draws):
        ids = [f"{train}{draw}-{place}" for place in range(4)]
        labels = np.array([0, 0, 1, 1], dtype=np.int32)
        split = Split(ids, [CLASSES[label] for label in labels], labels, ids)
        write_split(split, plan.path("splits", f"{drawn_name('train', draw)}.parquet"))
    runs = [
        RunRow(method, run, value, 70.0, 3, 9, 4, 4, 4, IMAGES, 90, "steps", method in cut)
        for method, values in accuracies.items()
        for run, value in enumerate(values)
    ]
    for method, values in accuracies.items():
        for path, value in zip(plan.predictions(method), values, strict=True):
            write_predictions(path, value, test)
    hits = read_hits({method: plan.predictions(method) for method in done.methods})
    write_text(plan.table1["runs"], render_csv(runs))
    if draws > 1:
        runs, hits = average_draws(runs, per_draw), average_hits(hits, per_draw)
    table = [
        table1.Row(
            name,
            done.label(name),
            row.group,
            row.real_split,
            float(np.mean([run.test_top1_percent for run in runs if run.method == name])),
            None,
            sum(run.method == name for run in runs),
            2.0,
            0.0 if name == "none" else 2.0,
            None,
            None,
            None,
            90.0,
            3 if name in cut else 0,
        )
        for name, row in done.methods.items()
    ]
    write_text(plan.table1["csv"], render_csv(table))
    write_statistics(study, table, runs, hits, 0, done.report, {"csv": plan.statistics["csv"]})
    write_contrasts(study, table, runs, hits, 0, done.report, {"csv": plan.contrasts["csv"]})
    return Path(plan.root)


def write_predictions(path: str, percent: float, test: str) -> None:
    """Write predictions of which the first images are right, as many as the accuracy says."""
    right = round(IMAGES * percent / 100)
    labels = np.arange(IMAGES) % 2
    predicted = np.where(np.arange(IMAGES) < right, labels, 1 - labels)
    columns = [
        [f"{test}-{place:03d}" for place in range(IMAGES)],
        labels,
        predicted,
        np.full(IMAGES, 0.5),
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA), path)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder; result folders are made below it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_debug() -> None:
    finish("a")
    finish("b", OTHER, {"classifier": {"arch": "resnet34"}}, cut=("prompts",))
    finish("c", OTHER, {"classifier": {"arch": "resnet50"}}, train="x")
    folder, text = compare(["a", "b", "c"])
    print(text)
    print((folder / "table.md").read_text())
    print((folder / "differences.csv").read_text())
    import shutil
    shutil.copytree(folder, "/work/base/compare_tmp/out", dirs_exist_ok=True)
