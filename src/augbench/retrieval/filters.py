"""Filters: drop neighbours in the paper's order, each with a reason (paper, section 3.2).

Input: the first neighbours of a class and the method's config. Output: a fate per neighbour, :data:`KEPT`
or the reason why it was dropped. These filters need no downloaded image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from augbench.config.methods import RetrieveMethod
from augbench.errors import UserError
from augbench.retrieval.lists import Lists
from augbench.retrieval.neighbours import Neighbour

KEPT = "kept"
SAFE_TAGS = {
    *("unlikely", "very_unlikely", "unsure", "unknown", "false", "no", "f", "n", "sfw", "safe", "neutral"),
    *("none", "null", "nan", "n/a", ""),
}
"""Tags in small letters that call an image safe, or that say nothing; LAION's are UNLIKELY and UNSURE."""
Score = Callable[[np.ndarray], np.ndarray]


def duplicates(embeddings: np.ndarray, threshold: float) -> np.ndarray:
    """Mark rows that duplicate an earlier row; bool ``(N,)``.

    Rows with a cosine similarity above ``threshold`` are connected. The first row of each connected
    component is kept, as in clip-retrieval's duplicate detector.

    Parameters
    ----------
    embeddings : ndarray, float (N, D)
        Embeddings of unit length, nearest to the query first.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    vectors = embeddings.astype(np.float32)
    _, component = connected_components(csr_matrix(vectors @ vectors.T > threshold), directed=False)
    repeated = np.ones(len(vectors), dtype=bool)
    repeated[np.unique(component, return_index=True)[1]] = False
    return repeated


def is_unsafe(tag: str | None) -> bool:
    """Whether a corpus's tag calls an image unsafe: any spelling that is not in :data:`SAFE_TAGS`.

    A number is a flag or a probability; 0.5 and more is unsafe.
    """
    spelt = (tag or "").strip().lower()
    try:
        return float(spelt) >= 0.5
    except ValueError:
        return spelt not in SAFE_TAGS


def owners(neighbours_path: str | Path) -> dict[str, str]:
    """Map each found image's id to the class with the most similar query; ties go to the first class_id."""
    table = pq.read_table(neighbours_path, columns=["id", "class_id", "similarity"])
    best: dict[str, tuple[float, str]] = {}
    for row in table.to_pylist():
        claim = (-row["similarity"], row["class_id"])
        best[row["id"]] = min(best.get(row["id"], claim), claim)
    return {image: class_id for image, (_, class_id) in best.items()}


class Filters:
    """All filters of a method that do not need the image itself.

    Parameters
    ----------
    score : callable, optional
        Computes aesthetics scores ``(N,)`` from embeddings ``(N, D)``; used if the corpus has no score
        column.
    owner : mapping, optional
        Maps an image's id to the only class that may use it. Without it, several classes may use an image.
    lists : Lists, optional
        Images that may be downloaded, or must not be used.
    """

    def __init__(
        self,
        method: RetrieveMethod,
        score: Score | None = None,
        owner: dict[str, str] | None = None,
        lists: Lists | None = None,
    ) -> None:
        self.method, self.score, self.owner, self.lists = method, score, owner, lists or Lists()

    def fates(self, neighbours: Sequence[Neighbour]) -> list[str]:
        """Return the fate of each neighbour of a class, nearest first.

        A neighbour without an embedding passes the filters that need one.
        """
        found = [self.lists.fate(neighbour) or KEPT for neighbour in neighbours]
        embedded = {
            place: neighbour.embedding
            for place, neighbour in enumerate(neighbours)
            if neighbour.embedding is not None and found[place] == KEPT
        }
        with_vectors = list(embedded)
        vectors = np.stack(list(embedded.values())) if embedded else np.empty((0, 1))
        if self.method.duplicate_threshold is not None and with_vectors:
            repeats = duplicates(vectors, self.method.duplicate_threshold)
            for place, repeated in zip(with_vectors, repeats, strict=True):
                if repeated:
                    found[place] = "duplicate"
        scores = self._scores(neighbours, with_vectors, vectors)
        for place, neighbour in enumerate(neighbours):
            if found[place] == KEPT:
                found[place] = self._of_metadata(neighbour, scores.get(place))
        return found

    def _scores(
        self, neighbours: Sequence[Neighbour], with_vectors: Sequence[int], vectors: np.ndarray
    ) -> dict[int, float]:
        if self.method.min_aesthetics is None:
            return {}
        given = {
            place: neighbour.aesthetic
            for place, neighbour in enumerate(neighbours)
            if neighbour.aesthetic is not None
        }
        if self.score is not None and with_vectors:
            computed = zip(with_vectors, self.score(vectors.astype(np.float32)).tolist(), strict=True)
            return {**dict(computed), **given}
        return given

    def _of_metadata(self, neighbour: Neighbour, aesthetics: float | None) -> str:
        method = self.method
        if method.drops_tagged and is_unsafe(neighbour.nsfw):
            return "unsafe: metadata"
        if (
            method.max_punsafe is not None
            and neighbour.punsafe is not None
            and neighbour.punsafe > method.max_punsafe
        ):
            return "unsafe: punsafe"
        sides = [side for side in (neighbour.width, neighbour.height) if side]
        if method.min_side is not None and sides and min(sides) < method.min_side:
            return "too small"
        if (
            aesthetics is not None
            and method.min_aesthetics is not None
            and aesthetics < method.min_aesthetics
        ):
            return "aesthetics"
        if self.owner is not None and self.owner.get(neighbour.id, neighbour.class_id) != neighbour.class_id:
            return "nearer to another class"
        return KEPT


def check_scores(filters: Filters, neighbours: Sequence[Neighbour], where: str) -> None:
    """Check that every image has an aesthetics score if the method asks for a minimum score.

    ``where`` is the method's config key.

    Raises
    ------
    UserError
        Scores are needed, but neither the corpus nor a predictor gives them.
    """
    if (
        filters.method.min_aesthetics is not None
        and filters.score is None
        and any(neighbour.aesthetic is None for neighbour in neighbours)
    ):
        raise UserError(
            f"{where}.min_aesthetics",
            "the corpus has no scores for all images",
            "set retrieval.aesthetics_weights, or set this key to null",
        )
