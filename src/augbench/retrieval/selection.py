"""Diverse selection among a class's neighbours that passed the filters.

Input: embeddings of the candidates, nearest to the query first. Output: positions of the chosen ones, in the
order of their choice. All are greedy; ties go to the nearer candidate. A class's selection depends on its
own candidates only.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

from augbench.config.methods import RetrieveMethod
from augbench.retrieval.neighbours import Neighbour, stack_embeddings


def mmr(similarity: np.ndarray, vectors: np.ndarray, count: int, penalty: float) -> list[int]:
    """Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998).

    The next image is the argmax of ``lambda Sim1(D, Q) - (1 - lambda) max_{D' in S} Sim2(D, D')`` over the
    candidates D that are not among the chosen ones S. Sim1 is the cosine of image and query, Sim2 that of two
    images. The maximum over an empty S is 0.

    Parameters
    ----------
    similarity : ndarray, float32 (N,)
        Cosine of each candidate and the query that found it.
    vectors : ndarray, float32 (N, D)
        Embeddings of unit length.
    penalty : float
        1 - lambda.
    """
    relevance = (1 - penalty) * similarity.astype(np.float64)
    likeness = np.zeros(len(vectors))
    chosen: list[int] = []
    for _ in range(min(count, len(vectors))):
        score = relevance - penalty * likeness
        score[chosen] = -np.inf
        best = int(score.argmax())
        cosines = (vectors @ vectors[best]).astype(np.float64)
        likeness = np.maximum(likeness, cosines) if chosen else cosines
        chosen.append(best)
    return chosen


def k_center(vectors: np.ndarray, count: int) -> list[int]:
    """Greedy k-center (Sener and Savarese, ICLR 2018, algorithm 1).

    The objective is the smallest largest distance of a candidate to its nearest chosen image,
    ``min_S max_i min_{j in S} |x_i - x_j|``; the greedy choice is at most twice as large. The first image is
    the one nearest to the query; the next is the candidate farthest from all chosen ones. Vectors of unit
    length are farther apart the lower their cosine is.

    Parameters
    ----------
    vectors : ndarray, float32 (N, D)
        Embeddings of unit length, nearest to the query first.
    """
    nearest = np.full(len(vectors), -np.inf)
    chosen: list[int] = []
    for _ in range(min(count, len(vectors))):
        nearest[chosen] = np.inf
        best = int(nearest.argmin()) if chosen else 0
        chosen.append(best)
        nearest = np.maximum(nearest, vectors @ vectors[best])
    return chosen


class FacilityLocation:
    """How well chosen images cover a class's training images and all candidates.

    ``f(S) = w mean_{t in T} max_{j in S} s(t, j) + (1 - w) mean_{i in V} max_{j in S} s(i, j)`` for training
    images T and candidates V. The similarity s is (1 + cosine) / 2, so that f of no image is 0. It is
    monotone and submodular: the facility-location coverage of Yue and Guestrin (NeurIPS 2011), with the
    target's images beside the pool after COBRA (Das et al., CVPR 2025), which maximises the mutual
    information of this function with the target instead.

    Parameters
    ----------
    vectors, target : ndarray, float32 (N, D) and (M, D)
        Embeddings of candidates and training images, of unit length.
    weight : float
        w, the share of the training images.
    """

    def __init__(self, vectors: np.ndarray, target: np.ndarray, weight: float) -> None:
        parts = [(1 - weight, vectors), (weight, target)]
        # row j: similarity of candidate j to all that it may cover
        self._covers = [(share, (1 + vectors @ part.T) / 2) for share, part in parts if share > 0]
        self._covered = [np.zeros(cover.shape[1], np.float32) for _, cover in self._covers]

    def gain(self, candidate: int) -> float:
        """Increase of f if the candidate is chosen next."""
        return sum(
            share * float(np.maximum(cover[candidate] - covered, 0).mean(dtype=np.float64))
            for (share, cover), covered in zip(self._covers, self._covered, strict=True)
        )

    def choose(self, candidate: int) -> None:
        """Add the candidate to the chosen images."""
        for (_, cover), covered in zip(self._covers, self._covered, strict=True):
            np.maximum(covered, cover[candidate], out=covered)


def facility_location(vectors: np.ndarray, target: np.ndarray, count: int, weight: float) -> list[int]:
    """Greedy maximum of :class:`FacilityLocation`, parameters as there; at least 1 - 1/e of the largest f.

    It is lazy (Minoux, 1978): a gain never grows, so only the candidate whose old gain is the largest is
    computed again. The choice is that of the plain greedy algorithm.
    """
    covering = FacilityLocation(vectors, target, weight)
    bounds = [(-covering.gain(place), place) for place in range(len(vectors))]
    heapq.heapify(bounds)
    chosen: list[int] = []
    while bounds and len(chosen) < count:
        _, best = heapq.heappop(bounds)
        bound = (-covering.gain(best), best)
        if bounds and bound > bounds[0]:
            heapq.heappush(bounds, bound)
            continue
        covering.choose(best)
        chosen.append(best)
    return chosen


def choose(
    method: RetrieveMethod, candidates: Sequence[Neighbour], target: np.ndarray, count: int
) -> list[int]:
    """Positions of the candidates that a method chooses, at most ``count``, in the order of their choice.

    Parameters
    ----------
    candidates : sequence of Neighbour
        Those that passed all filters, with embeddings, nearest to the query first.
    target : ndarray, float (M, D)
        Embeddings of the class's training images; not used without ``target_weight``.
    """
    if not candidates:
        return []
    vectors = stack_embeddings(candidates).astype(np.float32)
    if method.select == "mmr":
        similarity = np.array([candidate.similarity for candidate in candidates], np.float32)
        return mmr(similarity, vectors, count, method.penalty)
    if method.select == "k_center":
        return k_center(vectors, count)
    return facility_location(vectors, target.astype(np.float32), count, method.target_share)
