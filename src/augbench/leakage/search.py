"""Two sets of pictures compared: CLIP proposes pairs, pixels confirm them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from augbench.config.stages import Leakage
from augbench.leakage.pictures import Match, Picture, compare
from augbench.progress import Progress, track

WARM = 512  # real pictures for which it is kept what was computed, about 100 kB each


@dataclass(frozen=True)
class NearDuplicate:
    """A confirmed pair: positions of the added and of the real image, the cosine of their embeddings, and how they match."""

    added: int
    real: int
    clip_similarity: float
    match: Match


def nearest(added: np.ndarray, real: np.ndarray, limits: Leakage) -> Iterator[tuple[int, int, float]]:
    """Pairs worth a look: of each added image the nearest real ones, with a cosine of ``limits.clip_threshold`` or more.

    Parameters
    ----------
    added, real : ndarray, float (M, D) and (N, D)
        Embeddings of unit length.

    Yields
    ------
    int, int, float
        Positions and cosine, by added image, nearest first.
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
    """Near-duplicates between two sets of images: CLIP neighbours, confirmed by their pixels.

    Parameters
    ----------
    added, real : ndarray, float (M, D) and (N, D)
        CLIP embeddings of unit length.
    load_added, load_real : callable
        From ascending positions to the images at them. Each image that is in a pair is loaded once.
    what : str
        Begins the lines of the log.

    Returns
    -------
    list of Found
        By added image.
    """
    pairs = list(nearest(added, real, limits))
    wanted = sorted({place for _, place, _ in pairs})
    pictures = {
        place: Picture(image)
        for place, image in zip(
            wanted, track(load_real(wanted), f"{what}: real", "image", len(wanted)), strict=True
        )
    }
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
