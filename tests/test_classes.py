"""Class tables: ImageNet's as shipped, the script that makes it, and tables as TSV."""

from __future__ import annotations

import importlib.util
import re
import time
from pathlib import Path
from types import ModuleType

import pytest

from augbench.data.classes import (
    CLASS_ID_PATTERN,
    SHIPPED_TABLES,
    ClassInfo,
    class_id_of,
    folder_of,
    load_class_table,
    readable_name,
)
from augbench.errors import UserError
from augbench.files import RESOURCES

WORDNET_HEAD = "  1 This software and database is being provided to you, the LICENSEE, by  \n"
# made-up synsets in WordNet's format; the second is below the first, and only an instance of the third
NOUNS = (
    "00000100 06 n 0b tool 0 aid 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 i 0 j 0 "
    "002 ~ 00000200 n 0000 + 00000900 v 0101 | what helps; in work  \n"
    "00000200 06 n 02 big_hammer 0 sledge 1 003 @ 00000100 n 0000 @i 00000300 n 0000 "
    '@ 00000300 n 0000 | hits hard; for stones; "he took the sledge"; "so did she"  \n'
    "00000300 06 n 01 thing 0 000 | something  \n"
)


def make_imagenet() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_imagenet", RESOURCES / "classes/make_imagenet.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


# --- ImageNet -------------------------------------------------------------------------------------


def test_imagenets_table_is_complete() -> None:
    table = load_class_table("imagenet")
    assert len(table) == len({info.class_id for info in table}) == 1000
    assert all(re.fullmatch(r"n[0-9]{8}", info.class_id) for info in table)
    assert all(info.lemmas and info.hypernyms and info.definition for info in table)
    texts = [text for info in table for text in (*info.lemmas, *info.hypernyms, info.definition)]
    assert not [text for text in texts if "_" in text or text != text.strip() or not text]
    assert {len(info.hypernyms) for info in table} == {1, 2, 3}


def test_imagenets_table_is_timms_in_label_order() -> None:
    from timm.data import ImageNetInfo

    known = ImageNetInfo("imagenet-1k")
    table = load_class_table("imagenet")
    assert [info.class_id for info in table] == known.label_names()
    assert [f"{info.name}: {info.definition}" for info in table] == known.label_descriptions(detailed=True)


def test_the_tiger_shark_and_the_two_cranes() -> None:
    table = {info.class_id: info for info in load_class_table("imagenet")}
    assert table["n01491361"] == ClassInfo(
        "n01491361",
        ("tiger shark", "Galeocerdo cuvieri"),
        ("requiem shark",),
        "large dangerous warm-water shark with striped or spotted body",
    )
    assert table["n02012849"].lemmas == table["n03126707"].lemmas == ("crane",)
    assert (table["n02012849"].hypernyms, table["n03126707"].hypernyms) == (
        ("wading bird",),
        ("lifting device",),
    )
    assert table["n04389033"].hypernyms == ("military vehicle", "armored vehicle", "tracked vehicle")


def test_every_start_of_snakemake_can_afford_to_read_it() -> None:
    spent = []
    for _ in range(5):
        start = time.process_time()
        load_class_table("imagenet")
        spent.append(time.process_time() - start)
    assert min(spent) < 0.1


def test_wordnets_notice_stands_on_the_table_and_beside_it() -> None:
    folder = SHIPPED_TABLES["imagenet"].parent
    head = SHIPPED_TABLES["imagenet"].read_text().splitlines()[:2]
    assert (
        "WordNet 3.0 Copyright 2006 by Princeton University. All rights reserved." in head[1]
        and "WORDNET_LICENSE.txt" in head[1]
    )
    licence = " ".join((folder / "WORDNET_LICENSE.txt").read_text().split())
    for sentence in (
        "Permission to use, copy, modify and distribute this software and database",
        "WordNet 3.0 Copyright 2006 by Princeton University. All rights reserved.",
        'THIS SOFTWARE AND DATABASE IS PROVIDED "AS IS"',
        "The name of Princeton University or Princeton may not be used in advertising",
    ):
        assert sentence in licence
    assert "WORDNET_LICENSE.txt" in (RESOURCES.parent / "docs/licences.md").read_text()


def test_wordnets_format_is_read_as_its_manual_says(tmp_path: Path) -> None:
    (tmp_path / "data.noun").write_text(WORDNET_HEAD + NOUNS)
    synsets = make_imagenet().read_nouns(tmp_path / "data.noun")
    assert set(synsets) == {"00000100", "00000200", "00000300"}
    assert (
        len(synsets["00000100"].lemmas) == 11
        and synsets["00000100"].hypernyms == ()
        and synsets["00000100"].definition == "what helps; in work"
    )
    assert synsets["00000200"].lemmas == ("big hammer", "sledge")
    assert synsets["00000200"].hypernyms == ("00000100", "00000300")
    assert synsets["00000200"].definition == "hits hard; for stones"


