"""Search through clip-retrieval: a local index folder, searched by its service in process, or a server.

Input: query vectors and k. Output: neighbours in order of similarity. Hidden behaviour of both is switched
off: no aesthetics vector shifts the query (the client's default weight is 0.5), and no filter drops results
after the top-k (:mod:`augbench.retrieval.filters` does that, with reasons).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from augbench.errors import UserError
from augbench.files import read_json
from augbench.models.clip import clip_width
from augbench.progress import Progress
from augbench.retrieval.embed import IDENTITY
from augbench.retrieval.neighbours import METADATA, Found, merged, metadata_table

ATTEMPTS, SECONDS_BETWEEN = 5, 2.0
THEIR_NAMES = {
    "NSFW": "nsfw",
    "image_path": "url",
    "md5": "hash",
    **{name: name for name in METADATA if name not in ("id", "nsfw")},
}


def _found(rows: Sequence[Mapping[str, Any]], embeddings: np.ndarray | None) -> Found:
    columns: dict[str, list[Any]] = {"id": [str(row["id"]) for row in rows]}
    for theirs, ours in THEIR_NAMES.items():
        if any(row.get(theirs) is not None for row in rows):
            columns[ours] = [row.get(theirs) for row in rows]
    return Found(
        metadata_table(columns, len(rows)),
        np.array([row["similarity"] for row in rows], dtype=np.float32),
        embeddings,
    )


class IndexBackend:
    """Searches a local index folder.

    Parameters
    ----------
    folder : path
        Folder in the layout of ``clip-retrieval index``. If this package made it, ``augbench.json`` in it
        names the CLIP model of the embeddings.
    clip : mapping
        Content of ``models/clip.json``: the CLIP model that embeds the queries.

    Raises
    ------
    UserError
        The index is missing, or it was made with another CLIP model.
    """

    name = "clip_retrieval_index"

    def __init__(self, folder: str | Path, clip: Mapping[str, Any]) -> None:
        folder = Path(folder)
        if not (folder / "image.index").is_file():
            raise UserError(
                "corpus.folder",
                f"no image.index in {str(folder)!r}",
                "allowed: a folder made by `clip-retrieval index`",
            )
        if (folder / IDENTITY).is_file() and (made_with := read_json(folder / IDENTITY)["clip"]) != clip[
            "id"
        ]:
            raise UserError(
                str(folder),
                f"embeddings of CLIP {made_with}",
                f"a query by CLIP {clip['id']} needs embeddings of the same model",
            )
        if hidden := sorted((folder / "metadata").glob(".*.parquet")):  # clip-retrieval would read them
            raise UserError(str(hidden[0]), "a hidden file, no metadata", "delete it")
        from clip_retrieval.clip_back import ClipResource, KnnService, load_index, load_metadata_provider

        parts = sorted((folder / "metadata").glob("*.parquet"))
        present = set(pq.read_schema(parts[0]).names) if parts else set(THEIR_NAMES)
        shown = [name for name in THEIR_NAMES if name in present]
        # clip-retrieval's own loader would also load a CLIP model, but queries come as vectors
        index = load_index(str(folder / "image.index"), enable_faiss_memory_mapping=True)
        provider, _ = load_metadata_provider(
            str(folder),
            enable_hdf5=False,
            reorder_metadata_by_ivf_index=False,
            image_index=index,
            columns_to_return=shown,
            use_arrow=False,
        )
        without = ("model", "preprocess", "tokenizer", "model_txt_mclip", "safety_model", "violence_detector")
        self.index = ClipResource(
            device="cpu",
            metadata_provider=provider,
            image_index=index,
            text_index=None,
            ivf_old_to_new_mapping=None,
            columns_to_return=shown,
            metadata_is_ordered_by_ivf=False,
            aesthetic_embeddings=None,
            **dict.fromkeys(without),
        )
        self.service = KnnService(clip_resources={"corpus": self.index})
        if self.index.image_index.ntotal and self.index.image_index.d != (width := clip_width(clip)):
            raise UserError(
                str(folder),
                f"vectors of {self.index.image_index.d} numbers",
                f"the CLIP model in {clip['folder']!r} gives {width}: another model made the index",
            )

    def search(self, queries: np.ndarray, k: int, sizes: Sequence[int] | None = None) -> list[Found]:
        """Search as :class:`~augbench.retrieval.neighbours.Backend` says.

        Embeddings come from the index, which may have compressed them.
        """
        progress = Progress("search the index", len(queries), "query")

        def answers() -> Iterator[Found]:
            for query in queries:
                rows = self.service.query(
                    embedding_input=query.tolist(), num_images=k, num_result_ids=k, deduplicate=False
                )
                yield _found(rows, self._vectors([row["id"] for row in rows]))
                progress.update()

        return merged(answers(), sizes, k)

    def _vectors(self, ids: Sequence[int]) -> np.ndarray:
        if not ids:
            return np.empty((0, self.index.image_index.d), dtype=np.float16)
        vectors = np.stack([self.index.image_index.reconstruct(int(i)) for i in ids]).astype(np.float32)
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


class ServerBackend:
    """Searches through a server run by ``clip-retrieval back``, with clip-retrieval's client.

    Parameters
    ----------
    url : str
        Address of the server's ``knn-service``.
    index : str
        Name of the index on the server.
    """

    name = "clip_retrieval_server"

    def __init__(self, url: str, index: str) -> None:
        self.url, self.index = url, index

    def search(self, queries: np.ndarray, k: int, sizes: Sequence[int] | None = None) -> list[Found]:
        """Search as :class:`~augbench.retrieval.neighbours.Backend` says; servers give no embeddings.

        Raises
        ------
        UserError
            The server fails to answer, or answers with an error, :data:`ATTEMPTS` times in a row.
        """
        from clip_retrieval.clip_client import ClipClient

        client = ClipClient(
            self.url,
            self.index,
            aesthetic_weight=0,
            num_images=k,
            deduplicate=False,
            use_safety_model=False,
            use_violence_detector=False,
        )
        progress = Progress("ask the server", len(queries), "query")

        def answers() -> Iterator[Found]:
            for query in queries:
                yield _found(self._ask(client, query), None)
                progress.update()

        return merged(answers(), sizes, k)

    def _ask(self, client: Any, query: np.ndarray) -> list[dict[str, Any]]:
        import requests

        problem = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(SECONDS_BETWEEN * attempt)
            try:
                answer = client.query(embedding_input=query.tolist())
            except (requests.RequestException, json.JSONDecodeError) as error:
                problem = " ".join(str(error).split())[:200]
                continue
            if isinstance(answer, list) and all({"id", "similarity"} <= row.keys() for row in answer):
                return answer
            problem = f"answered {str(answer)[:200]}"
        raise UserError(
            "corpus.url",
            f"{self.url}: {problem}",
            "allowed: the address of a running clip-retrieval server's knn-service",
        )
