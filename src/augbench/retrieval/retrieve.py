"""Retrieve: the corpus images nearest to a class's prompt, filtered, as a shard (paper, section 3.2).

Flows in: query prompts, a search backend, the corpus's images, the number of images wanted per class. Flows out: one shard per
class, and a ledger with one row per candidate looked at and what became of it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from augbench.config import RetrieveMethod
from augbench.files import atomic_path, read_json
from augbench.progress import track
from augbench.prompts import read_prompts
from augbench.recipes import image_recipe, retrieve_recipe
from augbench.retrieval.index import IndexBackend, Neighbour
from augbench.shards import ShardRow, encode_image, is_whole, write_shard

if TYPE_CHECKING:
    from PIL import Image

    from augbench.job import Job

logger = logging.getLogger(__name__)

KEPT = "kept"
LEDGER_SCHEMA = pa.schema(
    [
        ("class_id", pa.string()),
        ("query", pa.string()),
        ("rank", pa.int32()),
        ("id", pa.int64()),
        ("url", pa.string()),
        ("caption", pa.string()),
        ("similarity", pa.float32()),
        ("k", pa.int32()),
        ("fate", pa.string()),
    ]
)


@dataclass(frozen=True)
class LedgerRow:
    """A candidate and its fate: ``kept``, ``duplicate``, ``unsafe: metadata``, ``unsafe: checker`` or ``not needed``."""

    class_id: str
    query: str
    rank: int
    id: int
    url: str
    caption: str
    similarity: float
    k: int
    fate: str


class Fates:
    """Decides, once per candidate, whether its own content rules it out; images are looked at in batches."""

    def __init__(self, method: RetrieveMethod, flags: Callable[[Sequence[int]], list[bool]]) -> None:
        self.method, self.flags = method, flags
        self._unsafe: dict[int, bool] = {}

    def of(self, neighbours: Sequence[Neighbour], duplicates: set[int]) -> list[str]:
        """The fate of each neighbour, filters in the paper's order: duplicates, NSFW mark, safety checker."""
        fates = []
        for neighbour in neighbours:
            if neighbour.id in duplicates:
                fates.append("duplicate")
            elif self.method.drop_unsafe and neighbour.nsfw == "NSFW":
                fates.append("unsafe: metadata")
            else:
                fates.append(KEPT)
        if self.method.drop_unsafe:
            unseen = [n.id for n, fate in zip(neighbours, fates, strict=True) if fate == KEPT and n.id not in self._unsafe]
            self._unsafe.update(zip(unseen, self.flags(unseen), strict=True))
            fates = ["unsafe: checker" if fate == KEPT and self._unsafe[n.id] else fate for n, fate in zip(neighbours, fates, strict=True)]
        return fates


def find(class_id: str, query: str, wanted: int, method: RetrieveMethod, backend: IndexBackend, fates: Fates) -> list[LedgerRow]:
    """Candidates of one class with their fates, nearest first; k grows until ``wanted`` are kept or the limit is reached.

    k = first_k x wanted, 2 x first_k x wanted, ... growth_limit x first_k x wanted (paper, section 3.2).
    """
    rows: list[LedgerRow] = []
    for step in range(1, method.growth_limit + 1):
        k = round(step * method.first_k * wanted)
        neighbours = backend.search(query, k)
        ids = [neighbour.id for neighbour in neighbours]
        duplicates = backend.duplicates(ids, method.duplicate_threshold) if method.duplicate_threshold is not None else set()
        kept, rows = 0, []
        for rank, (neighbour, fate) in enumerate(zip(neighbours, fates.of(neighbours, duplicates), strict=True)):
            if fate == KEPT:
                kept += 1
                fate = KEPT if kept <= wanted else "not needed"
            row = LedgerRow(class_id, query, rank, neighbour.id, neighbour.url, neighbour.caption, neighbour.similarity, k, fate)
            rows.append(row)
        if kept >= wanted or len(neighbours) < k:
            break
    return rows


def retrieve(
    job: Job,
    name: str,
    prompts_path: str,
    training_images: dict[str, int],
    index_folder: str,
    clip_path: str,
    diffusion_path: str,
    images: Callable[[int], Image.Image],
    targets: Sequence[str],
    ledger_path: str,
) -> None:
    """Make the shards ``targets`` (paths that end in ``{class}/0.parquet``) and the ledger of a retrieval method.

    Parameters
    ----------
    training_images : dict
        Images per class in the training split; the pool's default size.
    clip_path, diffusion_path : str
        Fingerprints of the models; the second one's safety checker looks at the images.
    images : callable
        From a corpus id to its image.
    """
    from augbench.models import check_safety, load_pipeline, pick_device

    method = job.study.methods[name]
    assert isinstance(method, RetrieveMethod)
    prompts = read_prompts(prompts_path)
    clip, diffusion = read_json(clip_path), read_json(diffusion_path)
    backend = IndexBackend(index_folder, clip["folder"])
    pipeline = load_pipeline(job.study.diffusion, pick_device(job.study.execution.device))
    side = job.study.diffusion.resolution

    def flags(ids: Sequence[int]) -> list[bool]:
        return [flag for start in range(0, len(ids), 64) for flag in check_safety(pipeline, [images(i) for i in ids[start : start + 64]])]

    fates, ledger = Fates(method, flags), []
    for target in track(targets, name, unit="class"):
        class_id = Path(target).parts[-2]
        (prompt,) = prompts[class_id, 0]
        wanted = method.images_per_class or training_images[class_id]
        found = find(class_id, str(prompt["prompt"]), wanted, method, backend, fates)
        ledger += found
        kept = [row for row in found if row.fate == KEPT]
        counts = Counter(row.fate for row in found)
        logger.info("%s: %s", class_id, ", ".join(f"{count} {fate}" for fate, count in counts.most_common()))
        recipe: dict[str, Any] = {
            **retrieve_recipe(job.study, name), "clip": clip["id"], "safety": diffusion["id"], "label": prompt["label"],
            "class_id": class_id, "query": prompt["prompt"], "ids": [row.id for row in kept], "corpus": index_identity(index_folder),
        }  # fmt: skip

        def write(path: Path, kept: list[LedgerRow] = kept, recipe: dict[str, Any] = recipe, label: Any = prompt["label"]) -> None:
            write_shard(
                path, [_shard_row(row, i, label, name, clip["id"], images(row.id), side, image_recipe(job.study)) for i, row in enumerate(kept)], recipe
            )

        job.store.provide("shards", recipe, target, write, is_whole)
    with atomic_path(ledger_path) as temporary:
        pq.write_table(pa.Table.from_pylist([asdict(row) for row in ledger], schema=LEDGER_SCHEMA), temporary)


def index_identity(folder: str) -> str:
    """What the index was made from: written beside it, so that recipes need not hash it."""
    return str(read_json(Path(folder) / "augbench.json")["corpus"])


def _shard_row(row: LedgerRow, index: int, label: int, method: str, model: str, image: Image.Image, side: int, encoding: dict[str, Any]) -> ShardRow:
    scale = side / min(image.size)
    if scale < 1:
        image = image.resize((max(side, round(image.width * scale)), max(side, round(image.height * scale))))
    return ShardRow(
        image=encode_image(image, **encoding), label=label, class_id=row.class_id, index=index, method=method, prompt=row.query,
        model=model, source=row.url, similarity=row.similarity,
    )  # fmt: skip
