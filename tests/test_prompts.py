"""Prompts: their exact texts and the settings that they depend on."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL_STUDY
from PIL import Image

from augbench.commands.check.prompts import _same_tokens, indistinct_prompts
from augbench.commands.check.study import check_study
from augbench.config.methods import Prompting
from augbench.config.problems import ConfigError
from augbench.config.study import Study, merge, parse_study
from augbench.data.caltech256 import class_name as caltech_name
from augbench.data.classes import ClassInfo, load_class_table
from augbench.errors import UserError
from augbench.prompts.placeholders import placeholder
from augbench.prompts.stage import check_prompts, prompt_for, read_prompts, write_prompts
from augbench.prompts.templates import (
    PROMPTS,
    check_prompting,
    fill,
    load_scenes,
    load_templates,
    strip_whitespace,
)

IMAGENET = {info.class_id: info for info in load_class_table("imagenet")}
SHARK, BIRD, MACHINE = IMAGENET["n01491361"], IMAGENET["n02012849"], IMAGENET["n03126707"]
FASHION = load_class_table("fashion_mnist")
T_SHIRT = FASHION[0]
STUDY = merge(SMALL_STUDY, {"finetune": {"max_epochs": 3}})
SARIYILDIZ = Prompting(templates="sariyildiz", draw="cycle", class_name="lemmas")


def study_with(**changes: Any) -> Study:
    return parse_study(merge(STUDY, changes))


def rows_of(
    study: Study, name: str, folder: Path, images: int = 8
) -> dict[tuple[str, int], list[dict[str, Any]]]:
    path = folder / "prompts.parquet"
    write_prompts(
        study,
        name,
        FASHION,
        {info.class_id: [f"{info.class_id}/{i}.png" for i in range(images)] for info in FASHION},
        path,
    )
    return read_prompts(path)


# --- exact texts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "index", "prompt"),
    [
        (Prompting(class_name="lemmas"), 0, "A photo of tiger shark, Galeocerdo cuvieri."),
        (Prompting(), 0, "A photo of tigershark,Galeocerdocuvieri."),
        (Prompting(templates="clip"), 0, "a pixelated photo of a tigershark,Galeocerdocuvieri."),
        (
            Prompting(templates="clip", class_name="lemmas"),
            0,
            "a pixelated photo of a tiger shark, Galeocerdo cuvieri.",
        ),
        (Prompting(templates="clip", draw="cycle"), 82, "a sculpture of a tigershark,Galeocerdocuvieri."),
        (Prompting(templates="textual_inversion"), 0, "a photo of a nice tigershark,Galeocerdocuvieri"),
        (
            Prompting(templates="textual_inversion", draw="cycle"),
            26,
            "a photo of a small tigershark,Galeocerdocuvieri",
        ),
        (Prompting(templates="empty"), 0, ""),
        (SARIYILDIZ, 0, "tiger shark, Galeocerdo cuvieri"),
        (SARIYILDIZ, 1, "tiger shark, Galeocerdo cuvieri, requiem shark"),
        (SARIYILDIZ, 2, "multiple tiger shark, Galeocerdo cuvieri, requiem shark"),
        (SARIYILDIZ, 3, "multiple different tiger shark, Galeocerdo cuvieri, requiem shark"),
        (
            SARIYILDIZ,
            4,
            "tiger shark, Galeocerdo cuvieri, large dangerous warm-water shark with striped or spotted body",
        ),
        (SARIYILDIZ, 5, "tiger shark, Galeocerdo cuvieri, requiem shark inside corral"),
        (SARIYILDIZ, 11, "tiger shark, Galeocerdo cuvieri, requiem shark inside basement"),
        (Prompting(templates="sariyildiz", draw="cycle"), 1, "tigershark,Galeocerdocuvieri, requiem shark"),
    ],
)
def test_a_tiger_shark_in_every_family(family: Prompting, index: int, prompt: str) -> None:
    assert prompt_for(SHARK, index, family, 0) == prompt


def test_a_pseudo_word_takes_the_name_s_place() -> None:
    word = placeholder("n01491361", 3, 5)
    assert word == "<n01491361:3>"
    assert (
        prompt_for(SHARK, 0, Prompting(templates="clip"), 0, word) == "a pixelated photo of a <n01491361:3>."
    )
    assert (
        prompt_for(SHARK, 0, Prompting(templates="textual_inversion"), 0, placeholder("n01491361"))
        == "a photo of a nice <n01491361>"
    )
    assert prompt_for(SHARK, 1, SARIYILDIZ, 0, "<n01491361>") == "<n01491361>, requiem shark"


def test_without_white_space_the_comma_stays() -> None:
    assert strip_whitespace("tiger shark, Galeocerdo cuvieri") == "tigershark,Galeocerdocuvieri"
    assert strip_whitespace(" desktop\tcomputer\u00a0") == "desktopcomputer"


def test_a_name_of_several_words() -> None:
    desktop = IMAGENET["n03180011"]
    assert prompt_for(desktop, 0, Prompting(class_name="lemmas"), 0) == "A photo of desktop computer."
    assert prompt_for(desktop, 0, Prompting(), 0) == "A photo of desktopcomputer."
    assert prompt_for(desktop, 2, SARIYILDIZ, 0) == "multiple desktop computer, personal computer"


def test_a_class_with_one_lemma_has_no_comma() -> None:
    mask = IMAGENET["n03724870"]
    assert prompt_for(mask, 0, Prompting(), 0) == "A photo of mask."
    assert prompt_for(mask, 0, SARIYILDIZ, 0) == "mask"


def test_several_hypernyms_are_joined_as_lemmas_are() -> None:
    assert prompt_for(IMAGENET["n03724870"], 1, SARIYILDIZ, 0) == "mask, covering, disguise"


def test_the_two_cranes_differ_where_there_is_more_than_the_name() -> None:
    assert (
        prompt_for(BIRD, 0, Prompting(), 0) == prompt_for(MACHINE, 0, Prompting(), 0) == "A photo of crane."
    )
    assert [prompt_for(BIRD, i, SARIYILDIZ, 0) for i in (1, 4)] == [
        "crane, wading bird",
        "crane, large long-necked wading bird of marshes and plains in many parts of the world",
    ]
    assert [prompt_for(MACHINE, i, SARIYILDIZ, 0) for i in (1, 4)] == [
        "crane, lifting device",
        "crane, lifts and moves heavy objects; lifting tackle is suspended from a pivoted boom that "
        "rotates around a vertical axis",
    ]


def test_fashion_mnists_t_shirt() -> None:
    assert prompt_for(T_SHIRT, 0, Prompting(class_name="lemmas"), 0) == "A photo of T-shirt/top, tee shirt."
    assert prompt_for(T_SHIRT, 0, Prompting(), 0) == "A photo of T-shirt/top,teeshirt."
    assert prompt_for(T_SHIRT, 3, SARIYILDIZ, 0) == "multiple different T-shirt/top, tee shirt, garment"
    assert (
        prompt_for(T_SHIRT, 4, SARIYILDIZ, 0)
        == "T-shirt/top, tee shirt, a close-fitting top with short sleeves and no collar"
    )


def test_a_name_with_braces_stays_as_it_is() -> None:
    assert fill("a {}, {hypernyms}", "{scene}", ClassInfo("x", ("x",), ("{y}",))) == "a {scene}, {y}"


# --- template sets --------------------------------------------------------------------------------


def test_the_template_sets_have_the_published_sizes() -> None:
    assert [
        len(load_templates(name)) for name in ("simple", "clip", "textual_inversion", "sariyildiz", "empty")
    ] == [1, 80, 27, 6, 1]
    assert all(
        template.count("{}") == 1
        for name in ("simple", "clip", "textual_inversion", "sariyildiz")
        for template in load_templates(name)
    )


def test_clip_templates_are_open_clips() -> None:
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    assert list(load_templates("clip")) == [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]


def test_textual_inversions_templates_are_the_published_ones() -> None:
    """The 27 of the published code, in its order, each on a line: their SHA-256."""
    import hashlib

    assert (
        hashlib.sha256("\n".join(load_templates("textual_inversion")).encode()).hexdigest()
        == "371f97a75395160ff3d9224cd0dfa7ac7b21c46fd66e2ffc20c77d5d495707e9"
    )


def test_scenes_are_the_365_of_places() -> None:
    import hashlib

    names = (PROMPTS / "places365.txt").read_text().split()
    published = "\n".join(f"/{name[0]}/{name} {index}" for index, name in enumerate(names))
    assert (
        hashlib.sha256(published.encode()).hexdigest()
        == "2affba635eb657e7ca95f4e6cc69bd9fac29ef4c32aeb83cafdfcd06ec6a1ea6"
    )
    assert len(set(load_scenes())) == 365
    assert not any(mark in scene for scene in load_scenes() for mark in "_/")


def test_a_text_file_of_templates(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("a {} from above\n\n  {}, {definition}  \n{{{}}} in front of a {scene}\n")
    family = Prompting(templates=str(file), draw="cycle", class_name="lemmas")
    assert prompt_for(BIRD, 0, family, 0) == "a crane from above"
    assert prompt_for(BIRD, 1, family, 0) == f"crane, {BIRD.definition}"
    assert prompt_for(BIRD, 2, family, 0) == "{crane} in front of a slum"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a {}\na {name}\n", "mine.txt, line 2: unknown placeholder {name} in 'a {name}'; allowed: {}"),
        ("a {0}\n", "line 1: unknown placeholder {0}"),
        ("a {:>9}\n", "line 1: unknown placeholder {:>9}"),
        ("a {!r}\n", "line 1: unknown placeholder {!r}"),
        ("a photo\n", "line 1: no {} in 'a photo'"),
        ("a {hypernyms}\n", "line 1: no {} in 'a {hypernyms}'"),
        ("a {\n", "line 1: 'a {' ("),
        ("\n \n", "mine.txt: no template; one template per line is needed"),
    ],
)
def test_a_bad_template_is_named_by_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.txt").write_text(text)
    with pytest.raises(UserError) as raised:
        load_templates(str(tmp_path / "mine.txt"))
    assert message in str(raised.value)


def test_a_file_that_is_not_there_is_named_with_its_key() -> None:
    (problem,) = check_prompting([SHARK], Prompting(templates="nowhere.txt"), "methods.mine.prompt")
    assert str(problem).startswith(
        "methods.mine.prompt.templates: 'nowhere.txt', no such file; allowed: simple, clip,"
    )


# --- what prompts depend on -----------------------------------------------------------------------


def test_templates_are_drawn_per_image_and_class_only() -> None:
    family = Prompting(templates="clip")
    drawn = [prompt_for(SHARK, index, family, 0) for index in range(200)]
    assert len(set(drawn)) > 60
    assert prompt_for(SHARK, 17, family, 0) == drawn[17]
    assert [prompt_for(SHARK, index, family, 1) for index in range(200)] != drawn


def test_scenes_are_drawn_per_image_and_class() -> None:
    drawn = [
        [prompt_for(info, index, SARIYILDIZ, seed).rpartition(" inside ")[2] for index in range(5, 390, 6)]
        for info, seed in [(BIRD, 0), (MACHINE, 0), (BIRD, 1)]
    ]
    assert all(scene in load_scenes() for scenes in drawn for scene in scenes)
    assert all(50 <= len(set(scenes)) for scenes in drawn)
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]


def test_six_categories_come_in_equal_numbers_overall_and_in_every_part() -> None:
    study = study_with(augmentation={"images_per_class": 390, "images_per_part": 130})
    shapes = [
        template.replace("{}", "crane").replace("{hypernyms}", "wading bird").split("{")[0]
        for template in load_templates("sariyildiz")
    ]

    def category(prompt: str) -> int:
        if " inside " in prompt:
            return 5
        return 4 if prompt.startswith("crane, large") else shapes.index(prompt)

    parts = [
        Counter(
            category(prompt_for(BIRD, i, SARIYILDIZ, 0)) for i in study.augmentation.part_range(part, 130)
        )
        for part in range(3)
    ]
    assert sum(parts, Counter()) == dict.fromkeys(range(6), 65)
    assert all(set(counts.values()) <= {21, 22} and len(counts) == 6 for counts in parts)


# --- the file -------------------------------------------------------------------------------------


def test_the_file_has_one_row_per_image_of_every_part(tmp_path: Path) -> None:
    grouped = rows_of(study_with(), "clip_prompts", tmp_path)
    assert set(grouped) == {(info.class_id, part) for info in FASHION for part in (0, 1)}
    assert [row["index"] for row in grouped["bag", 1]] == list(range(10, 20))
    assert grouped["bag", 1][0] == {
        "label": 8,
        "class_id": "bag",
        "part": 1,
        "index": 10,
        "prompt": prompt_for(FASHION[8], 10, Prompting(templates="clip"), 0),
        "source": None,
    }


def test_pools_may_follow_the_training_images(tmp_path: Path) -> None:
    data = {**STUDY, "augmentation": {"images_per_training_image": 3}}
    grouped = rows_of(parse_study(data), "clip_prompts", tmp_path, images=7)
    assert [row["index"] for part in range(3) for row in grouped["bag", part]] == list(range(21))


def test_boomerang_starts_from_each_training_image_equally_often(tmp_path: Path) -> None:
    study = study_with(
        methods={
            "boomerang": {"mechanism": "sample", "start": "training_images", "prompt": {"templates": "empty"}}
        }
    )
    grouped = rows_of(study, "boomerang", tmp_path, images=8)
    rows = [row for part in (0, 1) for row in grouped["bag", part]]
    assert [row["source"] for row in rows] == [f"bag/{i % 8}.png" for i in range(20)]
    assert Counter(Counter(row["source"] for row in rows).values()) == {2: 4, 3: 4}
    assert {row["prompt"] for row in rows} == {""}


def test_conditioning_is_asked_for_by_its_placeholder_alone(tmp_path: Path) -> None:
    study = study_with(
        methods={
            "cluster": {"mechanism": "personalise", "learn": "conditioning", "clusters": 5},
            "one": {"mechanism": "personalise", "learn": "conditioning"},
        }
    )
    grouped = rows_of(study, "cluster", tmp_path)
    assert [row["prompt"] for row in grouped["bag", 1]] == [f"<bag:{i % 5}>" for i in range(10, 20)]
    assert {row["prompt"] for row in rows_of(study, "one", tmp_path)["bag", 0]} == {"<bag>"}


def test_pseudo_words_go_into_the_templates_of_the_config(tmp_path: Path) -> None:
    row = {"mechanism": "personalise", "learn": "pseudoword", "prompt": {"templates": "clip"}}
    grouped = rows_of(study_with(methods={"pseudo": row}), "pseudo", tmp_path)
    assert [row["prompt"] for row in grouped["bag", 0]] == [
        prompt_for(ClassInfo("bag", ("NAME",)), i, Prompting(templates="clip"), 0).replace("NAME", "<bag>")
        for i in range(10)
    ]
    inverted = rows_of(
        study_with(methods={"pseudo": {"mechanism": "personalise", "learn": "pseudoword"}}),
        "pseudo",
        tmp_path,
    )
    assert inverted["bag", 0][0]["prompt"] in [
        template.format("<bag>") for template in load_templates("textual_inversion")
    ]


def test_each_cluster_takes_the_templates_in_turn(tmp_path: Path) -> None:
    row = {
        "mechanism": "personalise",
        "learn": "pseudoword",
        "clusters": 3,
        "prompt": {"templates": "sariyildiz", "draw": "cycle"},
    }
    study = study_with(methods={"pseudo": row}, augmentation={"images_per_class": 36, "images_per_part": 18})
    grouped = rows_of(study, "pseudo", tmp_path)
    prompts = [row["prompt"] for part in (0, 1) for row in grouped["bag", part]]
    for cluster in range(3):
        assert [prompt for prompt in prompts[cluster::3] if "inside" not in prompt] == [
            f"<bag:{cluster}>",
            f"<bag:{cluster}>, container",
            f"multiple <bag:{cluster}>, container",
            f"multiple different <bag:{cluster}>, container",
            f"<bag:{cluster}>, a soft container with a handle for carrying things by hand",
        ] * 2


def test_retrieval_has_one_query_per_class(tmp_path: Path) -> None:
    grouped = rows_of(study_with(), "retrieval", tmp_path)
    assert {key: [row["prompt"] for row in rows] for key, rows in grouped.items()}["ankle_boot", 0] == [
        "A photo of ankleboot,bootee."
    ]
    assert set(grouped) == {(info.class_id, 0) for info in FASHION}


def test_a_query_takes_the_first_template(tmp_path: Path) -> None:
    grouped = rows_of(
        study_with(methods={"retrieval": {"query": {"templates": "clip"}}}), "retrieval", tmp_path
    )
    assert {
        rows[0]["prompt"].replace(strip_whitespace(FASHION[rows[0]["label"]].name), "{}")
        for rows in grouped.values()
    } == {"a bad photo of a {}."}


# --- what classes lack ----------------------------------------------------------------------------


def test_missing_hypernyms_and_definitions_are_named_with_class_and_method() -> None:
    study = study_with(methods={"sari": {"mechanism": "sample", "prompt": {"templates": "sariyildiz"}}})
    bare = [ClassInfo("ak47", ("ak47",)), ClassInfo("harp", ("harp",), ("string instrument",)), SHARK]
    assert [str(problem) for problem in check_prompts(study, "sari", bare)] == [
        "methods.sari.prompt: no hypernyms of class 'ak47', which templates 'sariyildiz' need; "
        "give hypernyms in a class table (dataset.classes), or choose other templates",
        "methods.sari.prompt: no definition of classes 'ak47', 'harp', which templates 'sariyildiz' need; "
        "give definition in a class table (dataset.classes), or choose other templates",
    ]
    many = [ClassInfo(f"c{i}", ("c",), definition="d") for i in range(9)]
    (problem,) = check_prompts(study, "sari", many)
    assert "no hypernyms of classes 'c0', 'c1', 'c2' and 6 more, which" in str(problem)
    assert (
        not check_prompts(study, "clip_prompts", bare)
        and not check_prompts(study, "retrieval", bare)
        and not check_prompts(study, "sari", FASHION)
    )


def test_listed_classes_have_no_prompts_and_need_no_texts(tmp_path: Path) -> None:
    sari = {"mechanism": "sample", "prompt": {"templates": "sariyildiz"}}
    study = study_with(methods={"sari": sari}, retrieval={"exclude": ["bare"]})
    classes = [ClassInfo("bare", ("bare",)), *FASHION]
    for name in ("sari", "pseudoword_clip", "retrieval"):
        path = tmp_path / f"{name}.parquet"
        write_prompts(study, name, classes, {info.class_id: ["x"] for info in classes}, path)
        labels = {rows[0]["label"]: class_id for (class_id, _), rows in read_prompts(path).items()}
        assert labels == {label: info.class_id for label, info in enumerate(FASHION, 1)}


def test_prompts_are_not_written_where_something_lacks(tmp_path: Path) -> None:
    study = study_with(methods={"sari": {"mechanism": "sample", "prompt": {"templates": "sariyildiz"}}})
    bare = [ClassInfo("ak47", ("ak47",)), ClassInfo("harp", ("harp",))]
    with pytest.raises(ConfigError, match=r"methods\.sari\.prompt: no hypernyms of classes 'ak47', 'harp'"):
        write_prompts(study, "sari", bare, {"ak47": ["a"], "harp": ["b"]}, tmp_path / "p.parquet")
    assert not (tmp_path / "p.parquet").exists()
    with pytest.raises(UserError, match="class 'ak47': no hypernyms"):
        prompt_for(bare[0], 1, SARIYILDIZ, 0)


def test_a_template_with_a_scene_is_not_filled_without_one() -> None:
    with pytest.raises(ValueError, match="needs a scene"):
        fill("{} inside {scene}", "bag", FASHION[8])


@pytest.mark.parametrize(
    ("row", "key"),
    [
        (
            {"mechanism": "personalise", "learn": "pseudoword", "prompt": {"templates": "empty"}},
            "methods.x.prompt.templates",
        ),
        ({"mechanism": "retrieve", "query": {"templates": "empty"}}, "methods.x.query.templates"),
    ],
)
def test_a_pseudo_word_or_a_query_needs_a_place_for_the_name(row: dict[str, Any], key: str) -> None:
    (problem,) = check_prompts(study_with(methods={"x": row}), "x", FASHION)
    assert str(problem).startswith(f"{key}: 'empty'; allowed: templates that name the class")


def test_caltech256_goes_by_folder_names_and_says_what_sariyildiz_needs(tmp_path: Path) -> None:
    for folder in ("001.ak47", "251.airplanes-101", "002.american-flag", "257.clutter"):
        (tmp_path / folder).mkdir()
        for number in range(10):
            Image.new("RGB", (4, 4), (number, 0, 0)).save(
                tmp_path / folder / f"{folder[:3]}_{number:04d}.jpg"
            )
    data = json.loads(json.dumps(STUDY))
    data["dataset"] = {"kind": "caltech256", "root": str(tmp_path)}
    data["methods"].pop("real_20pct")
    data["methods"]["boomerang"] = {
        "mechanism": "sample",
        "start": "training_images",
        "prompt": {"templates": "empty"},
    }
    data["methods"]["pseudo"] = {"mechanism": "personalise", "learn": "pseudoword"}
    check_study(parse_study(data), models=False)
    assert (
        prompt_for(ClassInfo("251.airplanes-101", (caltech_name("251.airplanes-101"),)), 0, Prompting(), 0)
        == "A photo of airplanes."
    )
    assert (
        prompt_for(ClassInfo("002.american-flag", (caltech_name("002.american-flag"),)), 0, Prompting(), 0)
        == "A photo of americanflag."
    )
    data["methods"]["sari"] = {"mechanism": "sample", "prompt": {"templates": "sariyildiz"}}
    with pytest.raises(ConfigError) as raised:
        check_study(parse_study(data), models=False)
    assert [str(problem).partition(",")[0] for problem in raised.value.problems] == [
        "methods.sari.prompt: no hypernyms of classes '001.ak47'",
        "methods.sari.prompt: no definition of classes '001.ak47'",
    ]


# --- prompts that cannot be told apart --------------------------------------------------------------

MINI = Path(__file__).resolve().parents[1] / "resources/mini"
LONG = " ".join(["a very detailed high quality professional studio photograph"] * 12) + " of a {}"


def told_apart(
    tmp_path: Path, lemmas: Sequence[str], templates: str = "a photo of a {}", **row: Any
) -> list[str]:
    """What `augbench check` says of the prompts of classes a, b, ... with these lemmas."""
    (tmp_path / "own.txt").write_text(templates + "\n")
    key = "query" if row.get("mechanism") == "retrieve" else "prompt"
    prompting = {"templates": str(tmp_path / "own.txt"), "class_name": "lemmas"}
    study = parse_study(
        {
            "study": "s",
            "dataset": {"kind": "image_folder", "root": "data"},
            "corpus": {"kind": "image_folder", "root": "data"},
            "diffusion": {"model": str(MINI / "stable-diffusion")},
            "clip": {"model": str(MINI / "clip")},
            "methods": {"row": {"mechanism": "sample", key: prompting, **row}},
            "augmentation": {"images_per_class": 4},
        }
    )
    classes = tuple(ClassInfo(class_id, (lemma,)) for class_id, lemma in zip("abcdef", lemmas, strict=False))
    return indistinct_prompts(study, classes)


def test_prompts_that_differ_pass_and_the_tokenizer_is_named(tmp_path: Path) -> None:
    assert told_apart(tmp_path, ["cat", "dog"]) == [
        f"prompts: tokenised with {MINI}/stable-diffusion/tokenizer"
    ]
    assert told_apart(tmp_path, ["cat", "dog"], mechanism="retrieve") == [
        f"prompts: tokenised with {MINI}/clip"
    ]
    assert len(told_apart(tmp_path, ["猫", "犬"])) == 1


@pytest.mark.parametrize(
    "lemmas",
    [
        ["crane", "crane", "dog"],
        ["Crane", "crane", "dog"],
        ["ice  cream", "ice cream", "dog"],
        ["caf\u00e9", "cafe\u0301", "dog"],
    ],
)
def test_two_classes_with_one_name_for_the_tokenizer_are_named(tmp_path: Path, lemmas: list[str]) -> None:
    assert told_apart(tmp_path, lemmas)[1:] == [
        "warning: methods.row.prompt.templates: a, b have the same tokens in 'a photo of a {}': their images"
        " will not differ"
    ]


@pytest.mark.parametrize(
    "row", [{}, {"mechanism": "retrieve"}, {"mechanism": "personalise", "learn": "pseudoword"}]
)
def test_a_template_that_names_the_class_after_token_77_is_an_error(
    tmp_path: Path, row: dict[str, str]
) -> None:
    with pytest.raises(UserError) as raised:
        told_apart(tmp_path, ["cat", "dog"], LONG, **row)
    assert re.fullmatch(
        r"methods\.row\.(prompt|query)\.templates: 'a very .*' gives all classes the same tokens; allowed: "
        r"names"
        r" that differ by more than case, before token 77",
        str(raised.value),
    )


def test_names_that_differ_only_after_token_77_are_named(tmp_path: Path) -> None:
    long = "very long name " * 40
    said = told_apart(tmp_path, [f"{long} one", f"{long} two", "dog"])
    assert "row.prompt.templates: a, b have the same tokens" in said[1]


def test_learned_words_and_the_empty_prompt_need_no_names(tmp_path: Path) -> None:
    assert len(told_apart(tmp_path, ["cat", "cat"], mechanism="personalise", learn="pseudoword")) == 1
    assert told_apart(tmp_path, ["cat", "cat"], mechanism="personalise", learn="conditioning") == []
    assert len(told_apart(tmp_path, ["cat", "cat"], prompt={"templates": "empty"})) == 1


def test_a_damaged_tokenizer_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_text("{")
    with pytest.raises(
        UserError, match=r"^\S+/clip: not readable as a tokenizer \(.*\); download the model again$"
    ):
        _same_tokens(str(folder), ("a {}",), (ClassInfo("a", ("a",)), ClassInfo("b", ("b",))), "lemmas")
