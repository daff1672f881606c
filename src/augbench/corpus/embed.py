"""CLIP embeddings of the corpus in clip-retrieval's layout, and its index.

Flows in: corpus parts and CLIP. Flows out: ``img_emb/img_emb_00000.npy`` (float16, unit length) with ``metadata_00000.parquet``
beside it, row by row; then an autofaiss index folder as ``clip-retrieval index`` makes it.
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

from augbench.files import canonical_hash, read_json, sha256_file, write_json
from augbench.progress import Progress

if TYPE_CHECKING:
    from augbench.job import Job

logger = logging.getLogger(__name__)

BATCH = 32  # images embedded together; on a CPU, more do not fit into its cache and take half as long again
METADATA = ("id", "url", "caption", "width", "height", "NSFW", "punsafe")


def embed_corpus(job: Job, parts: Sequence[str], model_path: str, embeddings: Sequence[str], metadata: Sequence[str]) -> None:
    """Embed every image of ``parts``; ``similarity`` in the metadata is the cosine between image and caption, as in LAION.

    Each part goes through the store, so an interrupted job goes on where it was.
    """
    import torch
    import torch.nn.functional as F
    from transformers import CLIPImageProcessor

    from augbench.models import load_clip, pick_device

    fingerprint = read_json(model_path)
    device = pick_device(job.study.execution.device)
    model, tokenizer = load_clip(fingerprint["folder"], device)
    processor = CLIPImageProcessor.from_pretrained(fingerprint["folder"], local_files_only=True)
    progress = Progress("embed corpus", len(parts), "part")

    @torch.inference_mode()
    def embed(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        images, texts = [], []
        captions = table.column("caption").to_pylist()
        encoded = table.column("image").combine_chunks().field("bytes")
        for start in range(0, len(captions), BATCH):
            batch = [Image.open(BytesIO(data.as_py())).convert("RGB") for data in encoded[start : start + BATCH]]
            pixels = processor(batch, return_tensors="pt").pixel_values.to(device)
            images.append(F.normalize(model.get_image_features(pixel_values=pixels), dim=-1).cpu())
            tokens = tokenizer(captions[start : start + BATCH], padding="longest", truncation=True, max_length=77, return_tensors="pt")
            texts.append(F.normalize(model.get_text_features(**tokens.to(device)), dim=-1).cpu())
        image, text = torch.cat(images), torch.cat(texts)
        return image.half().numpy(), (image * text).sum(1).numpy()

    for part, embedding, table_path in zip(parts, embeddings, metadata, strict=True):
        recipe = {"version": 1, "model": fingerprint["id"], "part": sha256_file(part)}
        if not (job.store.has("embeddings", recipe, ".npy") and job.store.has("embeddings", recipe, ".parquet")):
            table = pq.read_table(part)
            vectors, similarity = embed(table)
            kept = table.select(METADATA).append_column("similarity", pa.array(similarity, pa.float32()))
            job.store.commit("embeddings", recipe, ".npy", lambda path, vectors=vectors: np.save(path, vectors))  # type: ignore[misc]
            job.store.commit("embeddings", recipe, ".parquet", lambda path, kept=kept: pq.write_table(kept, path))  # type: ignore[misc]
        job.store.publish("embeddings", recipe, embedding)
        job.store.publish("embeddings", recipe, table_path)
        progress.update()


def build_index(embeddings: Sequence[str], index_folder: str | Path, clip_folder: str, threads: int) -> None:
    """Build clip-retrieval's index folder: ``image.index`` by autofaiss, and the metadata beside it.

    ``augbench.json`` in the folder records the CLIP model, so that a query by another model can be refused, and a hash of
    the embeddings.
    """
    from clip_retrieval.clip_index import clip_index

    index_folder = Path(index_folder)
    shutil.rmtree(index_folder, ignore_errors=True)
    index_folder.mkdir(parents=True)
    embeddings_folder = Path(embeddings[0]).parents[1]
    clip_index(str(embeddings_folder), str(index_folder), max_index_memory_usage="4G", current_memory_available="12G", nb_cores=threads)
    if not (index_folder / "image.index").is_file():  # autofaiss only logs what went wrong
        raise RuntimeError(f"autofaiss made no index in {index_folder}; its reason stands above in this log")
    write_json(index_folder / "augbench.json", {"clip": clip_folder, "corpus": canonical_hash([sha256_file(path) for path in embeddings])})
