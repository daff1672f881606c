"""Studies side by side: what differs, tests between studies, and the answer, by hand-computed examples."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import PROJECT
from PIL import Image
from scipy import stats

from augbench.cli import main
from augbench.commands.compare import configs, differences
from augbench.commands.compare.answer import _margins, answer_of
from augbench.commands.compare.compare import _draw_warnings, _pairing, compare, inputs_of, wanted_of
from augbench.commands.compare.configs import differing, factor_of, warnings_of
from augbench.commands.compare.differences import build_rows, pairs_of, unpaired_because
from augbench.commands.compare.figure import draw
from augbench.commands.compare.studies import folder_of, hits_of, open_studies
from augbench.commands.compare.tables import Row
from augbench.config.base import COMPLETE
from augbench.config.draws import drawn_name
from augbench.config.study import merge, parse_study
from augbench.data.classes import ClassInfo, write_class_table
from augbench.data.splits import Split, write_split
from augbench.errors import UserError
from augbench.files import write_text
from augbench.plan.paths import Plan
from augbench.report.figures.style import styled
from augbench.report.inference import images
from augbench.report.inference.images import average_hits, read_hits
from augbench.report.inference.paired import ErrorTerm, holm
from augbench.report.inference.power import runs_needed
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


MADE: dict[str, Path] = {}  # copies of the folders that were made, by what they were made of


@pytest.fixture(autouse=True, scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder for the copies."""
    folder = MADE["folder"] = tmp_path_factory.mktemp("made")
    yield folder
    MADE.clear()


def finish(study: str, *arguments: Any, **changes: Any) -> Path:
    """Leave a finished study in ``results/{study}``; the parameters are those of :func:`write_study`."""
    key, folder = repr((study, arguments, changes)), Path("results", study)
    shutil.rmtree(folder, ignore_errors=True)
    if key in MADE:
        shutil.copytree(MADE[key], folder)
    else:
        write_study(study, *arguments, **changes)
        MADE[key] = shutil.copytree(folder, MADE["folder"] / str(len(MADE)))
    return folder


def write_study(
    study: str,
    accuracies: Mapping[str, Sequence[float]] = BASE,
    config: Mapping[str, Any] | None = None,
    train: str = "train",
    test: str = "test",
    cut: Sequence[str] = (),
) -> None:
    """Write what a finished study leaves, with these accuracies by row and run."""
    done = parse_study(merge(merge(copy.deepcopy(CONFIG), config or {}), {"study": study}))
    plan, draws, per_draw = Plan(done, ()), done.dataset.draws, done.augmentation.resamples
    dumped = done.model_dump(mode="json", exclude={"execution", "pretrain"}, context=COMPLETE)
    write_text(plan.config, yaml.safe_dump(dumped, sort_keys=False))
    write_class_table([ClassInfo(name, (name,)) for name in CLASSES], Path(plan.classes))
    for number in range(draws):
        ids = [f"{train}{number}-{place}" for place in range(4)]
        labels = np.array([0, 0, 1, 1], dtype=np.int32)
        split = Split(ids, [CLASSES[label] for label in labels], labels, ids)
        write_split(split, plan.path("splits", f"{drawn_name('train', number)}.parquet"))
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


def write_predictions(path: str, percent: float, test: str) -> None:
    """Write predictions of which the first images are right, as many as the accuracy says."""
    right = round(IMAGES * percent / 100)
    labels = np.arange(IMAGES) % 2
    predicted = np.where(np.arange(IMAGES) < right, labels, 1 - labels)
    ids = [f"{test}-{place:03d}" for place in range(IMAGES)]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image_id": ids, "label": labels, "predicted": predicted}), path)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, below which results are written; few bootstrap samples."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(images, "RESAMPLES", 200)
    return tmp_path


def compared(*given: str) -> dict[tuple[str, str | None], differences.Row]:
    """The tests of two studies, by row and the row that it is compared with."""
    studies = open_studies(given)
    rows = build_rows(studies, hits_of(studies), pairs_of(studies), 0)
    return {(row.row, row.against): row for row in rows}


