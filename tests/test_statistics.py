"""Statistics of Table 1, against hand-computed values and scipy's own functions; accuracy per class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from augbench.classifier.score import SCHEMA
from augbench.config.stages import Report
from augbench.data.classes import ClassInfo, write_class_table
from augbench.errors import UserError
from augbench.report.inference.images import Hits, paired_hits
from augbench.report.tables import table1
from augbench.report.tables.per_class import read_per_class, write_per_class
from augbench.report.tables.statistics import (
    binomial_error,
    build_rows,
    read_rows,
    write_statistics,
)
from augbench.report.tables.table1 import RunRow

RUNS = {
    "none": (70.0, 72.0, 74.0),
    "clip_prompts": (71.0, 75.0, 76.0),
    "pseudoword_dm": (73.0, 75.0, 77.0),
    "retrieval": (75.0, 76.0, 80.0),
}
FAMILIES = {
    "none": "real",
    "simple_prompt": "prompting",
    "clip_prompts": "prompting",
    "pseudoword_dm": "personalised",
    "retrieval": "retrieval",
}


def table(methods: dict[str, tuple[float, ...]]) -> tuple[list[table1.Row], list[RunRow]]:
    rows = [
        table1.Row(
            name,
            name.upper(),
            FAMILIES[name],
            "train",
            float(np.mean(v)),
            None,
            len(v),
            50,
            0 if FAMILIES[name] == "real" else 50,
            0.5,
            None,
            None,
        )
        for name, v in methods.items()
    ]
    runs = [
        RunRow(name, number, value, 70.0, 3, 9, 500, 500, 100, 2000)
        for name, values in methods.items()
        for number, value in enumerate(values)
    ]
    return rows, runs


def test_the_test_sets_own_error_is_binomial() -> None:
    assert binomial_error(75.0, 3000) == pytest.approx(100 * (0.75 * 0.25 / 3000) ** 0.5)
    assert binomial_error(75.0, 3000) == pytest.approx(100 * stats.binom(3000, 0.75).std() / 3000)


def hits_of(methods: dict[str, tuple[float, ...]]) -> Hits:
    """Right and wrong predictions of 1000 test images that have these accuracies, all the same in a run."""
    return {
        name: {run: np.arange(1000) < round(10 * value) for run, value in enumerate(values)}
        for name, values in methods.items()
    }


def test_every_method_but_the_baseline_is_compared_with_the_baseline() -> None:
    none, clip, _, retrieval = build_rows(*table(RUNS), hits_of(RUNS), 0, Report())
    assert (none.baseline_points, none.baseline_low, none.baseline_images_low, none.baseline_both_low) == (
        None,
        None,
        None,
        None,
    )
    # differences 1, 3, 2: mean 2, standard error 1 / sqrt(3), t for two degrees of freedom 4.30265
    assert clip.baseline_points == pytest.approx(2)
    assert (clip.baseline_low, clip.baseline_high) == pytest.approx(
        (2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5), abs=1e-4
    )
    assert retrieval.baseline_points == pytest.approx(5)
    # 30, 20 and 10 of 1000 images are right in one of the rows only, in one, two or three of three runs
    assert clip.baseline_images_low is not None and clip.baseline_images_high is not None
    images = np.mean(paired_hits(hits_of(RUNS)["clip_prompts"], hits_of(RUNS)["none"]), axis=0)
    reach = 1.96 * images.std() / 1000**0.5
    assert (clip.baseline_images_low, clip.baseline_images_high) == pytest.approx(
        (2 - reach, 2 + reach), abs=0.1
    )
    assert clip.baseline_both_low is not None and clip.baseline_low is not None
    assert clip.baseline_both_low < clip.baseline_low


def test_a_study_without_a_baseline_has_no_differences() -> None:
    alone = {"clip_prompts": (70.0,)}
    (row,) = build_rows(*table(alone), hits_of(alone), 0, Report())
    assert (row.stderr_percent, row.low_percent, row.baseline_points) == (None, None, None)


def test_the_files_say_what_the_spread_measures_and_read_back(tmp_path: Path) -> None:
    rows, runs = table(RUNS)
    outs = {kind: tmp_path / f"statistics.{kind}" for kind in ("csv", "md", "tex")}
    written = write_statistics("demo_1", rows, runs, hits_of(RUNS), 0, Report(), outs)
    assert read_rows(outs["csv"]) == written == build_rows(rows, runs, hits_of(RUNS), 0, Report())
    for path in outs.values():
        text = " ".join(path.read_text(encoding="utf-8").split())
        assert (
            "initial weights and the order of images" in text
            and "10,000 bootstrap samples of the test images" in text
        )
    assert r"\label{tab:demo-1-statistics}" in outs["tex"].read_text(encoding="utf-8")


# --- per class ------------------------------------------------------------------------------------


CLASSES = ("bag", "coat", "shirt")


@pytest.fixture
def class_table(tmp_path: Path) -> Path:
    write_class_table([ClassInfo(name, (name,)) for name in CLASSES], tmp_path / "classes.parquet")
    return tmp_path / "classes.parquet"


def predict(folder: Path, run: int, labels: list[int], predicted: list[int]) -> Path:
    table = pa.Table.from_pylist(
        [
            {"image_id": str(i), "label": a, "predicted": b, "probability": 0.5}
            for i, (a, b) in enumerate(zip(labels, predicted, strict=True))
        ],
        schema=SCHEMA,
    )
    path = folder / str(run) / "predictions.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(table, path)
    return path


def test_accuracy_per_class_is_counted_for_every_run(class_table: Path, tmp_path: Path) -> None:
    paths = [
        predict(tmp_path / "none", 0, [2, 0, 0, 1, 2, 2], [2, 0, 1, 1, 0, 2]),
        predict(tmp_path / "none", 1, [0, 0, 1, 2, 2, 2], [0, 0, 0, 2, 2, 2]),
    ]
    write_per_class(class_table, {"none": paths}, tmp_path / "per_class.parquet")
    rows = pq.read_table(tmp_path / "per_class.parquet").to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        ("none", 0, "bag", 2, 0.5),
        ("none", 0, "coat", 1, 1.0),
        ("none", 0, "shirt", 3, pytest.approx(2 / 3)),
        ("none", 1, "bag", 2, 1.0),
        ("none", 1, "coat", 1, 0.0),
        ("none", 1, "shirt", 3, 1.0),
    ]
    read = read_per_class(tmp_path / "per_class.parquet")["none"]
    assert (read.runs, read.class_ids, read.n_test.tolist()) == ((0, 1), CLASSES, [2, 1, 3])
    assert (read.top1 * read.n_test).sum(axis=1).tolist() == pytest.approx([4, 5])


def test_a_class_that_is_left_out_has_no_row(class_table: Path, tmp_path: Path) -> None:
    write_per_class(
        class_table, {"none": [predict(tmp_path / "none", 0, [0, 2], [0, 0])]}, tmp_path / "per_class.parquet"
    )
    assert read_per_class(tmp_path / "per_class.parquet")["none"].class_ids == ("bag", "shirt")


def test_predictions_of_another_class_table_are_refused(class_table: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="label 3, but there are 3 classes"):
        write_per_class(
            class_table, {"none": [predict(tmp_path / "none", 0, [3], [0])]}, tmp_path / "per_class.parquet"
        )


def test_runs_with_different_classes_are_refused(class_table: Path, tmp_path: Path) -> None:
    paths = [predict(tmp_path / "none", 0, [0, 1], [0, 0]), predict(tmp_path / "none", 1, [0, 2], [0, 0])]
    write_per_class(class_table, {"none": paths}, tmp_path / "per_class.parquet")
    with pytest.raises(UserError, match="runs of none differ"):
        read_per_class(tmp_path / "per_class.parquet")
