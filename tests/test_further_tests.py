"""Test sets of other distributions: which classes they have, their images, their scores and their tables."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import SMALL_STUDY, Workspace, numbered, write_images
from PIL import Image
from safetensors.torch import save_file

from augbench.artifacts.store import open_store
from augbench.classifier import score as scoring
from augbench.classifier.compute import Compute
from augbench.classifier.images import LabelledImages
from augbench.classifier.model import build
from augbench.classifier.score import SCHEMA, score_test
from augbench.commands.check.study import check_study
from augbench.commands.plan.estimate import estimate_study
from augbench.config.data import FolderTest
from augbench.config.study import Study, merge, parse_study
from augbench.data import fashion_mnist
from augbench.data.classes import SHIPPED_TABLES, ClassInfo, load_class_table, write_class_table
from augbench.data.splits import Split
from augbench.errors import UserError
from augbench.further.corruptions import SEVERITIES, corrupt
from augbench.further.folders import scan_folder, write_manifest
from augbench.further.images import images_of
from augbench.further.stage import score_further
from augbench.leakage.records import SCHEMA as LEAKS
from augbench.plan import recipes
from augbench.plan.paths import Plan
from augbench.report.figures.forest import draw
from augbench.report.figures.further_tests import write_figures
from augbench.report.render import render_csv
from augbench.report.tables.further_tests import (
    ORDINARY,
    near_duplicates,
    read_rows,
    write_further_tests,
)
from augbench.report.tables.table1 import Row as TableRow
from augbench.report.tables.table1 import RunRow

# three classes of ImageNet, whose folders ImageNet-R, -A and -Sketch call by their wnids
BIRDS = (
    ClassInfo("n01440764", ("tench", "Tinca tinca")),
    ClassInfo("n02012849", ("crane",)),
    ClassInfo("n03126707", ("crane",)),
    ClassInfo("n07873807", ("pizza", "pizza pie")),
)
KEY = "dataset.further_tests.art"


def folder_of(root: Path, **test: Any) -> FolderTest:
    return FolderTest(kind="folder", root=str(root), **test)


def labels_in(test: FolderTest) -> dict[str, int]:
    """Label of every image by its id."""
    split = scan_folder(test, KEY, BIRDS).split
    return dict(zip(split.image_ids, split.labels.tolist(), strict=True))


# --- folders ------------------------------------------------------------------------------------------------


def test_a_set_may_have_a_subset_of_the_classes_in_folders_by_wnid(tmp_path: Path) -> None:
    write_images(tmp_path / "n03126707", ("b.jpg", "a.png"))
    write_images(tmp_path / "n01440764", ("c.png",))
    (tmp_path / "README.txt").write_text("as ImageNet-R has one")
    assert labels_in(folder_of(tmp_path)) == {
        "n01440764/c.png": 0,
        "n03126707/a.png": 2,
        "n03126707/b.jpg": 2,
    }


def test_folders_may_be_places_in_the_studys_class_table(tmp_path: Path) -> None:
    for name in ("3", "0", "02"):
        write_images(tmp_path / name, ("x.png",))
    assert labels_in(folder_of(tmp_path, folders="label_numbers", numbers_of="study")) == {
        "0/x.png": 0,
        "02/x.png": 2,
        "3/x.png": 3,
    }


def test_imagenet_v2s_numbers_are_places_among_all_1000_classes_in_a_study_of_four(tmp_path: Path) -> None:
    """Places in torchvision's order: tench 0, crane (bird) 134, crane (machine) 517, pizza 963."""
    for name in ("0", "1", "2", "3", "134", "517", "963", "999"):
        write_images(tmp_path / name, ("x.png",))
    test = folder_of(tmp_path, folders="label_numbers", numbers_of="imagenet")
    assert labels_in(test) == {"0/x.png": 0, "134/x.png": 1, "517/x.png": 2, "963/x.png": 3}
    left_out = {one.name: one.reason for one in scan_folder(test, KEY, BIRDS).left_out}
    assert left_out == dict.fromkeys(("1", "2", "3", "999"), "no class of the study")


