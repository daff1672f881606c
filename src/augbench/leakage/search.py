"""Find near-duplicates between two sets of pictures: CLIP proposes pairs, pixels confirm them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from augbench.config.stages import Leakage
from augbench.leakage.pictures import Match, Picture, compare
from augbench.progress import Progress, track

WARM = 512  # number of real pictures whose computed values are kept, about 100 kB each


@dataclass(frozen=True)
class NearDuplicate:
    """A confirmed pair.

    ``added`` and ``real`` are the positions of the two images, ``clip_similarity`` the cosine of their
    embeddings.
    """

    added: int
    real: int
    clip_similarity: float
    match: Match


def nearest(added: np.ndarray, real: np.ndarray, limits: Leakage) -> Iterator[tuple[int, int, float]]:
    """Yield candidate pairs: each added image with its nearest real images.

    Their cosine is at least ``limits.clip_threshold``.

    Parameters
    ----------
    added, real : ndarray, float (M, D) and (N, D)
        Embeddings of unit length.

    Yields
    ------
    int, int, float
        Positions of the added and the real image, and the cosine; by added image, nearest first.
    """
    import faiss

    if not len(added) or not len(real):
        return
    cosines, positions = faiss.knn(
        added.astype(np.float32),
        real.astype(np.float32),
        min(limits.neighbours, len(real)),
        metric=faiss.METRIC_INNER_PRODUCT,
    )
    for row, column in np.argwhere(cosines >= limits.clip_threshold).tolist():
        yield row, int(positions[row, column]), float(cosines[row, column])


Load = Callable[[Sequence[int]], Iterable[Image.Image]]


def find_near_duplicates(
    added: np.ndarray,
    real: np.ndarray,
    load_added: Load,
    load_real: Load,
    limits: Leakage,
    what: str = "leakage",
) -> list[NearDuplicate]:
    """Find near-duplicates between two sets of images: CLIP neighbours, confirmed by their pixels.

    Parameters
    ----------
    added, real : ndarray, float (M, D) and (N, D)
        CLIP embeddings of unit length.
    load_added, load_real : callable
        Functions from ascending positions to the images there. Each image of a pair is loaded once.
    what : str
        Prefix of the log lines.

    Returns
    -------
    list of NearDuplicate
        In the order of the added images.
    """
    pairs = list(nearest(added, real, limits))
    wanted = sorted({place for _, place, _ in pairs})
    images = track(load_real(wanted), f"{what}: real", "image", len(wanted))
    pictures = {place: Picture(image) for place, image in zip(wanted, images, strict=True)}
    partners: dict[int, list[tuple[int, float]]] = {}
    for row, place, cosine in pairs:
        partners.setdefault(row, []).append((place, cosine))
    found, rows = [], sorted(partners)
    warm: dict[int, None] = {}  # in the order of their last use
    progress = Progress(what, len(rows), "image")
    for row, image in zip(rows, load_added(rows), strict=True):
        picture = Picture(image)
        for place, cosine in partners[row]:
            match = compare(picture, pictures[place], limits)
            if match is not None and match.within(limits):
                found.append(NearDuplicate(row, place, cosine, match))
            warm.pop(place, None)
            warm[place] = None
        while len(warm) > WARM:
            oldest = next(iter(warm))
            pictures[oldest].forget()
            del warm[oldest]
        progress.update(note=f"{len(found)} pairs")
    return found
