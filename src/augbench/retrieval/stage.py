"""Retrieve: fetch and filter the images of neighbours, and write them as shards (paper, section 3.2).

Input: the neighbours of each class's queries, the source of their images, the number of images wanted.
Output: one shard per class, and a ledger with one row per candidate considered, with its fate. Complete
classes are kept in the store with their ledgers: another study that asks the same fetches nothing.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from augbench.artifacts.shards import ShardRow, content_of, encode_image, is_kept, write_shard
from augbench.config.methods import RetrieveMethod
from augbench.data.splits import read_split
from augbench.files import atomic_path, canonical_hash, read_json
from augbench.leakage.stage import RealImages
from augbench.models.vit_l_14 import is_vit_l_14
from augbench.plan.recipes import Recipe, data_set_recipe, image_recipe, retrieve_recipe
from augbench.prompts.stage import read_prompts
from augbench.retrieval.filters import KEPT, Filters, check_scores, owners
from augbench.retrieval.hunt import (
    IMAGES_AT_ONCE,
    NOT_NEEDED,
    NOT_SELECTED,
    Copies,
    Embed,
    Hunt,
    hunt_all,
    kept_rows,
    ledger_schema,
    prefix_sizes,
    sought_images,
    wanted_images,
)
from augbench.retrieval.images import Origin
from augbench.retrieval.lists import TAKEN_DOWN, UNLISTED, Lists, read_lists
from augbench.retrieval.manifest import read_manifest
from augbench.retrieval.neighbours import Neighbour, read_neighbours
from augbench.retrieval.selection import choose
from augbench.runtime.fit import BatchLimit

if TYPE_CHECKING:
    from PIL import Image

    from augbench.runtime.job import Job

logger = logging.getLogger(__name__)
LEDGERS = "ledgers"  # kind of artifact


@dataclass
class _Retrieval:
    """Retrieval of a block of classes.

    Attributes
    ----------
    clip, diffusion : dict
        Fingerprints of the models.
    owner : dict or None
        Class that may use an image, by the image's id.
    lists : Lists
        Images that may be downloaded, or must not be used.
    prompts : dict
        The query's row in the prompt table, by class.
    shards, ledgers : dict
        Targets by class.
    real : RealImages or None
        The training images, if the method compares its images with them.
    """

    job: Job
    name: str
    method: RetrieveMethod
    clip: dict[str, Any]
    diffusion: dict[str, Any]
    owner: dict[str, str] | None
    lists: Lists
    prompts: dict[str, dict[str, Any]]
    shards: dict[str, str]
    ledgers: dict[str, str | Path]
    real: RealImages | None = None

    def asked(self, hunt: Hunt) -> Recipe:
        """Key of a class's ledger: all that decides which images are kept, except for what the web gives."""
        rows = [
            {
                **{
                    field.name: getattr(neighbour, field.name)
                    for field in fields(neighbour)
                    if field.name != "hash"
                },
                "embedding": _digest(neighbour.embedding),
                "owner": None if self.owner is None else self.owner.get(neighbour.id),
            }
            for neighbour in hunt.neighbours
        ]
        retrieval = self.job.study.retrieval
        unlisted = [n.id for n in hunt.neighbours if self.lists.fate(n) == UNLISTED]
        return {
            **self._base(hunt),
            **({"unlisted": unlisted} if unlisted else {}),
            "neighbours": canonical_hash(rows),
            "promised": None if hunt.promised is None else canonical_hash(dict(hunt.promised)),
            "wanted": hunt.wanted,
            "sizes": list(hunt.sizes),
            "aesthetics": [retrieval.aesthetics_weights is not None, retrieval.aesthetics_sha256],
            **self._compared_with(hunt),
        }

    def _compared_with(self, hunt: Hunt) -> Recipe:
        """Training images that decide which images are kept, or are named in the ledger."""
        found: Recipe = {}
        if self.method.copies is not None and self.real is not None:
            images = canonical_hash([self.real.key_names, _digest(self.real.embeddings)])
            stamped = self.real.stamps is not None
            found |= {"training_images": images, **data_set_recipe(self.job.study, stamped)}
        if self.method.target_share:
            found["target"] = _digest(self.target(hunt.class_id))
        return found

    def target(self, class_id: str) -> np.ndarray:
        """Embeddings of a class's training images, ``(M, D)``, if they take part in the selection."""
        if self.real is None or not self.method.target_share:
            return np.empty((0, 1))
        return self.real.embeddings[np.array(self.real.class_ids) == class_id]

    def _base(self, hunt: Hunt) -> Recipe:
        return {
            **content_of(retrieve_recipe(self.job.study, self.name)),
            "clip": self.clip["id"],
            "safety": self.diffusion["id"],
            "label": self.prompts[hunt.class_id]["label"],
            "class_id": hunt.class_id,
            "query": self.prompts[hunt.class_id]["prompt"],
        }

    def _shard_recipe(self, hunt: Hunt, ledger: Sequence[Mapping[str, Any]]) -> Recipe:
        # which query found an image is part of its provenance where a class may have several
        known = ("id", "sha256", "query") if self.method.asks_with_images else ("id", "sha256")
        return {**self._base(hunt), "images": [[row[name] for name in known] for row in kept_rows(ledger)]}

    def take(self, hunt: Hunt, asked: Recipe) -> bool:
        """Publish the class's shard and ledger if the store has both, and no image of them was taken down."""
        store = self.job.store
        if not store.has(LEDGERS, asked, ".parquet"):
            return False
        ledger = pq.read_table(store.path(LEDGERS, asked, ".parquet")).to_pylist()
        down = {neighbour.id for neighbour in hunt.neighbours if self.lists.fate(neighbour) == TAKEN_DOWN}
        kept = [row for row in ledger if row["fate"] == KEPT]
        if any(row["id"] in down or row["sha256"] in self.lists.taken_down for row in kept):
            return False
        recipe = self._shard_recipe(hunt, ledger)
        return store.take("shards", recipe, self.shards[hunt.class_id], is_kept) and store.take(
            LEDGERS, asked, self.ledgers[hunt.class_id]
        )

    def find(self, hunts: Sequence[Hunt], origin: Origin) -> Filters:
        """Fetch the images of classes, and return the filters that they passed."""
        from augbench.models.folders import check_safety, load_pipeline, pick_device

        model, device = self.job.study.diffusion, pick_device(self.job.study.execution.device)
        checker: Any
        if model.other is None:
            checker = load_pipeline(model, device)
        else:
            from augbench.models.pipelines import load_checker

            checker = load_checker(model, device)
        limit = BatchLimit(IMAGES_AT_ONCE, "safety checker")

        def flags(images: Sequence[Image.Image]) -> Sequence[bool]:
            return check_safety(checker, images, limit) if self.method.drop_unsafe else [False] * len(images)

        filters, embed = self._filters([neighbour for hunt in hunts for neighbour in hunt.neighbours])
        for hunt in hunts:
            check_scores(filters, hunt.neighbours, f"methods.{self.name}")
        hunt_all(hunts, filters, origin, flags, embed, self._copies())
        return filters

    def _copies(self) -> Copies | None:
        """Function that finds copies of training images, if the method looks for them."""
        if (real := self.real) is None or self.method.copies is None:
            return None
        import cv2

        from augbench.leakage.search import find_near_duplicates

        cv2.setNumThreads(self.job.threads)
        limits = self.job.study.leakage

        def find(images: Sequence[Image.Image], vectors: np.ndarray) -> list[str | None]:
            pairs = find_near_duplicates(
                vectors,
                real.embeddings,
                load_added=lambda rows: (images[row] for row in rows),
                load_real=real.load,
                limits=limits,
                what="copies of training images",
            )
            copied = {pair.added: real.image_ids[pair.real] for pair in reversed(pairs)}
            return [copied.get(place) for place in range(len(images))]

        return find

    def publish(self, hunt: Hunt, asked: Recipe, filters: Filters) -> None:
        """Write the class's shard and ledger; keep the ledger if the class had all candidates it sought."""
        ledger = hunt.ledger(filters)
        counts = Counter(row["fate"] for row in ledger)
        logger.info(
            "%s: %s", hunt.class_id, ", ".join(f"{count} {fate}" for fate, count in counts.most_common())
        )
        recipe = self._shard_recipe(hunt, ledger)
        write = partial(self._write_shard, hunt=hunt, ledger=ledger, recipe=recipe)
        store = self.job.store
        store.provide("shards", recipe, self.shards[hunt.class_id], write, is_kept)

        def write_ledger(path: Path) -> None:
            pq.write_table(pa.Table.from_pylist(ledger, schema=ledger_schema(self.method)), path)

        target = self.ledgers[hunt.class_id]
        candidates = counts[KEPT] + counts[NOT_SELECTED] + counts[NOT_NEEDED]
        if candidates < max(hunt.wanted, hunt.sought):  # another try may find more
            with atomic_path(target) as temporary:
                write_ledger(temporary)
        else:
            store.make(LEDGERS, asked, target, write_ledger)

    def _filters(self, neighbours: Sequence[Neighbour]) -> tuple[Filters, Embed | None]:
        """Return the filters, and a function that embeds images if filters need missing embeddings."""
        score, method, config = None, self.method, self.job.study.retrieval
        if method.manifest is not None:  # its images passed these filters when it was frozen
            off = {"duplicate_threshold": None, "min_aesthetics": None, "one_class": False}
            return Filters(method.model_copy(update=off), lists=self.lists), None
        unscored = any(neighbour.aesthetic is None for neighbour in neighbours)
        weights = config.aesthetics_weights
        scorable = self.job.study.clip.named.library == "transformers" or is_vit_l_14(self.job.study.clip)
        if method.min_aesthetics is not None and unscored and weights is not None and scorable:
            from augbench.retrieval.aesthetics import WEIGHTS_SHA256, load_predictor

            score = load_predictor(weights, config.aesthetics_sha256 or WEIGHTS_SHA256).score
        embed = None
        compared = method.duplicate_threshold is not None or method.copies is not None or method.selects
        if any(neighbour.embedding is None for neighbour in neighbours) and (compared or score is not None):
            from augbench.models.clip import load_clip
            from augbench.models.folders import pick_device

            tower = load_clip(self.clip, pick_device(self.job.study.execution.device)).image_tower()
            limit = BatchLimit(IMAGES_AT_ONCE, "embedding retrieved images")

            def embed(images: Sequence[Image.Image]) -> np.ndarray:
                vectors = np.concatenate([part.float().cpu().numpy() for part in limit.run(tower, images)])
                return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)

        return Filters(method, score, self.owner, self.lists), embed

    def _write_shard(
        self, path: Path, hunt: Hunt, ledger: Sequence[Mapping[str, Any]], recipe: Recipe
    ) -> None:
        study = self.job.study
        rows = [
            _shard_row(
                row,
                hunt,
                index,
                self.prompts[hunt.class_id],
                model=self.clip["id"],
                side=study.diffusion.side,
                encoding=image_recipe(study),
            )
            for index, row in enumerate(kept_rows(ledger))
        ]
        write_shard(path, rows, recipe)


