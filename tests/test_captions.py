"""Prompts from a file of captions: which image gets which, and what is wrong with a file."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import PROJECT, SMALL_STUDY

from augbench.commands.check.prompts import _caption_faults
from augbench.config.methods import Prompting
from augbench.config.study import Study, merge, parse_study
from augbench.data.classes import ClassInfo
from augbench.errors import UserError
from augbench.plan import recipes
from augbench.plan.paths import Plan
from augbench.prompts.captions import Caption, caption_of, load_captions
from augbench.prompts.stage import check_prompts, images_without_caption, read_prompts, write_prompts

PETS = (ClassInfo("cat", ("cat",)), ClassInfo("hot~20dog", ("hot dog",)))
IMAGES = {info.class_id: [f"{info.class_id}/{i}.png" for i in range(3)] for info in PETS}
ROWS = [
    {"class_id": "cat", "caption": "a cat, asleep {here}"},
    {"class_id": "hot dog", "caption": "a sausage"},
    {"class_id": "cat", "caption": "two cats"},
]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, columns)
            writer.writeheader()
            writer.writerows(rows)
    else:
        pd.DataFrame(rows).convert_dtypes().to_parquet(path)
    return str(path)


def study_with(path: str, **row: Any) -> Study:
    """A study whose row ``captioned`` has captions, and five images per class."""
    sample = {"mechanism": "sample", "prompt": {"captions": path, "draw": "cycle"}}
    rows = {"none": {"mechanism": "real"}, "captioned": row or sample}
    changed = {**SMALL_STUDY, "methods": rows, "augmentation": {"images_per_class": 5}}
    return parse_study(changed)


def prompts_of(study: Study, folder: Path, name: str = "captioned") -> dict[str, list[str]]:
    path = folder / "prompts.parquet"
    write_prompts(study, name, PETS, IMAGES, path)
    return {key[0]: [str(row["prompt"]) for row in rows] for key, rows in read_prompts(path).items()}


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_the_captions_of_a_class_are_taken_in_turn_as_they_are(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"captions.{suffix}", ROWS)
    asleep, two = "a cat, asleep {here}", "two cats"
    assert prompts_of(study_with(path), tmp_path) == {
        "cat": [asleep, two, asleep, two, asleep],
        "hot~20dog": ["a sausage"] * 5,
    }


def test_captions_are_drawn_at_random_by_seed_class_and_image_alone() -> None:
    captions = [Caption(str(number)) for number in range(4)]
    drawn = [caption_of(captions, index, "random", 0, "cat") for index in range(400)]
    assert drawn == [caption_of(captions, index, "random", 0, "cat") for index in range(400)]
    assert all(60 < drawn.count(str(number)) < 140 for number in range(4))
    assert drawn != [caption_of(captions, index, "random", 1, "cat") for index in range(400)]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_an_image_takes_its_own_caption_and_others_those_of_the_class(tmp_path: Path, suffix: str) -> None:
    rows = [{**row, "index": None} for row in ROWS] + [
        {"class_id": "cat", "caption": "the third", "index": 2}
    ]
    path = write(tmp_path / f"captions.{suffix}", rows)
    assert prompts_of(study_with(path), tmp_path)["cat"] == [
        *("a cat, asleep {here}", "two cats", "the third", "two cats", "a cat, asleep {here}")
    ]


def test_images_that_start_from_a_training_image_take_its_caption(tmp_path: Path) -> None:
    rows = [{"class_id": "cat", "caption": f"number {i}", "image_id": f"cat/{i}.png"} for i in (2, 1, 0)] + [
        {"class_id": "hot dog", "caption": "any"}
    ]
    path = write(tmp_path / "captions.csv", rows)
    row = {"mechanism": "sample", "prompt": {"captions": path, "draw": "cycle"}}
    started = study_with(path, **row, start="training_images")
    order = [*("number 0", "number 1", "number 2", "number 0", "number 1")]
    assert prompts_of(started, tmp_path) == {"cat": order, "hot~20dog": ["any"] * 5}
    assert prompts_of(study_with(path), tmp_path)["cat"][:3] == ["number 2", "number 1", "number 0"]
    write(Path(path), rows[1:])
    load_captions.cache_clear()
    with pytest.raises(
        UserError, match=r"no caption for image 2 of class 'cat', which starts from cat/2\.png"
    ):
        prompts_of(started, tmp_path)


def test_a_query_is_the_first_caption_of_the_class(tmp_path: Path) -> None:
    path = write(tmp_path / "captions.csv", ROWS)
    study = study_with(path, mechanism="retrieve", query={"captions": path})
    assert prompts_of(study, tmp_path) == {"cat": ["a cat, asleep {here}"], "hot~20dog": ["a sausage"]}


def test_an_image_without_any_caption_is_named_before_anything_runs(tmp_path: Path) -> None:
    rows = [{"class_id": name, "caption": "x", "index": i} for name in ("cat", "hot dog") for i in (0, 1, 3)]
    study = study_with(write(tmp_path / "captions.jsonl", rows))
    said = (
        r"methods\.captioned\.prompt\.captions: .* no caption for 2 images of class 'cat': index 2, 4; and 1"
    )
    (problem,) = images_without_caption(study, "captioned", {"cat": 3, "hot~20dog": 3})
    assert re.match(said, str(problem))
    with pytest.raises(UserError, match=said):
        prompts_of(study, tmp_path)


BAD: dict[str, tuple[list[dict[str, Any]], str]] = {
    "unknown": (
        [*ROWS, {"class_id": "dog", "caption": "x"}],
        r"captions of 1 classes .* lacks: dog; allowed",
    ),
    "missing": (ROWS[::2], r"has no caption of 1 of 2 classes: hot dog; each class needs a caption"),
    "empty": ([*ROWS, {"class_id": "cat", "caption": " "}], r"1 empty captions, in row 4; allowed: a text"),
    "column": ([{"class_id": "cat", "text": "x"}], r"no column caption; it has class_id, text; allowed"),
    "index": ([{**ROWS[0], "index": "two"}], r"not readable as captions \(.*two"),
}


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_clear_error(tmp_path: Path, name: str, suffix: str) -> None:
    rows, said = BAD[name]
    study = study_with(write(tmp_path / f"captions.{suffix}", rows))
    (problem,) = check_prompts(study, "captioned", PETS)
    assert re.search(said, str(problem)) and "\n" not in str(problem), str(problem)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"mechanism": "sample", "prompt": {"captions": "a.txt"}},
            "prompt.captions: 'a.txt'; allowed: a file",
        ),
        (
            {"mechanism": "sample", "prompt": {"captions": "a.csv", "templates": "clip"}},
            "prompt.captions: 'a.csv'; allowed without templates, which captions replace",
        ),
        (
            {"mechanism": "personalise", "learn": "pseudoword", "prompt": {"captions": "a.csv"}},
            "prompt.captions: 'a.csv'; allowed with mechanism: sample and retrieve",
        ),
    ],
)
def test_captions_where_they_do_not_belong_are_one_clear_error(row: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"methods.captioned.{said}")):
        study_with("", **row)


def test_a_missing_file_names_its_key(tmp_path: Path) -> None:
    (problem,) = check_prompts(study_with("nowhere.csv"), "captioned", PETS)
    assert str(problem).startswith("methods.captioned.prompt.captions: 'nowhere.csv', no such file; allowed")


def test_the_file_is_an_input_and_in_no_recipe_of_other_rows(tmp_path: Path) -> None:
    study = study_with("a.csv")
    assert Plan(study, ("cat",)).template_files("captioned") == ["a.csv"]
    assert recipes.prompts_recipe(study, "captioned")["prompt"]["captions"] == "a.csv"
    assert "captions" not in Prompting(templates="clip").model_dump()
    small = parse_study(merge(SMALL_STUDY, {}))
    assert "captions" not in json.dumps(recipes.prompts_recipe(small, "clip_prompts"))


def test_the_check_names_captions_that_are_too_long_or_shared(tmp_path: Path) -> None:
    rows = [
        {"class_id": "cat", "caption": "A Cat"},
        {"class_id": "hot dog", "caption": "a cat"},
        {"class_id": "hot dog", "caption": "a dog " * 60},
    ]
    folder = str(PROJECT / "resources/mini/stable-diffusion/tokenizer")
    long, shared = _caption_faults(folder, write(tmp_path / "captions.csv", rows))
    assert long.startswith("1 captions have more than 77 tokens and are cut: 'a dog a dog")
    assert shared == "cat, hot~20dog share captions: these images will not differ"
