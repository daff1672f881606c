"""Inputs as people have them, by kind: each right one means what it says, each wrong one is one line.

The line names the key or file, the value, and what is allowed.
"""

from __future__ import annotations

import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import numbered, write_images
from PIL import Image, PngImagePlugin
from test_image_files import CLIP, check, problems

from augbench import cli
from augbench.commands.check import study as study_check
from augbench.config.stages import Retrieval
from augbench.config.study import load_study
from augbench.data.classes import load_class_table
from augbench.data.decode import open_rgb
from augbench.errors import UserError
from augbench.report.figures import style
from augbench.retrieval.embedding_files import open_embeddings
from augbench.retrieval.lists import read_takedown
from augbench.runtime import launcher

STUDY = """\
study: tiny
seed: 0
dataset: {{kind: image_folder, root: pets, train_fraction: 0.25}}
diffusion: {{model: none, resolution: 32, guidance_scale: {number}}}
clip: {{model: none}}
methods:
  none: {{mechanism: real}}
  simple: {{mechanism: sample, label: {label}}}
augmentation: {{images_per_class: 16}}
{rest}
"""


def line_of(function: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        function()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def study_line(folder: Path, number: str = "2.0", label: str = "A", rest: str = "") -> str:
    path = folder / "s.yaml"
    path.write_text(STUDY.format(number=number, label=label, rest=rest), encoding="utf-8")
    return line_of(lambda: load_study([path])).replace(str(path), "s.yaml")


# --- the config -------------------------------------------------------------------------------------

NUMBERS = {
    "010": "s.yaml, line 4: 010, which YAML reads as 8; allowed: 8, or quotes around a text",
    "-010": "s.yaml, line 4: -010, which YAML reads as -8; allowed: -8, or quotes around a text",
    "1:30": "s.yaml, line 4: 1:30, which YAML reads as 90; allowed: 90, or quotes around a text",
    "1:30.5": "s.yaml, line 4: 1:30.5, which YAML reads as 90.5; allowed: 90.5, or quotes around a text",
    "yes": "diffusion.guidance_scale: true; allowed: a number",
    "~": "diffusion.guidance_scale: null; allowed: a number",
    ".inf": "diffusion.guidance_scale: inf; allowed: a finite number",
    "-.inf": "diffusion.guidance_scale: -inf; allowed: a finite number",
    ".nan": "diffusion.guidance_scale: nan; allowed: a finite number",
    "1.0e+300": "diffusion.guidance_scale: 1e+300; allowed: at most 9223372036854775807",
    "'5'": "diffusion.guidance_scale: '5'; allowed: a number without quotes",
    "'1,5'": "diffusion.guidance_scale: '1,5'; allowed: a number",
    "2020-01-01": "diffusion.guidance_scale: '2020-01-01'; allowed: a number",
    "[1]": "diffusion.guidance_scale: [1]; allowed: a number",
    "!!timestamp x": "s.yaml: not readable as YAML: '!!timestamp' does not fit 'x' in line 4; fix the file",
    "!!bool x": "s.yaml: not readable as YAML: '!!bool' does not fit 'x' in line 4; fix the file",
    "!!int x": "s.yaml: not readable as YAML: '!!int' does not fit 'x' in line 4; fix the file",
}


@pytest.mark.parametrize("number", NUMBERS)
def test_what_is_no_number_is_named_as_it_is_written(tmp_path: Path, number: str) -> None:
    assert study_line(tmp_path, number) == NUMBERS[number]


@pytest.mark.parametrize("number", ["0x10", "1_000", "0.5e+1", "10", "+3", "5.", "1.0"])
def test_numbers_that_mean_what_they_say_are_read(tmp_path: Path, number: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(STUDY.format(number=number, label="A", rest=""))
    value = load_study([path]).diffusion.guidance_scale
    assert value == (16 if number == "0x10" else float(number.replace("_", "")))


REST = {
    '"a\\nb": 1': "a b: unknown key; ",
    '"a\\0": 1': "a key of config: 'a\\x00'; allowed: a text without control characters",
    'corpus: {kind: image_folder, root: "a\\0b"}': "corpus.root: 'a\\x00b'; allowed: a text without control ",
    'corpus: {kind: image_folder, root: "\\ud800"}': "corpus.root: '\\ud800'; allowed: a text without ",
    "corpus: {kind: image_folder, root: ''}": "corpus.root: ''; allowed: a path that is not empty",
    "corpus: {kind: image_folder, root: ' '}": "corpus.root: ' '; allowed: a path that is not empty",
    "corpus: {kind: image_folder, root: ~}": "corpus.root: null; allowed: text",
    "execution: {store: ''}": "execution.store: ''; allowed: a path that is not empty",
    "retrieval: {safe_list: ''}": "retrieval.safe_list: ''; allowed: a path that is not empty",
    "execution: {compile: 'yes'}": "execution.compile: 'yes'; allowed: true or false",
    "finetune: {max_epochs: 99999999999999999999}": "finetune.max_epochs: 99999999999999999999; allowed: at ",
    "x: " + "[" * 700 + "]" * 700: "s.yaml: not readable as YAML: maximum recursion depth exceeded",
    "2020-01-01: 1": "a key of config: datetime.date(2020, 1, 1); allowed: a text; put it in quotes",
    "corpus: &a {root: *a}": "s.yaml: not readable as YAML: found unconstructable recursive node in ",
    "methods: {}": "s.yaml, line 10: 'methods' is given twice, first in line 6; ",
    "finetune: {features: clip, features: clip}": "s.yaml, line 10: 'features' is given twice, ",
}


@pytest.mark.parametrize("rest", REST)
def test_a_key_or_text_that_can_not_be_used_is_named(tmp_path: Path, rest: str) -> None:
    assert study_line(tmp_path, rest=rest).startswith(REST[rest])


@pytest.mark.parametrize("label", ["12:30", "007"])
def test_a_text_that_yaml_would_change_is_named(tmp_path: Path, label: str) -> None:
    assert study_line(tmp_path, label=label).startswith(f"s.yaml, line 8: {label}, which YAML reads as ")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"augmentation": {"resamples": 10**9}},
            "augmentation.resamples: 1000000000; allowed: less than or ",
        ),
        ({"dataset": {"draws": 10**9}}, "dataset.draws: 1000000000; allowed: less than or equal to 1000"),
        (
            {"augmentation": {"images_per_class": 10**9, "images_per_part": 8}},
            "augmentation.images_per_class: 1000000000; gives 125000000 files per class; allowed: at ",
        ),
        (
            {"methods": {"retrieval": {"growth_limit": 10**9}}},
            "methods.retrieval.growth_limit: 1000000000; allowed: less than or equal to 1000",
        ),
    ],
)
def test_numbers_that_a_plan_would_never_end_with_are_errors(
    pets: Path, changes: dict[str, Any], line: str
) -> None:
    (found,) = problems(**changes)
    assert found.startswith(line)


