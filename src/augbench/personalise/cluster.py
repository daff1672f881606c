"""Cluster each class's images, for one learned conditioning per cluster.

The method is k-means on Inception-v3 pool features (paper, section 3.1). Input: the images that
are learned from, which are the training split unless a row says otherwise, the validation split, and the
network that computes the features. Output: for each number of clusters, a table with the cluster of every
image. Features are computed once for all tables. Validation images go to the nearest centroid.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from augbench.config.study import Study
from augbench.data.classes import read_class_table
from augbench.data.decode import middle
from augbench.data.sources import open_source
from augbench.data.splits import Split, check_labels, read_split
from augbench.errors import UserError
from augbench.files import canonical_hash, read_json, sha256_file
from augbench.personalise.learned import WithAddedImages
from augbench.personalise.tasks import check_clusters
from augbench.plan.recipes import Recipe, data_set_recipe
from augbench.progress import Progress
from augbench.runtime.fit import BatchLimit
from augbench.seeds import derive_seed

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from augbench.runtime.job import Job

logger = logging.getLogger(__name__)

SCHEMA = pa.schema(
    [("image_id", pa.string()), ("class_id", pa.string()), ("split", pa.string()), ("cluster", pa.int32())]
)
STARTS = 10  # random starts of k-means, of which the best is kept
Features = Callable[["Sequence[Image]"], "torch.Tensor"]


def inception_features(weights: str | Path, device: torch.device) -> Features:
    """Function from images to Inception-v3's 2,048 pool features.

    It preprocesses as the published weights need it: 299 pixels, ImageNet's mean and standard deviation.

    Raises
    ------
    UserError
        The file ``weights`` is missing, or does not hold weights of Inception-v3.
    """
    import pickle

    import torch
    from torchvision.models import Inception_V3_Weights, inception_v3

    published = Inception_V3_Weights.IMAGENET1K_V1
    remedy = f"put {published.url.rsplit('/', 1)[-1]} of torchvision there, or set finetune.features: clip"
    if not Path(weights).is_file():
        raise UserError("finetune.inception_weights", f"no file {str(weights)!r}", remedy)
    # torchvision builds it this way for these weights, which expect values in -1..1
    network = inception_v3(weights=None, aux_logits=True, transform_input=True, init_weights=False)
    try:
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, EOFError, TypeError, pickle.UnpicklingError) as error:
        raise UserError(
            "finetune.inception_weights",
            f"{str(weights)!r} holds no weights of Inception-v3 ({str(error).splitlines()[0]})",
            remedy,
        ) from None
    network.fc = torch.nn.Identity()
    network.eval().to(device)
    preprocess = published.transforms()
    return lambda images: network(torch.stack([preprocess(middle(image)) for image in images]).to(device))


def load_features(study: Study, clip_path: str | Path) -> Features:
    """Load the network that ``finetune.features`` names."""
    from augbench.models.clip import load_clip
    from augbench.models.folders import pick_device

    device = pick_device(study.execution.device)
    if study.finetune.features == "clip":
        return load_clip(read_json(clip_path), device).image_tower()
    return inception_features(study.finetune.inception_weights, device)


def compute_features(
    features: Features, images: Iterable[Image], batch_size: int, progress: Progress
) -> np.ndarray:
    """Compute the features of all images, float32 ``(N, width)``."""
    import torch

    parts = []
    limit = BatchLimit(batch_size, "execution.batch_size")
    with torch.inference_mode():
        for computed in limit.stream(lambda batch: features(batch).float().cpu().numpy(), images):
            parts.append(computed)
            progress.update(len(computed))
    return np.concatenate(parts)


def cluster_class(
    train: np.ndarray, validation: np.ndarray, clusters: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Run k-means on a class's training features ``(n, width)``.

    Returns the cluster of each training image and of each validation image.
    """
    from sklearn.cluster import KMeans

    fitted = KMeans(clusters, n_init=STARTS, random_state=seed % 2**32).fit(train)
    return fitted.labels_, fitted.predict(validation) if len(validation) else np.empty(0, dtype=np.int32)