def test_the_table_is_not_made_from_another_wordnet(tmp_path: Path) -> None:
    (tmp_path / "data.noun").write_text(
        WORDNET_HEAD + "  14 WordNet 3.1 Copyright 2011 by Princeton University.  \n" + NOUNS
    )
    with pytest.raises(SystemExit, match=r"not WordNet 3\.0"):
        make_imagenet().main(str(tmp_path / "data.noun"), tmp_path / "imagenet.tsv")
    assert not (tmp_path / "imagenet.tsv").exists()


# --- TSV ------------------------------------------------------------------------------------------


def test_a_tsv_table_gives_what_the_same_yaml_gives(tmp_path: Path) -> None:
    (tmp_path / "pets.tsv").write_text(
        "# our pets\n# as of today\ndefinition\tclass_id\thypernyms\tlemmas\n"
        'purrs\tcat\tfeline | pet\thouse cat|Felis catus\n\n"barks, or says ""woof"""\tguard_dog\t\t\n'
    )
    (tmp_path / "pets.yaml").write_text(
        "- {class_id: cat, lemmas: [house cat, Felis catus], hypernyms: [feline, pet], definition: purrs}\n"
        "- {class_id: guard_dog, definition: 'barks, or says \"woof\"'}\n"
    )
    assert load_class_table(tmp_path / "pets.tsv") == load_class_table(tmp_path / "pets.yaml")
    assert load_class_table(tmp_path / "pets.tsv")[1].lemmas == ("guard dog",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "class_id\tname\ncat\tTom\n",
            "pets.tsv: columns ['class_id', 'name']; allowed: class_id and any of",
        ),
        ("lemmas\ncat\n", "pets.tsv: columns ['lemmas']; allowed: class_id"),
        ("class_id\tclass_id\ncat\tcat\n", "pets.tsv: columns ['class_id', 'class_id']; allowed:"),
        ("", "pets.tsv: columns []; allowed: class_id"),
        ("# a\nclass_id\tlemmas\ncat\tTom\ndog\n", "pets.tsv, line 4: 1 columns; the header has 2"),
        (
            "class_id\tlemmas\ncat\tTom||Tim\ndog\tRex\n",
            "pets.tsv, line 2.lemmas: ''; allowed: a text that is not empty",
        ),
        (
            "class_id\tlemmas\n\tTom\n",
            "pets.tsv, line 2: {'lemmas': ['Tom']}; allowed: a mapping with class_id",
        ),
        ("class_id\n../cat\n", "pets.tsv, line 2.class_id: '../cat'; allowed:"),
        ("class_id\ncat\ncat\n", "pets.tsv: class_id given twice: ['cat']"),
        ("class_id\ncat\n", "pets.tsv: 1 class(es); at least 2"),
    ],
)
def test_a_bad_tsv_table_is_named_by_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "pets.tsv").write_text(text)
    with pytest.raises(UserError) as raised:
        load_class_table(tmp_path / "pets.tsv")
    assert message in str(raised.value)


def test_a_table_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "pets.tsv").write_bytes("class_id\tlemmas\ncat\tM\u00fcsli\ndog\tRex\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"pets\.tsv: not readable as text .*; save it as UTF-8"):
        load_class_table(tmp_path / "pets.tsv")


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ('"the 24 inch one', '"the 24 inch one'),
        ('"big" cat', '"big" cat'),
        ('24" screen', '24" screen'),
        ('"say ""woof"""', 'say "woof"'),
        ('"one\nline"', "one line"),
        ("one\u2028line", "one line"),
        ("one\x0cline", "one line"),
        ("x" * 140_000, "x" * 140_000),
    ],
)
def test_a_cell_keeps_its_text_and_swallows_no_row(tmp_path: Path, cell: str, text: str) -> None:
    (tmp_path / "pets.tsv").write_text(f"class_id\tdefinition\ncat\t{cell}\ndog\ta dog\nowl\tbird\n")
    assert [(info.class_id, info.definition) for info in load_class_table(tmp_path / "pets.tsv")] == [
        ("cat", text),
        ("dog", "a dog"),
        ("owl", "bird"),
    ]


def test_a_quoted_cell_that_may_have_swallowed_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pets.tsv").write_text('class_id\tdefinition\ncat\t"feline\ndog\tcanine\nowl\tbird"\n')
    with pytest.raises(
        UserError, match=r"pets\.tsv, line 2: a cell in quotes with tabs and several lines: 'fel"
    ):
        load_class_table(tmp_path / "pets.tsv")


@pytest.mark.parametrize("suffix", ["TSV", "Tsv"])
def test_a_tsv_table_may_have_its_suffix_in_capitals(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"pets.{suffix}").write_text("class_id\ncat\ndog\n")
    assert [info.class_id for info in load_class_table(tmp_path / f"pets.{suffix}")] == ["cat", "dog"]


