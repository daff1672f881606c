"""``augbench init`` writes a study that fits the folder it was given."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import noise, numbered, write_images

from augbench import cli
from augbench.commands.check.dataset import ClassCounts
from augbench.commands.init import command
from augbench.commands.init.command import init_study, study_name
from augbench.commands.init.sizes import propose_sizes
from augbench.commands.init.text import value_text
from augbench.config.data import ParquetImages
from augbench.config.study import Study, load_study
from augbench.errors import UserError

PROJECT = Path(__file__).resolve().parents[1]
FOLDERS = {"kind": "image_folder", "root": "pets"}


def written(folder: str = "pets", corpus: str | None = None) -> Study:
    """Let ``init`` write a study for ``folder`` in the working folder, and read it."""
    init_study(folder, corpus)
    return load_study([f"{study_name(folder)}.yaml"])


def counts(*pools: int, validation: int | None = None, test: int | None = None) -> list[ClassCounts]:
    return [ClassCounts(f"c{place}", pool, validation, test) for place, pool in enumerate(pools)]


def on_the_miniature() -> Study:
    """Run the command that ``pets.yaml`` shows, and read the study that it writes."""
    lines = Path("pets.yaml").read_text().splitlines()
    (swap,) = (line.removeprefix("#   ") for line in lines if line.startswith("#   sed"))
    subprocess.run(swap, shell=True, check=True)
    return load_study(["pets_mini.yaml"])


# --- from a folder to a study -----------------------------------------------------------------


def test_the_command_writes_a_study_that_check_and_plan_take(
    pets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pets / "resources").symlink_to(PROJECT / "resources")
    assert cli.main(["init", "pets", "--corpus", "corpus"]) == 0
    said = capsys.readouterr().out
    assert "2 classes (cat, dog) with 12 images each, 24 in all" in said
    assert "proposed: 6 training, 2 validation and 4 test images per class" in said
    assert "  augbench check --configfile pets.yaml\n" in said
    assert cli.main(["check", "--configfile", "pets.yaml"]) == 0
    assert "2 classes with 6 training, 2 validation and 4 test" in capsys.readouterr().out
    assert cli.main(["plan", "--configfile", "pets.yaml", "--gpu", "h200"]) == 0
    study = load_study(["pets.yaml"])
    assert [*study.methods] == ["none", "boomerang", "clip_prompts", "textual_inversion", "retrieval"]
    assert study.corpus.root == "corpus" and study.augmentation.images_per_training_image == 3


def test_the_command_in_the_file_writes_a_study_on_the_miniature(
    pets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pets / "resources").symlink_to(PROJECT / "resources")
    init_study("pets", "corpus")
    full, mini = load_study(["pets.yaml"]), on_the_miniature()
    assert mini.study == "pets_mini" and mini.diffusion.model == "resources/mini/stable-diffusion"
    assert full.dataset == mini.dataset and [*full.methods] == [*mini.methods]
    assert mini.methods["retrieval"].duplicate_threshold is None
    assert cli.main(["check", "--configfile", "pets_mini.yaml"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("here", [False, True])
def test_the_way_without_a_gpu_comes_first_if_there_is_none(
    pets: Path, monkeypatch: pytest.MonkeyPatch, here: bool
) -> None:
    monkeypatch.setattr(command, "gpu_is_here", lambda: here)
    said = init_study("pets", "corpus")
    place = {name: said.index(f"  augbench run --configfile {name}.yaml") for name in ("pets", "pets_mini")}
    assert (place["pets"] < place["pets_mini"]) == here
    edited = next(number for number, line in enumerate(said) if "First edit it" in line)
    assert edited < min(place.values()) and "  sed " in said[place["pets_mini"] - 1]
    assert not any("--corpus" in line for line in said)


def test_few_lines_of_the_file_are_decisions(pets: Path) -> None:
    init_study("pets", "corpus")
    lines = (pets / "pets.yaml").read_text().splitlines()
    decisions = [place for place, line in enumerate(lines) if "DECIDE:" in line]
    assert len(decisions) == 4 and sum(len(lines[place].split()) for place in decisions) < 80


def test_without_a_corpus_output_and_file_say_what_to_give(pets: Path) -> None:
    said = "\n".join(init_study("pets"))
    assert (
        "no --corpus: the rows of retrieval are comments; to have them, delete pets.yaml and run init" in said
    )
    study = load_study(["pets.yaml"])
    assert study.corpus is None and "retrieval" not in study.methods
    text = (pets / "pets.yaml").read_text()
    for line in ("# corpus: {kind: image_folder", "# retrieval: ", "# - {row: retrieval, against: none}"):
        text = text.replace(line, line.removeprefix("# "))
    (pets / "pets.yaml").write_text(text)
    study = load_study(["pets.yaml"])
    assert "retrieval" in study.methods and study.report.contrasts[-1].row == "retrieval"


def test_with_enough_images_the_study_has_twice_the_real_data_and_may_have_draws(
    pets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for first, name in enumerate(("cat", "dog")):
        write_images(pets / "x" / name, numbered(121), 200 * first)
    study = written("x")
    assert study.methods["real_2x"].split == "train2x" and study.report.contrasts[0].row == "real_2x"
    text = (pets / "x.yaml").read_text()
    (pets / "x.yaml").write_text(text.replace("# draws: 5", "draws: 5"))
    assert cli.main(["check", "--configfile", "x.yaml"]) == 0
    assert "2 classes with 31 training, 25 validation and 31 test images" in capsys.readouterr().out


def test_a_file_is_never_overwritten(pets: Path) -> None:
    (pets / "pets.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"^pets\.yaml: there is such a file; allowed: another file, with"):
        init_study("pets")
    init_study("pets", to="studies/other.yaml")
    assert (pets / "pets.yaml").read_text() == "mine" and load_study(["studies/other.yaml"]).study == "other"


def test_names_with_spaces_and_mixed_sizes_are_fine(pets: Path) -> None:
    folder = (pets / "pets").rename(pets / "My pets: 2, #1")
    (folder / "cat").rename(folder / "tabby cat # full")
    noise(5, side=40).resize((90, 40)).save(folder / "dog/000.png")
    study = written(str(folder.relative_to(pets)))
    assert study.study == "my_pets_2_1" and study.dataset.root == "My pets: 2, #1"
    text = (pets / "my_pets_2_1.yaml").read_text()
    assert "images 16 to 90 pixels wide and 16 to 40 high, shorter side 16 to 40 (median 16)" in " ".join(
        text.replace("#", " ").split()
    )
    assert study.classifier.resolution == 32 and study.classifier.stem == "small"


def test_all_that_is_left_out_is_said(pets: Path) -> None:
    (pets / "pets/cat/notes.txt").write_text("")
    write_images(pets / "pets/dog/more", ["a.png"])
    said = "\n".join(init_study("pets"))
    assert "1 left out, a folder in a class folder: dog/more" in said
    assert "1 left out, no suffix of an image: cat/notes.txt" in said


def test_a_long_list_of_classes_is_cut(pets: Path) -> None:
    for number in range(30):
        write_images(pets / f"pets/kind {number:02d}", numbered(3), 50 * number)
    init_study("pets")
    text = " ".join((pets / "pets.yaml").read_text().replace("#", " ").split())
    assert "32 classes (cat, dog, kind 00, kind 01," in text and "kind 07 and 22 more)" in text


def test_class_names_that_differ_by_case_alone_are_not_learned_as_words(pets: Path) -> None:
    (pets / "pets/dog").rename(pets / "pets/Cat")
    assert "textual_inversion" not in written().methods


# --- layouts --------------------------------------------------------------------------------


def test_given_splits_are_found_whatever_they_are_called(pets: Path) -> None:
    for split, first in (("Train", 0), ("valid", 500), ("test", 900)):
        for name in ("cat", "dog"):
            first += 50
            write_images(pets / "x" / split / name, numbered(9), first)
    dataset = written("x").dataset
    given = (dataset.train_folder, dataset.validation_folder, dataset.test_folder)
    assert given == ("Train", "valid", "test")


def test_one_given_split_is_the_test_split_and_images_without_labels_are_not_used(pets: Path) -> None:
    for split, first in (("train", 0), ("val", 500)):
        for name in ("cat", "dog"):
            first += 50
            write_images(pets / "x" / split / name, numbered(9), first)
    write_images(pets / "x/test", numbered(4))
    dataset = written("x").dataset
    assert (dataset.validation_folder, dataset.test_folder) == (None, "val")
    text = " ".join((pets / "x.yaml").read_text().split())
    assert "test has no class folders and no labels, so it is not used" in text


def test_imagenets_flat_validation_folder_is_found_with_kaggles_labels(pets: Path) -> None:
    wnids = ("n01440764", "n01443537")
    inside = pets / "x/ILSVRC/Data/CLS-LOC"
    for number, wnid in enumerate(wnids):
        write_images(inside / "train" / wnid, numbered(9), 50 * number)
    write_images(inside / "val", ["a.JPEG", "b.JPEG"], 900)
    rows = "".join(f"{image},{wnid} 1 1 2 2\n" for image, wnid in zip("ab", wnids, strict=True))
    (pets / "x/LOC_val_solution.csv").write_text(f"ImageId,PredictionString\n{rows}")
    dataset = written("x").dataset
    assert dataset.train_folder == "ILSVRC/Data/CLS-LOC/train"
    assert (dataset.test_folder, dataset.test_labels) == (
        "ILSVRC/Data/CLS-LOC/val",
        "LOC_val_solution.csv",
    )
    text = " ".join((pets / "x.yaml").read_text().replace("#", " ").split())
    assert "(n01440764, n01443537) are numbers, which mean nothing in a prompt" in text
    assert "copy its header and their lines to x_classes.tsv" in text


def test_imagenets_thousand_folders_get_its_class_table(pets: Path) -> None:
    lines = (PROJECT / "resources/classes/imagenet.tsv").read_text(encoding="utf-8").splitlines()
    wnids = [line.partition("\t")[0] for line in lines if line.startswith("n0") or line.startswith("n1")]
    assert len(wnids) == 1000
    image = pets / "pets/cat/000.png"
    for wnid in wnids:
        for split, number in (("train", 2), ("val", 1)):
            folder = pets / "x" / split / wnid
            folder.mkdir(parents=True)
            for name in numbered(number):
                (folder / name).hardlink_to(image)
    study = written("x")
    assert study.dataset.classes == "imagenet" and study.dataset.train_fraction == 0.5


def test_a_folder_in_a_folder_is_looked_through(pets: Path) -> None:
    (pets / "x").mkdir()
    (pets / "pets").rename(pets / "x/images")
    assert written("x").dataset.root == "x/images"


def test_parquet_files_are_read_with_their_columns_and_splits(pets: Path) -> None:
    def write(path: Path, labels: list[int]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = [
            {"bytes": (pets / f"pets/cat/{row % 12:03d}.png").read_bytes()} for row in range(len(labels))
        ]
        table = pa.table({"img": content, "fine_label": labels})
        features = {"fine_label": {"names": ["hot dog", "pear"], "_type": "ClassLabel"}}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        pq.write_table(table.replace_schema_metadata(metadata), path)

    write(pets / "x/data/train-00000-of-00001.parquet", [0, 1] * 10)
    write(pets / "x/data/validation-00000-of-00001.parquet", [0, 1])
    write(pets / "x/data/test-00000-of-00001.parquet", [-1, -1])
    dataset = written("x").dataset
    assert isinstance(dataset, ParquetImages)
    assert (dataset.image_column, dataset.label_column) == ("img", "fine_label")
    assert (dataset.train_split, dataset.validation_split, dataset.test_split) == (
        "train",
        None,
        "validation",
    )
    assert "the split test has no labels" in (pets / "x.yaml").read_text()
    assert "2 classes (hot dog, pear) with 10 images each" in (pets / "x.yaml").read_text()


def test_a_folder_without_class_folders_is_one_error(pets: Path) -> None:
    with pytest.raises(UserError, match=r"^dataset\.root: 'corpus/x' has 12 images and 0 folders without im"):
        init_study("corpus/x")
    with pytest.raises(UserError, match=r"^dataset\.root: 'nowhere', no such folder; allowed: a folder with"):
        init_study("nowhere")
    assert not [*pets.glob("*.yaml")]


# --- corpora ----------------------------------------------------------------------------------


def test_a_corpus_with_the_data_sets_images_is_an_error(pets: Path) -> None:
    for corpus in ("pets", ".", "pets/cat"):
        with pytest.raises(UserError, match=r"^--corpus: .* are not apart; allowed: a folder without"):
            init_study("pets", corpus)


def test_embeddings_are_a_corpus_that_the_miniature_cannot_search(pets: Path) -> None:
    (pets / "laion/img_emb").mkdir(parents=True)
    np.save(pets / "laion/img_emb/img_emb_0.npy", np.zeros((2, 4), np.float16))
    study = written("pets", "laion")
    assert study.corpus.kind == "embeddings" and study.corpus.clip == study.clip.model
    assert "retrieval" in study.methods
    mini = on_the_miniature()
    assert mini.corpus is None and "retrieval" not in mini.methods


def test_a_corpus_that_is_too_small_may_fall_short(pets: Path) -> None:
    write_images(pets / "few", numbered(3), 2000)
    assert written("pets", "few").methods["retrieval"].may_fall_short
    (pets / "pets.yaml").unlink()
    assert not written("pets", "corpus").methods["retrieval"].may_fall_short


# --- sizes of the splits ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "keys", "twice", "train"),
    [
        # room for 100 + 100 more + 100 for validation + half for the test
        (counts(600, 700), {"shots": 100}, True, [100, 100]),
        (counts(599, 700), {"shots": 95}, True, [95, 95]),
        (counts(300, 5000, test=50), {"shots": 100}, True, [100, 100]),
        (counts(299, 5000, test=50), {"shots": 95}, True, [95, 95]),
        (counts(300, 300, validation=60, test=50), {"shots": 100, "validation_shots": 60}, True, [100, 100]),
        # a quarter for training, and as much again
        (
            counts(120, 160),
            {"train_fraction": 0.25, "validation_fraction": 0.2, "test_fraction": 0.25},
            True,
            [30, 40],
        ),
        # too few for twice the real images
        (
            counts(12, 30),
            {"train_fraction": 0.5, "validation_fraction": 0.2, "test_fraction": 0.3},
            False,
            [6, 15],
        ),
        (counts(20, 20, test=5), {"train_fraction": 0.7, "validation_fraction": 0.3}, False, [14, 14]),
        (counts(20, 9, validation=4, test=5), {"train_fraction": 0.99}, False, [20, 9]),
        # the least that is possible
        (
            counts(3, 4),
            {"train_fraction": 0.33, "validation_fraction": 0.33, "test_fraction": 0.33},
            False,
            [1, 2],
        ),
    ],
)
def test_the_sizes_leave_room_for_all_splits(
    classes: list[ClassCounts], keys: dict[str, float], twice: bool, train: list[int]
) -> None:
    layout = dict(FOLDERS)
    if classes[0].test is not None:
        layout["test_folder"] = "test"
    if classes[0].validation is not None:
        layout["validation_folder"] = "val"
    proposal = propose_sizes(layout, classes)
    assert (proposal.keys, proposal.twice, proposal.images("train")) == (keys, twice, train)


def test_shares_keep_a_class_that_is_much_smaller_than_the_others() -> None:
    proposal = propose_sizes(FOLDERS, counts(1000, 1000, 40))
    assert proposal.keys["train_fraction"] == 0.07 and proposal.images("train") == [70, 70, 3]


def test_very_many_test_images_are_cut() -> None:
    proposal = propose_sizes(FOLDERS, counts(*[6000] * 10))
    assert proposal.keys["test_images_per_class"] == 2500 and proposal.images("test") == [2500] * 10


def test_classes_with_too_few_images_are_named_in_one_error(pets: Path) -> None:
    write_images(pets / "pets/hot dog", numbered(2), 700)
    expected = (
        r"^pets: 1 of 3 classes have too few images for training, validation and test: 'hot dog' \(2\);"
        r" allowed: at least 3 images per class"
    )
    with pytest.raises(UserError, match=expected):
        init_study("pets")


# --- texts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["pets", "a b", "12", "no", "~/x", "a: b", "a, b}", "it's", '"', "Übel", "-", "2012-01-01", "a\nb"],
)
def test_a_text_is_read_as_it_was_written(text: str) -> None:
    assert yaml.safe_load(f"{{a: {value_text(text)}, b: 1}}") == {"a": text, "b": 1}


@pytest.mark.parametrize(
    ("folder", "name"), [("My birds (2)", "my_birds_2"), ("Käfer", "kafer"), ("鳥", "study"), ("a/b/", "b")]
)
def test_a_study_is_named_after_its_folder(folder: str, name: str) -> None:
    assert study_name(folder) == name


def test_the_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["init", "--help"])
    assert "augbench init data/birds --corpus data/web_images" in capsys.readouterr().out


def test_a_data_set_is_looked_at_without_torch(pets: Path) -> None:
    code = (
        "import sys; from augbench import cli; cli.main(['init', 'pets']);"
        " assert not {'torch', 'pandas', 'transformers', 'scipy', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=pets)


def test_damaged_images_are_counted(pets: Path) -> None:
    (pets / "pets/cat/000.png").write_bytes(b"<html>")
    assert "1 more can't be read" in "\n".join(init_study("pets"))
    for image in (pets / "pets").glob("*/*"):
        image.write_bytes(b"")
    with pytest.raises(UserError, match="none of 24 images can be read"):
        init_study("pets", to="other.yaml")


def test_a_check_without_a_config_says_that_it_is_the_demo(
    pets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["check"]) == 1, "there is no demo in this folder"
    assert capsys.readouterr().out == "no --configfile: this is the demo, config/demo.yaml\n"
