"""ImageNet in three layouts (class folders, a flat val folder, Parquet), and Parquet as a corpus."""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
from collections import defaultdict
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from augbench.artifacts.store import Store
from augbench.commands.check import images as check_images
from augbench.commands.check.study import check_study
from augbench.config.data import ImageFolder, ParquetImages
from augbench.config.study import merge, parse_study
from augbench.data import parquet_images
from augbench.data.classes import class_id_of, load_class_table, write_class_table
from augbench.data.parquet_source import match_names, names_split
from augbench.data.source import ClassImages
from augbench.data.sources import open_source
from augbench.data.splits import Split, make_splits, write_split
from augbench.data.walk import DANGLING, FLAT, NOT_PARQUET
from augbench.errors import UserError
from augbench.files import write_json
from augbench.models.folders import fingerprint
from augbench.plan.paths import Plan
from augbench.plan.recipes import classes_recipe, data_set_recipe, dataset_recipe, embed_recipe, table_recipe
from augbench.prompts.stage import write_prompts
from augbench.retrieval import embed
from augbench.retrieval.images import Arrival, ParquetOrigin
from augbench.retrieval.neighbours import Neighbour
from augbench.retrieval.web.fates import UNDECODABLE
from augbench.runtime.job import Job

MINI = Path(__file__).resolve().parents[1] / "resources/mini"
NAMES = {
    "n01440764": "tench, Tinca tinca",
    "n01443537": "goldfish, Carassius auratus",
    "n02012849": "crane bird",  # the table says "crane", and so it does of the machine
    "n03126707": "crane",
}
WNIDS = list(NAMES)
TABLE = [info for info in load_class_table("imagenet") if info.class_id in NAMES]
DEVKIT = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
KAGGLE = "LOC_val_solution.csv"


def encoded(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (20, 24, 3), np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


# train: (wnid, file name, bytes), val: (wnid, file name, bytes), as ILSVRC2012 names them
TRAIN = [
    (wnid, f"{wnid}_{7 * i}.JPEG", encoded(100 * c + i)) for c, wnid in enumerate(WNIDS) for i in range(12)
]
VAL = [
    (WNIDS[i % 4], f"ILSVRC2012_val_{i + 1:08d}.JPEG", encoded(5000 + i))
    for i in np.random.default_rng(0).permutation(16)
]
VAL.sort(key=lambda one: one[1])


# --- the layouts ----------------------------------------------------------------------------------


def write_file(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def write_train(root: Path) -> None:
    for wnid, name, content in TRAIN:
        write_file(root / "train" / wnid / name, content)


def write_flat(root: Path) -> None:
    write_train(root)
    for _, name, content in VAL:
        write_file(root / "val" / name, content)


def write_devkit(root: Path) -> None:
    """Write ground truth and ``meta.mat`` as in the development kit, whose ids are not in order of wnids."""
    from scipy.io import savemat

    kinds = [(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")]
    ids = {wnid: number for number, wnid in enumerate(reversed(WNIDS), 1)}
    rows = [(number, wnid, NAMES[wnid], "a gloss", 0) for wnid, number in ids.items()]
    rows.append((1001, "n00001740", "entity", "an inner node", 4))
    path = root / DEVKIT
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path.with_name("meta.mat"), {"synsets": np.array(rows, dtype=kinds).reshape(-1, 1)})
    path.write_text("".join(f"{ids[wnid]}\n" for wnid, _, _ in VAL) + "\n")


def write_kaggle(root: Path) -> None:
    lines = [
        f"{name.removesuffix('.JPEG')},{wnid} 1 2 30 40 {wnid} 5 5 9 9" for wnid, name, _ in reversed(VAL)
    ]
    (root / KAGGLE).write_text("\n".join(["ImageId,PredictionString", *lines, ""]))


def table_of(rows: list[tuple[int, str | None, bytes | None]], names: list[str] | None) -> pa.Table:
    """Table as ``datasets`` writes it: a structure for the image, the labels' names in the metadata."""
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if names else None
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image), ("label", pa.int64())], metadata)
    images = [
        None if path is content is None else {"bytes": content, "path": path} for _, path, content in rows
    ]
    return pa.table([pa.array(images, image), [label for label, _, _ in rows]], schema=schema)


def write_parquet(
    path: Path, rows: list[tuple[int, str | None, bytes | None]], names: list[str] | None = None
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table_of(rows, names), path, row_group_size=5)


def huggingface_rows(
    images: list[tuple[str, str, bytes]], seed: int
) -> list[tuple[int, str | None, bytes | None]]:
    """Rows as in imagenet-1k: in random order, with the wnid at the end of the file's name."""
    rows = [
        (WNIDS.index(w), f"{name.removesuffix('.JPEG')}_{w}.JPEG", content) for w, name, content in images
    ]
    return [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]


def write_huggingface(root: Path) -> None:
    names, train = list(NAMES.values()), huggingface_rows(TRAIN, 1)
    for part in range(3):
        write_parquet(root / f"data/train-{part:05d}-of-00003.parquet", train[part::3], names)
    write_parquet(root / "data/validation-00000-of-00001.parquet", huggingface_rows(VAL, 2), names)
    write_parquet(
        root / "data/test-00000-of-00001.parquet", [(-1, "ILSVRC2012_test_1.JPEG", encoded(9))], names
    )


