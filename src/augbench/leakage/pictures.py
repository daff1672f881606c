"""Compare two pictures: decide whether one is a near-duplicate of the other or of a part of it.

One image of a pair is aligned with a part of the other, in both directions, mirrored or not. They are
near-duplicates if both their perceptual hashes and their fine detail agree. Neither is enough alone:
pictures with little detail have similar hashes, and two shirts on a black background correlate as wholes.

The default limits (:class:`~augbench.config.stages.Leakage`) are calibrated on Fashion-MNIST's 28 x 28
pixels, where unrelated images are most alike:

- of 300 random crops (70 to 100% of a side, JPEG at quality 70 to 95), 99% are confirmed;
- of recompressed images, 97% are confirmed at quality 60 and 77% at quality 30;
- of 5000 pairs of nearest neighbours by CLIP that show different garments, one is confirmed;
- of parts of photographs, 128 x 106 pixels, 98 to 100% are confirmed in these cases, if they have any
  detail; 780 unrelated ones are 48 bits or more apart.

These figures hold for pairs that CLIP proposes. The miniature's CLIP finds the original among the 5
nearest of 10,000 test images in 97% of cases for a recompressed image, 84% for an enlarged or mirrored
one, 48% for a crop of 90 to 100% of a side, and 19% for a crop of 70 to 100%: it takes different garments
for similar ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from augbench.config.stages import Leakage
from augbench.data.decode import middle

HASH_SIZE = 16  # a hash has 16 x 16 = 256 bits; the usual 64 do not tell one shirt from another
KEPT_SIDE = 96  # largest shorter side, in pixels, of the compared pictures
SEARCH_SIDE = 48  # shorter side, in pixels, of a picture in which another one is searched for
LEAST_SIDE = 8  # smallest side, in pixels, of the picture that is searched for
SCALES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
SIDE = 32  # side, in pixels, of the patches whose detail is compared
WORTH_ALIGNING = 0.5  # least correlation of detail that a search must find; crops of one picture have more
STARTS = 2  # places aligned per pair
STEPS = 40  # evaluations per alignment
WHOLE_AREA = 0.92  # an overlap of at least this share of the area counts as a copy, not a crop
# least standard deviation of detail, in grey levels of 255, with which there is something to recognise:
# skies have less, garments ten times as much
FLAT = 1.5
KINDS = ("copy", "crop", "mirror", "mirrored crop")
Box = tuple[float, float, float, float]  # left, upper, right, lower, as shares of width and height
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


def _unit(patch: np.ndarray) -> np.ndarray:
    """Normalise a patch ``(S, S)`` to mean 0 and length 1; a flat patch becomes 0.

    The sum of products of two such patches is their correlation.
    """
    centred = patch - patch.mean()
    length = float(np.sqrt(np.vdot(centred, centred)))
    return centred / length if length >= FLAT * len(patch) else np.zeros_like(patch)


def _detail(luminance: np.ndarray, blur: float = 1.0) -> np.ndarray:
    """Edges and texture of a picture ``(H, W)``, without shading.

    This is the picture minus its Gaussian blur, whose standard deviation is ``blur`` pixels.
    """
    import cv2

    return luminance - cv2.GaussianBlur(luminance, (0, 0), blur)


class Picture:
    """Luminance of an image, with a shorter side of at most :data:`KEPT_SIDE` pixels.

    Values that a comparison needs are computed on first use and kept.
    """

    def __init__(self, image: Image.Image) -> None:
        grey = middle(image).convert("L")
        scale = KEPT_SIDE / min(grey.size)
        if scale < 1:
            grey = grey.resize(
                (round(grey.width * scale), round(grey.height * scale)), Image.Resampling.LANCZOS
            )
        self.grey = grey

    def cut(self, box: Box, side: int, filter: Image.Resampling = Image.Resampling.BICUBIC) -> Image.Image:
        """Part of the picture in ``box``, resized to a square of ``side`` pixels."""
        (left, upper, right, lower), (width, height) = box, self.grey.size
        return self.grey.resize(
            (side, side), filter, box=(left * width, upper * height, right * width, lower * height)
        )

    def detail(self, box: Box = WHOLE) -> np.ndarray:
        """Fine detail of the part in ``box``, as a unit patch, float32 ``(SIDE, SIDE)``."""
        return _unit(_detail(np.asarray(self.cut(box, SIDE), dtype=np.float32)))

    @cached_property
    def whole_detail(self) -> np.ndarray:
        """Fine detail of the whole picture; all 0 for a flat picture, with nothing to recognise."""
        return self.detail()

    @cached_property
    def hash(self) -> Any:
        """Perceptual hash of the whole picture."""
        import imagehash

        return imagehash.phash(self.grey, HASH_SIZE)

    @cached_property
    def mirrored(self) -> Picture:
        """Mirror image of the picture."""
        return Picture(ImageOps.mirror(self.grey))

    @cached_property
    def search_size(self) -> tuple[int, int]:
        """Width and height at which parts are searched for."""
        scale = SEARCH_SIDE / min(self.grey.size)
        return round(scale * self.grey.width), round(scale * self.grey.height)

    def search_detail(self, size: tuple[int, int] | None = None) -> np.ndarray:
        """Detail of the picture at ``size`` (width, height), float32 ``(height, width)``.

        The default is its own :attr:`search_size`.
        """
        import cv2

        size = size or self.search_size
        if size not in self._search_details:
            luminance = cv2.resize(self._search_luminance, size, interpolation=cv2.INTER_AREA)
            self._search_details[size] = _detail(luminance, SEARCH_SIDE / SIDE)
        return self._search_details[size]

    @cached_property
    def _search_luminance(self) -> np.ndarray:
        return np.asarray(self.grey.resize(self.search_size, Image.Resampling.BICUBIC), dtype=np.float32)

    @cached_property
    def _search_details(self) -> dict[tuple[int, int], np.ndarray]:
        return {}

    def forget(self) -> None:
        """Drop all values except the pixels; the computed values take ten times as much memory."""
        self.__dict__ = {"grey": self.grey}


@dataclass(frozen=True)
class Match:
    """Agreement of two pictures where they agree best.

    Attributes
    ----------
    hash_distance : int
        Hamming distance of the perceptual hashes (DCT, 256 bits) of one picture and the part of the other
        that it is aligned with.
    correlation : float
        Pearson correlation of the fine detail of the two at 32 x 32 pixels.
    kind : str
        ``copy``, ``crop``, ``mirror`` or ``mirrored crop``: relation of one picture to the other, in
        either direction.
    """

    hash_distance: int
    correlation: float
    kind: str

    def within(self, limits: Leakage) -> bool:
        """Whether the match is a near-duplicate."""
        return self.hash_distance <= limits.hash_threshold and self.correlation >= limits.correlation


@dataclass(frozen=True)
class _Placement:
    """Placement of one whole picture at ``box`` of the other one, and their correlation there."""

    correlation: float
    whole: Picture
    other: Picture
    box: Box
    mirrored: bool


def _sizes(whole: Picture, other: Picture) -> list[tuple[int, int]]:
    """Sizes (width, height) at which ``whole`` is searched for in ``other``.

    They are the size of ``other``, to which ``whole`` is stretched, and :data:`SCALES` of the largest
    that fits.
    """
    width, height = other.search_size
    ratio = whole.grey.width / whole.grey.height
    fit = min(width, height * ratio), min(height, width / ratio)
    sizes = [(round(scale * fit[0]), round(scale * fit[1])) for scale in SCALES]
    return list(dict.fromkeys([(width, height), *(size for size in sizes if min(size) >= LEAST_SIDE)]))


def _search(whole: Picture, other: Picture) -> Iterator[_Placement]:
    """Yield the best place for ``whole`` in ``other``, and the best place for its mirror image.

    The best place of all sizes has the highest normalised cross-correlation. Below :data:`WORTH_ALIGNING`
    there is none.
    """
    import cv2

    ground, (width, height) = other.search_detail(), other.search_size
    for mirrored, side in enumerate((whole, whole.mirrored)):
        best: _Placement | None = None
        for size in _sizes(whole, other):
            template = side.search_detail(size)
            if template.std() < FLAT:
                continue
            _, score, _, (x, y) = cv2.minMaxLoc(cv2.matchTemplate(ground, template, cv2.TM_CCOEFF_NORMED))
            if score >= max(WORTH_ALIGNING, best.correlation if best else 0.0):
                box = (x / width, y / height, (x + size[0]) / width, (y + size[1]) / height)
                best = _Placement(score, side, other, box, bool(mirrored))
        if best is not None:
            yield best


def _align(place: _Placement) -> Box:
    """Move and scale the box of ``place`` until detail correlates best; returns the new box."""
    from scipy.optimize import minimize

    left, upper, right, lower = place.box
    width, height = right - left, lower - upper

    def box(moves: np.ndarray) -> Box:
        scale = min(max(moves[0], 0.5), 1 / max(width, height))
        w, h = scale * width, scale * height
        x = min(max((left + right) / 2 + moves[1] - w / 2, 0.0), 1 - w)
        y = min(max((upper + lower) / 2 + moves[2] - h / 2, 0.0), 1 - h)
        return x, y, min(x + w, 1.0), min(y + h, 1.0)

    def cost(moves: np.ndarray) -> float:
        return -float(np.vdot(place.other.detail(box(moves)), place.whole.whole_detail))

    simplex = np.array([[1, 0, 0], [0.97, 0, 0], [1, 0.02, 0], [1, 0, 0.02]])
    best = minimize(
        cost,
        simplex[0],
        method="Nelder-Mead",
        options={"initial_simplex": simplex, "maxfev": STEPS, "xatol": 2e-3, "fatol": 1e-3},
    )
    return box(best.x)


def _match(place: _Placement) -> Match:
    """Align the pictures at ``place`` and measure how well they agree."""
    import imagehash

    box = _align(place)
    part = place.other.cut(box, 4 * HASH_SIZE, Image.Resampling.LANCZOS)
    cropped = (box[2] - box[0]) * (box[3] - box[1]) < WHOLE_AREA
    return Match(
        hash_distance=int(place.whole.hash - imagehash.phash(part, HASH_SIZE)),
        correlation=float(np.vdot(place.whole.whole_detail, place.other.detail(box))),
        kind=KINDS[2 * place.mirrored + cropped],
    )


def compare(one: Picture, other: Picture, limits: Leakage) -> Match | None:
    """Look for each picture in the other one, as a whole or as a part, mirrored or not.

    The most promising places are aligned (Nelder-Mead on position and scale). The first match within the
    limits is taken, otherwise the one with the smallest hash distance.

    Returns
    -------
    Match or None
        None if nothing is similar or a picture is flat. Equal pictures match whatever they show.
    """
    if one.grey.size == other.grey.size and one.grey.tobytes() == other.grey.tobytes():
        return Match(0, 1.0, KINDS[0])
    places = sorted([*_search(one, other), *_search(other, one)], key=lambda place: -place.correlation)
    matches = []
    for place in places[:STARTS]:
        matches.append(_match(place))
        if matches[-1].within(limits):
            return matches[-1]
    return min(matches, key=lambda match: match.hash_distance, default=None)