def _digest(embedding: np.ndarray | None) -> str | None:
    return None if embedding is None else hashlib.sha256(embedding.tobytes()).hexdigest()


def retrieve(
    job: Job,
    name: str,
    prompts_path: str | Path,
    train_path: str | Path,
    neighbours_path: str | Path,
    clip_path: str | Path,
    diffusion_path: str | Path,
    origin: Origin,
    targets: Sequence[str],
    ledgers: Sequence[str | Path],
    embedded_train: str | Path | None = None,
) -> None:
    """Write a retrieval method's shards ``targets`` and their ledgers.

    Parameters
    ----------
    train_path : path
        The training split; its images per class set the default number of images to keep.
    clip_path, diffusion_path : path
        Fingerprints of the models; the diffusion model's safety checker checks the images.
    origin : Origin
        Source of the images.
    targets : sequence of path
        Shards to write; each path ends in ``{class}/0.parquet``.
    ledgers : sequence of path
        Ledgers to write, one per target.
    embedded_train : path, optional
        CLIP embeddings of the training split, if the method compares its images with them.

    Raises
    ------
    UserError
        A file is damaged; a minimum score is set but there are no scores; or the manifest lacks a class.
    """
    method = job.study.retrieved[name]
    by_class = {Path(target).parts[-2]: target for target in targets}
    prompts = read_prompts(prompts_path)
    neighbours = read_neighbours(neighbours_path, list(by_class))
    frozen = method.manifest is not None  # its images passed the filters when it was frozen
    retrieval = _Retrieval(
        job,
        name,
        method,
        clip=read_json(clip_path),
        diffusion=read_json(diffusion_path),
        owner=owners(neighbours_path) if method.one_class and not frozen else None,
        lists=read_lists(job.study.retrieval, neighbours_path, job.store),
        prompts={class_id: prompts[class_id, 0][0] for class_id in by_class},
        real=(
            None
            if embedded_train is None
            else RealImages.open(job, "train", train_path, embedded_train, job.study.retrieval.listed)
        ),
        shards=by_class,
        ledgers=dict(zip(by_class, ledgers, strict=True)),
    )
    hunts = _hunts(method, neighbours, Counter(read_split(train_path).class_ids), retrieval.target)
    keys = {hunt.class_id: retrieval.asked(hunt) for hunt in hunts}
    for group in job.store.in_turn(
        LEDGERS,
        hunts,
        lambda hunt: keys[hunt.class_id],
        lambda hunt: retrieval.take(hunt, keys[hunt.class_id]),
    ):
        filters = retrieval.find(group, origin)
        for hunt in group:
            retrieval.publish(hunt, keys[hunt.class_id], filters)
    for class_id in by_class:
        origin.close(class_id)