LAYOUTS: dict[str, dict[str, Any]] = {
    "folders": {"kind": "image_folder", "train_folder": "train", "test_folder": "val"},
    "devkit": {"kind": "image_folder", "train_folder": "train", "test_folder": "val", "test_labels": DEVKIT},
    "kaggle": {"kind": "image_folder", "train_folder": "train", "test_folder": "val", "test_labels": KAGGLE},
    "parquet": {"kind": "parquet", "test_split": "validation"},
}


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageNet with four classes in all layouts, and the class table, which is the shipped one cut."""
    base = tmp_path_factory.mktemp("ilsvrc2012")
    rows = [f"{info.class_id}\t{'|'.join(info.lemmas)}\n" for info in TABLE]
    (base / "table.tsv").write_text("class_id\tlemmas\n" + "".join(rows))
    write_train(base / "folders")
    for wnid, name, content in VAL:
        write_file(base / "folders/val" / wnid / name, content)
    for name, write_labels in (("devkit", write_devkit), ("kaggle", write_kaggle)):
        write_flat(base / name)
        write_labels(base / name)
    write_huggingface(base / "parquet")
    return base


def study_of(base: Path, layout: str, **changes: Any) -> Any:
    study = {
        "study": layout,
        "dataset": {
            **LAYOUTS[layout],
            "root": str(base / layout),
            "classes": str(base / "table.tsv"),
            "train_fraction": 0.25,
            "test_images_per_class": 3,
        },
        "diffusion": {
            "model": str(MINI / "stable-diffusion"),
            "resolution": 32,
            "dtype": "float32",
            "safety_checker": None,
        },
        "clip": {"model": str(MINI / "clip")},
        "methods": {
            "none": {"mechanism": "real"},
            "boomerang": {
                "mechanism": "sample",
                "start": "training_images",
                "noise": 0.5,
                "steps": 2,
                "guidance_scale": 1.0,
                "prompt": {"templates": "empty"},
            },
        },
        "augmentation": {"images_per_class": 3},
        "classifier": {"batch_size": 4},
        "execution": {"device": "cpu"},
    }
    return parse_study(merge(study, changes))


def splits_of(study: Any) -> tuple[list[Any], dict[str, Split], Any]:
    source = open_source(study.dataset, study.seed)
    classes = source.classes()
    needed = {"train", "val", "test", "train2x", "full"}
    return classes, make_splits(classes, source.scan(), study.dataset, study.seed, needed), source


def contents(split: Split, source: Any) -> list[tuple[str, str]]:
    """Class and hash of the pixels of each image, in the split's order."""
    images = source.load(split.sources)
    hashes = [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
    return list(zip(split.class_ids, hashes, strict=True))


def test_all_layouts_give_the_same_classes_and_the_same_images_in_the_same_order(trees: Path) -> None:
    expected_classes, expected, source = splits_of(study_of(trees, "folders"))
    pixels = {name: contents(split, source) for name, split in expected.items()}
    assert [info.class_id for info in expected_classes] == WNIDS
    assert {name: len(split) for name, split in expected.items()} == {
        "train": 12,
        "train2x": 24,
        "val": 12,
        "test": 12,
        "full": 36,
    }
    for layout in ("devkit", "kaggle", "parquet"):
        classes, splits, source = splits_of(study_of(trees, layout))
        assert classes == expected_classes, layout
        for name, split in splits.items():
            assert contents(split, source) == pixels[name], (layout, name)
            ids = [one.replace("validation/", "val/") for one in split.image_ids]
            assert ids == expected[name].image_ids, (layout, name)


def first_shards(study: Any, folder: Path) -> list[dict[str, Any]]:
    """Sample the first images from training images, as the workflow's jobs do; return the shards' rows."""
    from augbench.generate.stage import generate

    folder.mkdir()
    classes, splits, _ = splits_of(study)
    write_split(splits["train"], folder / "train.parquet")
    write_class_table(classes, folder / "classes.parquet")
    write_json(folder / "diffusion.json", fingerprint(study.diffusion.model))
    by_class = defaultdict(list)
    for image_id, class_id in zip(splits["train"].image_ids, splits["train"].class_ids, strict=True):
        by_class[class_id].append(image_id)
    write_prompts(study, "boomerang", classes, by_class, folder / "prompts.parquet")
    shards = [folder / f"shards/{info.class_id}/0.parquet" for info in classes]
    generate(
        Job(study, Store(folder / "study", folder / "store"), 1),
        "boomerang",
        str(folder / "prompts.parquet"),
        str(folder / "diffusion.json"),
        str(folder / "train.parquet"),
        {"": [*map(str, shards)]},
    )
    return [row for shard in shards for row in pq.read_table(shard).to_pylist()]


def test_all_layouts_give_the_same_first_shards(trees: Path, tmp_path: Path) -> None:
    shards = {name: first_shards(study_of(trees, name), tmp_path / name) for name in LAYOUTS}
    assert len(shards["folders"]) == 12
    assert len({row["image"]["bytes"] for row in shards["folders"]}) == 12
    for layout in ("devkit", "kaggle", "parquet"):
        assert shards[layout] == shards["folders"], layout


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_check_passes_every_layout(trees: Path, layout: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for images in (False, True):
        first, *others = check_study(study_of(trees, layout), models=False, verify_images=images)
        assert first == "dataset: 4 classes with 3 training, 3 validation and 3 test images each"
        left_out = "dataset: 1 left out, of no split that the config names: data/test-00000-of-00001.parquet"
        assert [line for line in others if "left out" in line] == ([left_out] if layout == "parquet" else [])


# --- a flat folder and its labels -----------------------------------------------------------------


def flat_problem(root: Path, labels: str) -> str:
    section = {**LAYOUTS["devkit"], "root": str(root), "test_labels": labels}
    with pytest.raises(UserError) as caught:
        open_source(ImageFolder(**section), 0).scan()
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{root}/", "")


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    write_flat(tmp_path)
    write_devkit(tmp_path)
    write_kaggle(tmp_path)
    return tmp_path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def one_image_less(root: Path) -> None:
    (root / "val" / VAL[3][1]).unlink()


def one_image_more(root: Path) -> None:
    write_file(root / "val/ILSVRC2012_val_00000017.JPEG", encoded(1))


def another_name(root: Path) -> None:
    (root / "val" / VAL[3][1]).rename(root / "val/ILSVRC2012_val_00000044.JPEG")


def no_meta(root: Path) -> None:
    (root / DEVKIT).with_name("meta.mat").unlink()


def broken_meta(root: Path) -> None:
    (root / DEVKIT).with_name("meta.mat").write_text("<html>404 not found</html>" * 20)


def cut_meta(root: Path) -> None:
    meta = (root / DEVKIT).with_name("meta.mat")
    meta.write_bytes(meta.read_bytes()[:500])


def other_meta(root: Path) -> None:
    from scipy.io import savemat

    savemat((root / DEVKIT).with_name("meta.mat"), {"classes": [1, 2]})


def no_number(root: Path) -> None:
    (root / DEVKIT).write_text("1\n\nn01440764\n" + "1\n" * 13)


def unknown_number(root: Path) -> None:
    (root / DEVKIT).write_text("1\n" * 15 + "999\n")


def an_inner_node(root: Path) -> None:
    (root / DEVKIT).write_text("1\n2\n3\n4\n" * 3 + "1\n2\n3\n1001\n")


def a_class_without_images(root: Path) -> None:
    (root / DEVKIT).write_text("1\n2\n3\n3\n" * 4)


def binary_labels(root: Path) -> None:
    (root / DEVKIT).write_bytes(b"\xff\xfe\x00")


def no_images(root: Path) -> None:
    for path in (root / "val").iterdir():
        path.unlink()
    (root / "val/n01440764").mkdir()


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (one_image_less, f"dataset.test_labels: 16 lines in '{DEVKIT}', but 15 images in the folder"),
        (one_image_more, f"dataset.test_labels: 16 lines in '{DEVKIT}', but 17 images in the folder"),
        (another_name, f"dataset.test_labels: line 4 of '{DEVKIT}' would belong to 'ILSVRC2012_val_00000005"),
        (
            no_meta,
            "dataset.test_labels: 'ILSVRC2012_devkit_t12/data/meta.mat', no such file; allowed: ILSVRC",
        ),
        (
            broken_meta,
            "dataset.test_labels: 'ILSVRC2012_devkit_t12/data/meta.mat', not the development kit's",
        ),
        (cut_meta, "dataset.test_labels: 'ILSVRC2012_devkit_t12/data/meta.mat', not the development kit's"),
        (other_meta, "dataset.test_labels: 'ILSVRC2012_devkit_t12/data/meta.mat', not the development kit's"),
        (no_number, f"{DEVKIT}, line 2: ''; allowed: a number that meta.mat has"),
        (unknown_number, f"{DEVKIT}, line 16: '999'; allowed: a number that meta.mat has"),
        (
            an_inner_node,
            f"dataset.test_labels: '{DEVKIT}' names 1 classes that the class table lacks: n00001740",
        ),
        (
            a_class_without_images,
            f"dataset.test_labels: '{DEVKIT}' has no image of 1 of 4 classes: n01440764",
        ),
        (binary_labels, f"dataset.test_labels: '{DEVKIT}', not readable as text"),
        (
            no_images,
            "dataset.test_folder: no image in 'val'; allowed: the images that dataset.test_labels is ",
        ),
    ],
)
def test_ground_truth_that_does_not_fit_is_one_line(
    flat: Path, spoil: Callable[[Path], None], expected: str
) -> None:
    spoil(flat)
    line = flat_problem(flat, DEVKIT)
    assert line.startswith(expected), line


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "ImageId,",
            "Id,",
            f"dataset.test_labels: '{KAGGLE}' has columns Id, PredictionString; allowed: ImageId",
        ),
        (
            "val_00000003,",
            "val_00000099,",
            f"dataset.test_labels: 1 of 16 images in '{KAGGLE}' are not in the ",
        ),
        (
            "val_00000003,",
            "val_00000004,",
            f"{KAGGLE}, line 15: 'ILSVRC2012_val_00000004' again; allowed: one",
        ),
        (
            ",n01443537 1",
            ",n09999999 1",
            f"dataset.test_labels: '{KAGGLE}' names 1 classes that the class table ",
        ),
        (
            "ILSVRC2012_val_00000016,n03126707 1 2 30 40 n03126707 5 5 9 9\n",
            "",
            "dataset.test_labels: 1 of 16 im",
        ),
        (
            ",n03126707 1 2 30 40 n03126707 5 5 9 9",
            "",
            f"{KAGGLE}, line 2: {{'ImageId': 'ILSVRC2012_val_00000016'",
        ),
    ],
)
def test_kaggles_file_that_does_not_fit_is_one_line(flat: Path, old: str, new: str, expected: str) -> None:
    edit(flat / KAGGLE, old, new)
    line = flat_problem(flat, KAGGLE)
    assert line.startswith(expected), line


