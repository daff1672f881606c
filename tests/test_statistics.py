"""Statistics of Table 1, against hand-computed values and scipy's own functions; accuracy per class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from augbench.classifier.score import SCHEMA
from augbench.data.classes import ClassInfo, write_class_table
from augbench.errors import UserError
from augbench.files import write_text
from augbench.report.render import render_csv
from augbench.report.tables import table1
from augbench.report.tables.per_class import read_per_class, write_per_class
from augbench.report.tables.statistics import (
    binomial_error,
    build_rows,
    compare,
    holm,
    interval,
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
            50,
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


def test_the_interval_of_three_runs_is_the_hand_computed_one() -> None:
    # mean 72, standard error 2 / sqrt(3) = 1.1547, t for two degrees of freedom 4.30265: 72 +- 4.96826
    assert interval([70.0, 72.0, 74.0]) == pytest.approx((67.03174, 76.96826), abs=1e-4)
    assert interval([72.0]) == (None, None)


def test_the_interval_is_scipys() -> None:
    values = [61.2, 60.8, 61.9, 60.5, 61.1]
    assert interval(values) == pytest.approx(
        stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    )


def test_a_paired_difference_is_the_hand_computed_one() -> None:
    # differences 1, 3, 2: mean 2, standard error 1 / sqrt(3), so t = 2 sqrt(3) = 3.4641;
    # for two degrees of freedom p = 1 - t / sqrt(t^2 + 2)
    found = compare(dict(enumerate(RUNS["clip_prompts"])), dict(enumerate(RUNS["none"])))
    assert found is not None
    assert found.points == pytest.approx(2)
    assert (found.low, found.high) == pytest.approx((2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5), abs=1e-4)
    assert found.p == pytest.approx(1 - (12 / 14) ** 0.5)


def test_a_paired_difference_is_scipys() -> None:
    own, reference = [61.2, 60.8, 61.9, 60.5, 61.1], [60.9, 60.1, 61.7, 60.6, 60.2]
    found, theirs = compare(dict(enumerate(own)), dict(enumerate(reference))), stats.ttest_rel(own, reference)
    assert found is not None and found.p == pytest.approx(theirs.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)))


def test_runs_are_paired_by_number_and_not_by_order() -> None:
    own, reference = {2: 76.0, 0: 71.0, 1: 75.0}, dict(enumerate(RUNS["none"]))
    assert compare(own, reference) == compare(dict(sorted(own.items())), reference)
    alone = compare({1: 75.0, 7: 10.0}, reference)
    assert alone is not None and (alone.points, alone.low, alone.p) == (3.0, None, None)
    assert compare({7: 10.0}, reference) is None


def test_equal_differences_have_no_p() -> None:
    found = compare(dict(enumerate(RUNS["pseudoword_dm"])), dict(enumerate(RUNS["none"])))
    assert found is not None and found.points == 3 and found.p is None


def test_holms_correction_is_the_hand_computed_one() -> None:
    # sorted: 0.01 x 4, 0.02 x 3, 0.03 x 2 = 0.06, 0.04 x 1, which may not fall below 0.06
    assert holm([0.03, 0.01, None, 0.04, 0.02]) == [
        pytest.approx(0.06),
        pytest.approx(0.04),
        None,
        pytest.approx(0.06),
        pytest.approx(0.06),
    ]
    assert holm([0.7, 0.9]) == [1.0, 1.0] and holm([0.2]) == [0.2] and holm([None]) == [None]


def test_the_test_sets_own_error_is_binomial() -> None:
    assert binomial_error(75.0, 3000) == pytest.approx(100 * (0.75 * 0.25 / 3000) ** 0.5)
    assert binomial_error(75.0, 3000) == pytest.approx(100 * stats.binom(3000, 0.75).std() / 3000)


def test_every_method_is_compared_with_the_baseline_and_with_retrieval_but_not_with_itself() -> None:
    none, clip, pseudoword, retrieval = build_rows(*table(RUNS))
    assert (none.baseline_points, none.retrieval_points) == (None, pytest.approx(-5))
    assert (retrieval.baseline_points, retrieval.retrieval_points, retrieval.retrieval_p_holm) == (
        pytest.approx(5),
        None,
        None,
    )
    assert (clip.baseline_points, clip.retrieval_points) == (pytest.approx(2), pytest.approx(-3))
    # two comparisons with the baseline have a p: the smaller one doubles
    first, second = sorted((clip, retrieval), key=lambda row: row.baseline_p or 0)
    assert first.baseline_p is not None and first.baseline_p_holm == pytest.approx(2 * first.baseline_p)
    assert second.baseline_p_holm == pytest.approx(max(second.baseline_p or 0, 2 * first.baseline_p))
    assert pseudoword.baseline_p is None and pseudoword.baseline_p_holm is None


def test_a_study_without_retrieval_or_baseline_is_compared_with_what_there_is() -> None:
    rows = build_rows(*table({name: RUNS[name] for name in ("none", "clip_prompts")}))
    assert [row.retrieval_points for row in rows] == [None, None] and rows[
        1
    ].baseline_points == pytest.approx(2)
    rows = build_rows(*table({"clip_prompts": (70.0,)}))
    assert (rows[0].stderr_percent, rows[0].low_percent, rows[0].baseline_points) == (None, None, None)


def test_the_files_say_what_the_spread_measures_and_read_back(tmp_path: Path) -> None:
    rows, runs = table(RUNS)
    write_text(tmp_path / "table1.csv", render_csv(rows, ["a note"]))
    write_text(tmp_path / "runs.csv", render_csv(runs))
    outs = {kind: tmp_path / f"statistics.{kind}" for kind in ("csv", "md", "tex")}
    written = write_statistics("demo_1", tmp_path / "table1.csv", tmp_path / "runs.csv", outs)
    assert read_rows(outs["csv"]) == written == build_rows(rows, runs)
    for path in outs.values():
        text = " ".join(path.read_text(encoding="utf-8").split())
        assert (
            "initial weights and the order of images" in text
            and "corrected by Holm's method for the 2 comparisons" in text
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