def test_a_set_of_more_classes_than_the_study_has_is_used_as_it_is(tmp_path: Path) -> None:
    for name in ("n01440764", "n07873807", "n01443537", "n12998815"):
        write_images(tmp_path / name, ("x.png",))
    found = scan_folder(folder_of(tmp_path), KEY, BIRDS)
    assert found.split.labels.tolist() == [0, 3]
    assert sorted(one.name for one in found.left_out) == ["n01443537", "n12998815"]


def test_with_classes_no_other_folder_is_looked_at(tmp_path: Path) -> None:
    for name in ("Crane", "tench", "pizza", "no_class"):
        write_images(tmp_path / name, ("x.png",))
    (tmp_path / "empty").mkdir()
    test = folder_of(tmp_path, folders="class_names", classes=("n01440764", "n07873807"))
    assert labels_in(test) == {"tench/x.png": 0, "pizza/x.png": 3}
    assert {one.name for one in scan_folder(test, KEY, BIRDS).left_out} == {"Crane", "empty", "no_class"}


def test_tables_that_numbers_may_be_of_are_the_shipped_ones() -> None:
    allowed = get_args(get_args(FolderTest.model_fields["numbers_of"].annotation)[0])
    assert sorted(allowed) == sorted(["study", *SHIPPED_TABLES])


def test_folders_may_have_a_classs_names(tmp_path: Path) -> None:
    for name in ("Pizza_Pie", "tench"):
        write_images(tmp_path / name, ("x.png",))
    assert labels_in(folder_of(tmp_path, folders="class_names")) == {"tench/x.png": 0, "Pizza_Pie/x.png": 3}


def test_listed_classes_alone_are_scored(tmp_path: Path) -> None:
    for name in ("n01440764", "n02012849", "n07873807"):
        write_images(tmp_path / name, ("x.png",))
    test = folder_of(tmp_path, classes=("n07873807", "n01440764"))
    assert set(labels_in(test).values()) == {0, 3}
    (left_out,) = scan_folder(test, KEY, BIRDS).left_out
    assert left_out.name == "n02012849" and "does not list" in left_out.reason


BAD: dict[str, tuple[tuple[str, ...], dict[str, Any], str]] = {
    "unknown": (
        ("n01440764", "pizza", "cat"),
        {},
        r"art\.root: .* 1 folder\(s\) of classes of the study, and 2 others: cat, pizza; at least 2 .* class_ids, here n0",
    ),
    "number": (
        ("0", "1", "4"),
        {"folders": "label_numbers", "numbers_of": "study"},
        r"art\.root: .* 1 folders that are no number: 4; allowed: numbers from 0 to 3 of numbers_of: study",
    ),
    "number of ImageNet": (
        ("0", "134", "1000", "cat"),
        {"folders": "label_numbers", "numbers_of": "imagenet"},
        r"2 folders that are no number: 1000, cat; allowed: numbers from 0 to 999 of numbers_of: imagenet",
    ),
    "ambiguous": (
        ("crane", "tench", "pizza"),
        {"folders": "class_names"},
        r"several classes have: crane; allowed",
    ),
    "twice": (
        ("0", "00", "1"),
        {"folders": "label_numbers", "numbers_of": "study"},
        r"two folders of one class: '0' and '00'; allowed",
    ),
    "missing": (
        ("n01440764", "n02012849"),
        {"classes": ("n01440764", "n07873807", "n02012849")},
        r"art\.classes: no folder for 1 of 3 classes: n07873807; each listed class needs a folder",
    ),
    "not there": (
        ("n01440764", "n02012849"),
        {"classes": ("n1", "n01440764", "n02012849")},
        r"art\.classes: n1; al",
    ),
    "one class": (("n01440764",), {}, r"art\.root: .* has 1 folder\(s\) of classes of the study; at least 2"),
}


@pytest.mark.parametrize("name", BAD)
def test_folders_that_do_not_fit_are_one_clear_error(tmp_path: Path, name: str) -> None:
    folders, test, said = BAD[name]
    for folder in folders:
        write_images(tmp_path / folder, ("x.png",))
    with pytest.raises(UserError) as caught:
        scan_folder(folder_of(tmp_path, **test), KEY, BIRDS)
    assert re.search(said, str(caught.value)) and "\n" not in str(caught.value), str(caught.value)


