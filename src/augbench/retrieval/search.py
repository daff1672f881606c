"""Search: find the neighbours of each class's query with the backend that the config names.

Input: a method's prompts, a CLIP model, a corpus. Output: ``retrieval/{method}/neighbours.parquet``. The
queries of all classes are searched together, so that the exact search reads a corpus once.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from augbench.config.corpus import EmbeddingCorpus, IndexCorpus, OwnCorpus, ServerCorpus
from augbench.config.methods import RetrieveMethod
from augbench.config.study import Study
from augbench.errors import UserError
from augbench.files import read_json
from augbench.prompts.stage import read_prompts
from augbench.retrieval.embed import IDENTITY
from augbench.retrieval.hunt import prefix_sizes, wanted_images
from augbench.retrieval.index import IndexBackend, ServerBackend
from augbench.retrieval.manifest import read_manifest
from augbench.retrieval.neighbours import Backend, Found, write_neighbours

if TYPE_CHECKING:
    from augbench.runtime.job import Job

logger = logging.getLogger(__name__)


def open_backend(
    job: Job, method: RetrieveMethod, clip_path: str | Path, corpus_folder: str | Path | None
) -> Backend:
    """Open the search backend of the study's corpus.

    Parameters
    ----------
    clip_path : path
        Fingerprint of the CLIP model that embeds the queries.
    corpus_folder : path, optional
        Embeddings or index of a corpus that the study embeds itself.

    Raises
    ------
    UserError
        The corpus is missing, or it was embedded with another CLIP model.
    """
    from augbench.models.folders import pick_device
    from augbench.retrieval.embedding_files import open_embeddings
    from augbench.retrieval.exact import ExactBackend

    study, clip = job.study, read_json(clip_path)
    corpus = study.corpus
    device = str(pick_device(study.execution.device))
    if isinstance(corpus, ServerCorpus):
        return ServerBackend(corpus.url, corpus.index)
    if isinstance(corpus, IndexCorpus):
        return IndexBackend(corpus.folder, clip["id"], clip["folder"])
    if isinstance(corpus, EmbeddingCorpus):
        files = open_embeddings(
            corpus.folder,
            corpus.vector_column,
            corpus.npz_key,
            {str(name): column for name, column in corpus.columns.items()},
        )
        return ExactBackend(files, job.store, device, method.corpus_share, study.seed)
    assert isinstance(corpus, OwnCorpus) and corpus_folder is not None
    if corpus.search == "clip_retrieval_index":
        return IndexBackend(corpus_folder, clip["id"], clip["folder"])
    if (made_with := read_json(Path(corpus_folder) / IDENTITY)["clip"]) != clip["id"]:
        raise UserError(
            str(corpus_folder),
            f"embeddings of CLIP {made_with}",
            f"a query by CLIP {clip['id']} needs embeddings of the same model",
        )
    return ExactBackend(open_embeddings(corpus_folder), job.store, device, method.corpus_share, study.seed)


def embed_queries(queries: Mapping[str, str], clip_folder: str, study: Study) -> np.ndarray:
    """Embed the queries with CLIP's text tower; float32 ``(Q, D)`` of unit length."""
    from augbench.models.folders import embed_texts, load_clip, pick_device

    model, tokenizer = load_clip(clip_folder, pick_device(study.execution.device))
    return embed_texts(model, tokenizer, list(queries.values())).float().cpu().numpy()


def search(
    job: Job,
    name: str,
    prompts_path: str | Path,
    training_images: Mapping[str, int],
    clip_path: str | Path,
    corpus_folder: str | Path | None,
    out: str | Path,
) -> None:
    """Write the neighbours of every class: its largest k (paper, section 3.2), or the images of a manifest.

    Parameters
    ----------
    training_images : mapping
        Images per class in the training split.
    corpus_folder : path, optional
        As in :func:`open_backend`.
    """
    method = job.study.retrieved[name]
    queries = {class_id: str(rows[0]["prompt"]) for (class_id, _), rows in read_prompts(prompts_path).items()}
    clip = read_json(clip_path)
    if method.manifest is not None:
        manifest = read_manifest(method.manifest)
        write_neighbours(
            out, manifest.found(list(queries)), queries, f"manifest {method.manifest}", clip["id"]
        )
        return
    wanted = wanted_images(method, training_images)
    limits = {class_id: prefix_sizes(method, wanted[class_id])[-1] for class_id in queries}
    backend = open_backend(job, method, clip_path, corpus_folder)
    vectors = embed_queries(queries, clip["folder"], job.study)
    found = dict(zip(queries, backend.search(vectors, max(limits.values())), strict=True))
    write_neighbours(
        out,
        {class_id: _first(result, limits[class_id]) for class_id, result in found.items()},
        queries,
        backend.name,
        clip["id"],
    )


def _first(found: Found, k: int) -> Found:
    return Found(
        found.metadata.slice(0, k),
        found.similarity[:k],
        None if found.embeddings is None else found.embeddings[:k],
    )
