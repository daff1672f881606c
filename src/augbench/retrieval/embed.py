"""CLIP embeddings of a corpus of images in clip-retrieval's layout, and its index.

Flows in: the miniature corpus or a folder of images, and CLIP. Flows out: a folder with ``img_emb/img_emb_00000.npy`` (float16, unit length),
``metadata/metadata_00000.parquet`` beside it, row by row, and ``augbench.json``, which names the CLIP model and the content; then an
index folder as ``clip-retrieval index`` lays it out.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from augbench.batches import in_batches
from augbench.data.decode import in_order, open_rgb
from augbench.data.image_folder import EXTENSIONS
from augbench.errors import UserError
from augbench.files import canonical_hash, read_json, sha256_file, write_json
from augbench.plan.recipes import Recipe
from augbench.progress import Progress

if TYPE_CHECKING:
    from augbench.runtime.job import Job

logger = logging.getLogger(__name__)

# images embedded together; on a CPU, more do not fit into its cache and take half as long again
BATCH = {"cpu": 32, "cuda": 256}
ROWS_PER_FILE = 5000
EXACT_UP_TO = 1_000_000  # vectors; to compare a query with all of them takes a fraction of a second, and no neighbour is missed
METADATA = ("id", "url", "caption", "width", "height", "NSFW", "punsafe")
IDENTITY = "augbench.json"


@dataclass(frozen=True)
class _Part:
    """Some images of a corpus: what they are, how many, and how to read them with their captions (where there are any) and metadata."""

    recipe: Recipe
    rows: int
    read: Callable[[], tuple[Iterable[Image.Image], Sequence[str] | None, pa.Table]]


def _miniature_part(path: str | Path) -> _Part:
    def read() -> tuple[Iterable[Image.Image], Sequence[str] | None, pa.Table]:
        table = pq.read_table(path)
        encoded = table.column("image").combine_chunks().field("bytes")
        images = (Image.open(BytesIO(data.as_py())).convert("RGB") for data in encoded)
        return images, table.column("caption").to_pylist(), table.select(METADATA)

    return _Part({"part": sha256_file(path)}, pq.read_metadata(path).num_rows, read)


def _folder_parts(root: Path) -> list[_Part]:
    if not root.is_dir():
        raise UserError("corpus.root", f"{str(root)!r}, no such folder", "allowed: a folder of images")
    names = sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.suffix.lower()[1:] in EXTENSIONS and path.is_file()
    )
    if not names:
        raise UserError(
            "corpus.root",
            f"no image in {str(root)!r}",
            f"allowed: a folder with files of the kinds {', '.join(sorted(EXTENSIONS))}",
        )

    def part(chosen: Sequence[str]) -> _Part:
        def read() -> tuple[Iterable[Image.Image], Sequence[str] | None, pa.Table]:
            sizes = []
            for name in chosen:
                with Image.open(root / name) as image:
                    sizes.append(image.size)
            columns = {
                "id": list(chosen),
                "url": list(chosen),
                "width": [size[0] for size in sizes],
                "height": [size[1] for size in sizes],
            }
            return in_order(open_rgb, [root / name for name in chosen]), None, pa.table(columns)

        stats = [(root / name).stat() for name in chosen]
        return _Part(
            {
                "files": canonical_hash(
                    [[name, stat.st_size, stat.st_mtime_ns] for name, stat in zip(chosen, stats, strict=True)]
                )
            },
            len(chosen),
            read,
        )

    return [part(batch) for batch in in_batches(names, ROWS_PER_FILE)]


def embed_miniature(job: Job, parts: Sequence[str | Path], clip_path: str | Path, out: str | Path) -> None:
    """Embed every image of the miniature corpus; ``similarity`` in the metadata is the cosine between image and caption, as in LAION."""
    _embed(job, [_miniature_part(path) for path in parts], clip_path, Path(out))


def embed_folder(job: Job, root: str | Path, clip_path: str | Path, out: str | Path) -> None:
    """Embed every image below ``root``; ids are paths relative to it.

    Raises
    ------
    UserError
        There is no such folder, no image in it, or an image is damaged.
    """
    _embed(job, _folder_parts(Path(root)), clip_path, Path(out))


def _embed(job: Job, parts: Sequence[_Part], clip_path: str | Path, out: Path) -> None:
    """Embed parts; each goes through the store, so an interrupted job goes on where it was."""
    import torch
    import torch.nn.functional as F

    from augbench.models.folders import embed_texts, load_clip, load_image_tower, pick_device

    clip = read_json(clip_path)
    device = pick_device(job.study.execution.device)
    model, tokenizer = load_clip(clip["folder"], device)
    # what is kept is float16, so that products in it change no more than the last digit
    tower = load_image_tower(clip["folder"], device, model, half=device.type == "cuda")
    progress = Progress("embed corpus", sum(part.rows for part in parts), "image")

    def embed_images(images: Iterable[Image.Image]) -> torch.Tensor:
        vectors = []
        for pixels in in_order(tower.prepare, in_batches(images, BATCH[device.type]), job.threads):
            vectors.append(F.normalize(tower.embed(pixels), dim=-1).cpu())
            progress.update(len(pixels))
        return torch.cat(vectors)

    shutil.rmtree(out, ignore_errors=True)
    recipes = [{"version": 2, "model": clip["id"], **part.recipe} for part in parts]
    for number, (part, recipe) in enumerate(zip(parts, recipes, strict=True)):
        if job.store.has("embeddings", recipe, ".npy") and job.store.has("embeddings", recipe, ".parquet"):
            progress.update(part.rows, "from the store")
        else:
            images, captions, kept = part.read()
            vectors = embed_images(images)
            if captions is not None:
                kept = kept.append_column(
                    "similarity",
                    pa.array(
                        (vectors * embed_texts(model, tokenizer, captions).cpu()).sum(1).numpy(), pa.float32()
                    ),
                )
            half = vectors.half().numpy()
            job.store.commit("embeddings", recipe, ".npy", partial(np.save, arr=half))
            job.store.commit("embeddings", recipe, ".parquet", partial(pq.write_table, kept))
        job.store.publish("embeddings", recipe, out / "img_emb" / f"img_emb_{number:05d}.npy")
        job.store.publish("embeddings", recipe, out / "metadata" / f"metadata_{number:05d}.parquet")
    write_json(out / IDENTITY, {"clip": clip["id"], "corpus": canonical_hash(recipes)})


def build_index(embeddings: str | Path, index_folder: str | Path, threads: int) -> None:
    """Build an index folder in clip-retrieval's layout: ``image.index`` by autofaiss, and the metadata beside it.

    Up to :data:`EXACT_UP_TO` vectors the index is exact; for more, autofaiss chooses an approximate one, as ``clip-retrieval index`` does for
    any number. ``augbench.json`` comes along: it names the CLIP model, so that a query by another can be refused.
    """
    from autofaiss import build_index as build_autofaiss_index

    embeddings, index_folder = Path(embeddings), Path(index_folder)
    shutil.rmtree(index_folder, ignore_errors=True)
    index_folder.mkdir(parents=True)
    count = sum(len(np.load(path, mmap_mode="r")) for path in (embeddings / "img_emb").glob("*.npy"))
    build_autofaiss_index(
        str(embeddings / "img_emb"),
        index_path=str(index_folder / "image.index"),
        index_infos_path=str(index_folder / "image.json"),
        index_key="Flat" if count <= EXACT_UP_TO else None,
        max_index_memory_usage="4G",
        current_memory_available="12G",
        nb_cores=threads,
    )
    if not (index_folder / "image.index").is_file():  # autofaiss only logs what went wrong
        raise RuntimeError(f"autofaiss made no index in {index_folder}; its reason stands above in this log")
    shutil.copytree(embeddings / "metadata", index_folder / "metadata")
    shutil.copy(embeddings / IDENTITY, index_folder / IDENTITY)
