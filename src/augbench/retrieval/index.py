"""Nearest neighbours from a clip-retrieval index folder, through clip-retrieval's own service, in process.

Flows in: a query text and k. Flows out: neighbours in order of similarity. The service's hidden behaviour is switched off:
no aesthetics vector shifts the query, no filter drops results after the top-k (filters are ours, each with its reason).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from augbench.errors import UserError
from augbench.files import read_json


@dataclass(frozen=True)
class Neighbour:
    """One candidate: its row in the corpus, where it is, and how similar it is to the query (cosine)."""

    id: int
    url: str
    caption: str
    similarity: float
    nsfw: str


class IndexBackend:
    """Searches a local index folder.

    Parameters
    ----------
    folder : path
        As ``clip-retrieval index`` lays it out; with ``augbench.json``, which names the CLIP model of the embeddings.
    clip_folder : str
        CLIP model for the queries, in transformers' layout.

    Raises
    ------
    UserError
        The index was made with another CLIP model.
    """

    def __init__(self, folder: str | Path, clip_folder: str) -> None:
        made_with = read_json(Path(folder) / "augbench.json")["clip"]
        if made_with != clip_folder:
            raise UserError(str(folder), f"embeddings of {made_with!r}", f"a query by {clip_folder!r} needs embeddings of the same CLIP model")
        from clip_retrieval.clip_back import ClipOptions, KnnService, load_clip_index

        options = ClipOptions(
            indice_folder=str(folder),
            clip_model=f"hf_clip:{clip_folder}",
            enable_hdf5=False,
            enable_faiss_memory_mapping=True,
            columns_to_return=["url", "caption", "NSFW"],
            reorder_metadata_by_ivf_index=False,
            enable_mclip_option=False,
            use_jit=False,
            use_arrow=False,
            provide_safety_model=False,
            provide_violence_detector=False,
            provide_aesthetic_embeddings=False,
        )
        self.resource = load_clip_index(options)
        self.service = KnnService(clip_resources={"corpus": self.resource})

    def search(self, query: str, k: int) -> list[Neighbour]:
        """The k nearest images of a text, nearest first (fewer if the corpus is smaller)."""
        rows = self.service.query(text_input=query, num_images=k, num_result_ids=k, deduplicate=False)
        return [Neighbour(row["id"], row["url"], row["caption"], row["similarity"], row["NSFW"]) for row in rows]

    def duplicates(self, ids: Sequence[int], threshold: float) -> set[int]:
        """Ids that duplicate an earlier one: connected components of cosine above ``threshold``, the first is kept.

        clip-retrieval's own detector with the threshold as a parameter (its 0.94 is calibrated for ViT-L/14).
        """
        if not ids:
            return set()
        vectors = np.stack([self.resource.image_index.reconstruct(int(i)) for i in ids]).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return {ids[position] for position in self.service.get_non_uniques(vectors, threshold)}