CONFIG_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a folder": (lambda path: path.mkdir(), "Is a directory; a file that you may read is needed"),
    "a circle": (
        lambda path: path.symlink_to(path),
        "Too many levels of symbolic links; a file that you may",
    ),
    "missing": (lambda path: None, "no such file; a mapping of config keys is needed"),
    "latin-1": (lambda path: path.write_bytes(b"study: \xe9"), "not readable as text ('utf-8' codec can't"),
    "UTF-16": (lambda path: path.write_text("study: a", "utf-16"), "not readable as text ('utf-8' codec"),
}


@pytest.mark.parametrize("kind", CONFIG_FILES)
def test_a_config_that_is_no_text_is_named(tmp_path: Path, kind: str) -> None:
    make, line = CONFIG_FILES[kind]
    make(tmp_path / "s.yaml")
    assert line_of(lambda: load_study([tmp_path / "s.yaml"])).startswith(f"{tmp_path}/s.yaml: {line}")


def test_a_byte_order_mark_belongs_to_no_key(tmp_path: Path) -> None:
    text = STUDY.format(number="2.0", label="A", rest="").replace("\n", "\r\n")
    (tmp_path / "s.yaml").write_text(text, "utf-8-sig", newline="")
    assert load_study([tmp_path / "s.yaml"]).study == "tiny"


