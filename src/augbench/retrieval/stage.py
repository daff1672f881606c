"""Retrieve: fetch and filter the images of neighbours, and write them as shards (paper, section 3.2).

Input: the neighbours of each class's query, the source of their images, the number of images wanted.
Output: one shard per class, and a ledger with one row per candidate considered, with its fate.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from augbench.artifacts.shards import ShardRow, content_of, encode_image, is_kept, write_shard
from augbench.config.methods import RetrieveMethod
from augbench.files import atomic_path, read_json
from augbench.plan.recipes import image_recipe, retrieve_recipe
from augbench.prompts.stage import read_prompts
from augbench.resample import needed_images
from augbench.retrieval.filters import KEPT, Filters, check_scores, owners
from augbench.retrieval.images import Arrival, Origin
from augbench.retrieval.manifest import read_manifest
from augbench.retrieval.neighbours import Neighbour, read_neighbours
from augbench.retrieval.web.fates import FETCHED

if TYPE_CHECKING:
    from PIL import Image

    from augbench.runtime.job import Job

logger = logging.getLogger(__name__)

NOT_NEEDED = "not needed"
UNSAFE = "unsafe: checker"
IMAGES_AT_ONCE = 64  # batch size of the safety checker
LEDGER = pa.schema(
    [
        ("class_id", pa.string()),
        ("query", pa.string()),
        ("rank", pa.int32()),
        ("id", pa.string()),
        ("url", pa.string()),
        ("caption", pa.string()),
        ("similarity", pa.float32()),
        ("k", pa.int32()),  # size of the last prefix of neighbours
        ("fate", pa.string()),
        ("sha256", pa.string()),  # of the fetched file; null if there is none
        ("width", pa.int32()),  # of the fetched file, in pixels
        ("height", pa.int32()),
    ]
)
Flags = Callable[[Sequence["Image.Image"]], Sequence[bool]]
Embed = Callable[[Sequence["Image.Image"]], np.ndarray]


def wanted_images(method: RetrieveMethod, training_images: int) -> int:
    """Number of images to keep for a class: the config's, or else the number added to a training set."""
    return method.images_per_class or needed_images(method.added_per_training_image, training_images)


def prefix_sizes(method: RetrieveMethod, wanted: int) -> list[int]:
    """Return the sizes k = i x first_k x wanted, for i = 1 ... growth_limit (paper, section 3.2)."""
    return [round(step * method.first_k * wanted) for step in range(1, method.growth_limit + 1)]


@dataclass
class Hunt:
    """The search for one class's images, through growing prefixes of its neighbours.

    Parameters
    ----------
    neighbours : list of Neighbour
        Nearest first, at most as many as the largest prefix. If the backend gives no embeddings, they are
        added when images arrive.
    wanted : int
        Number of images to keep.
    sizes : sequence of int
        Sizes of the prefixes, ascending.
    promised : mapping, optional
        SHA-256 that each file must have, by id; from a manifest.
    """

    class_id: str
    neighbours: list[Neighbour]
    wanted: int
    sizes: Sequence[int]
    promised: Mapping[str, str] | None = None
    step: int = 0
    arrivals: dict[str, Arrival] = field(default_factory=dict)
    unsafe: dict[str, bool] = field(default_factory=dict)

    @property
    def k(self) -> int:
        """Size of the current prefix; there may be fewer neighbours."""
        return self.sizes[self.step]

    @property
    def prefix(self) -> list[Neighbour]:
        """Neighbours in the current prefix."""
        return self.neighbours[: self.k]

    def fates(self, filters: Filters) -> list[str]:
        """Return the current fate of each neighbour of the prefix; images still to fetch count as kept."""
        fates, files = filters.fates(self.prefix), set()
        for place, neighbour in enumerate(self.prefix):
            arrival = self.arrivals.get(neighbour.id)
            if fates[place] != KEPT or arrival is None:
                continue
            if arrival.fate != FETCHED:
                fates[place] = arrival.fate
            elif self.promised is not None and self.promised.get(neighbour.id) != arrival.sha256:
                fates[place] = "changed since the manifest"
            elif arrival.sha256 in files:
                fates[place] = "same file"
            elif self.unsafe.get(neighbour.id):
                fates[place] = UNSAFE
            else:
                files.add(arrival.sha256)
        return fates

    def missing(self, filters: Filters) -> list[Neighbour]:
        """Return neighbours of the prefix that pass all filters and have not been fetched."""
        return [
            n
            for n, fate in zip(self.prefix, self.fates(filters), strict=True)
            if fate == KEPT and n.id not in self.arrivals
        ]

    def is_done(self, filters: Filters) -> bool:
        """Whether enough images are kept or no neighbours are left; otherwise the prefix grows."""
        if (
            self.fates(filters).count(KEPT) >= self.wanted
            or len(self.neighbours) <= self.k
            or self.step + 1 == len(self.sizes)
        ):
            return True
        self.step += 1
        return False

    def ledger(self, filters: Filters) -> list[dict[str, Any]]:
        """Return one row per neighbour of the prefix, nearest first."""
        rows, kept = [], 0
        for neighbour, found in zip(self.prefix, self.fates(filters), strict=True):
            kept += found == KEPT
            fate = NOT_NEEDED if found == KEPT and kept > self.wanted else found
            arrival = self.arrivals.get(neighbour.id, Arrival(fate))
            given = {
                name: getattr(neighbour, name)
                for name in ("class_id", "query", "rank", "id", "url", "caption", "similarity")
            }
            rows.append(
                {
                    **given,
                    "k": self.k,
                    "fate": fate,
                    "sha256": arrival.sha256,
                    "width": arrival.width,
                    "height": arrival.height,
                }
            )
        return rows