def answer(*given: str) -> str:
    studies = open_studies(given)
    pairs = pairs_of(studies)
    return " ".join(answer_of(studies, pairs, build_rows(studies, hits_of(studies), pairs, 0)))


# --- tests between studies --------------------------------------------------------------------------


def test_runs_of_the_same_seeds_and_images_are_paired() -> None:
    finish("a")
    finish("b", OTHER, {"classifier": {"arch": "resnet34"}})
    found = compared("a", "b")
    assert [*found] == [
        ("none", None),
        ("prompts", None),
        ("retrieval", None),
        ("prompts", "none"),
        ("retrieval", "none"),
        ("retrieval", "prompts"),
    ]
    # none: 5, 5.5 and 5.5 points more: mean 16 / 3, standard deviation 1 / sqrt(12); t of 2 degrees 4.30265
    none = found["none", None]
    assert (none.paired, none.n, none.n_reference, none.df, none.tests) == (True, 3, 3, 2, 6)
    assert (none.reference_value, none.value) == (71, pytest.approx(229 / 3))
    assert (none.points, none.sd_points) == pytest.approx((16 / 3, 12**-0.5))
    assert (none.low, none.high) == pytest.approx((16 / 3 - 4.30265 / 6, 16 / 3 + 4.30265 / 6), abs=1e-4)
    assert none.p == pytest.approx(stats.ttest_rel(OTHER["none"], BASE["none"]).pvalue)
    assert none.images_low is not None and none.images_low < 16 / 3
    assert none.both_low is not None and none.low is not None and none.both_low < none.low


@pytest.mark.full
def test_the_change_of_a_difference_is_tested_as_a_difference_of_differences() -> None:
    finish("a")
    finish("b", OTHER)
    change = compared("a", "b")["retrieval", "none"]
    # retrieval - none: 6, 5.5, 6 in a and 2, 2, 2.5 in b
    assert (change.kind, change.name) == ("change", "Retrieval against No added images")
    assert (change.reference_value, change.value) == pytest.approx((35 / 6, 13 / 6))
    assert (change.points, change.sd_points) == pytest.approx((-11 / 3, 12**-0.5))
    assert change.p == pytest.approx(stats.ttest_1samp([-4, -3.5, -3.5], 0).pvalue)


@pytest.mark.full
def test_p_values_of_rows_and_contrasts_of_all_studies_are_corrected_together() -> None:
    for study in ("a", "b", "c"):
        finish(study, BASE if study == "a" else OTHER)
    studies = open_studies(["a", "b", "c"])
    rows = build_rows(studies, hits_of(studies), pairs_of(studies), 0)
    assert len(rows) == 12 and {row.tests for row in rows} == {12}
    assert [row.p_holm for row in rows] == holm([row.p for row in rows])
    assert [row.study for row in rows] == ["b"] * 6 + ["c"] * 6 and {row.reference for row in rows} == {"a"}


