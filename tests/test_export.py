"""Exporting training sets: read back with torchvision, tarfile and pyarrow."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import Workspace
from PIL import Image
from torchvision.datasets import ImageFolder

from augbench.artifacts.pool import build_index, read_index
from augbench.artifacts.shards import ShardRow, encode_image, write_shard
from augbench.classifier.compute import compute_of
from augbench.classifier.images import LabelledImages
from augbench.classifier.score import score_test, top1
from augbench.classifier.train import train_run
from augbench.cli import main
from augbench.commands.export import best, contents, export, formats
from augbench.commands.export.contents import Contents, Picture
from augbench.config.data import ParquetImages
from augbench.config.study import load_study
from augbench.data.classes import ClassInfo, class_id_of, folder_of, write_class_table
from augbench.data.parquet_source import ParquetSource
from augbench.data.splits import Split, read_split, write_split
from augbench.files import write_json, write_text
from augbench.leakage.records import SCHEMA as LEAKS
from augbench.plan.paths import Plan
from augbench.report.render import render_csv
from augbench.report.tables import contrasts, statistics, table1
from augbench.resample import Drawing, resample
from augbench.retrieval import manifest

FOLDERS = ("ant", "hot dog", "wasp", "zebra")  # wasp is left out
CLASSES = tuple(map(class_id_of, FOLDERS))
LEFT_OUT = "wasp"
METHODS: dict[str, dict[str, Any]] = {
    "none": {"mechanism": "real", "label": "No added images"},
    "prompts": {"mechanism": "sample", "label": "Prompts"},
    "retrieval": {"mechanism": "retrieve", "label": "Retrieval"},
    "halves": {"mechanism": "draw", "pools": {"retrieval": 0.5, "prompts": 0.5}},
    "replacing": {"mechanism": "draw", "pool": "prompts", "use": {"replace": 0.5}},
    "placebo": {"mechanism": "draw", "pool": "prompts", "labels": "shuffled"},
    "chosen": {"mechanism": "choose", "among": ["halves", "replacing"]},
}
CONFIG: dict[str, Any] = {
    "study": "tiny",
    "dataset": {"kind": "image_folder", "root": "data", "draws": 2},
    "corpus": {"kind": "image_folder", "root": "data"},
    "diffusion": {"model": "resources/mini/stable-diffusion", "resolution": 32},
    "clip": {"model": "resources/mini/clip"},
    "methods": METHODS,
    "augmentation": {"images_per_class": 4, "resamples": 2},
    "classifier": {"arch": "resnet18", "resolution": 32},
}
# files of a class that a plain reader sees as they are; 2.png is transparent, 3.jpg rotated by its EXIF
PLAIN = {"0.jpg", "1.png"}


def colour(class_id: str, place: int) -> Image.Image:
    return Image.new("RGB", (12, 8), (40 * CLASSES.index(class_id), 20 * place, 90))


def write_data(root: Path) -> None:
    """Write four files per class."""
    for class_id in CLASSES:
        folder = root / folder_of(class_id)
        folder.mkdir(parents=True)
        colour(class_id, 0).save(folder / "0.jpg")
        colour(class_id, 1).save(folder / "1.png")
        Image.new("RGBA", (12, 8), (0, 0, 0, 0)).save(folder / "2.png")
        exif = Image.Exif()
        exif[0x0112] = 6
        colour(class_id, 3).save(folder / "3.jpg", exif=exif)


def split_of(files: str) -> Split:
    rows = [
        (label, class_id, f"{folder_of(class_id)}/{name}")
        for label, class_id in enumerate(CLASSES)
        for name in files.split()
    ]
    sources = [source for _, _, source in rows]
    labels = np.array([label for label, _, _ in rows], dtype=np.int32)
    return Split(sources, [class_id for _, class_id, _ in rows], labels, sources)


def shard_rows(method: str, class_id: str) -> list[ShardRow]:
    rows = []
    for index in range(4):
        image = Image.new("RGB", (8, 8), (index, CLASSES.index(class_id), 200 + len(method)))
        retrieved = method == "retrieval"
        known: dict[str, Any] = (
            {"source": f"https://example.org/{class_id}/{index}", "similarity": 0.5}
            if retrieved
            else {"seed": index}
        )
        encoded = encode_image(image, "jpeg" if retrieved else "png", 95)
        label = CLASSES.index(class_id)
        rows.append(ShardRow(encoded, label, class_id, index, f"a {class_id}", "model", **known))
    return rows


def write_frozen(plan: Plan) -> None:
    """Write the list of retrieved images."""
    rows = [
        {
            "class_id": class_id,
            "query": f"a {class_id}",
            "rank": 2 * index,
            "id": f"id-{class_id}-{index}",
            "url": f"https://example.org/{class_id}/{index}",
            "caption": f"caption {index}",
            "similarity": 0.5,
            "sha256": f"file {class_id} {index}",
            "width": 640,
            "height": 480,
            "backend": "exact",
            "clip": "clip",
        }
        for class_id in CLASSES
        for index in range(4)
    ]
    path = Path(plan.manifest("retrieval"))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=manifest.SCHEMA), path)


# method: accuracy, difference from the baseline, its interval, p after the correction
TESTED = {
    "prompts": (72.0, 2.0, (-1.0, 5.0), 0.2),
    "retrieval": (75.0, 5.0, (3.0, 7.0), 0.004),
    "halves": (76.0, 6.0, (-2.0, 14.0), 0.09),
    "replacing": (74.0, 4.0, (3.0, 5.0), 0.0004),
    "placebo": (79.0, 9.0, (8.0, 10.0), 0.0001),
    "chosen": (60.0, -10.0, (-11.0, -9.0), 0.0001),
}


def write_tables(plan: Plan, changed: dict[str, float] | None = None) -> None:
    """Write Table 1, contrasts and statistics; ``changed`` has other p values."""
    entries = [table1.Row("none", "No added images", "real", "train", 70.0, 0.5, 2, 2, 0, None, None, None)]
    means = [statistics.Row("none", "No added images", 2, 70.0, 0.5, 69.0, 71.0, 4, 1.0, None)]
    rows = []
    for place, (method, (accuracy, points, (low, high), p)) in enumerate(TESTED.items()):
        label = plan.study.label(method)
        family = plan.study.methods[method].group
        entries.append(table1.Row(method, label, family, "train", accuracy, 0.5, 2, 2, 2, 0, None, None))
        means.append(statistics.Row(method, label, 2, accuracy, 0.5, 0, 100, 4, 1.0, 0, points, low, high))
        p_holm = (changed or {}).get(method, p)
        forward = place % 2 == 0  # a contrast may name the baseline first
        sign = 1 if forward else -1
        pair = (
            (method, label, "none", "No added images")
            if forward
            else ("none", "No added images", method, label)
        )
        bounds = (low, high) if forward else (-high, -low)
        rows.append(
            contrasts.Row(
                row=pair[0], row_label=pair[1], against=pair[2], against_label=pair[3], kind="named",
                name="x", n=2, n_test=4, points=sign * points, sd_points=1.0, df=1, low=bounds[0],
                high=bounds[1], images_low=0, images_high=0, both_low=None, both_high=None, p=p_holm / 6,
                p_holm=p_holm, p_same=None, p_same_holm=None, detectable_alone=None, detectable_holm=None,
                runs_for_margin=None, margin=1.0, contrasts=6,
            )
        )  # fmt: skip
    write_text(plan.table1["csv"], render_csv(entries))
    write_text(plan.contrasts["csv"], render_csv(rows))
    write_text(plan.statistics["csv"], render_csv(means))


def write_leaks(plan: Plan) -> None:
    """One image of prompts near-duplicates a test image; image 0 of each class repeats a training image."""

    def rows(split: str, class_ids: tuple[str, ...]) -> pa.Table:
        found = []
        for class_id in class_ids:
            sha256 = hashlib.sha256(shard_rows("prompts", class_id)[0].image).hexdigest()
            known = {"method": "prompts", "class_id": class_id, "index": 0, "sha256": sha256, "split": split}
            found.append({**dict.fromkeys(LEAKS.names), **known})
        return pa.Table.from_pylist(found, schema=LEAKS)

    for path, table in (
        (plan.leaks("halves"), rows("test", CLASSES[:1])),
        (plan.repeats("halves"), rows("train", CLASSES)),
    ):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    old = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(old)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a finished study of four classes, one of which is left out."""
    folder = tmp_path_factory.mktemp("tiny")
    with inside(folder):
        write_text("study.yaml", yaml.safe_dump(CONFIG, sort_keys=False))
        write_data(folder / "data")
        study = load_study(["study.yaml"])
        plan = Plan(study, CLASSES).unfolded
        infos = [ClassInfo(class_id, (folder_of(class_id), "other name")) for class_id in CLASSES]
        write_class_table(infos, plan.classes)
        write_split(split_of("0.jpg 1.png 2.png 3.jpg"), plan.splits["train"])
        write_split(split_of("1.png 3.jpg"), plan.splits["train_draw1"])
        write_split(split_of("1.png"), plan.splits["val"])
        write_split(split_of("0.jpg 2.png"), plan.splits["test"])
        write_json(plan.excluded[0], {"exclude": "auto", "excluded": [LEFT_OUT], "short": {}})
        for method in ("prompts", "retrieval"):
            for class_id in CLASSES:
                write_shard(plan.shard(method, class_id, "0"), shard_rows(method, class_id), {})
        for name in plan.study.augmented:
            build_index(
                [
                    plan.shard(pool, class_id, "0")
                    for pool in plan.study.pools_of(name)
                    for class_id in CLASSES
                ],
                plan.root,
                plan.pool(name),
            )
            outs = [plan.resample(name, run) for run in plan.runs]
            drawing = Drawing.of(plan.study, name)
            seed = plan.study.seed_of(name)
            train = plan.train_of(name)
            for out in outs:
                Path(out).parent.mkdir(parents=True, exist_ok=True)
            resample(plan.pool(name), train, outs, seed, drawing, (LEFT_OUT,))
        write_json(plan.selected("chosen"), {"selected": "replacing"})
        for run in plan.runs:
            target = Path(plan.resample("chosen", run))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(plan.resample("replacing", run), target)
        write_frozen(plan)
        write_leaks(plan)
        write_tables(Plan(study, ()))
        fates = "method,class_id,fate,candidates\nretrieval,all classes,kept,16\nretrieval,ant,kept,4\n"
        write_text(plan.retrieval_summary["fates"], fates)
        model = {"id": "0123abcd", "folder": "somewhere/sd", "repository": "who/sd", "revision": "f" * 40}
        write_json(plan.provenance, {"models": {"diffusion": model}, "version": "0.1.0", "revision": "abc"})
    return folder


