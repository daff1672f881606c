"""The classifier's schedule in the config: allowed keys, recipes of finished studies, warnings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from augbench.commands.check.training import batch_problems, pass_images, training_warnings
from augbench.config.study import Study, load_study, merge, parse_study
from augbench.errors import UserError
from augbench.files import canonical_hash
from augbench.plan.recipes import classifier_recipe, resample_recipe, splits_recipe, table_recipe

PROJECT = Path(__file__).resolve().parents[1]
STUDY: dict[str, Any] = {
    "study": "s",
    "dataset": {"kind": "fashion_mnist"},
    "corpus": {"kind": "miniature"},
    "diffusion": {"model": "sd", "resolution": 32},
    "clip": {"model": "clip"},
    "methods": {
        "none": {"mechanism": "real"},
        "retrieval": {"mechanism": "retrieve"},
    },
    "augmentation": {"images_per_class": 50},
}
STEPS = {"schedule": "steps", "steps": 300}
# 10 classes of 50 images, as in the demo
TRAIN = {f"class {label}": 50 for label in range(10)}


def study(**changes: Any) -> Study:
    return parse_study(merge(STUDY, changes))


# --- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classifier", "error"),
    [
        ({"steps": 300}, r"classifier\.steps: 300; goes with schedule: steps"),
        ({"keep": "last"}, r"classifier\.keep: 'last'; goes with schedule: steps"),
        ({"decay": "cosine"}, r"classifier\.decay: 'cosine'; goes with schedule: steps"),
        ({**STEPS, "max_epochs": 15}, r"classifier\.max_epochs: 15; goes with schedule: plateau"),
        ({**STEPS, "stop_patience": 5}, r"stop_patience: 5; .*allowed with schedule: steps: decay, keep"),
        ({"schedule": "steps"}, r"classifier\.schedule: 'steps'; steps needs classifier\.steps"),
        ({**STEPS, "decay": "cosine", "lower_at": [0.5]}, r"lower_at: .*cosine lowers lr in every step"),
        ({**STEPS, "lower_at": [0.75, 0.5]}, r"classifier\.lower_at: .*rising fractions"),
        ({**STEPS, "lower_at": [0.0001, 0.9999]}, r"lower_at: .*after the first and before the last"),
        ({**STEPS, "lower_at": [1.0]}, r"classifier\.lower_at"),
        ({**STEPS, "validate_every": 301}, r"validate_every: 301; allowed: at most steps \(300\)"),
        ({**STEPS, "steps": 0}, r"classifier\.steps: 0"),
        (
            {"decoded_size": 200},
            r"decoded_size: 200; allowed: file, or at least classifier.resolution \(224\)",
        ),
        (
            {"decoded_size": "whole"},
            r"^classifier\.decoded_size: 'whole'; allowed: 'file', or a whole number",
        ),
        ({"batch_norm_groups": 0}, r"classifier\.batch_norm_groups: 0"),
        (
            {"batch_norm_groups": 129},
            r"batch_norm_groups: 129; allowed: at most 128, so that a part of a batch",
        ),
    ],
)
def test_keys_that_the_schedule_does_not_use_are_errors_that_name_them(
    classifier: dict[str, Any], error: str
) -> None:
    with pytest.raises(UserError, match=error):
        study(classifier=classifier)


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ({"mechanism": "real", "repeat": 0}, r"methods\.control\.repeat: 0"),
        ({"mechanism": "real", "repeat": 1.5}, r"methods\.control\.repeat: 1\.5"),
        ({"mechanism": "real", "repeat": 2, "split": "full"}, r"repeat: 2; allowed with split: full: 1"),
        ({"mechanism": "sample", "repeat": 2}, r"methods\.control\.repeat: unknown key"),
        ({"mechanism": "draw", "pool": "retrieval", "labels": "wrong"}, r"methods\.control\.labels: 'wrong'"),
    ],
)
def test_a_control_is_checked(row: dict[str, Any], error: str) -> None:
    with pytest.raises(UserError, match=error):
        study(methods={"control": row})


def test_a_resolved_config_reads_back_as_the_same_study() -> None:
    for classifier in ({}, STEPS):
        first = study(classifier=classifier)
        assert parse_study(first.model_dump(mode="json")) == first


# --- recipes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("imagenet10", "454fbda9ec7a7f44752fba9f798257b4e14b98b972c4a00d67498a6e208ba33d"),
        ("imagenet_full", "7d54ff8147d79adee57dfe9e9ea934bcd567fda793034898eb7398c824eeb2e7"),
        ("caltech256", "0f55d0f8f875c1594d744939ce27c3fac432bebb730a9d84b0759d85c7d78d6f"),
    ],
)
def test_studies_by_the_papers_rule_keep_the_keys_of_their_classifiers_and_sets(
    name: str, expected: str, tmp_path: Path
) -> None:
    """The hashes were computed by version 0.1.0, which knew neither schedules nor controls.

    It cut crops from smaller images and normalised whole batches, which these studies no longer do, and drew
    set 0 from part 0 also where the images of a class take turns.
    """
    overlay = tmp_path / "as_before.yaml"
    overlay.write_text("classifier: {decoded_size: null, batch_norm_groups: 1}")
    old = load_study([PROJECT / f"config/{name}.yaml", overlay])
    recipes = {
        row: [classifier_recipe(old, row), resample_recipe(old, row) if row in old.augmented else None]
        for row in old.methods
        if row not in ("real_repeated", "placebo")  # the controls are new
    }
    redrawn = {row for row, (_, drawn) in recipes.items() if drawn and drawn.pop("set_0", None)}
    assert redrawn == ({"boomerang", "sariyildiz_prompts"} if name == "imagenet10" else set())
    assert canonical_hash(recipes) == expected


def test_a_recipe_has_the_keys_of_the_chosen_schedule_alone() -> None:
    fixed = classifier_recipe(study(classifier=STEPS), "none")["classifier"]
    assert {"schedule", "steps", "decay", "keep"} < fixed.keys() and "max_epochs" not in fixed
    assert (fixed["lower_at"], fixed["validate_every"]) == ([150, 225], 8)
    named = {**STEPS, "lower_at": [0.5, 0.75], "validate_every": 8}
    assert classifier_recipe(study(classifier=named), "none")["classifier"] == fixed


def test_controls_have_recipes_of_their_own() -> None:
    rows = {
        "again": {"mechanism": "real", "repeat": 2},
        "drawn": {"mechanism": "draw", "pool": "retrieval"},
        "placebo": {"mechanism": "draw", "pool": "retrieval", "labels": "shuffled"},
    }
    controlled = study(methods=rows)
    assert classifier_recipe(controlled, "again") == {**classifier_recipe(controlled, "none"), "repeat": 2}
    drawn, placebo = (resample_recipe(controlled, name) for name in ("drawn", "placebo"))
    assert placebo == {**drawn, "labels": "shuffled"}


# --- warnings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"classifier": {"decoded_size": 0}},
            "classifier.decoded_size: 0; allowed: 'file', or a whole number of at least 1",
        ),
        ({"retrieval": {"exclude": "all"}}, "retrieval.exclude: 'all'; allowed: 'auto', 'none', or a list"),
        ({"retrieval": {"exclude": ["a", 5]}}, "retrieval.exclude.1: 5; allowed: text"),
        (
            {"methods": {"x": {"mechanism": "personalise", "learn": "pseudoword", "candidates": ["best"]}}},
            "methods.x.candidates.0: 'best'; allowed: 'train_loss', 'val_loss', or a whole number of at "
            "least 1",
        ),
    ],
)
def test_a_value_of_none_of_several_types_is_one_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        study(**changes)
    assert str(caught.value) == said


def test_new_keys_are_in_recipes_only_if_they_are_set() -> None:
    plain = classifier_recipe(study(), "none")["classifier"]
    assert not {"decoded_size", "batch_norm_groups"} & plain.keys()
    given = study(classifier={"decoded_size": "file", "batch_norm_groups": 8})
    assert classifier_recipe(given, "none")["classifier"] == {
        **plain,
        "decoded_size": "file",
        "batch_norm_groups": 8,
    }
    table = table_recipe(study())["study"]
    assert "held_out_like" not in table["dataset"] and "decoded_size" not in table["classifier"]
    assert table_recipe(given)["study"]["classifier"]["batch_norm_groups"] == 8
    assert "held_out_like" not in splits_recipe(study())["dataset"]
    other = study(dataset={"held_out_like": 0.2})
    assert splits_recipe(other)["dataset"]["held_out_like"] == 0.2
    assert table_recipe(other)["study"]["dataset"]["held_out_like"] == 0.2


def test_processes_that_do_not_divide_the_parts_of_a_batch_are_one_line() -> None:
    groups = {"batch_norm_groups": 8}
    with pytest.raises(
        UserError,
        match=r"^execution\.processes: 3; allowed with classifier\.batch_norm_groups: 8: 1, 2, 4, 8$",
    ):
        study(classifier=groups, execution={"processes": 3})
    assert study(classifier=groups, execution={"processes": 4}).execution.processes == 4
    assert study(execution={"processes": 3}).execution.processes == 3


def test_rows_whose_batches_are_too_small_for_their_parts_are_named_before_the_run() -> None:
    config = study(classifier={"batch_norm_groups": 100})
    # 500 images in two batches of 250; 1000 in four
    assert not [*batch_problems(config, TRAIN)]
    few = {"a": 151, "b": 0}
    assert [str(problem) for problem in batch_problems(config, few)] == [
        "classifier.batch_norm_groups: 100, and row none has batches of 151 images; allowed: at most 75, so "
        "that each part has two",
        "classifier.batch_norm_groups: 100, and row retrieval has batches of 151 images; allowed: at most "
        "75, "
        "so that each part has two",
    ]


def test_too_few_steps_of_the_smallest_row_are_warned_of() -> None:
    short = study(classifier={"batch_size": 128, "max_epochs": 15})
    (warning,) = training_warnings(short, TRAIN)
    assert "classifier.max_epochs: 15, at most 60 steps in row none (500 images in batches of 128)" in warning
    assert [*training_warnings(study(classifier={"batch_size": 128, "max_epochs": 44}), TRAIN)] == []


def test_few_fixed_steps_and_few_validations_are_warned_of() -> None:
    (warning,) = training_warnings(study(classifier={**STEPS, "steps": 100}), TRAIN)
    assert warning.startswith("warning: classifier.steps: 100 in every row")
    (warning,) = training_warnings(study(classifier={**STEPS, "validate_every": 50}), TRAIN)
    # lr falls at 150 and 225; validations at 250 and 300 follow
    assert "classifier.validate_every: 50" in warning and "so 2 validations" in warning
    assert [*training_warnings(study(classifier=STEPS), TRAIN)] == []
    assert [*training_warnings(study(classifier={**STEPS, "decay": "cosine"}), TRAIN)] == []


def test_images_in_a_pass_count_repetitions_and_added_ones() -> None:
    rows = {"again": {"mechanism": "real", "repeat": 2}, "all": {"mechanism": "real", "split": "full"}}
    found = {name: pass_images(study(methods=rows), name, TRAIN) for name in ("none", "retrieval", *rows)}
    assert found == {"none": 500, "retrieval": 1000, "again": 1000, "all": None}