def test_a_file_of_kaggles_that_is_no_csv_is_one_line(flat: Path) -> None:
    usual = csv.field_size_limit(10)  # other modules raise it
    try:
        line = flat_problem(flat, KAGGLE)
    finally:
        csv.field_size_limit(usual)
    assert line.startswith(f"dataset.test_labels: '{KAGGLE}', not readable as CSV (field larger than"), line


def test_a_missing_file_of_labels_is_one_line(flat: Path) -> None:
    line = flat_problem(flat, "truth.txt")
    assert line.startswith("dataset.test_labels: 'truth.txt', no such file; allowed: ILSVRC2012_validation_")


def test_what_else_is_in_a_flat_folder_is_left_out_and_links_are_followed(flat: Path) -> None:
    (flat / "val/more").mkdir()
    (flat / "val" / VAL[0][1]).rename(flat / "elsewhere.JPEG")
    (flat / "val" / VAL[0][1]).symlink_to(flat / "elsewhere.JPEG")
    (flat / "val/gone.JPEG").symlink_to("nowhere")
    source: Any = open_source(ImageFolder(**{**LAYOUTS["kaggle"], "root": str(flat)}), 0)
    source.scan()
    assert {one.name: one.reason for one in source.left_out} == {"val/more": FLAT, "val/gone.JPEG": DANGLING}
    assert source.links == {f"val/{VAL[0][1]}"}


