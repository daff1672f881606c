"""Test sets of other distributions: which classes they have, their images, their scores and their tables."""

from __future__ import annotations

import copy

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import SMALL_STUDY, Workspace
from PIL import Image

from augbench.data import fashion_mnist
from augbench.data.classes import load_class_table
from augbench.report.tables.further_tests import read_rows


@pytest.mark.full
def test_a_finished_study_is_scored_on_further_tests_and_nothing_is_trained(workspace: Workspace) -> None:
    study = copy.deepcopy(SMALL_STUDY)
    study["dataset"]["draws"] = 2
    study["augmentation"]["resamples"] = 1
    study["methods"] = {name: study["methods"][name] for name in ("none", "clip_prompts", "retrieval")}
    study["dataset"]["further_tests"] = {
        "same": {"kind": "web_style", "shift": "none"},
        "noise": {"kind": "corrupted", "corruption": "gaussian_noise", "severity": 2},
    }
    workspace.write_study(study)
    workspace.run()
    results = workspace.results
    assert workspace.plan() == {}

    garments, labels = fashion_mnist.load(workspace.folder / "results/downloads/fashion_mnist", "test")
    ids = [info.class_id for info in load_class_table("fashion_mnist")]
    for label in (9, 2, 4):
        folder = workspace.folder / "elsewhere" / ids[label]
        folder.mkdir(parents=True)
        for place in np.flatnonzero(labels == label)[-5:]:
            Image.fromarray(np.pad(garments[place], 2)).save(folder / f"{place}.png")
    study["dataset"]["further_tests"]["three"] = {"kind": "folder", "root": "elsewhere"}
    workspace.write_study(study)
    planned = workspace.plan()
    assert planned.keys() == {
        *("further_split_three", "score_three", "leakage_three", "further_tests", "further_figures"),
        *("resolved_config", "provenance", "report_html"),
    }
    assert set(planned.values()) == {1}
    before = {path: path.stat().st_mtime_ns for path in results.glob("classifiers/*/*/*/model.safetensors")}
    workspace.run()
    assert before == {path: path.stat().st_mtime_ns for path in before} and len(before) == 6

    rows = {(row.test, row.method): row for row in read_rows(results / "tables/further_tests.csv")}
    assert len(rows) == 4 * 3
    for method in study["methods"]:
        assert rows["same", method].mean_percent == rows["test", method].mean_percent, "the same images"
        assert rows["three", method].classes == 3 and rows["three", method].n == 2
        assert rows["same", method].more_points in (None, 0.0)
    assert rows["same", "retrieval"].near_added is not None and rows["test", "retrieval"].near_added is None
    for path in results.glob("further_tests/three/*/0.parquet"):
        found = pq.read_table(path)
        assert found.num_rows == 15 and set(found.column("predicted").to_pylist()) <= {2, 4, 9}
    assert len(list(results.glob("further_tests/three/*/0.parquet"))) == 6
    page = (results / "report.html").read_text()
    assert 'id="further"' in page and "Crosses" in page