@pytest.mark.full
def test_a_pooled_error_of_changes_is_that_of_all_rows_between_the_studies() -> None:
    pooled = {"report": {"error": "pooled"}}
    finish("a", BASE, pooled)
    finish("b", OTHER, pooled)
    found = compared("a", "b")
    # between the studies: 5, 5.5, 5.5; 3, 4, 4.5; 1, 2, 2. Residuals of rows x runs: squares 0.27778, 4
    # degrees
    change = found["retrieval", "none"]
    assert (change.sd_points, change.df) == pytest.approx(((2 * 0.27778 / 4) ** 0.5, 4), abs=1e-4)
    assert found["none", None].df == 2, "what a run does to all rows does not cancel in an accuracy"
    finish("c", OTHER, pooled, train="other")
    unpaired = compared("a", "c")["retrieval", "none"]
    # a: 70, 71, 72; 72, 73.5, 74; 76, 76.5, 78: squares 1 / 3; c: 75, 76.5, 77.5; 75, 77.5, 78.5; 77, 78.5,
    # 80: 4 / 9
    squares = [2 * (1 / 3) / 4, 2 * (4 / 9) / 4]
    assert unpaired.sd_points == pytest.approx(sum(squares) ** 0.5)
    assert unpaired.df == pytest.approx(sum(squares) ** 2 / sum(value**2 / 4 for value in squares))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"train": "other"}, "the training images differ"),
        pytest.param({"test": "other"}, "the test images or classes differ", marks=pytest.mark.full),
        pytest.param({"config": {"seed": 1}}, "the seeds differ", marks=pytest.mark.full),
    ],
)
def test_other_images_or_seeds_are_not_paired_and_tested_by_welch(changes: dict[str, Any], why: str) -> None:
    finish("a")
    finish("b", OTHER, **changes)
    first, other = open_studies(["a", "b"])
    assert unpaired_because(first, other) == why and unpaired_because(first, first) == ""
    row = compared("a", "b")["prompts", None]
    welch = stats.ttest_ind(OTHER["prompts"], BASE["prompts"], equal_var=False)
    assert not row.paired and (row.p, row.df) == pytest.approx((welch.pvalue, welch.df))
    assert (row.low, row.high) == pytest.approx(tuple(welch.confidence_interval()))
    assert (row.both_low, row.images_low is None) == (None, "test" in changes)
    (note,) = _pairing([first, other])
    said = [*_draw_warnings([first, other]), *note.split("(Welch's t test). ")[1:]]
    assert len(said) == 2 * ("train" in changes) and all("dataset.draws does" in text for text in said)


@pytest.mark.full
def test_runs_that_only_one_study_has_are_left_out_of_pairs() -> None:
    finish("a")
    finish("b", {row: (*values, 90.0) for row, values in OTHER.items()}, {"augmentation": {"resamples": 4}})
    row = compared("a", "b")["none", None]
    assert (row.paired, row.n, row.points) == (True, 3, pytest.approx(16 / 3))
    (note,) = _pairing(open_studies(["a", "b"]))
    assert note.endswith(" Runs that only one of them has are left out of these tests: 1 of 4 in b.")
    (note,) = _pairing(open_studies(["a", "a2"])) if finish("a2") else ()
    assert note.endswith("test images in both.")


@pytest.mark.full
def test_draws_are_paired_by_draw_where_their_training_images_are_the_same() -> None:
    draws = {"dataset": {"draws": 3}, "augmentation": {"resamples": 2}}
    own = {row: [value for run in runs for value in (run, run + 1)] for row, runs in BASE.items()}
    more = {row: [value for run in runs for value in (run, run + 1)] for row, runs in OTHER.items()}
    finish("a", own, draws)
    finish("b", more, draws)
    finish("c", more, draws, train="other")
    row = compared("a", "b")["none", None]
    assert (row.paired, row.n, row.reference_value) == (True, 3, 71.5)
    assert (row.points, row.sd_points) == pytest.approx((16 / 3, 12**-0.5))
    assert not compared("a", "c")["none", None].paired
    finish("one")
    assert "several draws" in unpaired_because(*open_studies(["one", "a"]))


@pytest.mark.full
def test_a_single_run_has_a_difference_and_no_test() -> None:
    once = {"augmentation": {"resamples": 1}}
    for study, train in (("a", "train"), ("b", "train"), ("c", "other")):
        finish(study, {row: values[:1] for row, values in BASE.items()}, once, train=train)
    for other in ("b", "c"):
        row = compared("a", other)["none", None]
        assert (row.n, row.points, row.low, row.p, row.verdict) == (1, 0, None, None, "can't tell")
        assert "a single run per row shows no spread" in answer("a", other)