def test_labels_without_their_folder_are_an_error_of_the_config(trees: Path) -> None:
    with pytest.raises(UserError, match=r"dataset\.validation_labels: 'a\.csv'; goes with validation_folder"):
        study_of(trees, "folders", dataset={"validation_labels": "a.csv"})


def test_files_of_labels_are_inputs_of_the_splits(trees: Path) -> None:
    files = {name: Plan(study_of(trees, name), ()).dataset_files for name in LAYOUTS}
    table = str(trees / "table.tsv")
    truth = trees / "devkit" / DEVKIT
    assert files["folders"] == files["parquet"] == [table]
    assert files["devkit"] == [table, str(truth), str(truth.with_name("meta.mat"))]
    assert files["kaggle"] == [table, str(trees / "kaggle" / KAGGLE)]


def test_new_keys_at_their_defaults_are_in_no_recipe(trees: Path) -> None:
    study, flat_study = study_of(trees, "folders"), study_of(trees, "devkit")
    assert {"validation_labels", "test_labels"}.isdisjoint(dataset_recipe(study))
    assert {"validation_labels", "test_labels"}.isdisjoint(table_recipe(study)["study"]["dataset"])
    assert dataset_recipe(flat_study)["test_labels"] == DEVKIT
    assert table_recipe(flat_study)["study"]["dataset"]["test_labels"] == DEVKIT


# --- archives -------------------------------------------------------------------------------------


def pack(tar: Path, folder: Path, *names: str) -> None:
    subprocess.run(["tar", "-cf", str(tar), "-C", str(folder), *names], check=True)


