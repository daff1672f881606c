"""Tasks of fine-tuning: a class's images with their clusters, the start of its vectors, the learning rates.

Input: the class table, the training and validation splits, clusters, a method. Output: one
:class:`ClassTask` per class. No heavy library is imported here.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq

from augbench.config.methods import PersonaliseMethod
from augbench.config.study import Study
from augbench.data.classes import ClassInfo, read_class_table
from augbench.data.source import ImageList
from augbench.data.splits import Split, check_labels, read_split
from augbench.data.stamps import KeyName, Stamps, names_in_keys
from augbench.errors import UserError
from augbench.prompts.stage import prompt_for
from augbench.resample import needed_by_class

# learning rate of what is learned, and the batch size that it was chosen for
DEFAULT_RATES = {"conditioning": (1e-3, 1), "pseudoword": (5e-3, 4), "lora": (1e-4, 1)}


@dataclass(frozen=True)
class ImageSet(ImageList):
    """Images of one class in one split, with the cluster of each, and the stamps of their files if known."""

    clusters: Sequence[int]
    stamps: Stamps | None = None

    @property
    def key_names(self) -> list[KeyName]:
        """What names the images in the store's keys."""
        return names_in_keys(self.image_ids, self.stamps)


@dataclass(frozen=True)
class ClassTask:
    """One class to learn: its training images, and validation images for early stopping."""

    info: ClassInfo
    train: ImageSet
    validation: ImageSet


def read_clusters(path: str | Path) -> dict[str, int]:
    """Read the cluster of every training and validation image, by image_id."""
    table = pq.read_table(path, columns=["image_id", "cluster"])
    return dict(zip(table.column("image_id").to_pylist(), table.column("cluster").to_pylist(), strict=True))


def _image_sets(
    split: Split, clusters: Mapping[str, int] | None, class_ids: Collection[str]
) -> dict[str, ImageSet]:
    """Images of a split by class, for some classes; without ``clusters``, all are in cluster 0."""
    rows: dict[str, list[int]] = {}
    for row, class_id in enumerate(split.class_ids):
        if class_id in class_ids:
            rows.setdefault(class_id, []).append(row)
    sets = {}
    for class_id, members in rows.items():
        image_ids = tuple(split.image_ids[row] for row in members)
        sets[class_id] = ImageSet(
            image_ids,
            tuple(split.sources[row] for row in members),
            tuple(0 if clusters is None else clusters[image_id] for image_id in image_ids),
            split.stamps_at(members),
        )
    return sets


def class_tasks(
    train_path: str | Path,
    val_path: str | Path,
    classes_path: str | Path,
    clusters_path: str | Path | None,
    class_ids: Sequence[str],
) -> list[ClassTask]:
    """Read the tasks of ``class_ids``, in that order.

    Raises
    ------
    UserError
        Sources disagree about the classes, or a class has no training or no validation image.
    """
    classes = read_class_table(classes_path)
    info: dict[str, ClassInfo] = {row.class_id: row for row in classes}
    clusters = None if clusters_path is None else read_clusters(clusters_path)
    sets = []
    for path in (train_path, val_path):
        split = read_split(path)
        check_labels(split, classes, str(path))
        sets.append(_image_sets(split, clusters, set(class_ids)))
        if without := [class_id for class_id in class_ids if class_id not in sets[-1]]:
            raise UserError(
                str(path),
                f"no image of class {without[0]!r}",
                "fine-tuning needs training and validation images of every class",
            )
    return [ClassTask(info[class_id], sets[0][class_id], sets[1][class_id]) for class_id in class_ids]


def start_word(task: ClassTask) -> str:
    """Word that a class's pseudo-word starts from: the last word of its first lemma (paper, section 3.1)."""
    return task.info.lemmas[0].split()[-1]


def start_prompt(task: ClassTask, method: PersonaliseMethod, seed: int) -> str:
    """Prompt that a class's conditioning starts from."""
    return prompt_for(task.info, 0, method.prompting, seed)


def own_images(batch: int, vectors: int) -> float:
    """Expected number of a vector's images in a batch that has any of them.

    Each image of the batch belongs to one of ``vectors`` vectors, with equal chance.
    """
    absent = (1 - 1 / vectors) ** batch
    return batch / vectors / (1 - absent)


def learning_rates(
    study: Study, method: PersonaliseMethod, factor: float, classes: int
) -> tuple[float, float]:
    """Learning rates of the vectors or adapters, and of the U-Net (paper, section 3.2).

    They are multiplied by the square root of the ratio of batch sizes and by ``factor``. For the vectors,
    ``finetune.lr_counts`` says which images of a batch count. Defaults come from the methods' publications:
    0.005 at batch size 4 for pseudo-words, 0.001 at batch size 1 for conditioning, and for adapters
    diffusers' DreamBooth-LoRA examples: 0.0001 at batch size 1. An adapter learns from the whole batch.

    Parameters
    ----------
    classes : int
        Number of classes that learn, whose images share batches if the U-Net trains.
    """
    default, default_batch = DEFAULT_RATES[method.learn]
    batch = study.finetune.batch_size
    sharing = method.clusters * (classes if method.train_unet else 1)
    of_batch = study.finetune.lr_counts == "batch" or not method.learns_vectors
    count = batch if of_batch else own_images(batch, sharing)
    lr = (method.lr or default) * math.sqrt(count / (method.lr_batch_size or default_batch))
    return lr * factor, method.unet_lr * math.sqrt(batch) * factor


def end_of_grid(record: Mapping[str, Any]) -> Literal["lowest", "highest"] | None:
    """Which end of its grid a chosen factor is, where a better one may lie beyond; None between the ends.

    Parameters
    ----------
    record : mapping
        Content of ``lr.json``: ``factor``, and ``factors`` with one entry per factor of the grid.
    """
    grid = [entry["factor"] for entry in record["factors"]]
    if len(grid) == 1:
        return None
    return {min(grid): "lowest", max(grid): "highest"}.get(record["factor"])  # type: ignore[return-value]


def learned_sizes(
    study: Study, method: PersonaliseMethod, training_images: Mapping[str, int]
) -> dict[str, int]:
    """Number of images that a row learns from, by class_id: those of the split, and of other rows' sets."""
    rows = [study.augmented[upstream] for upstream in method.built_on]
    sets = [needed_by_class(training_images, row.added_per_training_image, row.fill_to) for row in rows]
    own = int(method.learns_from_training_images)
    return {
        class_id: own * size + sum(added[class_id] for added in sets)
        for class_id, size in training_images.items()
    }


def check_clusters(key: str, clusters: int, training_images: Mapping[str, int]) -> list[UserError]:
    """Problems with ``clusters``: k-means needs at least that many images to learn from in every class.

    Parameters
    ----------
    key : str
        The config key of ``clusters``, for example ``methods.ft_cluster_conditioning_k5.clusters``.
    training_images : mapping
        Number of images that are learned from by class_id.
    """
    small = {class_id: count for class_id, count in training_images.items() if count < clusters}
    if not small:
        return []
    class_id = min(small, key=lambda name: small[name])
    return [
        UserError(
            key,
            f"{clusters}, and class {class_id!r} has {small[class_id]} training images",
            f"allowed: at most {small[class_id]}",
        )
    ]