def test_welch_takes_given_errors_and_names_equal_values() -> None:
    own, reference = {0: 3.0, 1: 5.0}, {0: 1.0, 1: 1.0, 2: 1.0}
    # variance of the mean 4 / 2 + 9 / 3 = 5; degrees of freedom 25 / (4 / 10 + 9 / 20)
    found = compare_unpaired(own, reference, 1.0, (ErrorTerm(2.0, 10), ErrorTerm(3.0, 20)))
    assert found.error is not None
    assert (found.points, found.error.df, found.error.sd) == pytest.approx((3, 25 / 0.85, 10**0.5))
    assert found.p == pytest.approx(2 * stats.t.sf(3 / 5**0.5, 25 / 0.85))
    assert found.p_same == pytest.approx(stats.t.sf(-2 / 5**0.5, 25 / 0.85))
    same = compare_unpaired(reference, reference, 1.0)
    assert (same.points, same.low, same.p) == (0, 0, None)
    # of two runs each: variance 4 + 9; degrees of freedom 10, and 20 of three runs, so 10 of two
    assert found.per_run == ErrorTerm(pytest.approx(13**0.5), pytest.approx(13**2 / (16 / 10 + 81 / 10)))


def test_runs_needed_do_not_depend_on_how_unequal_the_numbers_of_runs_are() -> None:
    # variances 2 of two runs and 2.5 of five: 4.5 of a run's difference; Welch's degrees of freedom with
    # n runs each are (n - 1) 4.5^2 / (2^2 + 2.5^2)
    found = compare_unpaired({0: 3.0, 1: 5.0}, dict(enumerate((0.0, 1.0, 2.0, 3.0, 4.0))), 1.0)
    share = 4.5**2 / (4 + 6.25)
    assert found.per_run == ErrorTerm(pytest.approx(4.5**0.5), pytest.approx(share))
    needed = differences._runs_for(1.0, found, 1)
    assert needed == runs_needed(1.0, 4.5**0.5, 0.05, share)
    # the normal approximation for two samples: 4.5 (1.96 + 0.84)^2 = 35.3, and a little more for t
    assert needed is not None and 36 <= needed <= 38


# --- rows and contrasts -----------------------------------------------------------------------------


@pytest.mark.full
def test_rows_are_the_same_by_name_or_else_by_label() -> None:
    renamed = {
        "prompts": None,
        "clip": {"mechanism": "sample", "label": "Prompts"},
        "more": CONFIG["methods"]["retrieval"],
    }
    finish("a")
    accuracies = {
        "none": OTHER["none"],
        "retrieval": OTHER["retrieval"],
        "clip": OTHER["prompts"],
        "more": BASE["none"],
    }
    finish("b", accuracies, {"methods": renamed})
    first, other = open_studies(["a", "b"])
    assert other.rows == {"none": "none", "retrieval": "retrieval", "prompts": "clip", "more": "more"}
    assert compared("a", "b")["prompts", None].points == pytest.approx(23 / 6)
    assert differing([first, other]) == {"methods.more": {"a": "-", "b": "a row"}}


@pytest.mark.full
def test_contrasts_that_a_study_names_are_tested_and_others_are_not() -> None:
    named = {"report": {"contrasts": [{"row": "retrieval", "against": "prompts"}]}}
    finish("a", config=named)
    finish("b", OTHER, named)
    assert [pair for pair in compared("a", "b") if pair[1]] == [("retrieval", "prompts")]
    finish(
        "c",
        OTHER,
        {
            "report": {
                "contrasts": [
                    {"row": "prompts", "against": "retrieval"},
                    {"row": "prompts", "against": "none"},
                ]
            }
        },
    )
    assert [pair for pair in compared("a", "c") if pair[1]] == [("retrieval", "prompts"), ("prompts", "none")]
    said = answer("a", "c")
    assert "holds in both studies (a, c)" in said or "Retrieval is better than Prompts in a" in said
    assert "it is no contrast of a (report.contrasts)" in said


# --- the answer -------------------------------------------------------------------------------------

ASKED: dict[str, Any] = {"report": {"contrasts": [{"row": "retrieval", "against": "prompts"}]}}


def with_lead(*points: float) -> dict[str, tuple[float, ...]]:
    """Accuracies of a study whose retrieval is this much better than its prompts, by run."""
    prompts = (72.0, 73.5, 74.0)
    lead = tuple(one + other for one, other in zip(prompts, points, strict=True))
    return {"none": BASE["none"], "prompts": prompts, "retrieval": lead}