def folder_problem(root: Path, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        open_source(ImageFolder(**{**LAYOUTS["folders"], "root": str(root), **changes}), 0).scan()
    (line,) = str(caught.value).splitlines()
    return line


def test_tars_are_refused_with_the_commands_that_unpack_them(trees: Path, tmp_path: Path) -> None:
    packed, done = trees / "devkit", tmp_path / "it's here"
    (tmp_path / "tars").mkdir()
    for wnid in WNIDS:
        names = [path.name for path in (packed / "train" / wnid).iterdir()]
        pack(tmp_path / f"tars/{wnid}.tar", packed / "train" / wnid, *names)
    done.mkdir()
    pack(done / "ILSVRC2012_img_train.tar", tmp_path / "tars", *(f"{wnid}.tar" for wnid in WNIDS))
    pack(done / "ILSVRC2012_img_val.tar", packed / "val", *(name for _, name, _ in VAL))
    (done / KAGGLE).write_text((trees / "kaggle" / KAGGLE).read_text())
    labelled = {"test_labels": KAGGLE}
    for beginning in (
        f"dataset.train_folder: {str(done / 'train')!r}, no such folder, but there is "
        "ILSVRC2012_img_train.tar; ",
        f"dataset.train_folder: {str(done / 'train')!r} has 4 tars that are not unpacked: n01440764.tar, ",
        f"dataset.test_folder: {str(done / 'val')!r}, no such folder, but there is ILSVRC2012_img_val.tar; ",
    ):
        line = folder_problem(done, **labelled)
        assert line.startswith(beginning)
        subprocess.run(line.split(": ", 3)[-1], shell=True, check=True)  # what the line says helps
    one, *_ = open_source(ImageFolder(**{**LAYOUTS["kaggle"], "root": str(done)}), 0).scan()
    assert len(one.pool) == 12 and one.test is not None and len(one.test) == 4


def test_a_tar_that_is_named_or_inside_its_folder_is_refused_too(trees: Path, tmp_path: Path) -> None:
    write_train(tmp_path)
    tar = tmp_path / "val/ILSVRC2012_img_val.tar"
    tar.parent.mkdir()
    pack(tar, trees / "devkit/val", *(name for _, name, _ in VAL))
    line = folder_problem(tmp_path, test_labels=KAGGLE)
    assert "has 1 tars that are not unpacked: ILSVRC2012_img_val.tar; unpack it: mkdir -p " in line
    line = folder_problem(tmp_path, test_folder="val/ILSVRC2012_img_val.tar")
    assert "ILSVRC2012_img_val.tar', a tar; unpack it: mkdir -p " in line
    line = folder_problem(tmp_path / "val/none")
    assert line.startswith("dataset.root: ") and "img_val" not in line, "that tar is no data set"


# --- Parquet: which files, which classes ----------------------------------------------------------


def parquet_source(root: Path, **changes: Any) -> Any:
    return open_source(ParquetImages(kind="parquet", root=str(root), **changes), 0)


def parquet_problem(root: Path, **changes: Any) -> str:
    """Return the lines of the error, without the folder."""
    with pytest.raises(UserError) as caught:
        source = parquet_source(root, **changes)
        list(source.load([source for one in source.scan() for source in one.pool.sources]))
    return str(caught.value).replace(f"{root}/", "").replace(str(root), "ROOT")


@pytest.mark.parametrize(
    ("part", "split", "expected"),
    [
        ("train-00000-of-00294", "train", True),
        ("train-00000-of-00294-abcdef0123456789", "train", True),
        ("train", "train", True),
        ("imagenet-1k-train", "train", True),
        ("train0", "train", True),
        ("train_0001", "train", True),
        ("train_big-00000-of-00001", "train", False),
        ("train_big-00000-of-00001", "train_big", True),
        ("pretrain-00000-of-00001", "train", False),
        ("training", "train", False),
        ("my_train", "train", False),
        ("0000", "train", False),
    ],
)
def test_a_split_is_a_word_of_a_name(part: str, split: str, expected: bool) -> None:
    assert names_split(part, split) == expected


def rows_of(count: int, first: int = 0, labels: int = 2) -> list[tuple[int, str | None, bytes | None]]:
    return [(i % labels, f"{i:04d}.jpg", encoded(first + i)) for i in range(count)]


def test_splits_may_be_folders_and_the_innermost_name_counts(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-and-more/train/0000.parquet", rows_of(4), ["cat", "dog"])
    write_parquet(tmp_path / "train-and-more/test/0000.parquet", rows_of(2, 50), ["cat", "dog"])
    cats, _ = parquet_source(tmp_path, test_split="test").scan()
    assert list(cats.pool.sources) == [f"train-and-more/train/0000.parquet:{row}" for row in (0, 2)]
    assert list(cats.test.sources) == ["train-and-more/test/0000.parquet:0"]


def test_files_of_a_hugging_face_cache_are_found(tmp_path: Path) -> None:
    blob, snapshot = tmp_path / "blobs/3f", tmp_path / "snapshots/ab/data"
    write_parquet(blob, rows_of(4), ["cat", "dog"])
    snapshot.mkdir(parents=True)
    (snapshot / "train-00000-of-00001.parquet").symlink_to(blob)
    (tmp_path / ".no_exist").mkdir()
    source = parquet_source(tmp_path)
    assert [len(one.pool) for one in source.scan()] == [2, 2]
    assert {one.name: one.reason for one in source.left_out if one.reason == NOT_PARQUET} == {
        "blobs/3f": NOT_PARQUET
    }


def test_without_a_table_the_labels_names_are_the_classes(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", rows_of(4), ["tabby_cat", "chow, chow chow"])
    classes = parquet_source(tmp_path).classes()
    assert [info.class_id for info in classes] == ["tabby_cat", class_id_of("chow, chow chow")]
    assert [info.name for info in classes] == ["tabby cat", "chow, chow chow"]


def test_labels_named_by_class_id_need_not_be_in_the_tables_order(trees: Path, tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", rows_of(8, labels=4), WNIDS[::-1])
    found = parquet_source(tmp_path, classes=str(trees / "table.tsv")).scan()
    assert [one.pool.sources[0] for one in found] == [f"train.parquet:{row}" for row in (3, 2, 1, 0)]


def test_imagenets_names_by_others_fit_the_shipped_table_in_order_only() -> None:
    names = __import__("torchvision.models._meta", fromlist=["_"])._IMAGENET_CATEGORIES
    table = load_class_table("imagenet")
    assert match_names(names, table) == list(range(1000))
    swapped = [*names]
    swapped[277], swapped[280] = names[280], names[277]  # red fox and grey fox share a word
    with pytest.raises(ValueError, match="2 of 1000 differ: label 277 is 'grey fox'"):
        match_names(swapped, table)
    with pytest.raises(ValueError, match=r"99\d of 1000 differ"):
        match_names([*names[1:], names[0]], table)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("text", pa.array([WNIDS[i % 4] for i in range(8)])),
        ("category", pa.array([WNIDS[i % 4] for i in range(8)]).dictionary_encode()),
        ("number", pa.array([i % 4 for i in range(8)], pa.int16())),
    ],
)
def test_texts_and_plain_numbers_are_labels_with_a_table(
    trees: Path, tmp_path: Path, column: str, values: pa.Array
) -> None:
    plain = pa.array([encoded(i) for i in range(8)], pa.large_binary())
    pq.write_table(pa.table({"jpg": plain, column: values}), tmp_path / "train.parquet")
    keys = {"label_column": column, "image_column": "jpg"}
    source = parquet_source(tmp_path, classes=str(trees / "table.tsv"), **keys)
    assert [list(one.pool.image_ids) for one in source.scan()] == [
        [f"train.parquet:{row}" for row in (i, i + 4)] for i in range(4)
    ], "without file names, an image is known by its row"
    assert [image.size for image in source.load(["train.parquet:3"])] == [(24, 20)]
    line = parquet_problem(tmp_path, **keys)
    assert line.startswith(
        f"dataset.classes: null, and train.parquet has no names (ClassLabel) for its column {column!r}"
    )


def test_file_names_that_repeat_in_a_class_are_not_used(tmp_path: Path) -> None:
    rows = rows_of(6)
    rows[2] = (0, rows[0][1], rows[2][2])
    write_parquet(tmp_path / "train.parquet", rows, ["cat", "dog"])
    found: list[ClassImages] = parquet_source(tmp_path).scan()
    assert [one.pool.image_ids for one in found] == [one.pool.sources for one in found]
    assert found[0].pool.image_ids == [f"train.parquet:{row}" for row in (0, 2, 4)]


# --- Parquet: what does not fit -------------------------------------------------------------------


def damaged(root: Path) -> None:
    path = root / "train-1.parquet"
    path.write_bytes(path.read_bytes()[:-20])


def damaged_pages(root: Path) -> None:
    path = root / "train-1.parquet"
    content = bytearray(path.read_bytes())
    content[4:3000] = bytes(2996)
    path.write_bytes(content)


def empty_file(root: Path) -> None:
    (root / "train-1.parquet").write_bytes(b"")


def no_file(root: Path) -> None:
    for path in root.iterdir():
        path.unlink()
    (root / "dataset_info.json").write_text("{}")
    (root / "data-00000-of-00001.arrow").write_bytes(b"x")


def rewritten(rows: list[tuple[int, str | None, bytes | None]], names: list[str] | None = None) -> Any:
    return lambda root: write_parquet(root / "train-1.parquet", rows, names or ["cat", "dog"])


def other_column(root: Path) -> None:
    pq.write_table(table_of(rows_of(4), None).rename_columns(["img", "label"]), root / "train-1.parquet")


def column_of_texts(root: Path) -> None:
    pq.write_table(pa.table({"image": ["a.png"], "label": [0]}), root / "train-1.parquet")


def label_of_floats(root: Path) -> None:
    table = table_of(rows_of(4), None)
    labels = table.column("label").cast(pa.float64())
    pq.write_table(table.set_column(1, "label", labels), root / "train-1.parquet")


CAT = encoded(77)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (damaged, "train-1.parquet: not readable as Parquet ("),
        (damaged_pages, "train-1.parquet: not readable as Parquet ("),
        (empty_file, "train-1.parquet: not readable as Parquet ("),
        (
            no_file,
            "dataset.root: no Parquet file in 'ROOT'; 2 left out, no Parquet file: data-00000-of-00001.arrow",
        ),
        (
            other_column,
            "dataset.image_column: 'image', but train-1.parquet has columns img, label; allowed: a col",
        ),
        (
            column_of_texts,
            "dataset.image_column: the column 'image' of train-1.parquet is string; allowed: bytes",
        ),
        (
            label_of_floats,
            "dataset.label_column: the column 'label' of train-1.parquet is double; allowed: whole",
        ),
        (
            rewritten([(0, "a", CAT), (-1, "b", CAT), (-1, "c", CAT)]),
            "dataset.train_split: 2 of 3 rows of train-1.parquet have no label (null or -1): rows 1, 2; "
            "allowed: a ",
        ),
        (
            rewritten([(0, "a", CAT), (7, "b", CAT)]),
            "dataset.train_split: 1 of 2 rows of train-1.parquet have labels of no class: 7 in row 1; "
            "allowed: 0, 1",
        ),
        (
            rewritten([(0, "a", CAT), (1, "b", None), (0, None, None)]),
            "dataset.train_split: 2 of 3 rows of train-1.parquet have no image: rows 1, 2; remove these "
            "rows, or ",
        ),
        (
            rewritten([(0, "a", CAT), (1, "b", CAT[:200])]),
            "train-1.parquet:1: not readable as an image (",
        ),
        (rewritten([(0, "a", b"")]), "train-1.parquet:0: not readable as an image ("),
        (
            rewritten([(0, "a", CAT)], ["cat", "owl"]),
            "dataset.classes: the labels' names in train-1.parquet do not fit the first file: 1 of 2 differ: "
            "label 1",
        ),
        (
            rewritten([(0, "a", CAT)], ["cat", "dog", "owl"]),
            "dataset.classes: the labels' names in train-1.parquet do not fit the first file: there are 3, "
            "and ",
        ),
    ],
)
def test_parquet_that_does_not_fit_is_one_line(
    tmp_path: Path, spoil: Callable[[Path], None], expected: str
) -> None:
    for part in range(2):
        write_parquet(tmp_path / f"train-{part}.parquet", rows_of(20, 100 * part), ["cat", "dog"])
    spoil(tmp_path)
    (line,) = parquet_problem(tmp_path).splitlines()
    assert line.startswith(expected), line