# --- class tables -----------------------------------------------------------------------------------

TABLES = {
    "tag of a date": ("a.yaml", b"- {class_id: !!timestamp x}\n- {class_id: b}", "not readable as YAML"),
    "tag of a flag": (
        "a.yaml",
        b"- {class_id: !!bool x}\n- {class_id: b}",
        "not readable as YAML: '!!bool' does not fit",
    ),
    "nesting": ("a.yaml", b"[" * 500, "not readable as YAML: maximum recursion"),
    "YAML, latin-1": ("a.yaml", b"- {class_id: \xe9}", "not readable as text"),
    "YAML, UTF-16": ("a.yaml", "- {class_id: a}".encode("utf-16"), "not readable as text"),
    "TSV, latin-1": ("a.tsv", b"class_id\n\xe9\nb\n", "not readable as text"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_that_is_no_text_or_yaml_is_named(tmp_path: Path, kind: str) -> None:
    name, content, line = TABLES[kind]
    (tmp_path / name).write_bytes(content)
    assert line_of(lambda: load_class_table(tmp_path / name)).startswith(f"{tmp_path}/{name}: {line}")


@pytest.mark.parametrize("name", ["a.yaml", "a.tsv"])
def test_a_table_that_may_not_be_read_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).write_text("class_id\na\nb\n")

    def refuse(path: Path, *_: Any, **__: Any) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    line = line_of(lambda: load_class_table(tmp_path / name))
    assert line == f"{tmp_path}/{name}: Permission denied; a file that you may read is needed"


# --- folders ----------------------------------------------------------------------------------------


def alias(pets: Path) -> None:
    (pets / "pets/kitten").symlink_to("cat")


def decomposed(pets: Path) -> None:
    for form in ("NFC", "NFD"):
        write_images(pets / "pets" / unicodedata.normalize(form, "caf\u00e9"), numbered(8), 300)


def empty_class(pets: Path) -> None:
    (pets / "pets/owl").mkdir()


def single_image(pets: Path) -> None:
    write_images(pets / "pets/owl", ["a.png"], 300)


def to_itself(pets: Path) -> None:
    (pets / "pets/owl").symlink_to(".")


def web_pages(pets: Path) -> None:
    (pets / "pets/cat/000.png").write_text("<html>404</html>")


FOLDERS: dict[Callable[[Path], None], str] = {
    alias: "dataset.root: 'pets': 'cat' and 'kitten' are one folder; allowed: a folder for each class; ",
    decomposed: "dataset.root: the folders 'cafe\\u0301' and 'caf\\xe9', whose names look the same; ",
    empty_class: "pets/owl: 0 images; a class needs images (",
    single_image: "dataset: class 'owl' has 1 images; ",
    to_itself: "pets/owl: 0 images; a class needs images (",
    web_pages: "pets/cat/000.png: not readable as an image (cannot identify image file); ",
}


@pytest.mark.parametrize("spoil", FOLDERS)
def test_a_folder_that_can_not_serve_is_one_line(pets: Path, spoil: Callable[[Path], None]) -> None:
    spoil(pets)
    assert any(line.startswith(FOLDERS[spoil]) for line in problems())


@pytest.mark.parametrize("root", ["~nobody_has_this_name/pets", "pets/" + "x" * 5000])
def test_a_root_that_no_system_can_open_is_one_line(pets: Path, root: str) -> None:
    assert all(line.startswith("dataset.root: '") for line in problems(dataset={"root": root}))


@pytest.mark.parametrize(
    ("store", "line"),
    [
        (
            "$NOT_SET/store",
            "execution.store: '$NOT_SET/store', but this environment variable is not set; allowed",
        ),
        ("pets/cat/000.png", "pets/cat/000.png: a file; a folder for results is needed"),
    ],
)
def test_a_store_that_can_not_be_written_is_found_before_a_run(pets: Path, store: str, line: str) -> None:
    assert problems(execution={"store": store})[0].startswith(line)


def test_the_home_folder_may_hold_the_test_images(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(pets / "home"))
    for name in ("cat", "dog"):
        write_images(pets / "home/test" / name, numbered(3), 500 + 100 * (name == "dog"))
    line, _ = check(dataset={"test_folder": "~/test"})
    assert line.endswith("and 3 test images each")


# --- images -----------------------------------------------------------------------------------------


def test_depths_that_are_guessed_are_named_every_time(pets: Path) -> None:
    for number, top in enumerate((900, 4000, 4000)):
        grey = np.linspace(0, top, 256).reshape(16, 16).astype(np.uint16)
        Image.fromarray(grey).save(pets / f"pets/cat/{number:03d}.png")
    Image.fromarray(np.full((16, 16), 2000, np.uint16)).save(pets / "corpus/x/000.png")
    for _ in range(2):
        ten, twelve, corpus = (line for line in check() if line.startswith("warning: "))
        assert ten.startswith(
            "warning: dataset: 1 grey images of 16 bits have no value above 1023 and count as "
        )
        assert "2 grey images" in twelve and "of 12 bits: cat/001.png, cat/002.png;" in twelve
        assert corpus.startswith("warning: corpus: 1 grey images") and "of 11 bits" not in corpus


def test_an_image_may_carry_megabytes_of_text(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("prompt", "x" * 3_000_000, zip=True)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png", pnginfo=info)
    assert open_rgb(tmp_path / "a.png").getpixel((0, 0)) == (255, 0, 0)


def test_a_broken_tiff_gives_its_line_and_nothing_else(tmp_path: Path) -> None:
    Image.effect_noise((64, 64), 90).save(tmp_path / "a.tif", compression="tiff_lzw")
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(content[: len(content) * 6 // 10])
    code = "import sys; from augbench.data.decode import try_decode; print(try_decode(sys.argv[1], 0))"
    command = [sys.executable, "-c", code, str(tmp_path / "a.tif")]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)})
    assert done.stdout.startswith(f"{tmp_path}/a.tif: not readable as an image (") and not done.stderr


# --- published embeddings ---------------------------------------------------------------------------


def vectors(rows: int = 6) -> np.ndarray:
    values = np.random.default_rng(0).normal(size=(rows, 8)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def test_a_column_given_twice_is_an_error(tmp_path: Path) -> None:
    table = pa.table([["a"] * 6, ["b"] * 6, pa.array(list(vectors()))], names=["url", "url", "vector"])
    pq.write_table(table, tmp_path / "a.parquet")
    line = line_of(lambda: open_embeddings(tmp_path))
    assert line == f"{tmp_path}/a.parquet: 2 columns 'url'; allowed: one, for 'url'; rename the others"


def test_a_longer_vector_in_the_first_row_is_the_one_that_is_left_out(tmp_path: Path) -> None:
    rows = [[1.0] * 9, *vectors().tolist()]
    table = pa.table({"url": ["u"] * 7, "vector": pa.array(rows, pa.list_(pa.float32()))})
    pq.write_table(table, tmp_path / "a.parquet")
    (file,) = open_embeddings(tmp_path)
    assert file.dimension == 8 and np.isnan(file.vectors(np.array([0]))).all()


@pytest.mark.parametrize("spoil", ["middle", "method"])
def test_an_archive_that_can_not_be_unpacked_is_named(tmp_path: Path, spoil: str) -> None:
    np.savez_compressed(tmp_path / "0.npz", l14_img=vectors(600))
    content = bytearray((tmp_path / "0.npz").read_bytes())
    if spoil == "middle":
        content[100:300] = bytes(200)
    else:  # a compression that nobody knows, in the file's header and in the archive's index
        directory = content.rindex(b"PK\1\2")
        content[8:10] = content[directory + 10 : directory + 12] = (99).to_bytes(2, "little")
    (tmp_path / "0.npz").write_bytes(content)
    pq.write_table(pa.table({"uid": list(map(str, range(600)))}), tmp_path / "0.parquet")
    line = line_of(lambda: open_embeddings(tmp_path))
    assert line.startswith(f"{tmp_path}/0.npz: damaged (") and line.endswith("; fetch the file again")


@pytest.mark.parametrize(
    ("width", "column", "line"),
    [
        (
            8,
            "url",
            "corpus.folder: a.parquet has 8 numbers per vector; allowed: 128, as many as clip.model gives",
        ),
        (
            128,
            "text",
            "corpus.folder: no column of web addresses in a.parquet; allowed: url, URL, image_path, or",
        ),
    ],
)
def test_embeddings_that_can_not_serve_are_found_before_a_search(
    pets: Path, width: int, column: str, line: str
) -> None:
    rows = pa.array(np.eye(12, width, dtype=np.float32).tolist(), pa.list_(pa.float32()))
    pq.write_table(pa.table({column: ["http://a/b.jpg"] * 12, "vector": rows}), pets / "corpus/a.parquet")
    corpus = {"kind": "embeddings", "folder": "corpus", "clip": str(CLIP)}
    assert problems(corpus=corpus, clip={"model": str(CLIP)})[0].startswith(line)


# --- lists of images --------------------------------------------------------------------------------


def taken_down(path: Path) -> frozenset[str]:
    return read_takedown(Retrieval(takedown=str(path)))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".CSV", ".txt.gz"])