@pytest.mark.full
def test_a_conclusion_that_every_study_draws_holds() -> None:
    for study, lead in (("a", (4.0, 4.5, 4.0)), ("b", (5.0, 5.5, 5.0)), ("c", (4.0, 4.0, 4.5))):
        finish(study, with_lead(*lead), ASKED)
    said = answer("a", "b", "c")
    assert said.startswith(
        "The conclusion that Retrieval is better than Prompts holds in all 3 studies (a, b, c); whether the"
        " difference changes from a to b can't be told (+1.0 points"
    ), said
    assert "from a to c can't be told (+0.0 points [-1.2 to +1.2]" in said, said


def test_a_conclusion_that_reverses_is_told_with_its_change() -> None:
    finish("a", with_lead(4.0, 4.5, 4.0), ASKED)
    finish("b", with_lead(-3.0, -3.0, -3.5), ASKED)
    assert answer("a", "b") == (
        "The conclusion reverses: Retrieval is better than Prompts in a but is worse than Prompts in b; from "
        "a to"
        " b the difference falls by 7.3 points [6.6 to 8.1] (+4.2 and -3.2 points)."
    )


@pytest.mark.full
def test_a_difference_that_one_study_alone_shows_is_no_change() -> None:
    finish("a", with_lead(4.0, 4.5, 4.0), ASKED)
    finish("b", with_lead(-1.0, 4.0, 3.0), ASKED, cut=("retrieval",))
    said = answer("a", "b")
    assert (
        "Retrieval is better than Prompts in a, and can't be told from Prompts in b (+2.0 points [-4.6 to "
        "+8.6])" in said
    )
    assert "whether the difference changes from a to b can't be told" in said
    assert said.endswith(
        "The training of Retrieval of b was cut before it had finished; longer training may change the "
        "answer."
    )
    finish("c", with_lead(-1.0, 4.0, 2.0), ASKED)
    assert answer("b", "c").startswith("Whether Retrieval or Prompts is better can't be told in b (+2.0")


def test_margins_that_differ_are_named_with_their_studies() -> None:
    rows = [(name, SimpleNamespace(margin=margin)) for name, margin in (("a", 1.0), ("b", 2.0))]
    assert _margins(rows) == ("1 point in a and 2 points in b", True)
    assert _margins(rows[:1]) == ("1 point", False)


def test_studies_without_a_common_contrast_say_so() -> None:
    finish("a")
    more = {"prompts": None, "retrieval": None, "more": {"mechanism": "sample"}}
    finish("b", {"none": BASE["none"], "more": BASE["prompts"]}, {"methods": more})
    assert answer("a", "b").startswith("The studies have no contrast in common")
    assert [*compared("a", "b")] == [("none", None)]


# --- configs ----------------------------------------------------------------------------------------


def test_only_keys_that_change_results_are_told_apart() -> None:
    finish("a")
    silent = {
        "execution": {"batch_size": 7},
        "report": {"notes": ["a note"], "page_megabytes": 20},
        "retrieval": {"download": {"concurrency": 3}},
        "methods": {"prompts": {"label": "Other words"}},
        "dataset": {"downloads": "elsewhere"},
        "corpus": {"downloads": "elsewhere"},
    }
    finish("b", config=silent)
    assert differing(open_studies(["a", "b"])) == {}
    finish("c", config={"classifier": {"arch": "resnet50", "lr": 0.02}, "dataset": {"shots": 5}})
    found = differing(open_studies(["a", "c"]))
    assert found == {
        "dataset.train_fraction": {"a": 0.1, "c": None},
        "dataset.shots": {"a": None, "c": 5},
        "classifier.arch": {"a": "resnet18", "c": "resnet50"},
        "classifier.lr": {"a": 0.1, "c": 0.02},
    }
    assert configs.key_rows(found)[0].values == {"a": "0.1", "c": "not set"}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("retrieval.download.max_bytes", True),
        ("retrieval.download.respect_opt_out", True),
        ("retrieval.download.concurrency", False),
        ("diffusion.mirrors", False),
        ("finetune.inception_mirrors", False),
        ("finetune.micro_batch", False),
        ("finetune.batch_size", True),
        ("corpus.fetch", False),
        ("corpus.vectors", False),
        ("execution.batch_size", False),
        ("dataset.further_tests.v2.root", False),
        ("dataset.shots", True),
    ],
)
def test_keys_matter_if_recipes_have_them(path: str, expected: bool) -> None:
    assert configs.matters(path) == expected