def test_a_split_that_is_missing_or_ambiguous_is_one_line(trees: Path, tmp_path: Path) -> None:
    root, table = trees / "parquet", str(trees / "table.tsv")
    line = parquet_problem(root, classes=table, test_split="val")
    assert line.startswith(
        "dataset.test_split: 'val', which is in the name of no Parquet file in 'ROOT': data/test-"
    )
    line = parquet_problem(root, classes=table, test_split="test")
    assert line.startswith(
        "dataset.test_split: 1 of 1 rows of data/test-00000-of-00001.parquet have no label (null "
    )
    write_parquet(tmp_path / "train-test.parquet", rows_of(4), ["cat", "dog"])
    line = parquet_problem(tmp_path, test_split="test")
    assert line.startswith(
        "dataset.test_split: 'train-test.parquet' has the names of train and test; allowed: one"
    )
    assert parquet_problem(tmp_path / "none").startswith(
        "dataset.root: 'ROOT', no such folder; allowed: a folder w"
    )


def test_names_that_are_not_the_tables_are_one_line(trees: Path, tmp_path: Path) -> None:
    write_parquet(
        tmp_path / "train.parquet", rows_of(8, labels=4), ["goldfish", "tench", "crane", "crane bird"]
    )
    line = parquet_problem(tmp_path, classes=str(trees / "table.tsv"))
    assert line.startswith(
        "dataset.classes: the labels' names in train.parquet do not fit the class table: 2 of 4 differ: "
        "label 0 is "
        "'goldfish' and the table's 'tench, Tinca tinca'"
    )
    assert parquet_problem(tmp_path, classes="imagenet").startswith(
        "dataset.classes: the labels' names in train.parquet do not fit the class table: there are 4, and "
        "the table"
    )


