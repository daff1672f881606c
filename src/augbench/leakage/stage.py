"""Jobs of the leakage guard: find added images that are near-duplicates of real images.

Input: the index of a method's pool, the splits, CLIP. Output: ``leakage/{method}.parquet`` with one row per
confirmed pair with a validation or test image, and a summary; ``leakage/train/{method}.parquet`` with the
pairs with a training image.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from augbench.artifacts.parquet import REMAKE
from augbench.artifacts.pool import load_images, read_index
from augbench.config.stages import Leakage
from augbench.data.splits import Split, read_split
from augbench.data.stamps import KeyName, Stamps, names_in_keys
from augbench.errors import UserError
from augbench.files import atomic_path, canonical_hash, is_array, read_json, sha256_file, write_json
from augbench.further.images import images_of
from augbench.leakage.records import SCHEMA, count_images, summarise
from augbench.leakage.search import Load, find_near_duplicates
from augbench.plan.recipes import further_images_recipe, images_origin
from augbench.progress import track
from augbench.runtime.fit import BatchLimit

if TYPE_CHECKING:
    from augbench.models.towers import ImageTower
    from augbench.runtime.job import Job

logger = logging.getLogger(__name__)
BATCH = 32  # number of images embedded together; more do not fit into a CPU's cache


class Embedder:
    """CLIP's image tower, loaded only if an embedding is missing; embeddings are kept in the store."""

    def __init__(self, job: Job, clip: Mapping[str, Any]) -> None:
        self.job, self.clip = job, clip
        self.limit = BatchLimit(BATCH, "embedding images")

    @cached_property
    def tower(self) -> ImageTower:
        from augbench.models.clip import load_clip
        from augbench.models.folders import pick_device

        return load_clip(self.clip, pick_device(self.job.study.execution.device)).image_tower()

    def embed(self, images: Iterable[Image.Image]) -> np.ndarray:
        """Compute embeddings of unit length, float16 ``(N, D)``."""
        parts = self.tower.embed_images(images, self.limit, self.job.threads)
        return np.concatenate([vectors.half().numpy() for vectors in parts])

    def recipe(self, **what: Any) -> dict[str, Any]:
        """Recipe of an embedding: the model, and ``what`` is embedded."""
        return {"version": 1, "clip": self.clip["id"], **what}


def embed_splits(
    job: Job, splits: Mapping[str, str | Path], clip_path: str | Path, outs: Mapping[str, str | Path]
) -> None:
    """Embed the images of the splits once for all methods, through the store.

    Parameters
    ----------
    splits, outs : mapping of str to path
        By split (``train``, ``val``, ``test``, a further test set): its manifest, and the target for its
        embeddings. The target is a ``.npy`` file: float16 ``(N, D)``, of unit length, in the manifest's
        order.
    clip_path : path
        ``models/clip.json``.
    """
    study = job.study
    embedder = Embedder(job, read_json(clip_path))
    for name, path in splits.items():
        split = read_split(path)

        def write(out: Path, name: str = name, split: Split = split) -> None:
            load = images_of(study, name, split)
            images = track(load(range(len(split))), f"embed {name}", "image", len(split))
            with out.open("wb") as stream:
                np.save(stream, embedder.embed(images))

        further, stamped = name in study.dataset.further_tests, split.stamps is not None
        origin = further_images_recipe(study, name, stamped) if further else images_origin(study, stamped)
        recipe = embedder.recipe(split=sha256_file(path), dataset=origin)
        job.store.provide("leakage", recipe, outs[name], write, is_array)


def embed_pool(embedder: Embedder, index: pa.Table, folder: Path) -> np.ndarray:
    """Embed a pool in the order of its index, float16 ``(N, D)``.

    The embeddings of each shard are kept in the store, under its images' hashes.
    """
    embedded: np.ndarray | None = None
    shards = _rows_of_shards(index)
    for members in track(shards, "embed added images", "shard", len(shards)):
        vectors = np.load(_embed_shard(embedder, index.take(members), folder))
        if embedded is None:
            embedded = np.empty((index.num_rows, vectors.shape[1]), np.float16)
        embedded[members] = vectors
    return np.empty((0, 1), np.float16) if embedded is None else embedded


def _rows_of_shards(index: pa.Table) -> list[np.ndarray]:
    """Rows of an index by shard, in the order of the shards' first rows."""
    paths = np.array(index.column("path").to_pylist())
    return [np.flatnonzero(paths == path) for path in dict.fromkeys(paths.tolist())]


def _embed_shard(embedder: Embedder, rows: pa.Table, folder: Path) -> Path:
    """Embed the images in some rows of an index, unless the store has them; return the file there."""

    def write(out: Path) -> None:
        with out.open("wb") as stream:
            np.save(stream, embedder.embed(load_images(rows, folder)))

    recipe = embedder.recipe(images=canonical_hash(rows.column("sha256").to_pylist()))
    return embedder.job.store.keep("leakage", recipe, ".npy", write, is_array)


def _read_pool(path: str | Path, excluded: Collection[str]) -> pa.Table:
    """Read the index of a pool, without the classes that training and scoring leave out."""
    index = read_index(path)
    included = [class_id not in excluded for class_id in index.column("class_id").to_pylist()]
    return index.filter(pa.array(included, pa.bool_()))


