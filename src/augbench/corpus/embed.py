"""CLIP embeddings of the corpus in clip-retrieval's layout, and its index.

Flows in: corpus parts and CLIP. Flows out: ``img_emb/img_emb_00000.npy`` (float16, unit length) with ``metadata_00000.parquet``
beside it, row by row; then an index folder as ``clip-retrieval index`` lays it out.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from augbench.batches import in_batches
from augbench.files import canonical_hash, read_json, sha256_file, write_json
from augbench.progress import Progress

if TYPE_CHECKING:
    from augbench.job import Job

logger = logging.getLogger(__name__)

BATCH = 32  # images embedded together; on a CPU, more do not fit into its cache and take half as long again
EXACT_UP_TO = 1_000_000  # vectors; to compare a query with all of them takes a fraction of a second, and no neighbour is missed
METADATA = ("id", "url", "caption", "width", "height", "NSFW", "punsafe")


def embed_corpus(job: Job, parts: Sequence[str], model_path: str, embeddings: Sequence[str], metadata: Sequence[str]) -> None:
    """Embed every image of ``parts``; ``similarity`` in the metadata is the cosine between image and caption, as in LAION.

    Each part goes through the store, so an interrupted job goes on where it was.
    """
    import torch
    import torch.nn.functional as F

    from augbench.models import load_clip, load_image_tower, pick_device

    fingerprint = read_json(model_path)
    device = pick_device(job.study.execution.device)
    model, tokenizer = load_clip(fingerprint["folder"], device)
    tower = load_image_tower(fingerprint["folder"], device, model)
    progress = Progress("embed corpus", len(parts), "part")

    def embed_images(encoded: pa.BinaryArray) -> torch.Tensor:
        images = (Image.open(BytesIO(data.as_py())).convert("RGB") for data in encoded)
        return torch.cat([F.normalize(tower(batch), dim=-1).cpu() for batch in in_batches(images, BATCH)])

    @torch.inference_mode()
    def embed_captions(captions: Sequence[str]) -> torch.Tensor:
        """Each distinct caption once, those of one length together: captions repeat, and padding is work too."""
        distinct = sorted(set(captions), key=lambda caption: (len(caption), caption))
        vectors = []
        for batch in in_batches(distinct, BATCH):
            tokens = tokenizer(batch, padding="longest", truncation=True, max_length=77, return_tensors="pt")
            vectors.append(F.normalize(model.get_text_features(**tokens.to(device)), dim=-1).cpu())
        row_of = {caption: row for row, caption in enumerate(distinct)}
        return torch.cat(vectors)[[row_of[caption] for caption in captions]]

    for part, embedding, table_path in zip(parts, embeddings, metadata, strict=True):
        recipe = {"version": 1, "model": fingerprint["id"], "part": sha256_file(part)}
        if not (job.store.has("embeddings", recipe, ".npy") and job.store.has("embeddings", recipe, ".parquet")):
            table = pq.read_table(part)
            images = embed_images(table.column("image").combine_chunks().field("bytes"))
            vectors, similarity = images.half().numpy(), (images * embed_captions(table.column("caption").to_pylist())).sum(1).numpy()
            kept = table.select(METADATA).append_column("similarity", pa.array(similarity, pa.float32()))
            job.store.commit("embeddings", recipe, ".npy", lambda path, vectors=vectors: np.save(path, vectors))  # type: ignore[misc]
            job.store.commit("embeddings", recipe, ".parquet", lambda path, kept=kept: pq.write_table(kept, path))  # type: ignore[misc]
        job.store.publish("embeddings", recipe, embedding)
        job.store.publish("embeddings", recipe, table_path)
        progress.update()


def build_index(embeddings: Sequence[str], index_folder: str | Path, clip_folder: str, threads: int) -> None:
    """Build an index folder in clip-retrieval's layout: ``image.index`` by autofaiss, and the metadata beside it.

    Up to :data:`EXACT_UP_TO` vectors the index is exact; for more, autofaiss chooses an approximate one, as ``clip-retrieval index`` does for
    any number. ``augbench.json`` in the folder records the CLIP model, so that a query by another model can be refused, and a hash of
    the embeddings.
    """
    from autofaiss import build_index as build_autofaiss_index

    index_folder = Path(index_folder)
    shutil.rmtree(index_folder, ignore_errors=True)
    index_folder.mkdir(parents=True)
    embeddings_folder = Path(embeddings[0]).parents[1]
    count = sum(len(np.load(path, mmap_mode="r")) for path in embeddings)
    build_autofaiss_index(
        str(embeddings_folder / "img_emb"),
        index_path=str(index_folder / "image.index"),
        index_infos_path=str(index_folder / "image.json"),
        index_key="Flat" if count <= EXACT_UP_TO else None,
        max_index_memory_usage="4G",
        current_memory_available="12G",
        nb_cores=threads,
    )
    if not (index_folder / "image.index").is_file():  # autofaiss only logs what went wrong
        raise RuntimeError(f"autofaiss made no index in {index_folder}; its reason stands above in this log")
    shutil.copytree(embeddings_folder / "metadata", index_folder / "metadata")
    write_json(index_folder / "augbench.json", {"clip": clip_folder, "corpus": canonical_hash([sha256_file(path) for path in embeddings])})
