"""Rows that are built on other rows' images: what the config allows, and what depends on what."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from conftest import SMALL_STUDY

from augbench.config.study import Study, parse_study
from augbench.errors import UserError

EDITED = {"mechanism": "sample", "start": {"pool": "retrieval"}, "noise": 0.5}
WORDS = {"mechanism": "personalise", "learn": "pseudoword", "candidates": ["val_loss"]}


def study_of(draws: int = 1, **rows: Any) -> Study:
    data = copy.deepcopy(SMALL_STUDY)
    data["dataset"]["draws"] = draws
    data["methods"] = {**data["methods"], **rows}
    return parse_study(data)


def test_a_row_names_the_rows_that_it_is_built_on() -> None:
    study = study_of(
        edited=EDITED,
        words={**WORDS, "learn_from": ["train", {"pool": "retrieval"}]},
        twice={"mechanism": "sample", "start": {"pool": "words"}},
        few={"mechanism": "draw", "pool": "twice", "added_per_training_image": 0.5},
    )
    rows = study.methods
    assert rows["edited"].built_on == rows["words"].built_on == ("retrieval",)
    assert rows["words"].edges == {"learn_from.1.pool": "retrieval"}
    assert rows["few"].edges == {"pool": "twice"} and rows["boomerang"].built_on == ()
    assert study.all_built_on("few") == ["retrieval", "words", "twice"]
    levels = {name: study.guard_level(name) for name in ("retrieval", "edited", "words", "twice", "few")}
    assert levels == {"retrieval": 0, "edited": 1, "words": 1, "twice": 2, "few": 2}
    assert {study.guard_level(name) for name in SMALL_STUDY["methods"]} == {0}


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        (
            {"a": {**EDITED, "start": {"pool": "b"}}, "b": {"mechanism": "draw", "pool": "a"}},
            r"methods\.a\.start\.pool: 'b'; a would be built on itself \(a -> b -> a\); allowed: a row that",
        ),
        (
            {"a": {**WORDS, "learn_from": ["train", {"pool": "a"}]}},
            r"methods\.a\.learn_from\.1\.pool: 'a'; a would be built on itself \(a -> a\)",
        ),
        (
            {"a": {**EDITED, "start": {"pool": "none"}}},
            r"methods\.a\.start\.pool: 'none'; allowed: a row with images of their own classes: .*retrieval",
        ),
        (
            {
                "a": {**EDITED, "start": {"pool": "placebo"}},
                "placebo": {"mechanism": "draw", "pool": "retrieval", "labels": "shuffled"},
            },
            r"methods\.a\.start\.pool: 'placebo'; allowed: a row with images of their own classes",
        ),
        (
            {"a": {**EDITED, "start": "image"}},
            r"methods\.a\.start: 'image'; allowed: 'noise', 'training_images', or a mapping with the key pool$",
        ),
        ({"a": {**EDITED, "start": {"pool": 3}}}, r"methods\.a\.start\.pool: 3; allowed: text"),
        (
            {"a": {**WORDS, "learn_from": ["train", "all"]}},
            r"methods\.a\.learn_from\.1: 'all'; allowed: 'train', or a mapping with the key pool$",
        ),
        (
            {"a": {**WORDS, "learn_from": ["train", "train"]}},
            r"methods\.a\.learn_from: \['train', 'train'\]; an entry occurs twice",
        ),
        (
            {"a": {**WORDS, "learn_from": []}},
            r"methods\.a\.learn_from: \[\]; allowed: 'train', or a mapping with the key pool, or a list of these",
        ),
        ({"a": {"mechanism": "sample", "noise": 0.5}}, r"methods\.a\.noise: 0\.5; allowed only with start"),
    ],
)
def test_a_row_that_cannot_be_built_is_one_line_that_names_the_key(rows: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line) as raised:
        study_of(**rows)
    assert "\n" not in str(raised.value)


def test_draws_repeat_a_row_if_anything_that_it_is_built_on_depends_on_the_training_images() -> None:
    study = study_of(
        2,
        edited=EDITED,
        again={"mechanism": "sample", "start": {"pool": "boomerang"}},
        thrice={"mechanism": "sample", "start": {"pool": "few"}},
        few={"mechanism": "draw", "pool": "again"},
        words={**WORDS, "learn_from": [{"pool": "retrieval"}, {"pool": "again"}]},
    )
    rows = study.unfolded.methods
    assert rows["edited_draw1"].edges == {"pool": "edited"}, "its pool is made once"
    assert rows["again_draw1"].edges == {"start.pool": "boomerang_draw1"}
    assert rows["few_draw1"].built_on == ("again_draw1",) and rows["few"].built_on == ("again",)
    assert rows["thrice_draw1"].edges == {"start.pool": "few_draw1"}
    assert rows["words_draw1"].built_on == ("retrieval", "again_draw1")
    assert not study.depends_on_training_images("edited") and study.depends_on_training_images("thrice")