def _hunts(
    method: RetrieveMethod,
    neighbours: Mapping[str, list[Neighbour]],
    training_images: Mapping[str, int],
    target: Callable[[str], np.ndarray],
) -> list[Hunt]:
    """Return a hunt per class of ``neighbours``; ``target`` gives what its selection is to cover."""
    promised = None if method.manifest is None else read_manifest(method.manifest).hashes
    hunts, all_wanted = [], wanted_images(method, training_images)
    for class_id, found in neighbours.items():
        wanted = all_wanted[class_id]
        sought = sought_images(method, wanted)
        sizes = prefix_sizes(method, sought) if promised is None else [max(1, len(found))]
        known = None if promised is None else promised[class_id]
        hunt = Hunt(class_id, found[: sizes[-1]], wanted, sizes, known, drop_copies=method.copies == "drop")
        if method.selects:
            covered = target(class_id)
            hunt.sought = sought
            hunt.choose = lambda candidates, count, covered=covered: choose(
                method, candidates, covered, count
            )
        hunts.append(hunt)
    return hunts


def _shard_row(
    row: Mapping[str, Any],
    hunt: Hunt,
    index: int,
    asked: Mapping[str, Any],
    model: str,
    side: int,
    encoding: dict[str, Any],
) -> ShardRow:
    opened = hunt.arrivals[row["id"]].open
    assert opened is not None
    image = opened()
    scale = side / min(image.size)
    if scale < 1:
        image = image.resize((max(side, round(image.width * scale)), max(side, round(image.height * scale))))
    return ShardRow(
        image=encode_image(image, **encoding),
        label=asked["label"],
        class_id=row["class_id"],
        index=index,
        prompt=asked["prompt"],
        model=model,
        source=row["url"],
        similarity=row["similarity"],
    )
