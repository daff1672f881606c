"""The classifier's schedule in the config: allowed keys, recipes of finished studies, warnings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from augbench.commands.check.training import pass_images, training_warnings
from augbench.config.study import Study, load_study, merge, parse_study
from augbench.errors import UserError
from augbench.files import canonical_hash
from augbench.plan.recipes import classifier_recipe, resample_recipe

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
    name: str, expected: str
) -> None:
    """The hashes were computed by version 0.1.0, which knew neither schedules nor controls."""
    old = load_study([PROJECT / f"config/{name}.yaml"])
    recipes = {
        row: [classifier_recipe(old, row), resample_recipe(old, row) if row in old.augmented else None]
        for row in old.methods
        if row not in ("real_repeated", "placebo")  # the controls are new
    }
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
