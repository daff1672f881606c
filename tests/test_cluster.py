"""Clusters of a class's images: k-means on features of CLIP or of Inception-v3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchvision.models import inception_v3

from augbench.artifacts.store import Store
from augbench.config.study import parse_study
from augbench.data.classes import write_class_table
from augbench.data.sources import open_source
from augbench.data.splits import make_splits, write_split
from augbench.errors import UserError
from augbench.files import write_json
from augbench.models.folders import fingerprint
from augbench.personalise import cluster
from augbench.personalise.cluster import cluster_class, cluster_images, compute_features, inception_features
from augbench.personalise.tasks import read_clusters
from augbench.progress import Progress
from augbench.runtime.job import Job

MINI = Path(__file__).resolve().parents[1] / "resources/mini"
CLASSES = ("cat", "dog")


@dataclass(frozen=True)
class Inputs:
    """Two classes, each half dark and half bright images, and the files of earlier stages."""

    folder: Path

    def run(self, folder: Path, ks: list[int], **finetune: Any) -> tuple[Job, dict[int, Path]]:
        study = parse_study(study_of(self.folder, finetune))
        job = Job(study, Store(folder / ".store"), 1)
        outs = {k: folder / f"k{k}.parquet" for k in ks}
        files = [
            self.folder / name for name in ("train.parquet", "val.parquet", "classes.parquet", "clip.json")
        ]
        cluster_images(job, ks, *files, list(outs.values()))
        return job, outs


def study_of(folder: Path, finetune: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "study": "shades",
        "dataset": {
            "kind": "image_folder",
            "root": str(folder / "images"),
            "train_fraction": 0.5,
            "validation_fraction": 0.25,
        },
        "diffusion": {"model": str(MINI / "stable-diffusion"), "resolution": 32},
        "clip": {"model": str(MINI / "clip")},
        "methods": {"none": {"mechanism": "real"}},
        "augmentation": {"images_per_class": 10},
        "finetune": {"features": "clip", **finetune},
        "execution": {"device": "cpu", "batch_size": 5},
    }


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("shades")
    rng = np.random.default_rng(0)
    for class_id in CLASSES:
        (folder / "images" / class_id).mkdir(parents=True)
        for number in range(16):
            shade = 40 if number % 2 else 215
            pixels = (shade + rng.normal(0, 8, (32, 32, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(
                folder / "images" / class_id / f"{'dark' if number % 2 else 'bright'}{number:02d}.png"
            )
    study = parse_study(study_of(folder, {}))
    source = open_source(study.dataset, study.seed, None)
    for name, split in make_splits(
        source.classes(), source.scan(), study.dataset, study.seed, {"train", "val"}
    ).items():
        write_split(split, folder / f"{name}.parquet")
    write_class_table(source.classes(), folder / "classes.parquet")
    write_json(folder / "clip.json", fingerprint(MINI / "clip"))
    return Inputs(folder)


def test_clusters_part_what_differs_in_training_and_validation_images(inputs: Inputs, tmp_path: Path) -> None:
    _, outs = inputs.run(tmp_path, [2])
    rows = pq.read_table(outs[2]).to_pylist()
    assert list(rows[0]) == ["image_id", "class_id", "split", "cluster"]
    assert [row["split"] for row in rows].count("train") == 16 and [row["split"] for row in rows].count(
        "val"
    ) == 8
    for class_id in CLASSES:
        shades = {(row["cluster"], "dark" in row["image_id"]) for row in rows if row["class_id"] == class_id}
        assert len(shades) == 2 and {cluster for cluster, _ in shades} == {0, 1}
    assert read_clusters(outs[2]) == {row["image_id"]: row["cluster"] for row in rows}


def test_features_are_computed_once_for_all_numbers_of_clusters_and_tables_are_kept(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    load = cluster.load_features
    monkeypatch.setattr(cluster, "load_features", lambda *arguments: loaded.append(1) or load(*arguments))
    job, outs = inputs.run(tmp_path, [2, 3])
    assert len(loaded) == 1 and job.store.tally.made == 2
    assert set(pq.read_table(outs[3]).column("cluster").to_pylist()) == {0, 1, 2}
    outs[3].unlink()
    job, _ = inputs.run(tmp_path, [2, 3])
    assert len(loaded) == 1 and job.store.tally.made == 0 and outs[3].exists()


def test_more_clusters_than_training_images_are_refused(inputs: Inputs, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="9, and class 'cat' has 8 training images; allowed: at most 8"):
        inputs.run(tmp_path, [2, 9])


def test_a_class_is_clustered_by_itself_and_reproducibly() -> None:
    rng = np.random.default_rng(1)
    train, validation = (
        rng.normal(size=(30, 4)).astype(np.float32),
        rng.normal(size=(10, 4)).astype(np.float32),
    )
    first, again = (cluster_class(train, validation, 5, 2**62 + 3) for _ in range(2))
    assert (
        np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1]) and len(set(first[0])) == 5
    )
    centres = np.stack([train[first[0] == k].mean(0) for k in range(5)])
    nearest = np.linalg.norm(validation[:, None] - centres, axis=-1).argmin(1)
    assert np.array_equal(first[1], nearest)


def test_missing_or_foreign_inception_weights_are_named(inputs: Inputs, tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"finetune.inception_weights: no file '.*none.pth'; put inception_v3_google-0cc3c7bd.pth",
    ):
        inputs.run(tmp_path, [2], features="inception_v3", inception_weights=str(tmp_path / "none.pth"))
    torch.save({"foreign": torch.zeros(1)}, tmp_path / "foreign.pth")
    with pytest.raises(UserError, match="holds no weights of Inception-v3"):
        inputs.run(tmp_path, [2], features="inception_v3", inception_weights=str(tmp_path / "foreign.pth"))


def test_inception_features_are_the_pooled_ones_of_the_published_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = inception_v3(weights=None, init_weights=False).eval()
    torch.save(network.state_dict(), tmp_path / "inception.pth")
    images = [
        Image.fromarray(np.random.default_rng(seed).integers(0, 255, (64, 64, 3), dtype=np.uint8))
        for seed in range(3)
    ]
    features = compute_features(
        inception_features(tmp_path / "inception.pth", torch.device("cpu")),
        images,
        2,
        Progress("features", 3, "image"),
    )
    assert features.shape == (3, 2048) and features.dtype == np.float32
    pooled = []
    network.avgpool.register_forward_hook(lambda module, arguments, output: pooled.append(output.flatten(1)))
    network.transform_input = True
    # the middle 299 of 342 pixels
    large = [image.resize((342, 342), Image.Resampling.BILINEAR) for image in images]
    pixels = [np.asarray(image)[21:320, 21:320] / 255 for image in large]
    batch = (
        torch.from_numpy((np.stack(pixels) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225])
        .permute(0, 3, 1, 2)
        .float()
    )
    with torch.inference_mode():
        network(batch)
    np.testing.assert_allclose(features, pooled[0].numpy(), rtol=1e-3, atol=1e-3)
