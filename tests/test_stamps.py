"""Stamps of image files: what splits record, what keys make of it, and files that change later."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import noise, numbered, write_images

from augbench.artifacts.store import Store
from augbench.classifier.images import LabelledImages
from augbench.classifier.stage import SharedInputs, TrainingRun, run_recipe, train_block
from augbench.config.study import Study, parse_study
from augbench.data.classes import ClassInfo, write_class_table
from augbench.data.sources import open_source
from augbench.data.splits import SCHEMA, STAMPED, Split, make_splits, read_split, stamped, write_split
from augbench.data.stamps import Stamp, check_unchanged, names_in_keys, stamps_of
from augbench.errors import UserError
from augbench.files import canonical_hash
from augbench.further.folders import write_manifest
from augbench.further.images import images_of
from augbench.generate.stage import _shards, _starts
from augbench.leakage.stage import RealImages
from augbench.personalise import cluster, learned
from augbench.personalise import stage as personalise
from augbench.personalise.latents import Encoding
from augbench.personalise.tasks import ClassTask, ImageSet, class_tasks
from augbench.plan.recipes import further_images_recipe, images_origin
from augbench.retrieval.embed import list_folder
from augbench.retrieval.stage import _Retrieval

CLASSES = [ClassInfo("a", ("cat",)), ClassInfo("b", ("dog",))]
FOLDER = {"kind": "image_folder", "train_fraction": 0.4}
IDS = ["a/0.png", "a/1.png", "b/0.png"]
TIME = 1_700_000_000_000_000_007  # nanoseconds
TINY = {
    "arch": "resnet18",
    "layers": [1, 1, 1, 1],
    "base_width": 4,
    "resolution": 16,
    "evaluation_resize": 16,
    "batch_size": 4,
    "lr": 0.05,
    "max_epochs": 1,
}


def study_of(root: str | Path = "data", **changes: Any) -> Study:
    return parse_study(
        {
            "study": "s",
            "dataset": {**FOLDER, "root": str(root)},
            "diffusion": {"model": "none"},
            "clip": {"model": "none"},
            "methods": {
                "none": {"mechanism": "real"},
                "words": {"mechanism": "personalise", "learn": "pseudoword"},
                "web": {"mechanism": "sample", "start": "training_images", "noise": 0.5},
            },
            "augmentation": {"images_per_class": 2, "resamples": 1},
            "classifier": TINY,
            "execution": {"device": "cpu"},
            **changes,
        }
    )


def make_data(root: Path, first: int = 0) -> Path:
    """Two classes of six images of one size in bytes, all of one time."""
    for number, name in enumerate("ab"):
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(6):
            noise(first + 100 * number + i).save(folder / f"{i}.bmp")
            os.utime(folder / f"{i}.bmp", ns=(TIME, TIME + first))
    return root


def write_splits(study: Study, folder: Path) -> dict[str, Path]:
    """Draw the splits as their job does."""
    source = open_source(study.dataset, study.seed)
    paths = {name: folder / f"{name}.parquet" for name in ("train", "val", "test")}
    for name, split in make_splits(CLASSES, source.scan(), study.dataset, study.seed, set(paths)).items():
        write_split(stamped(split, source), paths[name])
    write_class_table(CLASSES, folder / "classes.parquet")
    return paths


def unstamped(*ids: str) -> Split:
    return Split(
        list(ids), [name[0] for name in ids], np.array(["ab".index(i[0]) for i in ids], np.int32), list(ids)
    )


# --- what splits record ---------------------------------------------------------------------------


def test_splits_of_a_folder_record_size_and_time(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    path = write_splits(study_of(data), tmp_path)["train"]
    table = pq.read_table(path)
    assert table.schema.names == [*SCHEMA.names, "size", "mtime_ns"]
    size = (data / "a/0.bmp").stat().st_size
    assert {*zip(table["size"].to_pylist(), table["mtime_ns"].to_pylist(), strict=True)} == {(size, TIME)}
    split = read_split(path)
    assert split.key_names[0] == (split.image_ids[0], size, TIME)
    assert split.without(["a"]).stamps == [Stamp(size, TIME)] * 3


def test_a_row_of_a_parquet_file_has_the_stamp_of_the_file(tmp_path: Path) -> None:
    files = [tmp_path / f"train-{part}.parquet" for part in range(2)]
    for part, file in enumerate(files):
        write_images(tmp_path, numbered(6), 10 * part)
        images = [{"bytes": (tmp_path / name).read_bytes(), "path": None} for name in numbered(6)]
        pq.write_table(pa.table({"image": images, "label": [0, 1] * 3}), file)
        os.utime(file, ns=(TIME, TIME + part))
    (tmp_path / "classes.tsv").write_text("class_id\tlemmas\na\tcat\nb\tdog\n")
    dataset = {"kind": "parquet", "root": str(tmp_path), "classes": str(tmp_path / "classes.tsv")}
    study = study_of(dataset={**dataset, "train_split": "train", "train_fraction": 0.4})
    split = read_split(write_splits(study, tmp_path)["train"])
    parts = [int(source.removeprefix("train-")[0]) for source in split.sources]
    assert [stamp and stamp.mtime_ns - TIME for stamp in split.stamps or ()] == parts and {*parts} == {0, 1}
    assert images_origin(study, stamped=True) == {"kind": "parquet", "image_column": "image"}
    os.utime(files[1], ns=(TIME, TIME + 2))
    source = open_source(study.dataset, study.seed)
    with pytest.raises(
        UserError, match=r"train-1\.parquet: .*009 UTC, but the study's splits recorded .*008 UTC; put"
    ):
        source.load_unchanged(split.sources, split.stamps)
    others = [row for row, part in enumerate(parts) if part == 0]
    assert [*source.load_unchanged([split.sources[row] for row in others], split.stamps_at(others))]


def test_a_data_set_that_hashes_fix_has_no_stamps(tmp_path: Path) -> None:
    study = study_of(dataset={"kind": "fashion_mnist"})
    split = unstamped(*IDS)
    assert stamped(split, open_source(study.dataset, 0)) is split
    write_split(split, tmp_path / "split.parquet")
    assert pq.read_schema(tmp_path / "split.parquet").equals(SCHEMA)
    assert read_split(tmp_path / "split.parquet").stamps is None


def test_of_images_learned_from_only_training_images_have_stamps(tmp_path: Path, monkeypatch: Any) -> None:
    paths = write_splits(study_of(make_data(tmp_path / "data")), tmp_path)
    train, row = read_split(paths["train"]), study_of().personalised["words"]
    added = {"class_id": ["a", "b"], "label": [0, 1], "sha256": ["1" * 64, "2" * 64]}
    monkeypatch.setattr(learned, "read_index", lambda path: pa.table(added))
    monkeypatch.setattr(
        learned, "added_source", lambda image: f"added:shards/web/selected/a/0.parquet#0#{image['sha256']}"
    )
    learned.write_learned_images("words", row, paths["train"], {"web": "set"}, tmp_path / "learned.parquet")
    assert pq.read_schema(tmp_path / "learned.parquet").equals(STAMPED)
    split = read_split(tmp_path / "learned.parquet")
    names = {*train.key_names, f"a/{'1' * 64}", f"b/{'2' * 64}"}
    assert {*split.key_names} == names and split.stamps is not None and split.stamps.count(None) == 2


# --- keys -------------------------------------------------------------------------------------------


def keys_of(study: Study, split: Split) -> dict[str, Any]:
    """Recipes of artifacts that name real images by their ids."""
    images = LabelledImages(split.image_ids, split.labels, lambda rows: iter(()), "x", split.stamps)
    run = TrainingRun(SharedInputs("none", np.arange(2), images, images, None), Path("0"), None)
    part = ImageSet(split.image_ids[:2], split.sources[:2], [0, 0], split.stamps_at([0, 1]))
    encoding = Encoding(study, "vae", open_source(study.dataset, 0), torch.device("cpu"), "")
    task = ClassTask(CLASSES[0], part, part)
    recipe = run_recipe(study, run)
    return {
        "run": {name: recipe.get(name) for name in ("real", "validation", "dataset")},
        "clusters": cluster._recipe(study, 2, "net", [split, split]),
        "latents": encoding.recipe(part, True),
        "task": personalise._task_recipe(task, study.personalised["words"], 0),
    }


# hashes of the keys, made with the code before stamps
EARLIER = {
    "fashion_mnist": {
        "run": "1e9a436d02bc702f",
        "clusters": "0a6e8f1c798fa948",
        "latents": "91318630c0fec945",
        "task": "b5b6e7912e9bc0c4",
    },
    "image_folder": {
        "run": "b8f33892f4083311",
        "clusters": "15ab8df53f728a45",
        "latents": "4db36b639d47d3fc",
        "task": "b5b6e7912e9bc0c4",
    },
}


@pytest.mark.parametrize("kind", EARLIER)
def test_keys_without_stamps_are_the_earlier_ones(kind: str) -> None:
    root = {"root": "data"} if kind == "image_folder" else {}
    study = study_of(dataset={"kind": kind, **root})
    found = {name: canonical_hash(key)[:16] for name, key in keys_of(study, unstamped(*IDS)).items()}
    assert found == EARLIER[kind]


def test_keys_with_stamps_name_the_content_and_not_the_folder() -> None:
    split = unstamped(*IDS)
    here, there, changed, later = (
        keys_of(study_of(root), Split(split.image_ids, split.class_ids, split.labels, split.sources, stamps))
        for root, stamps in (
            ("here", [Stamp(5, 7)] * 3),
            ("there", [Stamp(5, 7)] * 3),
            ("here", [Stamp(6, 7), *[Stamp(5, 7)] * 2]),
            ("here", [Stamp(5, 8), *[Stamp(5, 7)] * 2]),
        )
    )
    assert here == there and "here" not in str(here)
    assert all(here[name] != other[name] for other in (changed, later) for name in here)


def test_shards_that_start_from_training_images_name_their_stamps(tmp_path: Path) -> None:
    rows = [{"label": 0, "index": 0, "prompt": "p", "source": "a/0.png"}]
    target = str(tmp_path / "a/0.parquet")

    def key_of(root: str, stamps: list[Stamp | None] | None) -> dict[str, Any]:
        split = unstamped("a/0.png")
        write_split(
            Split(split.image_ids, split.class_ids, split.labels, split.sources, stamps), tmp_path / "train"
        )
        job: Any = SimpleNamespace(study=study_of(root))
        origin, starts = _starts(job, str(tmp_path / "train"))
        (shard,) = _shards(job, "web", "model", {("a", 0): rows}, origin, starts, [target], None)
        return shard.key

    earlier = key_of("here", None)
    assert earlier["dataset"] == {"kind": "image_folder", "root": "here"}
    assert earlier["rows"] == canonical_hash([[0, 0, "p", "a/0.png"]])
    first, moved, other = (
        key_of("here", [Stamp(5, 7)]),
        key_of("there", [Stamp(5, 7)]),
        key_of("here", [Stamp(5, 8)]),
    )
    assert first == moved and first["rows"] == canonical_hash([[0, 0, "p", ["a/0.png", 5, 7]]])
    assert first["rows"] != other["rows"] and first["dataset"] == {"kind": "image_folder"}


def test_retrieval_that_looks_for_copies_names_the_stamps_of_training_images() -> None:
    unread: Any = None

    def key_of(root: str, stamps: list[Stamp | None] | None) -> Any:
        real = RealImages("train", "", ["a/0.png"], ["a"], np.ones((1, 2), np.float16), unread, stamps)
        method = SimpleNamespace(copies="drop", target_share=0)
        asking: Any = SimpleNamespace(method=method, real=real, job=SimpleNamespace(study=study_of(root)))
        return _Retrieval._compared_with(asking, SimpleNamespace())  # type: ignore[arg-type]

    assert key_of("here", None) != key_of("there", None)
    assert key_of("here", [Stamp(5, 7)]) == key_of("there", [Stamp(5, 7)]) != key_of("here", [Stamp(5, 8)])


def test_the_key_of_an_embedded_folder_is_as_before(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"12345")
    os.utime(tmp_path / "a.png", ns=(7, TIME))
    (part,) = list_folder(tmp_path).parts
    # SHA-256 of '[["a.png",5,1700000000000000007]]'
    assert part.recipe == {"files": "b01c4f1739c21093af3cce246479766eadd8c34a54e1add77e075c6f4cbb8e5f"}


# --- classifiers ------------------------------------------------------------------------------------


def train_in(study: Study, folder: Path, store: Path) -> bytes:
    """Train the baseline of a study in ``folder`` with a shared store; return the weights' file."""
    train, val, test, classes = (folder / f"{name}.parquet" for name in ("train", "val", "test", "classes"))
    out = folder / "classifiers/none/0"
    train_block(study, Store(store, folder), "none", train, val, test, classes, [], [out])
    return (out / "model.safetensors").read_bytes()