def hunt_all(
    hunts: Sequence[Hunt], filters: Filters, origin: Origin, flags: Flags, embed: Embed | None = None
) -> None:
    """Fetch images, in rounds of all classes together, until each class is done.

    Parameters
    ----------
    flags : callable
        Marks the unsafe images in a batch.
    embed : callable, optional
        Computes CLIP embeddings, float16 ``(N, D)`` of unit length, for neighbours without one.
    """
    open_hunts, number = list(hunts), 0
    while open_hunts:
        number += 1
        wanted = {hunt.class_id: missing for hunt in open_hunts if (missing := hunt.missing(filters))}
        logger.info(
            "round %d: %d classes, %d images", number, len(open_hunts), sum(map(len, wanted.values()))
        )
        for class_id, arrivals in origin.fetch(wanted).items():
            hunt = next(hunt for hunt in open_hunts if hunt.class_id == class_id)
            hunt.arrivals.update(arrivals)
            _look(hunt, [id_ for id_, arrival in arrivals.items() if arrival.fate == FETCHED], flags, embed)
        open_hunts = [hunt for hunt in open_hunts if not hunt.is_done(filters)]


def _look(hunt: Hunt, ids: Sequence[str], flags: Flags, embed: Embed | None) -> None:
    """Run the safety checker on new images, and embed them if ``embed`` is given."""
    for start in range(0, len(ids), IMAGES_AT_ONCE):
        batch = ids[start : start + IMAGES_AT_ONCE]
        images = [opened() for id_ in batch if (opened := hunt.arrivals[id_].open) is not None]
        hunt.unsafe.update(zip(batch, flags(images), strict=True))
        if embed is not None:
            vectors = dict(zip(batch, embed(images), strict=True))
            hunt.neighbours[:] = [
                replace(n, embedding=vectors[n.id]) if n.id in vectors and n.embedding is None else n
                for n in hunt.neighbours
            ]