@pytest.fixture
def study(made: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.chdir(made)
    return Plan(load_study(["study.yaml"]), CLASSES).unfolded


def run(target: Path, *arguments: str, row: str = "halves") -> int:
    return main(["export", "--configfile", "study.yaml", "--row", row, "--to", str(target), *arguments])


def files_of(folder: Path) -> dict[str, str]:
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def set_of(plan: Plan, row: str, number: int = 0) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_index(plan.resample(row, str(number))).to_pylist()
    return rows


def metadata(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / "metadata.parquet").to_pylist()
    return rows


def test_torchvision_reads_the_folders(study: Plan, tmp_path: Path) -> None:
    assert run(tmp_path / "out", "--splits", "train,val") == 0
    train = ImageFolder(tmp_path / "out/train")
    assert train.classes == ["ant", "hot dog", "zebra"]
    assert Counter(train.targets) == dict.fromkeys(range(3), 8)  # 4 real and 4 added images each
    assert len(ImageFolder(tmp_path / "out/val")) == 3
    assert (tmp_path / "out/classes.txt").read_text() == "ant\nhot dog\nzebra\n"
    rows = metadata(tmp_path / "out/train")
    assert [row["label"] for row in rows] == sorted(row["label"] for row in rows)
    first = [row for row in rows if row["class_id"] == "hot~20dog"]
    assert [row["kind"] for row in first] == ["real"] * 4 + ["added"] * 4
    for row in rows:
        assert (
            hashlib.sha256((tmp_path / "out/train" / row["file_name"]).read_bytes()).hexdigest()
            == row["sha256"]
        )


def test_added_images_are_those_of_the_set_as_stored(study: Plan, tmp_path: Path) -> None:
    run(tmp_path / "out", "--run", "1")
    rows = [row for row in metadata(tmp_path / "out/train") if row["kind"] == "added"]
    assert [row["sha256"] for row in rows] == [row["sha256"] for row in set_of(study, "halves", 1)]
    assert Counter(row["row"] for row in rows) == {"prompts": 6, "retrieval": 6}
    generated = next(row for row in rows if row["row"] == "prompts")
    assert (generated["prompt"], generated["model"], generated["source"]) == ("a ant", "model", None)
    found = next(row for row in rows if row["row"] == "retrieval")
    assert found["source"].startswith("https://example.org/ant/") and found["file_name"].endswith(".jpg")


def test_a_real_file_is_linked_if_any_reader_sees_what_the_classifier_sees(
    study: Plan, tmp_path: Path
) -> None:
    run(Path("linked"), row="none")  # on the disk of the data set
    rows = {row["id"]: row["file_name"] for row in metadata(Path("linked/train"))}
    loaded = contents.open_source(study.study.dataset, 0).load([*rows])
    for (image_id, name), image in zip(rows.items(), loaded, strict=True):
        written, source = Path("linked/train") / name, Path("data") / image_id
        assert written.samefile(source) is (source.name in PLAIN)
        with Image.open(written) as opened:
            assert np.array_equal(np.asarray(opened.convert("RGB")), np.asarray(image))
    shutil.rmtree("linked")
    assert {Path(name).suffix for name in rows.values()} == {".jpg", ".png"}


@pytest.mark.parametrize("form", ["imagefolder", "webdataset", "parquet"])
def test_two_exports_have_the_same_bytes(form: str, study: Plan, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert run(tmp_path / name, "--format", form, "--splits", "train,test", "--addresses") == 0
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_tars_hold_keys_labels_and_metadata_in_order(
    study: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("augbench.commands.export.formats.IMAGES_PER_FILE", 10)
    run(tmp_path / "out", "--format", "webdataset")
    run(tmp_path / "folders")
    expected = metadata(tmp_path / "folders/train")
    found = []
    for number, length in enumerate((10, 10, 4)):
        with tarfile.open(tmp_path / f"out/train-{number:06d}.tar") as tar:
            members = tar.getmembers()
            assert {(one.mtime, one.uid, one.gid, one.uname) for one in members} == {(0, 0, 0, "")}
            assert len(members) == 3 * length
            for image, label, details in zip(*[iter(members)] * 3, strict=True):
                key, _, suffix = image.name.partition(".")
                assert (label.name, details.name) == (f"{key}.cls", f"{key}.json") and suffix in (
                    "png",
                    "jpg",
                )
                content, text, more = (tar.extractfile(one) for one in (image, label, details))
                assert content is not None and text is not None and more is not None
                known = json.load(more)
                assert hashlib.sha256(content.read()).hexdigest() == known["sha256"]
                assert int(text.read()) == known["label"] and int(key) == len(found)
                found.append(known)
    assert found == [{name: row[name] for name in row if name != "file_name"} for row in expected]
    info = json.loads((tmp_path / "out/_info.json").read_text())["splits"]["train"]
    assert (info["num_samples"], info["shard_lengths"]) == (24, [10, 10, 4])


def test_parquet_has_the_features_of_hugging_face(study: Plan, tmp_path: Path) -> None:
    run(tmp_path / "out", "--format", "parquet", "--splits", "train,val,test")
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 3
    table = pq.read_table(tmp_path / "out/train-000000.parquet")
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["label"] == {"_type": "ClassLabel", "names": ["ant", "hot dog", "zebra"]}
    assert features["image"] == {"_type": "Image"} and table.schema.field("label").type == pa.int64()
    rows = table.to_pylist()
    assert len(rows) == 24
    for row in rows:
        assert hashlib.sha256(row["image"]["bytes"]).hexdigest() == row["sha256"]
        Image.open(BytesIO(row["image"]["bytes"])).load()
    test = pq.read_table(tmp_path / "out/test-000000.parquet", columns=["kind"])
    assert test.column("kind").to_pylist() == ["real"] * 6


def test_retrieved_images_go_out_as_addresses(study: Plan, tmp_path: Path) -> None:
    run(tmp_path / "out", "--addresses")
    rows = [row for row in metadata(tmp_path / "out/train") if row["kind"] == "added"]
    assert {row["row"] for row in rows} == {"prompts"} and len(rows) == 6
    listed = pq.read_table(tmp_path / "out/addresses.parquet").to_pylist()
    wanted = [row for row in set_of(study, "halves") if "/retrieval/" in row["path"]]
    assert [row["id"] for row in listed] == [f"{row['class_id']}_{row['index']:06d}" for row in wanted]
    for row, entry in zip(listed, wanted, strict=True):
        assert row["url"] == f"https://example.org/{entry['class_id']}/{entry['index']}"
        assert row["sha256"] == f"file {entry['class_id']} {entry['index']}"
        assert (row["width"], row["height"], row["caption"]) == (640, 480, f"caption {entry['index']}")
    assert [row["label"] for row in listed] == [0, 0, 1, 1, 2, 2]  # wasp has none


def test_replaced_images_stay_away_and_a_chosen_row_is_its_choice(study: Plan, tmp_path: Path) -> None:
    for row in ("replacing", "chosen"):
        run(tmp_path / row, row=row)
    rows = metadata(tmp_path / "replacing/train")
    assert Counter((row["class_id"], row["kind"]) for row in rows) == {
        (class_id, kind): 2 for class_id in CLASSES if class_id != LEFT_OUT for kind in ("real", "added")
    }
    assert rows == metadata(tmp_path / "chosen/train")
    assert "It chose the row `replacing`." in (tmp_path / "chosen/README.md").read_text()


def test_a_placebo_keeps_its_shuffled_labels(study: Plan, tmp_path: Path) -> None:
    run(tmp_path / "out", row="placebo")
    found = {
        (row["label"], row["sha256"]) for row in metadata(tmp_path / "out/train") if row["kind"] == "added"
    }
    labels = {0: 0, 1: 1, 3: 2}  # of the study, by those without wasp
    assert found == {(labels[row["label"]], row["sha256"]) for row in set_of(study, "placebo")}


def test_a_further_draw_has_its_own_real_images(study: Plan, tmp_path: Path) -> None:
    run(tmp_path / "out", row="prompts_draw1")
    rows = metadata(tmp_path / "out/train")
    assert {row["id"] for row in rows if row["kind"] == "real"} == {
        source for source in read_split(study.splits["train_draw1"]).sources if LEFT_OUT not in source
    }
    assert [row["sha256"] for row in rows if row["kind"] == "added"] == [
        row["sha256"] for row in set_of(study, "prompts_draw1")
    ]


def test_bytes_in_parquet_files_are_kept_and_odd_ones_decoded(tmp_path: Path) -> None:
    write_data(tmp_path / "data")
    names = ["0.jpg", "1.png", "2.png", "3.jpg"]
    stored = [(tmp_path / "data/ant" / name).read_bytes() for name in names]
    rows = [
        {"image": {"bytes": one, "path": name}, "label": 0} for one, name in zip(stored, names, strict=True)
    ]
    (tmp_path / "rows").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows/train.parquet")
    section = ParquetImages(kind="parquet", root=str(tmp_path / "rows"), train_split="train")
    source = ParquetSource(section)
    wanted = [f"train.parquet:{row}" for row in (3, 0, 1, 2)]
    files = [content for content, path in contents.real_files(source, wanted) if path is None]
    assert files[1:3] == stored[:2]
    turned, flat = (Image.open(BytesIO(files[place])) for place in (0, 3))
    assert (turned.format, turned.size) == ("PNG", (8, 12))
    assert (flat.format, flat.mode, flat.getpixel((0, 0))) == ("PNG", "RGB", (255, 255, 255))


# --- best ------------------------------------------------------------------------------------------


def test_best_is_the_most_accurate_row_that_is_shown_to_be_better(
    study: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "out", row="best") == 0
    # halves leads, but its p is 0.09; a placebo is no training set to pass on
    line = (
        "best: retrieval; of the rows that are shown to be better than No added images, Retrieval has the"
        " highest accuracy: 75.00%, +5.00 points [+3.00 to +7.00] (p 0.004, corrected for 6 contrasts)"
    )
    assert capsys.readouterr().out.splitlines()[0] == line
    assert "Chosen by the study's statistics" in (tmp_path / "out/README.md").read_text()


def test_without_a_row_that_is_shown_to_be_better_nothing_is_written(
    study: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tables(study.folded, {"retrieval": 0.06, "replacing": 0.05})
    try:
        assert run(tmp_path / "out", row="best") == 2
    finally:
        write_tables(study.folded)
    assert capsys.readouterr().out == (
        "augbench: no row is shown to be better than No added images after the correction; halves (halves)"
        " leads with 76.00%, +6.00 points [-2.00 to +14.00]; nothing is written\n"
    )
    assert not [*tmp_path.iterdir()]


def test_without_a_baseline_no_row_can_be_the_best(study: Plan) -> None:
    table = [row for row in table1.read_rows(study.table1["csv"]) if row.method != "none"]
    tested = contrasts.read_rows(study.contrasts["csv"])
    found = best.choose(table, table, tested, study.statistics["csv"])
    assert found.row is None and "no row of the training images alone" in found.reason


def test_rows_without_a_contrast_are_named_and_never_said_to_be_tested(study: Plan) -> None:
    """As in the demo, whose contrasts are named: retrieval alone is compared with the baseline."""
    table = table1.read_rows(study.table1["csv"])
    rows = [row for row in table if row.method in ("prompts", "retrieval", "halves")]
    tested = contrasts.read_rows(study.contrasts["csv"])

    def chosen(names: set[str]) -> best.Best:
        kept = [row for row in tested if {row.row, row.against} & names]
        return best.choose(table, rows, kept, study.statistics["csv"])

    others = (
        "; without a contrast against No added images: halves, prompts (name one, as report.contrasts:"
        " [{row: halves, against: none}], or export a row by its name: --row halves)"
    )
    found = chosen({"retrieval"})
    assert found.row == "retrieval" and found.reason.endswith(f"corrected for 6 contrasts){others}")
    assert chosen({"halves"}).reason == (  # its p is 0.09
        "no row is shown to be better than No added images after the correction; of the rows that were"
        " compared with it, halves (halves) leads with 76.00%, +6.00 points [-2.00 to +14.00]; without a"
        " contrast against No added images: retrieval, prompts (name one, as report.contrasts: [{row:"
        " retrieval, against: none}], or export a row by its name: --row retrieval)"
    )
    none = chosen({"placebo"})
    assert none.row is None and none.reason.startswith(
        "no row can be shown to be better; without a contrast against No added images: halves, retrieval,"
    )


# --- the card --------------------------------------------------------------------------------------


def test_the_card_says_where_the_images_come_from(study: Plan, tmp_path: Path) -> None:
    run(tmp_path / "out", "--splits", "train,test", "--format", "parquet")
    text = (tmp_path / "out/README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["configs"][0]["data_files"] == [
        {"split": "train", "path": "train-*.parquet"},
        {"split": "test", "path": "test-*.parquet"},
    ]
    for part in (
        "| 1 | hot dog | hot dog, other name | 4 | 4 | 2 |",
        "|  | all |  | 12 | 12 | 6 |",
        "Left out by the study: wasp.",
        "diffusion: who/sd, revision `ffff",
        "Candidates of `retrieval` in the corpus, by what became of them: kept 16.",
        "Test accuracy of classifiers trained on such sets: 76.00% ± 0.50",
        "--row halves --run 0 --to DIR --format parquet --splits train,test",
        "Stable Diffusion's licence",
        "the terms of the corpus, a collection of images, hold",
        "`safety_flags` of an image",
        "@article{burg2023image",
    ):
        assert part in text, part
    assert str(tmp_path) not in text and str(Path.cwd()) not in text
    drawn = {row["sha256"] for row in set_of(study, "halves")}
    first = [hashlib.sha256(shard_rows("prompts", name)[0].image).hexdigest() for name in CLASSES]
    repeats, leaks = sum(one in drawn for one in first), int(first[0] in drawn)
    assert f"Of the 12 added images, {leaks} near-duplicate a test image, 0 a validation image and" in text
    assert f"and {repeats} a training image" in text


# --- refusals, interruptions -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "row", "line"),
    [
        ([], "nobody", "--row: 'nobody'; allowed: best, none, prompts, retrieval, halves, replacing"),
        (["--run", "2"], "halves", "--run: 2; allowed: 0 to 1"),
        (["--splits", "train,dev"], "halves", "--splits: 'train,dev'; allowed: any of train,val,test"),
    ],
)
def test_wrong_arguments_name_what_is_allowed(
    arguments: list[str], row: str, line: str, study: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "out", *arguments, row=row) == 1
    assert capsys.readouterr().err.startswith(f"augbench: {line}")


@pytest.mark.parametrize("what", ["table", "manifest", "shard", "list"])
def test_an_unfinished_study_names_the_missing_file_and_the_command(
    what: str, study: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = {
        "table": study.table1["csv"],
        "manifest": study.resample("halves", "0"),
        "shard": study.shard("prompts", "zebra", "0"),
        "list": study.manifest("retrieval"),
    }[what]
    os.rename(path, "aside")
    try:
        assert run(tmp_path / "out", "--addresses") == 1
    finally:
        os.rename("aside", path)
    assert capsys.readouterr().err == (
        f"augbench: {path}: missing, because the study is not finished or has changed; finish it:"
        " augbench run --configfile study.yaml\n"
    )
    assert not [*tmp_path.iterdir()]


def test_added_images_of_a_class_that_is_left_out_are_refused(
    study: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(study.excluded[0], {"excluded": [LEFT_OUT, "zebra"]})
    try:
        assert run(tmp_path / "out") == 1
    finally:
        write_json(study.excluded[0], {"excluded": [LEFT_OUT]})
    assert "images of class 'zebra', which is left out" in capsys.readouterr().err


def test_a_folder_that_is_not_empty_is_refused(
    study: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    assert run(tmp_path / "out") == 0  # an empty folder is fine
    before = files_of(tmp_path / "out")
    assert run(tmp_path / "out", row="none") == 1
    assert "not empty; allowed: a new or an empty folder" in capsys.readouterr().err
    assert files_of(tmp_path / "out") == before


def test_what_a_killed_export_left_is_replaced_and_nothing_else_is(
    study: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left = tmp_path / ".out.unfinished"
    (left / "train/ant").mkdir(parents=True)
    (left / "train/ant/real_000000.png").write_bytes(b"half")
    assert run(tmp_path / "out") == 1
    assert "not an unfinished export; move it away" in capsys.readouterr().err
    (left / export.MARK).touch()
    assert run(tmp_path / "out") == 0
    assert not left.exists() and not (tmp_path / "out" / export.MARK).exists()
    run(tmp_path / "again")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "again")


class Stopping:
    """Count the pictures of an export, and interrupt it after ``most``; ``held``: most at one time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
        self.read, self.most, self.held = 0, most, 0
        self.alive = weakref.WeakSet[Picture]()
        picture = Contents._picture

        def read(*arguments: Any, **details: Any) -> Picture:
            if self.read == self.most:
                raise KeyboardInterrupt
            self.read += 1
            made = picture(*arguments, **details)
            self.alive.add(made)
            self.held = max(self.held, len(self.alive))
            return made

        monkeypatch.setattr(Contents, "_picture", read)
        monkeypatch.setattr(Picture, "__hash__", lambda picture: id(picture))
        monkeypatch.setattr(formats, "IMAGES_PER_FILE", 5)
        monkeypatch.setattr(formats, "ROWS_TOGETHER", 2)


@pytest.mark.parametrize("form", ["imagefolder", "webdataset", "parquet"])
def test_a_stopped_export_is_continued_to_the_same_bytes(
    form: str, study: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """24 images of train and 6 of test, 5 per file: 17 are read, 15 of them are in finished files."""
    data, arguments = files_of(Path("data")), ("--format", form, "--splits", "train,test")
    counted = Stopping(monkeypatch, most=24 + 6)
    assert run(tmp_path / "whole", *arguments) == 0
    assert counted.held <= 2  # not the images of a file together
    counted.read, counted.most = 0, 17
    assert run(tmp_path / "out", *arguments) == 130
    assert not (tmp_path / "out").exists()
    (tmp_path / ".out.unfinished/.train-000003.tar.abc.tmp.tar").write_bytes(b"half")  # as a kill leaves it
    counted.most = 1000
    assert run(tmp_path / "out", *arguments) == 0
    assert counted.read == 17 + (24 - 15) + 6
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    assert files_of(Path("data")) == data
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_a_stopped_export_of_another_row_is_not_continued(
    study: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Stopping(monkeypatch, most=17)
    assert run(tmp_path / "out") == 130
    counted.read, counted.most = 0, 1000
    assert run(tmp_path / "out", row="prompts") == 0
    assert counted.read == 24
    run(tmp_path / "whole", row="prompts")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_an_image_of_another_size_than_recorded_is_written_again(
    study: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Stopping(monkeypatch, most=17)
    assert run(tmp_path / "out") == 130
    torn = tmp_path / ".out.unfinished/train/ant/added_000001"  # the sixth image, of the second record
    (torn,) = torn.parent.glob(f"{torn.name}.*")
    torn.write_bytes(torn.read_bytes()[:-1])
    counted.read, counted.most = 0, 1000
    assert run(tmp_path / "out") == 0
    assert counted.read == 24 - 5
    run(tmp_path / "whole")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_a_split_that_is_not_in_the_order_of_classes_is_refused(
    study: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(study.splits["test"])
    before, table = path.read_bytes(), pq.read_table(path)
    pq.write_table(table.take([7, *range(7)]), path)
    try:
        assert run(tmp_path / "out", "--splits", "test") == 1
    finally:
        path.write_bytes(before)
    line = f"{path}: images of class 'ant' after those of class 'zebra'; delete it and run again"
    assert capsys.readouterr().err.startswith(f"augbench: {line}")
    assert not [*tmp_path.iterdir()]


def test_a_link_to_a_missing_folder_is_refused_at_once(
    study: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "gone")
    assert run(tmp_path / "out") == 1
    line = f"--to: '{tmp_path}/out', a link to '{tmp_path}/gone', which is missing; make it, or remove"
    assert capsys.readouterr().err.startswith(f"augbench: {line}")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "gone").mkdir()
    assert run(tmp_path / "out") == 0 and (tmp_path / "gone/classes.txt").is_file()


def test_two_exports_to_one_folder_do_not_disturb_each_other(
    study: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left = tmp_path / ".out.unfinished"
    left.mkdir()
    (left / "half").touch()
    code = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", f"{code}; sys.stdin.read()", str(left / export.MARK)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        assert run(tmp_path / "out") == 1
        assert (left / "half").exists()
        other.communicate()
    assert "which another export is writing; wait for its end" in capsys.readouterr().err
    assert run(tmp_path / "out") == 0


def test_a_failure_in_the_middle_leaves_nothing(
    study: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(study.shard("prompts", "zebra", "0"))
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"IDAT", b"IDXT"))
    try:
        assert run(tmp_path / "out") == 1
    finally:
        path.write_bytes(whole)
    assert str(path) in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_a_full_disk_is_noticed_before_anything_is_written(
    study: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: Free(1000))
    assert run(tmp_path / "out") == 1
    assert "the export needs about" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


class Free:
    """Free space of a disk."""

    def __init__(self, free: int) -> None:
        self.free = free


@pytest.mark.full
def test_the_small_study_is_exported(finished: Workspace, tmp_path: Path) -> None:
    """Fashion-MNIST has no files to link; every row of the study that adds images can be exported."""
    study = load_study([finished.folder / "study.yaml"])
    for row in study.augmented:
        done = finished.augbench(
            "export", "--configfile", "study.yaml", "--row", row, "--to", str(tmp_path / row)
        )
        assert done.returncode == 0, done.stderr
        with inside(finished.folder):
            plan = Plan(study, ())
            drawn = [one["sha256"] for one in set_of(plan, row)]
            real = len(read_split(plan.split_of(row)))
        rows = metadata(tmp_path / row / "train")
        assert [one["sha256"] for one in rows if one["kind"] == "added"] == drawn
        assert len(ImageFolder(tmp_path / row / "train")) == real + len(drawn)


@pytest.mark.full
def test_timm_reads_folders_and_tars(study: Plan, tmp_path: Path) -> None:
    """The readers that timm's ``train.py`` opens data with; the script itself is not in timm's package."""
    from timm.data import create_dataset

    for form in ("imagefolder", "webdataset"):
        assert run(tmp_path / form, "--format", form, "--splits", "train,val") == 0
    expected = metadata(tmp_path / "imagefolder/train")
    names = str(tmp_path / "imagefolder/classes.txt")
    folders = create_dataset("", root=str(tmp_path / "imagefolder"), split="train", class_map=names)
    assert len(folders) == len(expected) == 24
    assert Counter(label for _, label in folders) == Counter(row["label"] for row in expected)
    assert len(create_dataset("", root=str(tmp_path / "imagefolder"), split="val", class_map=names)) == 3
    tars = create_dataset("wds/", root=str(tmp_path / "webdataset"), split="train")
    found = [(np.asarray(image), label) for image, label in tars]
    assert [label for _, label in found] == [row["label"] for row in expected]
    for (pixels, _), row in zip(found, expected, strict=True):
        with Image.open(tmp_path / "imagefolder/train" / row["file_name"]) as opened:
            assert np.array_equal(pixels, np.asarray(opened.convert("RGB")))


@pytest.mark.full
def test_hugging_faces_datasets_reads_folders_and_parquet(study: Plan, tmp_path: Path) -> None:
    from datasets import load_dataset

    for form in ("imagefolder", "parquet"):
        assert run(tmp_path / form, "--format", form, "--splits", "train,val") == 0
    expected = metadata(tmp_path / "imagefolder/train")
    cache = str(tmp_path / "cache")
    folders = load_dataset("imagefolder", data_dir=str(tmp_path / "imagefolder"), cache_dir=cache)
    files = {"train": str(tmp_path / "parquet/train-*.parquet")}
    tables = load_dataset("parquet", data_files=files, cache_dir=cache)
    assert {*folders} == {"train", "validation"} and tables["train"].features["label"].names[1] == "hot dog"
    for found in (folders["train"], tables["train"]):
        rows = {(row["label"], row["sha256"], row["prompt"]) for row in found.select_columns(READ)}
        assert rows == {tuple(row[name] for name in READ) for row in expected}
        assert len(found) == len(expected) and {one["image"].mode for one in found} <= {"RGB", "L"}


READ = ["label", "sha256", "prompt"]


@pytest.mark.full
def test_a_classifier_on_the_export_has_the_studys_accuracy(
    finished: Workspace, tmp_path: Path, one_thread: None
) -> None:
    """The same classifier, trained on the exported folders alone, is within the row's interval."""
    row, study = "retrieval", load_study([finished.folder / "study.yaml"])
    arguments = ("--row", row, "--to", str(tmp_path / "out"), "--splits", "train,val,test")
    done = finished.augbench("export", "--configfile", "study.yaml", *arguments)
    assert done.returncode == 0, done.stderr
    with inside(finished.folder):
        rows = statistics.read_rows(Plan(study, ()).statistics["csv"])
    (known,) = [one for one in rows if one.method == row]

    def images(split: str, kind: str) -> LabelledImages:
        own = [one for one in metadata(tmp_path / "out" / split) if one["kind"] == kind]
        files = [tmp_path / "out" / split / one["file_name"] for one in own]

        def load(wanted: slice) -> Iterator[Image.Image]:
            for file in files[wanted]:
                with Image.open(file) as opened:
                    yield opened.convert("RGB")

        return LabelledImages([one["sha256"] for one in own], [one["label"] for one in own], load, split)

    compute = compute_of(study.execution, torch.device("cpu"), tmp_path)
    trained = train_run(
        study.classifier,
        classes=10,
        real=images("train", "real"),
        added=images("train", "added"),
        validation=images("val", "real"),
        run=0,
        study_seed=study.seed_of(row),
        compute=compute,
    )
    scored = score_test(trained.state, study.classifier, np.arange(10), images("test", "real"), compute)
    assert known.low_percent is not None and known.high_percent is not None
    assert known.low_percent <= 100 * top1(scored) <= known.high_percent