def test_other_images_under_the_same_names_train_another_classifier(tmp_path: Path, one_thread: None) -> None:
    data, store = make_data(tmp_path / "data"), tmp_path / "store"

    def trained(name: str, root: Path) -> tuple[bytes, int, int]:
        folder = tmp_path / name
        folder.mkdir()
        write_splits(study_of(root), folder)
        weights = train_in(study_of(root), folder, store)
        kinds = (store / "classifiers").glob("*.safetensors"), (store / "predictions").glob("*")
        return (weights, *(len([*files]) for files in kinds))  # type: ignore[return-value]

    first = trained("first", data)
    shutil.copytree(data, tmp_path / "elsewhere")  # keeps times, as cp -p does
    assert trained("copied", tmp_path / "elsewhere") == first and first[1:] == (1, 1)
    make_data(data, first=7)
    weights, classifiers, predictions = trained("replaced", data)
    assert weights != first[0] and (classifiers, predictions) == (2, 2)


def test_a_file_that_changes_after_the_splits_is_named_before_training(
    tmp_path: Path, one_thread: None
) -> None:
    data = make_data(tmp_path / "data")
    split = read_split(write_splits(study_of(data), tmp_path)["train"])
    path = data / split.sources[1]
    size = path.stat().st_size
    os.utime(path, ns=(TIME, TIME + 10**9))
    expected = (
        rf"{path}: {size:,} bytes of 2023-11-14 22:13:21\.000000007 UTC, but the study's splits recorded "
        rf"{size:,} bytes of 2023-11-14 22:13:20\.000000007 UTC; put the earlier file back .* or delete the "
        "study's folder splits"
    )
    with pytest.raises(UserError, match=expected):
        train_in(study_of(data), tmp_path, tmp_path / "store")
    with pytest.raises(UserError, match=expected):
        images_of(study_of(data), "train", split)([0, 1])
    assert len([*images_of(study_of(data), "train", split)([0, 2])]) == 2, "other images can be read"
    tasks = class_tasks(
        tmp_path / "train.parquet", tmp_path / "val.parquet", tmp_path / "classes.parquet", None, "ab"
    )
    encoding = Encoding(
        study_of(data), "vae", open_source(study_of(data).dataset, 0), torch.device("cpu"), ""
    )
    unused: Any = None
    with pytest.raises(UserError, match=expected):
        encoding.moments(unused, tasks[0].train, False, unused)


