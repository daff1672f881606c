"""Search: find the neighbours of each class's query with the backend that the config names.

Input: a method's prompts, a CLIP model, a corpus. Output: ``retrieval/{method}/neighbours.parquet``. The
queries of all classes are searched together, so that the exact search reads a corpus once. Several jobs may
share the corpus's files; their results meet in the store.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from augbench.config.corpus import EmbeddingCorpus, IndexCorpus, OwnCorpus, ServerCorpus
from augbench.config.methods import RetrieveMethod
from augbench.config.study import Study
from augbench.data.splits import Split
from augbench.errors import UserError
from augbench.files import read_json, write_json
from augbench.personalise.tasks import check_clusters
from augbench.prompts.stage import read_prompts
from augbench.retrieval.embed import IDENTITY
from augbench.retrieval.embedding_files import open_embeddings
from augbench.retrieval.exact import ExactBackend
from augbench.retrieval.hunt import prefix_sizes, sought_images, wanted_images
from augbench.retrieval.index import IndexBackend, ServerBackend
from augbench.retrieval.manifest import read_manifest
from augbench.retrieval.neighbours import Backend, write_neighbours
from augbench.retrieval.queries import Asked, Questions, class_queries

if TYPE_CHECKING:
    from augbench.runtime.job import Job

logger = logging.getLogger(__name__)


def open_backend(
    job: Job,
    method: RetrieveMethod,
    clip_path: str | Path,
    corpus_folder: str | Path | None,
    device: str | None = None,
) -> Backend:
    """Open the search backend of the study's corpus.

    Parameters
    ----------
    clip_path : path
        Fingerprint of the CLIP model that embeds the queries.
    corpus_folder : path, optional
        Embeddings or index of a corpus that the study embeds itself.
    device : str, optional
        Device that compares vectors. Default: the study's.

    Raises
    ------
    UserError
        The corpus is missing, or it was embedded with another CLIP model.
    """
    study, clip = job.study, read_json(clip_path)
    corpus = study.corpus
    if isinstance(corpus, ServerCorpus):
        return ServerBackend(corpus.url, corpus.index)
    if isinstance(corpus, IndexCorpus):
        return IndexBackend(corpus.folder, clip)
    if isinstance(corpus, OwnCorpus) and corpus.search == "clip_retrieval_index":
        return IndexBackend(str(corpus_folder), clip)
    device = device or _device(study)
    if isinstance(corpus, EmbeddingCorpus):
        files = open_embeddings(
            corpus.folder,
            corpus.vector_column,
            corpus.npz_key,
            {str(name): column for name, column in corpus.columns.items()},
        )
        return ExactBackend(files, job.store, device, method.corpus_share, study.seed)
    assert corpus_folder is not None
    if (made_with := read_json(Path(corpus_folder) / IDENTITY)["clip"]) != clip["id"]:
        raise UserError(
            str(corpus_folder),
            f"embeddings of CLIP {made_with}",
            f"a query by CLIP {clip['id']} needs embeddings of the same model",
        )
    return ExactBackend(open_embeddings(corpus_folder), job.store, device, method.corpus_share, study.seed)


def _device(study: Study) -> str:
    from augbench.models.folders import pick_device

    return str(pick_device(study.execution.device))


def embed_queries(queries: Mapping[str, str], clip: Mapping[str, Any], study: Study) -> np.ndarray:
    """Embed the queries with CLIP's text tower; float32 ``(Q, D)`` of unit length."""
    from augbench.models.clip import load_clip
    from augbench.models.folders import pick_device

    network = load_clip(clip, pick_device(study.execution.device))
    vectors: np.ndarray = network.embed_texts(list(queries.values())).float().cpu().numpy()
    return vectors