# --- YAML -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["010", "000", "no", "yes", "on", "1_000", "1e3", "0x10", "1.50", "2024-01-01"]
)
def test_ids_and_names_in_yaml_are_the_text_in_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "pets.yaml").write_text(
        f"- {{class_id: {text}, lemmas: [{text}, 12:30]}}\n- {{class_id: dog}}\n"
    )
    assert load_class_table(tmp_path / "pets.yaml")[0] == ClassInfo(text, (text, "12:30"))


def test_anchors_merges_and_null_definitions_keep_their_meaning(tmp_path: Path) -> None:
    (tmp_path / "pets.yaml").write_text(
        "- &cat {class_id: cat, hypernyms: [pet], definition: null}\n- {<<: *cat, class_id: dog}\n"
    )
    assert load_class_table(tmp_path / "pets.yaml") == [
        ClassInfo("cat", ("cat",), ("pet",)),
        ClassInfo("dog", ("dog",), ("pet",)),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("class_id:", "pets.yaml[0].class_id: null; allowed: a text that is not empty"),
        ("class_id: [a]", "pets.yaml[0].class_id: ['a']; allowed: a text"),
        (
            "class_id: a, definition: [big cat, striped]",
            "pets.yaml[0].definition: ['big cat', 'striped']; allowed",
        ),
        (
            "class_id: a, definition: {note: see below}",
            "pets.yaml[0].definition: {'note': 'see below'}; allowed",
        ),
        ("class_id: a, definition: []", "pets.yaml[0].definition: []; allowed: a text"),
        (
            "class_id: a, lemmas: []",
            "pets.yaml[0].lemmas: []; allowed: a text or a list of texts, at least one",
        ),
        ("class_id: a, lemmas:", "pets.yaml[0].lemmas: null; allowed: a text or a list"),
        ("class_id: a, lemmas: ['']", "pets.yaml[0].lemmas: ''; allowed: a text that is not empty"),
        ("class_id: a, lemmas: [null]", "pets.yaml[0].lemmas: null; allowed: a text"),
        ("class_id: a, hypernyms: [[b]]", "pets.yaml[0].hypernyms: ['b']; allowed: a text"),
        (
            'class_id: a, definition: "\\0"',
            "pets.yaml[0].definition: '\\x00'; allowed: a text that is not empty, ",
        ),
        (
            "class_id: a, lemmas: [x], lemmas: [y]",
            "pets.yaml, line 1: 'lemmas' is given twice, first in line 1",
        ),
        ("class_id: a, x: 1, ~: 2", "pets.yaml[0]: unknown keys ['None', 'x']; allowed: "),
    ],
)
def test_a_bad_yaml_table_is_named_by_its_row(tmp_path: Path, row: str, message: str) -> None:
    (tmp_path / "pets.yaml").write_text(f"- {{{row}}}\n- {{class_id: b}}\n")
    with pytest.raises(UserError) as raised:
        load_class_table(tmp_path / "pets.yaml")
    assert message in str(raised.value) and "\n" not in str(raised.value)


# --- ids of folders ---------------------------------------------------------------------------------

FOLDERS = {
    "hot dog": "hot~20dog",
    "hot~20dog": "hot~7E20dog",
    "rock'n'roll": "rock~27n~27roll",
    "cr\u00e8me br\u00fbl\u00e9e": "cr~C3~A8me~20br~C3~BBl~C3~A9e",
    "\u732b": "~E7~8C~AB",
    "50% off": "50~25~20off",
    "a,b;c=d&e": "a~2Cb~3Bc~3Dd~26e",
    "_misc": "~5Fmisc",
    "-x": "~2Dx",
    "{part}": "~7Bpart~7D",
    "two\nlines": "two~0Alines",
    " ": "~20",
}


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folders_name_becomes_an_id_that_is_safe_and_reversible(folder: str) -> None:
    class_id = class_id_of(folder)
    assert class_id == FOLDERS[folder] and folder_of(class_id) == folder
    assert re.fullmatch(CLASS_ID_PATTERN, class_id) and readable_name(folder)


@pytest.mark.parametrize(
    "folder", ["n01440764", "001.ak47", "T-Shirt.top", "a_b+c", "251.airplanes-101", "0"]
)
def test_ids_of_earlier_versions_stay_as_they_are(folder: str) -> None:
    assert class_id_of(folder) == folder == folder_of(folder)


def test_different_names_give_different_ids_and_the_two_forms_of_an_accent_give_one() -> None:
    letters = [chr(code) for code in (*range(0x20, 0x2E), *range(0x30, 0x7F), 0xE9, 0x732B)]
    names = [first + second for first in letters for second in letters]
    assert len({class_id_of(name) for name in names}) == len(names)
    assert class_id_of("caf\u00e9") == class_id_of("cafe\u0301")


def test_a_table_names_classes_by_their_folders(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(
        "- {class_id: hot dog}\n- {class_id: 12:30, lemmas: [noon]}\n", encoding="utf-8"
    )
    assert load_class_table(tmp_path / "t.yaml") == [
        ClassInfo("hot~20dog", ("hot dog",)),
        ClassInfo("12~3A30", ("noon",)),
    ]