@pytest.mark.parametrize(
    ("other", "key"),
    [
        ({"dataset": {"shots": 20}}, "dataset.shots"),
        pytest.param(
            {"dataset": {"shots": 20}, "augmentation": {"resamples": 2}, "methods": {"prompts": None}},
            "dataset.shots",
            marks=pytest.mark.full,
        ),
        pytest.param(
            {"dataset": {"shots": 20}, "classifier": {"arch": "resnet34"}}, None, marks=pytest.mark.full
        ),
        pytest.param({"classifier": {"arch": "resnet34"}}, None, marks=pytest.mark.full),
        pytest.param({"seed": 3}, None, marks=pytest.mark.full),
        pytest.param(
            {"classifier": {"stem": "small"}, "execution": {"runs_per_job": 2}},
            None,
            marks=pytest.mark.full,
        ),
    ],
)
def test_one_number_that_differs_is_the_factor(other: dict[str, Any], key: str | None) -> None:
    base = merge({"dataset": {"shots": 5}}, {})
    finish("a", config=base)
    changed = merge(base, other)
    runs = changed.get("augmentation", {}).get("resamples", 3)
    rows = {row: values[:runs] for row, values in BASE.items() if changed.get("methods", {}).get(row, 1)}
    finish("b", rows, changed)
    factor = factor_of(differing(open_studies(["a", "b"])))
    assert (factor and factor.key) == key
    if factor is not None:
        assert factor.values == {"a": 5, "b": 20}


@pytest.mark.full
def test_studies_that_answer_different_questions_are_named() -> None:
    finish("a")
    finish("b", config={"dataset": {"classes": "mine.yaml"}, "report": {"margin": 2.0}}, test="other")
    write_class_table(
        [ClassInfo(name, (name,)) for name in ("bag", "shirt")], Path("results/b/classes.parquet")
    )
    studies = open_studies(["a", "b"])
    assert warnings_of(studies, differing(studies)) == [
        "The data sets differ (dataset.classes).",
        "The classes differ: b has 1 that a lacks, and lacks 1 of it.",
        "report.margin differs: 1.0 in a, 2.0 in b. That of a is used here.",
    ]
    finish("c", config={"dataset": {"draws": 3}, "augmentation": {"resamples": 1}}, test="other")
    studies = open_studies(["a", "c"])
    found = warnings_of(studies, differing(studies))
    assert found[0].startswith("The test images of c are others than those of a")
    assert found[1:] == [
        "dataset.draws differs: 1 in a, 3 in c.",
        "augmentation.resamples differs: 3 in a, 1 in c.",
    ]
    finish("d", config={"classifier": {"arch": "resnet34"}})
    studies = open_studies(["a", "d"])
    assert warnings_of(studies, differing(studies)) == []
    weights = {"arch": "timm:test_vit.r160_in1k", "pretrained": "w.bin"}
    finish("e", config={"classifier": weights})
    studies = open_studies(["a", "e"])
    (seen,) = warnings_of(studies, differing(studies))
    assert "Labels that these have seen: none in a; ImageNet's (in1k) in e." in seen


# --- files, figure, command -------------------------------------------------------------------------