def ask(
    study: Study,
    name: str,
    texts: Mapping[str, str | None],
    clip: Mapping[str, Any],
    train: Split,
    embedded_train: str | Path | None,
) -> dict[str, list[Asked]]:
    """Return the queries of a method by class.

    Parameters
    ----------
    texts : mapping
        The query's text by class_id; None if it asks with images only.
    embedded_train : path, optional
        CLIP embeddings of the training images, in the order of ``train``; needed by queries with images.

    Raises
    ------
    UserError
        A class has fewer training images than ``query.clusters``.
    """
    query = study.retrieved[name].query
    written = {class_id: text for class_id, text in texts.items() if text is not None}
    vectors = embed_queries(written, clip, study) if written else ()
    asked = {
        class_id: Asked(text, vector)
        for (class_id, text), vector in zip(written.items(), vectors, strict=True)
    }
    embeddings = np.empty((0, 1)) if embedded_train is None else np.load(embedded_train)
    members = {class_id: np.flatnonzero(np.array(train.class_ids) == class_id) for class_id in texts}
    if query.clusters is not None:
        sizes = {class_id: len(rows) for class_id, rows in members.items()}
        for problem in check_clusters(f"methods.{name}.query.clusters", query.clusters, sizes):
            raise problem
    return {
        class_id: class_queries(
            query,
            asked.get(class_id),
            [train.image_ids[row] for row in rows],
            embeddings[rows] if embedded_train is not None else embeddings,
            class_id,
            study.seed_of(name),
        )
        for class_id, rows in members.items()
    }


def questions_of(
    job: Job,
    name: str,
    prompts_path: str | Path,
    train: Split,
    clip_path: str | Path,
    embedded_train: str | Path | None = None,
) -> Questions:
    """Return a method's queries and the k of every class: the largest that it may need (paper, section 3.2).

    Parameters
    ----------
    train : Split
        The training split.
    embedded_train : path, optional
        As in :func:`ask`.
    """
    method, texts = job.study.retrieved[name], _texts(prompts_path)
    wanted = wanted_images(method, Counter(train.class_ids))
    limits = {
        class_id: prefix_sizes(method, sought_images(method, wanted[class_id]))[-1] for class_id in texts
    }
    clip = read_json(clip_path)
    return Questions(ask(job.study, name, texts, clip, train, embedded_train), limits)


def _texts(prompts_path: str | Path) -> dict[str, str | None]:
    """Text of each class's query; None if it asks with images only."""
    rows = {class_id: rows[0]["prompt"] for (class_id, _), rows in read_prompts(prompts_path).items()}
    return {class_id: None if text is None else str(text) for class_id, text in rows.items()}


def search(
    job: Job,
    name: str,
    clip_path: str | Path,
    corpus_folder: str | Path | None,
    questions: Questions,
    out: str | Path,
    device: str | None = None,
) -> None:
    """Write the neighbours of every class.

    Parameters
    ----------
    corpus_folder : path, optional
        As in :func:`open_backend`.
    device : str, optional
        Device that compares vectors. Default: the study's.
    """
    backend = open_backend(job, job.study.retrieved[name], clip_path, corpus_folder, device)
    results = backend.search(questions.vectors, questions.k, questions.sizes)
    found = dict(zip(questions.asked, results, strict=True))
    write_neighbours(
        out,
        {class_id: result.first(questions.limits[class_id]) for class_id, result in found.items()},
        questions.names,
        backend.name,
        read_json(clip_path)["id"],
    )


def search_block(
    job: Job,
    name: str,
    clip_path: str | Path,
    corpus_folder: str | Path | None,
    questions: Questions,
    block: int,
    out: str | Path,
) -> None:
    """Search one of the ``execution.search_jobs`` blocks of the corpus's files, and list these in ``out``.

    What it finds is in the store, where :func:`search` finds it.
    """
    blocks = job.study.execution.search_jobs
    backend = open_backend(job, job.study.retrieved[name], clip_path, corpus_folder)
    assert isinstance(backend, ExactBackend)
    backend.fill(questions.vectors, questions.k, block, blocks)
    files = backend.block(block, blocks)
    write_json(out, {"files": [file.name for file in files], "vectors": sum(file.rows for file in files)})


def replay(method: RetrieveMethod, prompts_path: str | Path, clip_path: str | Path, out: str | Path) -> None:
    """Write the images of a method's manifest as the neighbours of every class."""
    assert method.manifest is not None
    queries = {class_id: str(text) for class_id, text in _texts(prompts_path).items()}
    found = read_manifest(method.manifest).found(list(queries))
    write_neighbours(out, found, queries, f"manifest {method.manifest}", read_json(clip_path)["id"])