def test_a_class_without_rows_and_a_name_that_is_no_class_id_are_one_line(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", rows_of(4), ["cat", "dog", "owl"])
    line = parquet_problem(tmp_path)
    assert line.startswith(
        "dataset.train_split: no image of 1 of 3 classes in 1 files: owl; each class needs"
    )
    write_parquet(tmp_path / "train.parquet", rows_of(4), ["cat", "mac/cheese"])
    assert parquet_problem(tmp_path).startswith(
        "train.parquet: the label 'mac/cheese'; allowed: a folder's name"
    )


def test_two_splits_of_one_name_are_an_error_of_the_config(trees: Path) -> None:
    with pytest.raises(
        UserError, match=r"dataset\.test_split: 'train'; allowed: another split than train_split"
    ):
        study_of(trees, "parquet", dataset={"test_split": "train"})


def test_columns_and_splits_that_make_images_and_classes_are_in_their_recipes(trees: Path) -> None:
    assert data_set_recipe(study_of(trees, "parquet"))["dataset"]["image_column"] == "image"
    assert data_set_recipe(study_of(trees, "folders"))["dataset"].keys() == {"kind", "root"}
    recipe = classes_recipe(study_of(trees, "parquet"))["dataset"]
    assert recipe["train_split"] == "train" and recipe["label_column"] == "label"


# --- Parquet: how rows are read -------------------------------------------------------------------


def test_rows_come_in_the_order_asked_for_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(100)
    for part in range(4):
        write_parquet(tmp_path / f"train-{part}.parquet", rows[part::4])
    images = parquet_images.ImageRows(tmp_path, "image", "dataset.image_column")
    order = np.random.default_rng(3).permutation(100).tolist()
    names = [f"train-{i % 4}.parquet:{i // 4}" for i in [*order, *order[:7]]]
    expected = [rows[i][2] for i in [*order, *order[:7]]]
    opened: list[str] = []
    read_file = images._read_file

    def counting(item: Any) -> None:
        opened.append(item[0])
        read_file(item)

    monkeypatch.setattr(parquet_images.ImageRows, "_read_file", lambda self, item: counting(item))
    assert list(images.read(names)) == expected
    assert sorted(opened) == [f"train-{part}.parquet" for part in range(4)], "each file is read once"
    opened.clear()
    monkeypatch.setattr(parquet_images, "SHARE_OF_MEMORY", 0)
    assert list(images.read(names)) == expected
    assert len(opened) == 107, "one image at a time if there is memory for no more"


def test_a_file_that_is_gone_or_cut_is_an_error_that_names_the_image(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", rows_of(4), ["cat", "dog"])
    source = parquet_source(tmp_path)
    with pytest.raises(UserError, match=r"train\.parquet:9: no such row; fetch the file again"):
        list(source.load(["train.parquet:9"]))
    (tmp_path / "train.parquet").unlink()
    with pytest.raises(UserError, match=r"train\.parquet: missing; put it back"):
        list(source.load(["train.parquet:0"]))


def test_images_are_checked_once_and_damage_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_parquet(tmp_path / "a.parquet", [*rows_of(3), (0, "x", b"<html>")])
    images = check_images.ParquetRows(parquet_images.ImageRows(tmp_path, "image", ""))
    names = [f"a.parquet:{row}" for row in (3, 1, 0, 2)]
    checked = check_images.decode_all(images, names, "images")
    assert checked.digests == {
        f"a.parquet:{row}": hashlib.sha256(content or b"").digest()
        for row, (_, _, content) in enumerate(rows_of(3))
    }
    assert str(checked.damaged["a.parquet:3"]).startswith(f"{tmp_path}/a.parquet:3: not readable as an image")
    monkeypatch.setattr(check_images, "try_decode", lambda *_: pytest.fail("read again"))
    assert check_images.decode_all(images, names[1:], "images").digests == checked.digests


def test_what_datasets_exports_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES.values()))}
    )
    images = [{"bytes": content, "path": name} for _, name, content in TRAIN]
    labels = [WNIDS.index(wnid) for wnid, _, _ in TRAIN]
    exported = datasets.Dataset.from_dict({"image": images, "label": labels}, features)
    exported.to_parquet(tmp_path / "train-00000-of-00001.parquet")
    source = parquet_source(tmp_path)
    found = source.scan()
    assert [info.name for info in source.classes()] == list(NAMES.values())
    assert [len(one.pool) for one in found] == [12] * 4
    assert found[0].pool.image_ids[0].endswith("/n01440764_0.JPEG")
    assert next(iter(source.load(found[0].pool.sources))).size == (24, 20)


# --- Parquet as a corpus --------------------------------------------------------------------------


def write_corpus(root: Path) -> None:
    """Write two files with images, one of them with captions and addresses, and a damaged one."""
    root.mkdir()
    plain = pa.array([encoded(i) for i in range(3)])
    urls = ["http://a/0", None, "http://a/2"]
    pq.write_table(
        pa.table({"image": plain, "url": urls, "TEXT": ["a cat", None, "a dog"]}), root / "a.parquet"
    )
    write_parquet(root / "b/b.parquet", [(0, None, None), (0, None, b"<html>"), (0, None, encoded(9))])
    (root / "c.parquet").write_bytes(b"PAR1")


def corpus_study(root: Path, **corpus: Any) -> Any:
    study = {
        "study": "s",
        "dataset": {"kind": "fashion_mnist"},
        "corpus": {"kind": "parquet", "root": str(root), **corpus},
        "diffusion": {"model": "none"},
        "clip": {"model": "none"},
        "methods": {"none": {"mechanism": "real"}},
        "augmentation": {"images_per_class": 1},
        "execution": {"device": "cpu"},
    }
    return parse_study(study)


def test_captions_that_are_lists_are_no_captions_unless_the_config_names_them(tmp_path: Path) -> None:
    captions = [["a cat", "a pet"], ["a dog"]]
    pq.write_table(
        pa.table({"image": [encoded(0), encoded(1)], "caption": captions, "text": ["cat", "dog"]}),
        tmp_path / "a.parquet",
    )
    with pq.ParquetFile(tmp_path / "a.parquet") as opened:
        columns = embed._columns(opened, corpus_study(tmp_path).corpus, [0, 1])
    assert columns == {"url": [None, None], "caption": ["cat", "dog"]}
    with pytest.raises(
        UserError, match=r"^corpus\.caption_column: the column 'caption' of a\.parquet is list<"
    ):
        parquet_images.list_corpus_rows(corpus_study(tmp_path, caption_column="caption").corpus)


def neighbour(name: str) -> Neighbour:
    unknown = dict.fromkeys(("caption", "width", "height", "nsfw", "punsafe", "aesthetic", "embedding"))
    return Neighbour(class_id="c", query="", rank=0, id=name, url=name, similarity=0.5, **unknown)