def test_an_empty_class_folder_and_a_missing_root_are_errors(tmp_path: Path) -> None:
    for name in ("n01440764", "n02012849"):
        write_images(tmp_path / name, ("x.png",))
    (tmp_path / "n07873807").mkdir()
    with pytest.raises(UserError, match=r"n07873807: 0 images; a class folder needs images"):
        scan_folder(folder_of(tmp_path), KEY, BIRDS)
    with pytest.raises(UserError, match=r"dataset\.further_tests\.art\.root: .*no such folder"):
        scan_folder(folder_of(tmp_path / "nowhere"), KEY, BIRDS)


# --- images -------------------------------------------------------------------------------------------------


def garments(**tests: Any) -> Study:
    changes = {"dataset": {"classes": "fashion_mnist", "further_tests": tests}}
    return parse_study(merge(SMALL_STUDY, changes))


def test_corruptions_are_those_of_imagenet_c() -> None:
    grey = Image.new("RGB", (64, 48), (100, 100, 100))
    noisy = np.asarray(corrupt(grey, "gaussian_noise", 1, 0), dtype=float)
    assert noisy.std() == pytest.approx(0.08 * 255, rel=0.03) and noisy.mean() == pytest.approx(100, abs=1)
    halves = Image.fromarray(
        np.repeat(np.array([[0, 200]], np.uint8), 32, axis=1)[..., None].repeat(3, 2).repeat(64, 0)
    )
    assert sorted(np.unique(np.asarray(corrupt(halves, "contrast", 3, 0)))) == [80, 120], (
        "a fifth, around the mean"
    )
    blurred = np.asarray(corrupt(halves, "gaussian_blur", 5, 0), dtype=float)[32, :, 0]
    sigma = 6 * 64 / 224
    rise = np.diff(blurred) / 200
    assert np.sqrt((rise * (np.arange(63) - 31) ** 2).sum()) == pytest.approx(sigma, rel=0.05)
    assert corrupt(Image.new("RGB", (600, 512)), "contrast", 1, 0).size == (300, 256)
    assert {len(values) for values in SEVERITIES.values()} == {5}


@pytest.mark.parametrize(
    "test",
    [
        {"kind": "web_style", "shift": "strong"},
        {"kind": "web_style", "shift": "none"},
        {"kind": "corrupted", "corruption": "gaussian_noise"},
        {"kind": "corrupted", "corruption": "gaussian_blur", "severity": 5},
    ],
)
def test_an_image_depends_on_its_id_alone(
    garment_files: Path, monkeypatch: pytest.MonkeyPatch, test: dict[str, Any]
) -> None:
    study = garments(x=test)
    study = study.model_copy(
        update={"dataset": study.dataset.model_copy(update={"downloads": str(garment_files)})}
    )
    ids = [f"test-{number:05d}" for number in (3, 400, 9999)]
    split = Split(ids, ["bag"] * 3, np.zeros(3, np.int32), ids)
    together = [np.asarray(image) for image in images_of(study, "x", split)(range(3))]
    apart = [np.asarray(next(images_of(study, "x", split)([place]))) for place in (2, 1, 0)][::-1]
    assert all(np.array_equal(one, other) for one, other in zip(together, apart, strict=True))
    ordinary = [np.asarray(image) for image in images_of(study, "test", split)(range(3))]
    same = test.get("shift") == "none"
    assert all(np.array_equal(one, other) == same for one, other in zip(together, ordinary, strict=True))
    again = study.model_copy(update={"seed": 1})
    other_seed = np.asarray(next(images_of(again, "x", split)([0])))
    assert np.array_equal(other_seed, together[0]) == (same or test.get("corruption") == "gaussian_blur")


# --- scores -------------------------------------------------------------------------------------------------


def images_labelled(labels: list[int]) -> LabelledImages:
    blank = [Image.new("RGB", (32, 32))] * len(labels)
    return LabelledImages([f"{i}" for i in range(len(labels))], labels, lambda rows: blank[rows], "art")


