"""Prompts: exact texts, and what they depend on."""

from __future__ import annotations

from pathlib import Path

from conftest import SMALL_STUDY

from augbench.classes import ClassInfo, load_class_table
from augbench.config import Prompting, parse_study
from augbench.prompts import prompt_for, read_prompts, write_prompts
from augbench.templates import load_scenes, load_templates, strip_whitespace

SHARK = ClassInfo("n01491361", ("tiger shark", "Galeocerdo cuvieri"))
T_SHIRT = load_class_table("fashion_mnist")[0]


def test_the_simple_prompt_names_all_lemmas() -> None:
    assert prompt_for(SHARK, 0, Prompting(class_name="lemmas"), 0) == "A photo of tiger shark, Galeocerdo cuvieri."


def test_without_white_space_the_comma_stays() -> None:
    assert prompt_for(SHARK, 0, Prompting(), 0) == "A photo of tigershark,Galeocerdocuvieri."
    assert strip_whitespace("desktop computer") == "desktopcomputer"


def test_fashion_mnists_t_shirt() -> None:
    assert prompt_for(T_SHIRT, 0, Prompting(class_name="lemmas"), 0) == "A photo of T-shirt/top, tee shirt."


def test_the_template_sets_have_the_published_sizes() -> None:
    assert [len(load_templates(name)) for name in ("simple", "clip", "textual_inversion")] == [1, 80, 27]
    assert all(template.count("{}") == 1 for name in ("simple", "clip", "textual_inversion") for template in load_templates(name))


def test_clip_templates_are_open_clips() -> None:
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    assert list(load_templates("clip")) == [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]


def test_scenes_are_the_365_of_places() -> None:
    import hashlib

    from augbench.templates import PROMPTS

    names = (PROMPTS / "places365.txt").read_text().split()
    published = "\n".join(f"/{name[0]}/{name} {index}" for index, name in enumerate(names))
    assert hashlib.sha256(published.encode()).hexdigest() == "2affba635eb657e7ca95f4e6cc69bd9fac29ef4c32aeb83cafdfcd06ec6a1ea6"
    assert len(load_scenes()) == 365


def test_templates_are_drawn_per_image_and_class_only() -> None:
    family = Prompting(templates="clip")
    drawn = [prompt_for(SHARK, index, family, 0) for index in range(200)]
    assert len(set(drawn)) > 60
    assert prompt_for(SHARK, 17, family, 0) == drawn[17]
    assert [prompt_for(SHARK, index, family, 1) for index in range(200)] != drawn


def test_the_file_has_one_row_per_image_of_every_part(tmp_path: Path) -> None:
    study, classes = parse_study(SMALL_STUDY), load_class_table("fashion_mnist")
    write_prompts(study, "clip_prompts", classes, dict.fromkeys([c.class_id for c in classes], 8), tmp_path / "p.parquet")
    grouped = read_prompts(tmp_path / "p.parquet")
    assert set(grouped) == {(info.class_id, part) for info in classes for part in (0, 1)}
    assert [row["index"] for row in grouped["bag", 1]] == list(range(10, 20))


def test_retrieval_has_one_query_per_class(tmp_path: Path) -> None:
    study, classes = parse_study(SMALL_STUDY), load_class_table("fashion_mnist")
    write_prompts(study, "retrieval", classes, {}, tmp_path / "p.parquet")
    grouped = read_prompts(tmp_path / "p.parquet")
    assert [row["prompt"] for row in grouped["ankle_boot", 0]] == ["A photo of ankleboot,bootee."]