def test_a_corpus_of_parquet_is_embedded_and_its_images_are_found_again(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    study = corpus_study(tmp_path / "corpus")
    write_json(tmp_path / "clip.json", fingerprint(MINI / "clip"))
    job = Job(study, Store(tmp_path / "s", tmp_path / "store"), 1)
    embed.embed(job, embed.list_parquet(study.corpus), tmp_path / "clip.json", tmp_path / "out")
    tables = [pq.read_table(path) for path in sorted((tmp_path / "out/metadata").iterdir())]
    rows = pa.concat_tables(tables).to_pylist()
    assert [(row["id"], row["url"], row["caption"], row["width"]) for row in rows] == [
        ("a.parquet:0", "http://a/0", "a cat", 24),
        ("a.parquet:1", "a.parquet:1", None, 24),
        ("a.parquet:2", "http://a/2", "a dog", 24),
        ("b/b.parquet:2", "b/b.parquet:2", None, 24),
    ]
    left_out = pq.read_table(tmp_path / "out/left_out.parquet").to_pylist()
    assert [row["id"] for row in left_out] == ["c.parquet", "b/b.parquet:0", "b/b.parquet:1"]
    assert [row["fate"] for row in left_out[1:]] == [UNDECODABLE] * 2
    origin = ParquetOrigin(study.corpus)
    names = [row["id"] for row in rows]
    found = origin.fetch({"c": [*map(neighbour, names)]})["c"]
    assert [found[name].sha256 for name in names] == [
        hashlib.sha256(encoded(i)).hexdigest() for i in (0, 1, 2, 9)
    ]
    opened = found["b/b.parquet:2"].open
    assert opened is not None and opened().tobytes() == Image.open(BytesIO(encoded(9))).tobytes()


@pytest.mark.parametrize(
    ("name", "fate"),
    [
        ("b/b.parquet:1", UNDECODABLE),
        ("b/b.parquet:0", UNDECODABLE),
        ("a.parquet:3", "dead: no such row"),
        ("a.parquet:-1", "dead: no such row"),
        ("a.parquet", "dead: no such row"),
        ("../other.parquet:0", "dead: no such row"),
        ("c.parquet:0", "dead: no such row"),
    ],
)
def test_a_row_that_no_listing_has_is_never_opened(tmp_path: Path, name: str, fate: str) -> None:
    write_corpus(tmp_path / "corpus")
    write_parquet(tmp_path / "other.parquet", rows_of(2))
    found: Arrival = ParquetOrigin(corpus_study(tmp_path / "corpus").corpus).fetch({"c": [neighbour(name)]})[
        "c"
    ][name]
    assert (found.fate, found.open) == (fate, None)


def corpus_lines(study: dict[str, Any], decode: bool = True) -> list[str]:
    base = {
        "study": "s",
        "dataset": {"kind": "parquet", "root": "data", "train_fraction": 0.25},
        "corpus": {"kind": "parquet", "root": "corpus"},
        "diffusion": {"model": "none", "resolution": 32},
        "clip": {"model": "none"},
        "methods": {
            "none": {"mechanism": "real"},
            "retrieval": {"mechanism": "retrieve", "images_per_class": 4},
        },
        "augmentation": {"images_per_class": 16},
        "classifier": {"batch_size": 4},
    }
    try:
        return check_study(parse_study(merge(base, study)), models=False, verify_images=decode)
    except UserError as error:
        return str(error).splitlines()


@pytest.fixture
def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working folder with a data set in ``data`` and a corpus in ``corpus``."""
    monkeypatch.chdir(tmp_path)
    write_parquet(tmp_path / "data/train.parquet", rows_of(24, 1000), ["cat", "dog"])
    write_corpus(tmp_path / "corpus")
    return tmp_path


def test_a_check_counts_and_names_what_a_corpus_of_parquet_lacks(both: Path) -> None:
    lines = corpus_lines({})
    assert lines[1] == "corpus: 4 images in corpus"
    assert lines[2].startswith("corpus: 1 left out, not readable as Parquet (")
    assert lines[3] == "corpus: 2 left out, undecodable: b/b.parquet:0, b/b.parquet:1"
    (line,) = corpus_lines({"methods": {"retrieval": {"images_per_class": 5}}})
    assert line.startswith(
        "methods.retrieval.images_per_class: 5; allowed: at most 4, the images of the corpus"
    )


def test_a_check_finds_images_of_the_data_set_in_a_corpus_of_parquet(both: Path) -> None:
    (line,) = corpus_lines({"corpus": {"root": "data"}}, decode=False)
    assert line.startswith(
        "corpus.root: 'data': 24 of 24 images are files of the training images: train.parquet:0"
    )
    write_parquet(both / "corpus/copies.parquet", rows_of(8, 1000))
    assert any(
        line.startswith(
            "warning: corpus.root: 'corpus': 8 of 12 images are copies of training images: copies.parquet:0"
        )
        for line in corpus_lines({})
    )


def test_a_check_finds_test_images_that_copy_training_images_in_parquet(both: Path) -> None:
    write_parquet(both / "data/test.parquet", rows_of(12, 1000), ["cat", "dog"])
    (line,) = corpus_lines({"dataset": {"test_split": "test"}})
    assert line.startswith(
        "dataset.test_split: 12 of 12 test images are copies of training images: test.parquet:0 ="
    )


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            {"root": "gone"},
            "corpus.root: 'gone', no such folder; allowed: a folder with Parquet files (.parquet)",
        ),
        (
            {"root": "empty"},
            "corpus.root: no Parquet file in 'empty'; allowed: a folder with Parquet files",
        ),
        (
            {"image_column": "img"},
            "corpus.image_column: 'img', but corpus/a.parquet has columns image, url, TEXT",
        ),
        (
            {"url_column": "href"},
            "corpus.url_column: 'href', but corpus/a.parquet has columns image, url, TEXT",
        ),
    ],
)
def test_a_corpus_of_parquet_that_can_not_serve_is_one_line(
    both: Path, keys: dict[str, str], expected: str
) -> None:
    (both / "empty").mkdir()
    (line,) = corpus_lines({"corpus": keys})
    assert line.startswith(expected), line


def test_keys_of_a_corpus_that_shape_its_embeddings_are_in_their_recipe(tmp_path: Path) -> None:
    recipe = embed_recipe(corpus_study(tmp_path, url_column="href", search="clip_retrieval_index"))
    assert recipe["corpus"]["url_column"] == "href" and "search" not in recipe["corpus"]