def _recipe(study: Study, clusters: int, network: str, splits: Sequence[Split]) -> Recipe:
    images = canonical_hash([[split.key_names, split.class_ids] for split in splits])
    return {
        "version": 1,
        "seed": study.seed,
        "clusters": clusters,
        "features": study.finetune.features,
        "network": network,
        "images": images,
        **data_set_recipe(study, stamped=all(split.stamps is not None for split in splits)),
    }


def cluster_images(
    job: Job,
    ks: Sequence[int],
    train_path: str | Path,
    val_path: str | Path,
    classes_path: str | Path,
    clip_path: str | Path,
    outs: Sequence[str | Path],
) -> None:
    """Cluster the images of every class that is not left out; tables that the store holds are linked.

    Parameters
    ----------
    ks : sequence of int
        Numbers of clusters per class.
    clip_path : path
        Fingerprint of the study's CLIP; read only if ``finetune.features`` is ``clip``.
    outs : sequence of path
        One table per number of clusters, with columns image_id, class_id, split (``train``, ``val``) and
        cluster (int32, from 0).

    Raises
    ------
    UserError
        A class has fewer training images than clusters, or the weights of Inception-v3 are missing.
    """
    study = job.study
    classes = read_class_table(classes_path)
    splits = {"train": read_split(train_path), "val": read_split(val_path)}
    for path, split in zip((train_path, val_path), splits.values(), strict=True):
        check_labels(split, classes, str(path))
    listed = study.retrieval.listed
    splits = {name: split.without(listed) for name, split in splits.items()}
    sizes = {
        info.class_id: splits["train"].class_ids.count(info.class_id)
        for info in classes
        if info.class_id not in listed
    }
    for k in ks:
        for problem in check_clusters("clusters", k, sizes):
            raise problem
    if study.finetune.features == "clip":
        network = read_json(clip_path)["id"]
    elif Path(study.finetune.inception_weights).is_file():
        network = sha256_file(study.finetune.inception_weights)
    else:
        network = ""
    recipes = {k: _recipe(study, k, network, list(splits.values())) for k in ks}
    computed: dict[str, np.ndarray] = {}

    def write(path: Path, k: int) -> None:
        if not computed:
            source = WithAddedImages(open_source(study.dataset, study.seed, study.corpus), job.folder)
            features = load_features(study, clip_path)
            images = sum(map(len, splits.values()))
            progress = Progress(f"features ({study.finetune.features})", images, "image")
            for name, split in splits.items():
                loaded = source.load_unchanged(split.sources, split.stamps)
                computed[name] = compute_features(features, loaded, study.execution.batch_size, progress)
        pq.write_table(_cluster_table(splits, computed, k, study.seed), path)

    for k, out in zip(ks, outs, strict=True):
        made = job.store.provide("clusters", recipes[k], out, partial(write, k=k))
        logger.info("%d clusters per class: %s", k, "computed" if made else "taken from the store")


def _cluster_table(splits: dict[str, Split], features: dict[str, np.ndarray], k: int, seed: int) -> pa.Table:
    found = {name: np.zeros(len(split), dtype=np.int32) for name, split in splits.items()}
    members = {name: np.array(split.class_ids) for name, split in splits.items()}
    for class_id in dict.fromkeys(splits["train"].class_ids):
        train, validation = (np.flatnonzero(members[name] == class_id) for name in ("train", "val"))
        class_seed = derive_seed(seed, "clusters", class_id, k)
        labels = cluster_class(features["train"][train], features["val"][validation], k, class_seed)
        found["train"][train], found["val"][validation] = labels
    parts = [
        pa.table([split.image_ids, split.class_ids, [name] * len(split), found[name]], schema=SCHEMA)
        for name, split in splits.items()
    ]
    return pa.concat_tables(parts)