def test_a_table_is_no_list(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"list{suffix}"
    path.write_text("url,hash\nu1,h1\n")
    assert line_of(lambda: taken_down(path)).startswith(f"retrieval.takedown: '{path}', a table; allowed: ")


def test_no_entry_of_a_list_is_lost_to_how_it_is_written(tmp_path: Path) -> None:
    digest = "AB" * 32
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text(f"first\r\n{digest}\r\n", "utf-8-sig", newline="")
    pq.write_table(pa.table({"url": ["below"]}), tmp_path / "sub/b.PARQUET")
    (tmp_path / "README.md").write_text("about")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache/c.txt").write_text("hidden")
    assert taken_down(tmp_path) == {"first", digest, digest.lower(), "below"}


# --- what else is said ------------------------------------------------------------------------------


def test_a_run_says_once_what_a_check_says(
    pets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (pets / "pets/cat/notes.txt").write_text("")
    (pets / "s.yaml").write_text(STUDY.format(number="2.0", label="A", rest="classifier: {batch_size: 4}"))
    monkeypatch.setattr(study_check, "model_problems", lambda study: [])
    monkeypatch.setattr(launcher, "run", lambda *_: 0)
    assert cli.main(["run", "--configfile", "s.yaml"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed.count("dataset: 1 left out, no suffix of an image: cat/notes.txt") == 1


def test_characters_without_a_font_are_named(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style, "WIDE_FONTS", ("STIXGeneral", "no such font"))
    assert style.fonts() == ["DejaVu Sans", "STIXGeneral"]
    assert style.missing_glyphs(["caf\u00e9 \u20dd", "\u732b b"]) == "\u732b"  # DejaVu Sans has no U+20DD
    rows = {"none": {"label": "\u732b"}}
    (line,) = (line for line in check(methods=rows) if line.startswith("note: figures: "))
    assert line.startswith("note: figures: no font here has \u732b: boxes stand for them; ")
    assert not [line for line in check() if line.startswith("note: figures: ")]