def test_absent_classes_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits by hand: the best of all four classes is 1, which the set lacks."""
    logits = torch.tensor([[1.0, 9.0, 0.0, 2.0], [3.0, 9.0, 0.0, 2.0], [0.0, 9.0, 8.0, 2.0]])
    monkeypatch.setattr(scoring, "logits_on", lambda *_: logits)
    study = garments()
    state = build(study.classifier, 4, 0).state_dict()
    kept = np.array([0, 2, 5, 7])
    found = score_test(
        state, study.classifier, kept, images_labelled([3, 3, 0]), Compute(torch.device("cpu"))
    )
    assert found.column("predicted").to_pylist() == [7, 0, 7], "of classes 0 and 3, labels 0 and 7"
    assert found.column("label").to_pylist() == [7, 7, 0]
    odds = found.column("probability").to_pylist()
    assert odds == pytest.approx([1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1)), 1 / (1 + np.exp(2))], rel=1e-5)
    logits = torch.eye(4)[[1, 1, 2, 0]]
    full = score_test(
        state, study.classifier, kept, images_labelled([0, 1, 2, 3]), Compute(torch.device("cpu"))
    )
    assert full.column("predicted").to_pylist() == [2, 2, 5, 0], "nothing is masked where all classes are"


def test_finished_classifiers_are_scored_once_and_nothing_else_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("n01440764", "n07873807")):
        write_images(tmp_path / "art" / name, numbered(3), 10 * number)
    study = merge(SMALL_STUDY, {"dataset": {"further_tests": {"art": {"kind": "folder", "root": "art"}}}})
    study = parse_study(study).unfolded
    plan, store = Plan(study, ()), open_store(study)
    write_manifest(study, "art", BIRDS, plan.further_split("art"))
    write_class_table(BIRDS, plan.classes)
    runs = [("none", "0"), ("none", "1")]
    models = {run: plan.run_files(*run)[3] for run in runs}
    for seed, path in enumerate(models.values()):
        Path(path).parent.mkdir(parents=True)
        save_file(build(study.classifier, len(BIRDS), seed).state_dict(), path)
    outs = {run: f"further/{run[1]}.parquet" for run in runs}
    args = ("art", plan.further_split("art"), plan.classes, models, outs)
    score_further(study, store, *args)
    found = [pq.read_table(path) for path in outs.values()]
    assert [table.schema for table in found] == [SCHEMA, SCHEMA]
    assert found[0].column("label").to_pylist() == [0, 0, 0, 3, 3, 3]
    assert all(set(table.column("predicted").to_pylist()) <= {0, 3} for table in found)
    assert found[0].column("probability") != found[1].column("probability")
    assert store.tally.made == 2

    (tmp_path / "art/n01440764/000.png").write_bytes(b"no image")
    score_further(study, open_store(study), *args)  # from the store, without the images
    with pytest.raises(UserError, match=r"art/n01440764/000\.png"):
        save_file(build(study.classifier, len(BIRDS), 2).state_dict(), models["none", "1"])
        score_further(study, open_store(study), *args)


def test_accuracy_on_a_tree_with_absent_classes_is_right_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    """Logits of four images in a study of four classes; the best is often 1 or 2, which the tree lacks."""
    monkeypatch.chdir(tmp_path)
    for name in ("n01440764", "n07873807", "n01443537"):  # labels 0 and 3, and no class of the study
        write_images(tmp_path / "art" / name, numbered(2))
    study = merge(SMALL_STUDY, {"dataset": {"further_tests": {"art": {"kind": "folder", "root": "art"}}}})
    study = parse_study(study).unfolded
    plan = Plan(study, ())
    write_manifest(study, "art", BIRDS, plan.further_split("art"))
    write_class_table(BIRDS, plan.classes)
    logits = torch.tensor(
        [[2.0, 9, 0, 1], [0, 9, 8, 1], [5, 9, 9, 4], [-7, 9, 9, -6]]  # 0 (right), 3, 0 (wrong), 3 (right)
    )
    monkeypatch.setattr(scoring, "logits_on", lambda *_: logits)
    model = plan.run_files("none", "0")[3]
    Path(model).parent.mkdir(parents=True)
    save_file(build(study.classifier, len(BIRDS), 0).state_dict(), model)
    run, out = ("none", "0"), "further.parquet"
    score_further(
        study, open_store(study), "art", plan.further_split("art"), plan.classes, {run: model}, {run: out}
    )
    found = pq.read_table(out)
    assert found.column("label").to_pylist() == [0, 0, 3, 3]
    assert found.column("predicted").to_pylist() == [0, 3, 0, 3]
    assert scoring.top1(found) == 0.5, "without the mask it would be 0"


# --- plan ---------------------------------------------------------------------------------------------------

TESTS = {
    "art": {"kind": "folder", "root": "art"},
    "noise": {"kind": "corrupted", "corruption": "gaussian_noise"},
}


def test_further_tests_are_in_no_recipe_and_no_file_of_other_jobs() -> None:
    plain, more = garments(), garments(**TESTS)
    assert recipes.config_recipe(plain) != recipes.config_recipe(more)
    for recipe in (
        *(recipes.table_recipe, recipes.splits_recipe, recipes.classes_recipe, recipes.leakage_recipe),
        *(recipes.diagnostics_recipe, recipes.statistics_recipe, recipes.latents_recipe),
        *(recipes.data_set_recipe, recipes.leakage_table_recipe, recipes.learning_curves_recipe),
    ):
        assert recipe(plain) == recipe(more), recipe
    for recipe in (recipes.figure_data_recipe, recipes.report_images_recipe):
        assert recipe(plain, ["none"]) == recipe(more, ["none"])
    assert recipes.classifier_recipe(plain, "none") == recipes.classifier_recipe(more, "none")
    before, after = Plan(plain, ("a", "b")), Plan(more, ("a", "b"))
    assert before.splits == after.splits and before.leakage_table == after.leakage_table
    new = {path for job in after.report_jobs for path in job} - {
        path for job in before.report_jobs for path in job
    }
    assert new == {after.path(f"tables/further_tests.{kind}") for kind in ("csv", "md", "txt")} | {
        after.path(f"figures/further_{name}.{kind}") for name in TESTS for kind in ("pdf", "png")
    }
    assert not before.further_table and not before.further_figures and not before.all_further_leaks


def test_corrupted_images_need_no_manifest_and_folders_have_one_of_their_own() -> None:
    plan = Plan(garments(**TESTS), ("a", "b"))
    assert plan.further_split("noise") == plan.splits["test"]
    assert plan.further_split("art").endswith("splits/further/art.parquet")


def test_every_draw_is_scored_and_their_predictions_stand_draw_by_draw() -> None:
    study = copy.deepcopy(SMALL_STUDY)
    study["dataset"] |= {"draws": 2, "further_tests": TESTS}
    plan = Plan(parse_study(study), ("a", "b"))
    assert len(plan.models) == 2 * 2 * len(study["methods"]) == len(plan.further_predictions("art"))
    assert plan.models == plan.unfolded.models
    own = plan.further_predictions_of("art", "imagic_k2")
    assert [path.split("further_tests/art/")[1] for path in own] == [
        *("imagic_k2/0.parquet", "imagic_k2/1.parquet"),
        *("imagic_k2_draw1/0.parquet", "imagic_k2_draw1/1.parquet"),
    ]
    assert set(own) <= set(plan.further_predictions("art"))


def test_the_estimate_counts_scoring_jobs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    steps = {step.method: step for step in estimate_study(garments(**TESTS)).steps if step.stage == "score"}
    assert {name: (step.jobs, step.jobs_done) for name, step in steps.items()} == {
        "art": (3, 0),
        "noise": (2, 0),
    }
    assert steps["noise"].images == 200 and steps["noise"].gpu_hours > 0
    assert not [step for step in estimate_study(garments()).steps if step.stage == "score"]


@pytest.mark.parametrize(
    ("name", "test", "said"),
    [
        ("Art", {"kind": "web_style"}, "further_tests.Art: {'kind': 'web_style'}; allowed: a name of a-z"),
        ("test", {"kind": "web_style"}, "further_tests.test: {'kind': 'web_style'}; allowed: a name of a-z"),
        (
            "art",
            {"kind": "files"},
            "further_tests.art.kind: 'files'; allowed: 'folder', 'web_style', 'corrupted'",
        ),
        ("art", {"kind": "corrupted", "corruption": "snow"}, "further_tests.art.corruption: 'snow'; allowed"),
        (
            "art",
            {"kind": "corrupted", "corruption": "contrast", "severity": 6},
            "further_tests.art.severity: 6; allowed",
        ),
        (
            "v2",
            {"kind": "folder", "root": "v2", "folders": "label_numbers"},
            "further_tests.v2: {'kind': 'folder', 'root': 'v2', 'folders': 'label_numbers'}; numbers_of: needed",
        ),
        (
            "v2",
            {"kind": "folder", "root": "v2", "numbers_of": "imagenet"},
            "further_tests.v2.numbers_of: 'imagenet'; goes with folders: label_numbers",
        ),
    ],
)
def test_a_bad_key_is_one_clear_error(name: str, test: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"dataset.{said}")):
        garments(**{name: test})


def test_the_webs_style_is_for_garments() -> None:
    dataset = {"kind": "image_folder", "root": "x", "further_tests": {"web": {"kind": "web_style"}}}
    with pytest.raises(
        UserError, match=r"further_tests\.web\.kind: 'web_style'; allowed only with kind: fash"
    ):
        parse_study({**SMALL_STUDY, "dataset": dataset})


# --- check --------------------------------------------------------------------------------------------------


def check(folder: Path, **further: Any) -> list[str]:
    dataset = {"kind": "image_folder", "root": "pets", "train_fraction": 0.5, "further_tests": further}
    rows = {"none": {"mechanism": "real"}, "found": {"mechanism": "retrieve", "images_per_class": 6}}
    study = {
        **SMALL_STUDY,
        "dataset": dataset,
        "methods": rows,
        "corpus": {"kind": "image_folder", "root": "corpus"},
    }
    return check_study(parse_study(study), models=False, verify_images=True)


def test_the_check_counts_the_images_and_finds_what_is_damaged_or_elsewhere(pets: Path) -> None:
    for number, name in enumerate(("cat", "dog")):
        write_images(pets / "art" / name, numbered(6), 5000 + 100 * number)
    art = {"kind": "folder", "root": "art"}
    assert "dataset.further_tests.art: 12 images of 2 of 2 classes" in check(pets, art=art)
    write_images(pets / "corpus/y", numbered(6), 5000)
    assert any("are copies of images of art" in note for note in check(pets, art=art))
    (pets / "art/cat/000.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"art/cat/000\.png"):
        check(pets, art=art)
    with pytest.raises(UserError, match=r"further_tests\.own\.root: .* files of the training images"):
        check(pets, own={"kind": "folder", "root": "pets"})
    with pytest.raises(UserError, match=r"further_tests\.gone\.root: 'gone', no such folder"):
        check(pets, gone={"kind": "folder", "root": "gone"})


# --- table --------------------------------------------------------------------------------------------------

LABELS = [0, 0, 1, 1]  # of the ordinary test images; the set has the first three, of two classes
HITS = {  # by row and run: ordinary test images, and those of the set
    ("none", 0): ([1, 0, 1, 0], [1, 0, 0]),
    ("none", 1): ([1, 1, 1, 0], [1, 1, 0]),
    ("retrieval", 0): ([1, 1, 1, 0], [1, 1, 1]),
    ("retrieval", 1): ([1, 1, 1, 1], [1, 1, 1]),
}


def write_predictions(path: str, hits: list[int]) -> None:
    labels = LABELS[: len(hits)]
    rows = [
        {"image_id": str(i), "label": label, "predicted": label if hit else 1 - label, "probability": 0.5}
        for i, (label, hit) in enumerate(zip(labels, hits, strict=True))
    ]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)


@pytest.fixture
def scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """A study of two rows and two runs with predictions on the set ``art``, and its Table 1."""
    monkeypatch.chdir(tmp_path)
    study = copy.deepcopy(SMALL_STUDY)
    study["methods"] = {name: study["methods"][name] for name in ("none", "retrieval")}
    study["dataset"]["further_tests"] = {"art": TESTS["art"]}
    plan = Plan(parse_study(study), ())
    runs = []
    for (method, run), (ordinary, further) in HITS.items():
        write_predictions(plan.predictions(method)[run], ordinary)
        write_predictions(plan.further_predictions_of("art", method)[run], further)
        runs.append(RunRow(method, run, 100 * np.mean(ordinary), 50.0, 1, 1, 5, 0, 5, 4))
    families = {"none": "real", "retrieval": "retrieval"}
    table = [
        TableRow(name, name, family, "train", 75.0, 0.0, 2, 5, 0, None, None, None)
        for name, family in families.items()
    ]
    Path(plan.path("tables")).mkdir()
    Path(plan.table1["csv"]).write_text(render_csv(table))
    Path(plan.table1["runs"]).write_text(render_csv(runs))
    pairs = [
        {**dict.fromkeys(LEAKS.names), "method": "retrieval", "class_id": "a", "index": i, "split": "art",
         "image_id": image}
        for i, image in ((0, "0"), (0, "1"), (4, "1"))
    ]  # fmt: skip
    leaks = Path(plan.further_leaks("art")["retrieval"])
    leaks.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(pairs, schema=LEAKS), leaks)
    return plan


def test_the_table_has_the_accuracy_and_the_gain_on_each_set_beside_the_ordinary_test(scored: Plan) -> None:
    write_further_tests(scored, scored.table1["csv"], scored.table1["runs"], scored.further_table)
    rows = {(row.test, row.method): row for row in read_rows(scored.further_table["csv"])}
    assert list(rows) == [(test, name) for test in (ORDINARY, "art") for name in ("none", "retrieval")]
    here, base = rows["art", "retrieval"], rows["art", "none"]
    assert (here.mean_percent, here.n_test, here.classes, here.n) == (100.0, 3, 2, 2)
    assert base.mean_percent == pytest.approx(50.0), "a third and two thirds"
    assert here.baseline_points == pytest.approx(50.0)
    # differences of the two runs: 66.7 and 33.3; t with one degree of freedom: 12.706
    assert here.baseline_high == pytest.approx(50 + 12.706 * (100 / 3) / np.sqrt(2) / np.sqrt(2), abs=0.01)
    assert rows[ORDINARY, "retrieval"].baseline_points == pytest.approx(25.0)
    # 66.7 - 25 and 33.3 - 25
    assert here.more_points == pytest.approx(25.0)
    assert here.more_high == pytest.approx(25 + 12.706 * (100 / 3) / 2, abs=0.01)
    assert rows[ORDINARY, "retrieval"].more_points is None and base.more_points is None
    assert (here.near_added, here.near_images) == (2, 2) and base.near_added is None
    text = " ".join(Path(scored.further_table["txt"]).read_text().split())
    assert "Near-duplicates of art among the added images (counted, never dropped): retrieval 2 (of 2" in text
    assert "art: the images in art, 3 images of 2 classes" in text
    header, _, none, retrieval = Path(scored.further_table["md"]).read_text().splitlines()[:4]
    assert header == "| Method | n | test (%) | Difference | art (%) | Difference |"
    assert none.startswith("| none | 2 | 62.5 ") and none.endswith(" | - |")
    assert "| 87.5 " in retrieval and "| +25.0 " in retrieval and "| +50.0 " in retrieval


def test_near_duplicates_of_a_mixture_are_those_of_all_its_pools_and_of_a_choice_those_of_the_chosen_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = copy.deepcopy(SMALL_STUDY)
    study["dataset"]["further_tests"] = {"art": TESTS["art"]}
    kept = {name: study["methods"][name] for name in ("none", "clip_prompts", "retrieval")}
    mixed = {"mechanism": "draw", "pools": {"clip_prompts": 0.5, "retrieval": 0.5}}
    best = {"mechanism": "choose", "among": ["clip_prompts", "retrieval"]}
    study["methods"] = {**kept, "mixed": mixed, "best": best}
    plan = Plan(parse_study(study), ())
    leaks = plan.further_leaks("art")
    found = {"clip_prompts": [(0, "x"), (1, "x")], "retrieval": [(0, "x"), (0, "y"), (1, "z")]}
    for row, pairs in found.items():
        table = [
            {**dict.fromkeys(LEAKS.names), "method": row, "class_id": "a", "index": i, "split": "art",
             "image_id": image}
            for i, image in pairs
        ]  # fmt: skip
        Path(leaks[row]).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(table, schema=LEAKS), leaks[row])
    Path(plan.selected("best")).parent.mkdir(parents=True)
    Path(plan.selected("best")).write_text(json.dumps({"selected": "retrieval"}))
    near = near_duplicates(plan, "art", leaks)
    assert near == {"clip_prompts": (2, 1), "retrieval": (2, 3), "mixed": (4, 3), "best": (2, 3)}
    assert near_duplicates(plan, "art", {}) == {}


def test_runs_of_a_draw_are_averaged_on_further_sets_too(scored: Plan) -> None:
    dataset = scored.study.dataset.model_copy(update={"draws": 2})
    one = scored.study.augmentation.model_copy(update={"resamples": 1})
    plan = Plan(scored.study.model_copy(update={"dataset": dataset, "augmentation": one}), ())
    for (method, number), hits in HITS.items():
        write_predictions(plan.predictions(method)[number], hits[0])
        write_predictions(plan.further_predictions_of("art", method)[number], hits[1])
    rows = write_further_tests(plan, plan.table1["csv"], plan.table1["runs"], {})
    assert [(row.n, row.mean_percent) for row in rows if row.test == "art"] == [
        (2, pytest.approx(50.0)),
        (2, 100.0),
    ]


def test_a_forest_plot_of_each_set_marks_the_ordinary_test(scored: Plan) -> None:
    write_further_tests(scored, scored.table1["csv"], scored.table1["runs"], scored.further_table)
    rows = read_rows(scored.further_table["csv"])
    figure = draw(rows[2:], rows[2:], "art", {"retrieval": 25.0})
    lines = figure.axes[0].lines
    assert [line.get_xdata()[0] for line in lines if line.get_marker() == "x"] == [25.0]
    assert [line.get_xdata()[0] for line in lines if line.get_marker() == "o"] == [pytest.approx(50.0)]
    write_figures(scored.further_table["csv"], scored.further_figures)
    assert all(Path(path).stat().st_size for path in scored.further_figures["art"].values())


@pytest.mark.full
@pytest.mark.long
def test_a_finished_study_is_scored_on_further_tests_and_nothing_is_trained(workspace: Workspace) -> None:
    study = copy.deepcopy(SMALL_STUDY)
    study["dataset"]["draws"] = 2
    study["augmentation"]["resamples"] = 1
    study["methods"] = {name: study["methods"][name] for name in ("none", "clip_prompts")}
    study["dataset"]["further_tests"] = {"same": {"kind": "web_style", "shift": "none"}}
    workspace.write_study(study)
    workspace.run()
    results = workspace.results
    assert workspace.plan() == {}

    garments, labels = fashion_mnist.load(workspace.folder / "results/downloads/fashion_mnist", "test")
    ids = [info.class_id for info in load_class_table("fashion_mnist")]
    for label in (9, 2, 4):
        folder = workspace.folder / "elsewhere" / ids[label]
        folder.mkdir(parents=True)
        for place in np.flatnonzero(labels == label)[-5:]:
            Image.fromarray(np.pad(garments[place], 2)).save(folder / f"{place}.png")
    study["dataset"]["further_tests"]["three"] = {"kind": "folder", "root": "elsewhere"}
    workspace.write_study(study)
    planned = workspace.plan()
    assert planned.keys() == {
        *("further_split_three", "score_three", "leakage_three", "further_tests", "further_figures"),
        *("resolved_config", "provenance", "report_html"),
    }
    assert set(planned.values()) == {1}
    before = {path: path.stat().st_mtime_ns for path in results.glob("classifiers/*/*/*/model.safetensors")}
    workspace.run()
    assert before == {path: path.stat().st_mtime_ns for path in before} and len(before) == 4

    rows = {(row.test, row.method): row for row in read_rows(results / "tables/further_tests.csv")}
    assert len(rows) == 3 * 2
    for method in study["methods"]:
        assert rows["same", method].mean_percent == rows["test", method].mean_percent, "the same images"
        assert rows["three", method].classes == 3 and rows["three", method].n == 2
        assert rows["same", method].more_points in (None, 0.0)
    assert rows["same", "clip_prompts"].near_added is not None
    assert rows["test", "clip_prompts"].near_added is None
    for path in results.glob("further_tests/three/*/0.parquet"):
        found = pq.read_table(path)
        assert found.num_rows == 15 and set(found.column("predicted").to_pylist()) <= {2, 4, 9}
    assert len(list(results.glob("further_tests/three/*/0.parquet"))) == 4
    page = (results / "report.html").read_text()
    assert 'id="further"' in page and "Crosses" in page