def retrieve(
    job: Job,
    name: str,
    prompts_path: str | Path,
    training_images: Mapping[str, int],
    neighbours_path: str | Path,
    clip_path: str | Path,
    diffusion_path: str | Path,
    origin: Origin,
    targets: Sequence[str],
    ledgers: Sequence[str | Path],
) -> None:
    """Write a retrieval method's shards ``targets`` and their ledgers.

    Parameters
    ----------
    training_images : mapping
        Images per class in the training split; they set the default number of images to keep.
    clip_path, diffusion_path : path
        Fingerprints of the models; the diffusion model's safety checker checks the images.
    origin : Origin
        Source of the images.
    targets : sequence of path
        Shards to write; each path ends in ``{class}/0.parquet``.
    ledgers : sequence of path
        Ledgers to write, one per target.

    Raises
    ------
    UserError
        A file is damaged; a minimum score is set but there are no scores; or the manifest lacks a class.
    """
    from augbench.models.folders import check_safety, load_pipeline, pick_device

    method = job.study.retrieved[name]
    prompts, clip, diffusion = read_prompts(prompts_path), read_json(clip_path), read_json(diffusion_path)
    by_class = {Path(target).parts[-2]: target for target in targets}
    device = pick_device(job.study.execution.device)
    pipeline = load_pipeline(job.study.diffusion, device)
    neighbours = read_neighbours(neighbours_path, list(by_class))
    filters, embed = _filters(job, method, neighbours_path, neighbours, clip["folder"])
    promised = None if method.manifest is None else read_manifest(method.manifest).hashes
    hunts = []
    for class_id in by_class:
        wanted = wanted_images(method, training_images[class_id])
        sizes = prefix_sizes(method, wanted) if promised is None else [max(1, len(neighbours[class_id]))]
        check_scores(filters, neighbours[class_id][: sizes[-1]], f"methods.{name}")
        known = None if promised is None else promised[class_id]
        hunts.append(Hunt(class_id, neighbours[class_id][: sizes[-1]], wanted, sizes, known))
    hunt_all(
        hunts,
        filters,
        origin,
        lambda images: check_safety(pipeline, images) if method.drop_unsafe else [False] * len(images),
        embed,
    )
    for hunt, ledger_path in zip(hunts, ledgers, strict=True):
        looked_at = hunt.ledger(filters)
        counts = Counter(row["fate"] for row in looked_at)
        logger.info(
            "%s: %s", hunt.class_id, ", ".join(f"{count} {fate}" for fate, count in counts.most_common())
        )
        kept = [row for row in looked_at if row["fate"] == KEPT]
        (prompt,) = prompts[hunt.class_id, 0]
        recipe: dict[str, Any] = {
            **content_of(retrieve_recipe(job.study, name)),
            "clip": clip["id"],
            "safety": diffusion["id"],
            "label": prompt["label"],
            "class_id": hunt.class_id,
            "query": prompt["prompt"],
            "images": [[row["id"], row["sha256"]] for row in kept],
        }

        def write(
            path: Path,
            hunt: Hunt = hunt,
            kept: list[dict[str, Any]] = kept,
            recipe: dict[str, Any] = recipe,
            label: Any = prompt["label"],
        ) -> None:
            side, encoding = job.study.diffusion.resolution, image_recipe(job.study)
            rows = [
                _shard_row(row, hunt, index, label, model=clip["id"], side=side, encoding=encoding)
                for index, row in enumerate(kept)
            ]
            write_shard(path, rows, recipe)

        job.store.provide("shards", recipe, by_class[hunt.class_id], write, is_kept)
        with atomic_path(ledger_path) as temporary:
            pq.write_table(pa.Table.from_pylist(looked_at, schema=LEDGER), temporary)
    for class_id in by_class:
        origin.close(class_id)


def _filters(
    job: Job,
    method: RetrieveMethod,
    neighbours_path: str | Path,
    neighbours: Mapping[str, Sequence[Neighbour]],
    clip_folder: str,
) -> tuple[Filters, Embed | None]:
    """Return the method's filters, and a function that embeds images if filters need missing embeddings."""
    score = None
    if method.manifest is not None:  # its images passed these filters when it was frozen
        off = {"duplicate_threshold": None, "min_aesthetics": None, "one_class": False}
        return Filters(method.model_copy(update=off)), None
    unscored = any(n.aesthetic is None for rows in neighbours.values() for n in rows)
    weights = job.study.retrieval.aesthetics_weights
    if method.min_aesthetics is not None and unscored and weights is not None:
        from augbench.retrieval.aesthetics import WEIGHTS_SHA256, load_predictor

        score = load_predictor(weights, job.study.retrieval.aesthetics_sha256 or WEIGHTS_SHA256).score
    embed = None
    if any(n.embedding is None for rows in neighbours.values() for n in rows) and (
        method.duplicate_threshold is not None or score is not None
    ):
        from augbench.models.folders import load_image_tower, pick_device

        tower = load_image_tower(clip_folder, pick_device(job.study.execution.device))

        def embed(images: Sequence[Image.Image]) -> np.ndarray:
            vectors = tower(images).float().cpu().numpy()
            return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)

    return Filters(method, score, owners(neighbours_path) if method.one_class else None), embed


def _shard_row(
    row: Mapping[str, Any],
    hunt: Hunt,
    index: int,
    label: int,
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
        label=label,
        class_id=row["class_id"],
        index=index,
        prompt=row["query"],
        model=model,
        source=row["url"],
        similarity=row["similarity"],
    )