def embed_pools_block(
    job: Job,
    indexes: Sequence[str | Path],
    clip_path: str | Path,
    block: int,
    out: str | Path,
    excluded: Collection[str] = (),
) -> None:
    """Embed shard ``block`` and every n-th after it, where n is ``execution.embed_jobs``.

    Their embeddings are in the store, where :func:`guard` finds them; ``out`` says how many shards there are.
    """
    embedder = Embedder(job, read_json(clip_path))
    pools = [_read_pool(path, excluded) for path in indexes]
    shards = [(index, members) for index in pools for members in _rows_of_shards(index)]
    mine = shards[block :: job.study.execution.embed_jobs]
    for index, members in track(mine, "embed added images", "shard", len(mine)):
        _embed_shard(embedder, index.take(members), job.folder)
    write_json(out, {"shards": len(mine)})


def guard(
    job: Job,
    indexes: Mapping[str, str | Path],
    splits: Mapping[str, str | Path],
    embeddings: Mapping[str, str | Path],
    clip_path: str | Path,
    limits: Leakage,
    leaks_outs: Mapping[str, str | Path],
    summary_outs: Mapping[str, str | Path],
    excluded: Collection[str] = (),
) -> None:
    """Find near-duplicates of the images of splits in the pools of methods.

    CLIP is loaded once, and only if an embedding is missing.

    Parameters
    ----------
    indexes : mapping of method to path
        ``shards/{method}/selected/index.parquet``.
    splits, embeddings : mapping of str to path
        By split: its manifest, and its embeddings as :func:`embed_splits` writes them.
    clip_path : path
        ``models/clip.json``, the same as for the splits.
    leaks_outs, summary_outs : mapping of method to path
        Targets: a table (:data:`~augbench.leakage.records.SCHEMA`) with one row per pair, and JSON
        (:class:`~augbench.leakage.records.Summary`), which counts validation and test images; methods
        without a target for it have none.
    excluded : collection of str
        Classes that training and scoring leave out; the guard leaves them out too.

    Raises
    ------
    UserError
        Files are damaged, or embeddings do not belong to their split.
    """
    import cv2

    cv2.setNumThreads(job.threads)
    embedder = Embedder(job, read_json(clip_path))
    real = [RealImages.open(job, name, path, embeddings[name], excluded) for name, path in splits.items()]
    for method, path in indexes.items():
        index = _read_pool(path, excluded)
        leaks = _find_leaks(method, index, embedder, real, limits)
        with atomic_path(leaks_outs[method]) as temporary:
            pq.write_table(leaks, temporary)
        if method in summary_outs:
            write_json(summary_outs[method], asdict(summarise(method, index.num_rows, leaks, limits)))
        counts = ", ".join(f"{name} {count_images(leaks, name)}" for name in splits)
        logger.info("%s: added images that are near-duplicates, of %d: %s", method, index.num_rows, counts)


@dataclass(frozen=True)
class RealImages:
    """Real images of a split: ids, classes, embeddings ``(N, D)``, a loader by position, and stamps."""

    split: str
    where: str
    image_ids: list[str]
    class_ids: list[str]
    embeddings: np.ndarray
    load: Load
    stamps: Stamps | None = None

    @property
    def key_names(self) -> list[KeyName]:
        """What names the images in the store's keys."""
        return names_in_keys(self.image_ids, self.stamps)

    @classmethod
    def open(
        cls,
        job: Job,
        name: str,
        split_path: str | Path,
        embeddings_path: str | Path,
        excluded: Collection[str],
    ) -> RealImages:
        """Read the images of a split and their embeddings, without those of ``excluded`` classes.

        Raises
        ------
        UserError
            The embeddings do not belong to the split.
        """
        study = job.study
        split, embeddings = read_split(split_path), np.load(embeddings_path)
        if embeddings.ndim != 2 or len(split) != len(embeddings):
            raise UserError(
                str(embeddings_path),
                f"an array {embeddings.shape}",
                f"{len(split)} embeddings are expected; {REMAKE}",
            )
        scored = [class_id not in excluded for class_id in split.class_ids]
        split = split.without(excluded)
        return cls(
            name,
            str(embeddings_path),
            split.image_ids,
            split.class_ids,
            embeddings[scored],
            images_of(study, name, split),
            split.stamps,
        )


def _find_leaks(
    method: str, index: pa.Table, embedder: Embedder, splits: Sequence[RealImages], limits: Leakage
) -> pa.Table:
    """Table of one method's pairs, :data:`SCHEMA`; rows of a split follow the order of the index."""
    folder = embedder.job.folder
    added = embed_pool(embedder, index, folder)
    records: list[dict[str, Any]] = []
    for real in splits:
        if len(added) and real.embeddings.shape[1] != added.shape[1]:
            raise UserError(
                real.where,
                f"{real.embeddings.shape[1]} numbers per image",
                f"the study's CLIP gives {added.shape[1]}; {REMAKE}",
            )
        found = find_near_duplicates(
            added,
            real=real.embeddings,
            load_added=lambda rows: load_images(index.take(pa.array(rows, pa.int64())), folder),
            load_real=real.load,
            limits=limits,
            what=f"{method}, {real.split}",
        )
        for pair in found:
            row = {
                column: index.column(column)[pair.added].as_py() for column in ("class_id", "index", "sha256")
            }
            other = {
                "split": real.split,
                "image_id": real.image_ids[pair.real],
                "real_class_id": real.class_ids[pair.real],
            }
            scores = {"clip_similarity": pair.clip_similarity, **asdict(pair.match)}
            records.append({"method": method, **row, **other, **scores})
    return pa.Table.from_pylist(records, schema=SCHEMA)