def test_an_error_counts_the_other_files_that_changed(tmp_path: Path) -> None:
    write_images(tmp_path, numbered(3))
    files = sorted(tmp_path.iterdir())
    check_unchanged(files, stamps_of(files))
    with pytest.raises(UserError, match=r"000\.png: .* recorded 1 bytes of .* \(2 more files differ\); put"):
        check_unchanged([*files, files[0]], [Stamp(1, 0)] * 4)


# --- further test sets --------------------------------------------------------------------------------


def test_a_further_test_set_in_a_folder_has_stamps_in_place_of_its_folder(tmp_path: Path) -> None:
    def study(root: Path) -> Study:
        return study_of(
            dataset={
                **FOLDER,
                "root": "data",
                "further_tests": {"art": {"kind": "folder", "root": str(root)}},
            }
        )

    here = study(make_data(tmp_path / "art"))
    write_manifest(here, "art", CLASSES, tmp_path / "art.parquet")
    split = read_split(tmp_path / "art.parquet")
    assert split.stamps is not None and {stamp and stamp.mtime_ns for stamp in split.stamps} == {TIME}
    there = study(tmp_path / "there")
    assert further_images_recipe(here, "art") != further_images_recipe(there, "art")
    assert further_images_recipe(here, "art", True) == further_images_recipe(there, "art", True)
    assert len([*images_of(here, "art", split)(range(12))]) == 12
    (tmp_path / "art/b/5.bmp").write_bytes(b"")
    with pytest.raises(UserError, match=r"art/b/5\.bmp: 0 bytes of .* splits recorded"):
        images_of(here, "art", split)(range(12))


def test_names_in_keys() -> None:
    assert names_in_keys(["x", "y"], None) == ["x", "y"]
    assert names_in_keys(["x", "y"], [Stamp(1, 2), None]) == [("x", 1, 2), "y"]