def test_the_command_writes_tables_and_figure_that_say_what_made_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    finish("a")
    finish("b", OTHER, {"classifier": {"arch": "resnet34"}}, cut=("prompts",))
    assert main(["compare", "a", "results/b"]) == 0
    shown = capsys.readouterr().out
    folder = Path("results/compare/a-b")
    assert f"Written to {folder}" in shown and "classifier.arch  resnet18  resnet34" in shown
    page = (folder / "table.md").read_text()
    assert "| classifier.arch | resnet18 | resnet34 |" in page
    assert r"| Prompts | 73.2 \[70.6 to 75.8\] | +2.2 \[+1.4 to +2.9\] | 77.0 \[72.5 to 81.5\] ↑ |" in page
    assert "b and a are paired by run" in page and "for all 6 tests" in page
    rows = read_csv(folder / "compare.csv", Row)
    assert [(row.row, row.study, row.cut) for row in rows] == [
        (row, study, (row, study) == ("prompts", "b")) for row in BASE for study in ("a", "b")
    ]
    assert rows[5].baseline_points == pytest.approx(13 / 6)
    assert len(read_csv(folder / "differences.csv", differences.Row)) == 6
    for name in ("compare.csv", "differences.csv", "config.csv"):
        assert read_notes(folder / name)[0].startswith("Made by augbench compare a results/b (augbench ")
    made = json.loads((folder / "provenance.json").read_text())
    assert made["command"] == "augbench compare a results/b"
    assert "results/b/config.yaml" in made["studies"]["b"]["files"]
    with Image.open(folder / "figure.png") as picture:
        assert picture.width > picture.height
    before = {path: path.read_bytes() for path in folder.iterdir() if path.name != "provenance.json"}
    assert main(["compare", "a", "results/b"]) == 0
    assert {path: path.read_bytes() for path in before} == before


def drawn(*values: tuple[str, float | None]) -> list[Row]:
    """Two rows of studies with these numbers, the second row without the last study."""
    none = (None, None, None, None)
    return [
        Row(
            row,
            row,
            "retrieval",
            study,
            factor,
            3,
            9,
            70.0,
            69.0,
            71.0,
            points,
            points - 1,
            points + 1,
            *none,
            False,
        )
        for row, points in (("one", 2.0), ("two", 3.0))
        for study, factor in (values if row == "one" else values[:-1])
    ]


def test_the_figure_has_the_studies_or_their_number_on_its_axis() -> None:
    with styled():
        names = draw(drawn(("a", None), ("b", None))).axes[0]
        near = draw(drawn(("a", 5.0), ("b", 20.0)), "dataset.shots").axes[0]
        far = draw(drawn(("a", 5.0), ("c", 500.0), ("b", 50.0)), "dataset.shots").axes[0]
    assert [tick.get_text() for tick in names.get_xticklabels()] == ["a", "b"]
    assert (near.get_xscale(), near.get_xlabel()) == ("linear", "dataset.shots")
    assert far.get_xscale() == "log" and [tick.get_text() for tick in far.get_xticklabels()] == [
        "5",
        "50",
        "500",
    ]
    lines = {line.get_label(): line for line in far.lines}
    assert len(lines["one"].get_xdata()) == 3 and len(lines["two"].get_xdata()) == 2
    assert list(lines["one"].get_xdata()) == sorted(lines["one"].get_xdata())
    assert lines["one"].get_marker() != lines["two"].get_marker()
    bars = [
        tuple(line.get_ydata())
        for line in names.lines
        if len(line.get_xdata()) == 2 and line.get_label()[0] == "_"
    ]
    assert (1.0, 3.0) in bars and (2.0, 4.0) in bars


