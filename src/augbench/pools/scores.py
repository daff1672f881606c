"""Scores of a pool's images: the probability of an image's class against the study's other classes.

Input: a pool's shards, and CLIP or a classifier that was trained on real images only. Output: one table per
pool and scorer, :data:`SCHEMA`, by which :mod:`augbench.pools.keep` filters the pool. The test split is not
used. Classes that the study leaves out have no scores.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from augbench.artifacts.parquet import read_table
from augbench.artifacts.pool import index_of, load_images
from augbench.classifier.start import names_of, read_start
from augbench.data.classes import ClassInfo, read_class_table
from augbench.files import canonical_hash, read_json, sha256_file
from augbench.plan.recipes import classifier_recipe, score_recipe
from augbench.resample import check_same_labels

if TYPE_CHECKING:
    from augbench.runtime.job import Job

SCHEMA = pa.schema(
    [
        ("class_id", pa.string()),
        ("index", pa.int32()),  # i of "image i of class c"
        ("sha256", pa.string()),  # of the encoded image
        ("score", pa.float64()),  # probability of the image's class, 0 to 1
    ]
)


def own_class_probability(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Softmax probability of each image's own class, float64 ``(N,)``.

    Parameters
    ----------
    logits : ndarray, float (N, C)
    labels : ndarray, int (N,)
        Columns of the images' classes.
    """
    from scipy.special import softmax

    chances: np.ndarray = softmax(logits.astype(np.float64), axis=1)
    return chances[np.arange(len(labels)), labels]


def write_scores(
    job: Job,
    shards: Sequence[str | Path],
    classes_path: str | Path,
    excluded: Collection[str],
    out: str | Path,
    clip_path: str | Path | None = None,
    classifier: tuple[str, str | Path] | None = None,
    first_weights: str | Path | None = None,
) -> None:
    """Score the images in ``shards`` by CLIP or by a classifier, whichever is given; through the store.

    Parameters
    ----------
    shards : sequence of path
        The shards of one pool.
    classes_path : path
        ``classes.parquet``.
    excluded : collection of str
        Classes that the study leaves out.
    clip_path : path, optional
        ``models/clip.json``.
    classifier : tuple of str and path, optional
        Name of the row that the classifier belongs to, and its ``model.safetensors``.
    first_weights : path, optional
        Fingerprint of the model that the classifier began with. Default: random weights.

    Raises
    ------
    UserError
        A file is damaged, or sources disagree about the classes.
    """
    classes = read_class_table(classes_path)
    used = [info for info in classes if info.class_id not in excluded]
    index = index_of(shards, job.folder, Path(out).parent)
    check_same_labels(index, {info.class_id: label for label, info in enumerate(classes)}, str(out))
    wanted = {info.class_id for info in used}
    index = index.filter(
        pa.array([name in wanted for name in index.column("class_id").to_pylist()], pa.bool_())
    )
    place = {info.class_id: number for number, info in enumerate(used)}
    labels = np.array([place[name] for name in index.column("class_id").to_pylist()], dtype=np.int64)
    images = {
        "images": canonical_hash(index.column("sha256").to_pylist()),
        "labels": canonical_hash(labels.tolist()),
    }
    if classifier is not None:
        row, model = classifier
        by = {
            "classifier": classifier_recipe(job.study, row)["classifier"],
            "weights": sha256_file(model),
            "classes": len(used),
            **names_of(read_start(first_weights), job.study.classifier.arch),
        }
    else:
        assert clip_path is not None
        by = {"clip": read_json(clip_path)["id"], "classes": [[info.class_id, *info.lemmas] for info in used]}

    def write(path: Path) -> None:
        logits = (
            _classifier_logits(job, index, labels, len(used), classifier[1], first_weights)
            if classifier is not None
            else _clip_logits(job, index, used, read_json(clip_path or ""))
        )
        columns = [index.column(name) for name in SCHEMA.names[:-1]]
        scored = own_class_probability(logits, labels)
        pq.write_table(pa.Table.from_arrays([*columns, pa.array(scored)], schema=SCHEMA), path)

    job.store.provide("scores", {**score_recipe(), **by, **images}, out, write, _is_table)


def _clip_logits(
    job: Job, index: pa.Table, classes: Sequence[ClassInfo], clip: Mapping[str, Any]
) -> np.ndarray:
    """Cosines of images and classes times CLIP's learned scale, plus its bias, float ``(N, C)``.

    The image embeddings are the leakage guard's, kept in the store per shard.
    """
    import torch

    from augbench.leakage.stage import Embedder, embed_pool
    from augbench.measures.clip import class_embeddings
    from augbench.measures.eyes import ZERO_SHOT
    from augbench.models.clip import load_clip

    embedded = torch.from_numpy(embed_pool(Embedder(job, clip), index, job.folder)).float()
    network = load_clip(clip, torch.device("cpu"))
    with torch.inference_mode():
        texts = class_embeddings(network.embed_texts, list(classes), ZERO_SHOT)
        scaled: np.ndarray = (network.scale * embedded @ texts.T + network.bias).numpy()
    return scaled


def _classifier_logits(
    job: Job,
    index: pa.Table,
    labels: np.ndarray,
    classes: int,
    model: str | Path,
    first_weights: str | Path | None,
) -> np.ndarray:
    """Logits of a classifier of the study, float ``(N, C)``."""
    from safetensors.torch import load_file

    from augbench.classifier.compute import compute_of
    from augbench.classifier.features import of_rows
    from augbench.classifier.images import LabelledImages
    from augbench.classifier.score import logits_of
    from augbench.classifier.stage import frozen_network
    from augbench.models.folders import pick_device

    study, start = job.study, read_start(first_weights)
    compute = compute_of(study.execution, pick_device(study.execution.device), job.folder / ".work")
    images = LabelledImages(
        index.column("sha256").to_pylist(),
        labels,
        lambda wanted: load_images(index.slice(wanted.start, wanted.stop - wanted.start), job.folder),
        "images to score",
    )
    if (frozen := frozen_network(study, start, job.store)) is not None:
        images = of_rows(frozen, images, index, job.folder)
    logits = logits_of(load_file(model), study.classifier, classes, images, compute, start)
    found: np.ndarray = logits.numpy()
    return found


def read_scores(path: str | Path) -> dict[tuple[str, int, str], float]:
    """Read a table of scores: class, index and hash of each image, with its score.

    Raises
    ------
    UserError
        The file is missing or damaged.
    """
    table = read_table(path, SCHEMA)
    columns = [table.column(name).to_pylist() for name in SCHEMA.names]
    return {(class_id, index, sha): score for class_id, index, sha, score in zip(*columns, strict=True)}


def _is_table(path: Path) -> bool:
    try:
        return bool(pq.read_schema(path).equals(SCHEMA))
    except (pa.ArrowException, OSError):
        return False