def test_without_a_baseline_the_figure_shows_accuracies() -> None:
    rows = [replace(row, baseline_points=None) for row in drawn(("a", None), ("b", None))]
    with styled():
        axes = draw(rows).axes[0]
    assert axes.get_ylabel() == "Top-1 (%)"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (["a"], "STUDY: a; allowed: at least two studies to compare"),
        (["a", "results/a"], "STUDY: results/a is given twice; allowed: each study once"),
        (["a", "z"], "z: no such study; allowed: a study in results: a, b, c; or the folder of one"),
        (["a", "x.yaml"], "x.yaml: has no key study; a config or overlay that names its study is needed"),
        (["a", "b"], "b: no row in common with a, whose rows are none, prompts, retrieval; allowed: "),
        (
            ["a", "c"],
            "results/c/classifiers/prompts/selected/1/predictions.parquet: missing, because study c is not"
            " finished or has changed; finish it: augbench run --configfile, with the config files of c",
        ),
    ],
)
def test_studies_that_cannot_be_compared_are_one_line(
    given: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    finish("a")
    finish("b", {"other": BASE["none"]}, {"methods": {**dict.fromkeys(BASE), "other": {"mechanism": "real"}}})
    (finish("c") / "classifiers/prompts/selected/1/predictions.parquet").unlink()
    write_text("x.yaml", "seed: 1\n")
    assert main(["compare", *given]) == 1
    assert capsys.readouterr().err.startswith(f"augbench: {problem}")


@pytest.mark.full
def test_tables_that_do_not_fit_the_predictions_are_an_error() -> None:
    finish("a")
    finish("b")
    write_predictions("results/b/classifiers/none/selected/2/predictions.parquet", 50.0, "test")
    with pytest.raises(UserError, match="row none, run 2 does not fit the predictions; run the study again"):
        compare(["a", "b"])
    write_text("results/b/tables/contrasts.csv", "row,against\nx,1\n")
    with pytest.raises(UserError, match=r"contrasts\.csv: not a table of this version"):
        compare(["a", "b"])
    write_text("results/b/config.yaml", "study: b\nnew_section: {}\n")
    with pytest.raises(UserError, match=r"results/b/config\.yaml: not a config of this version"):
        compare(["a", "b"])


def test_a_study_is_found_by_name_by_folder_and_by_a_file_that_names_it(tmp_path: Path) -> None:
    finish("a")
    write_text("overlay.yaml", "study: a\n")
    assert {folder_of(name) for name in ("a", "results/a", "overlay.yaml")} == {Path("results/a")}
    finish("b", OTHER)
    Path("results/b").rename(tmp_path / "a")  # a folder of the same name, from another machine
    first, other = open_studies(["a", str(tmp_path / "a")])
    assert (first.name, other.name) == ("results/a", str(tmp_path / "a"))


# --- workflow ---------------------------------------------------------------------------------------


def snakemake(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the workflow of comparisons here."""
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "-s", str(PROJECT / "workflow/compare.smk")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True)


@pytest.mark.full
def test_the_workflow_makes_a_comparison_again_when_a_study_has_changed() -> None:
    finish("a")
    finish("b", OTHER)
    write_text("compare.yaml", "compare: {studies: [a, b], out: results/compare/mine}\n")
    done = snakemake("--configfile", "compare.yaml")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in Path("results/compare/mine").iterdir()} >= {"table.md", "figure.png"}
    assert "Nothing to be done" in snakemake("-n", "--configfile", "compare.yaml").stdout
    finish("b", BASE)
    assert "Updated input files" in snakemake("-n", "--configfile", "compare.yaml").stdout


def test_the_workflows_config_is_checked() -> None:
    finish("a")
    finish("b")
    assert wanted_of({"compare": {"studies": ["a", "b"]}}) == (["a", "b"], Path("results/compare/a-b"))
    assert wanted_of({"compare": {"studies": ["a", "b"], "out": "o"}})[1] == Path("o")
    for section, problem in (
        (None, "compare: None; allowed: a section with the key studies"),
        ({"study": ["a"]}, "compare.study: no such key; allowed: studies, out"),
        ({"studies": "a"}, "compare.studies: 'a'; allowed: a list of studies"),
        ({"studies": ["a", "b"], "out": 1}, "compare.out: 1; allowed: a folder"),
    ):
        with pytest.raises(UserError) as caught:
            wanted_of({"compare": section})
        assert str(caught.value) == problem
    inputs = [str(path) for path in inputs_of(["a", "b"])]
    assert (
        "results/b/tables/table1.csv" in inputs
        and len([path for path in inputs if "predictions" in path]) == 18
    )
