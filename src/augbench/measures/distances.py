"""Measures of sets of images, from embeddings: style, diversity, precision, coverage, repeats, agreement."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from augbench.retrieval.filters import duplicates
from augbench.runtime.fit import BatchLimit
from augbench.seeds import derive_seed

if TYPE_CHECKING:
    import torch

KERNEL_VALUES = 2**25  # held in memory at once
# A ball reaches to this neighbour. With as many added as real images of one distribution, 97% are then
# covered (Naeem et al., 2020).
NEAREST = 5


def _kernel_sum(x: torch.Tensor, y: torch.Tensor, x_weights: torch.Tensor, y_weights: torch.Tensor) -> float:
    """Weighted sum of (x . y + 1)^3 over all pairs, in double precision."""

    def summed(rows: Sequence[int]) -> float:
        part = slice(rows[0], rows[-1] + 1)
        return float(x_weights[part] @ ((x[part] @ y.T).double().add(1).pow(3) @ y_weights))

    limit = BatchLimit(max(1, KERNEL_VALUES // len(y)), "diagnostics")
    return math.fsum(limit.run(summed, range(len(x))))


def _mean_kernel(x: torch.Tensor, y: torch.Tensor) -> float:
    """Mean of the kernel over all pairs of an image of ``x`` and one of ``y``."""
    import torch

    even = (
        torch.full((len(part),), 1 / len(part), dtype=torch.float64, device=part.device) for part in (x, y)
    )
    return _kernel_sum(x, y, *even)


@dataclass(frozen=True)
class _OwnKernel:
    """Mean of the kernel over pairs of images of one set: of different images, and of all pairs."""

    unbiased: float
    biased: float


def _own_kernel(part: torch.Tensor) -> _OwnKernel:
    count, mean = len(part), _mean_kernel(part, part)
    itself = float(part.double().square().sum(1).add(1).pow(3).sum())
    return _OwnKernel((mean * count**2 - itself) / (count * (count - 1)), mean)


@dataclass(frozen=True)
class StyleDistance:
    """Squared maximum mean discrepancies (MMD).

    Attributes
    ----------
    mixed : float
        Between mixtures of all classes in equal shares.
    within_class : float
        Within a class, averaged over classes.
    """

    mixed: float
    within_class: float


def style_distance(
    x: torch.Tensor, x_labels: np.ndarray, y: torch.Tensor, y_labels: np.ndarray
) -> StyleDistance | None:
    """Estimate the squared maximum mean discrepancy (MMD) between two sets of embeddings, without bias.

    The kernel is that of KID (Binkowski et al., 2018), (a . b / D + 1)^3. On embeddings scaled to length
    sqrt(D) it is (cos + 1)^3. Within a class, MMD^2 = mean k(x, x') + mean k(y, y') - 2 mean k(x, y), where
    an image is not paired with itself (their equation 4).

    The sets have fixed numbers of images per class. The same formula over all images would be too low,
    because the pairs that it leaves out are all pairs of one class. The mixture's MMD^2 is therefore summed
    over pairs of classes, each with equal share; only within a class is an image not paired with itself.
    Both estimates have expectation 0 for equal distributions and may then be slightly negative.

    Parameters
    ----------
    x, y : Tensor, float (M, D) and (N, D)
        Unit embeddings.
    x_labels, y_labels : ndarray, int (M,) and (N,)

    Returns
    -------
    StyleDistance or None
        Over the labels of which both sets have at least two images; None if there is no such label.
    """
    import torch

    shared = [
        label
        for label in np.intersect1d(x_labels, y_labels)
        if min((x_labels == label).sum(), (y_labels == label).sum()) > 1
    ]
    if not shared:
        return None
    share = 1 / len(shared)
    groups = [
        [points[torch.from_numpy(labels == label)] for label in shared]
        for points, labels in ((x, x_labels), (y, y_labels))
    ]
    pooled = [torch.cat(members) for members in groups]
    weights = [
        torch.cat(
            [
                torch.full((len(part),), share / len(part), dtype=torch.float64, device=part.device)
                for part in members
            ]
        )
        for members in groups
    ]
    mixed, within = -2 * _kernel_sum(*pooled, *weights), 0.0
    for members, points, weight in zip(groups, pooled, weights, strict=True):
        mixed += _kernel_sum(points, points, weight, weight)
        for part in members:
            kernel = _own_kernel(part)
            within += share * kernel.unbiased
            mixed += share**2 * (kernel.unbiased - kernel.biased)
    within -= 2 * share * math.fsum(itertools.starmap(_mean_kernel, zip(*groups, strict=True)))
    return StyleDistance(mixed, within)


def nearest_sets(
    sets: Mapping[str, tuple[torch.Tensor, np.ndarray]],
) -> dict[str, tuple[str, float]]:
    """Find, for each set of images, the other set that is nearest to it, and its distance.

    The distance is that of :func:`style_distance` within a class, averaged over the classes of which both
    sets have at least two images.

    Parameters
    ----------
    sets : mapping of name to (Tensor, float (N, D); ndarray, int (N,))
        Unit embeddings and labels.

    Returns
    -------
    dict of name to (name, float)
        Without sets that share no class with another one.
    """
    import torch

    groups = {
        name: {
            int(label): part
            for label in np.unique(labels)
            if len(part := points[torch.from_numpy(labels == label)]) > 1
        }
        for name, (points, labels) in sets.items()
    }
    own = {
        name: {label: _own_kernel(part).unbiased for label, part in parts.items()}
        for name, parts in groups.items()
    }
    nearest: dict[str, tuple[str, float]] = {}
    for one, other in itertools.combinations(groups, 2):
        if shared := groups[one].keys() & groups[other].keys():
            distance = fmean(
                own[one][label]
                + own[other][label]
                - 2 * _mean_kernel(groups[one][label], groups[other][label])
                for label in sorted(shared)
            )
            for name, found in ((one, other), (other, one)):
                if name not in nearest or distance < nearest[name][1]:
                    nearest[name] = (found, distance)
    return nearest


@dataclass(frozen=True)
class Coverage:
    """Overlap of two sets of images in percent, averaged over classes (:func:`precision_and_coverage`)."""

    precision_percent: float
    coverage_percent: float


def precision_and_coverage(
    added: torch.Tensor, added_labels: np.ndarray, real: torch.Tensor, real_labels: np.ndarray
) -> Coverage | None:
    """Share of added images near a real one (precision), and of real images near an added one (coverage).

    Each real image has a ball around it, which reaches to its :data:`NEAREST`-th nearest other real image
    of its class and includes its surface. Precision is the share of added images that are in the ball of a
    real image of their class (Kynkäänniemi et al., 2019, equation 1). Coverage is the share of real images
    with an added image of their class in their ball (Naeem et al., 2020, section 3). For M added and N real
    images of one distribution, the expected coverage is 1 - (N - 1)...(N - k) / (M + N - 1)...(M + N - k)
    (their section 4), so it grows with M.

    Parameters
    ----------
    added, real : Tensor, float (M, D) and (N, D)
        Embeddings.
    added_labels, real_labels : ndarray, int (M,) and (N,)

    Returns
    -------
    Coverage or None
        Over the labels with added images and more than :data:`NEAREST` real ones; None if there is none.
    """
    import torch

    def between(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        # the faster way, by matrix products, is inexact near 0: an image would not be in its own ball
        return torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")

    found = []
    for label in np.intersect1d(added_labels, real_labels):
        images, centres = (
            points[torch.from_numpy(labels == label)]
            for points, labels in ((added, added_labels), (real, real_labels))
        )
        if len(centres) > NEAREST:
            radii = (
                between(centres, centres).kthvalue(NEAREST + 1).values
            )  # + 1: the first is the image itself
            inside = between(images, centres) <= radii
            found.append((float(inside.any(1).double().mean()), float(inside.any(0).double().mean())))
    if not found:
        return None
    precision, coverage = (100 * fmean(shares) for shares in zip(*found, strict=True))
    return Coverage(precision, coverage)


def repeated_percent(embeddings: torch.Tensor, labels: np.ndarray, threshold: float) -> float:
    """Share of images that retrieval's duplicate filter would remove from their class, in percent.

    The filter is :func:`augbench.retrieval.filters.duplicates`.

    Parameters
    ----------
    embeddings : Tensor, float (N, D)
        Unit embeddings.
    labels : ndarray, int (N,)
    threshold : float
        Cosine above which two images of a class are duplicates.
    """
    points = embeddings.cpu().numpy()
    removed = sum(int(duplicates(points[labels == label], threshold).sum()) for label in np.unique(labels))
    return 100 * removed / len(labels)


def diversity(features: torch.Tensor, labels: np.ndarray) -> float:
    """Mean pairwise distance of features within a class, averaged over classes with at least two images.

    Only the first 300 images of a class count. NaN if no class has two images.
    """
    import torch

    distances = []
    for label in np.unique(labels):
        members = features[torch.from_numpy(labels == label)][:300].double()
        if len(members) > 1:
            distances.append(float(torch.pdist(members).mean()))
    return float(np.mean(distances)) if distances else float("nan")


def agreement_percent(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Share of images whose predicted label is their class, in percent."""
    return 100 * float((predicted == labels).mean())


def sample_per_class(labels: np.ndarray, class_ids: Sequence[str], most: int, seed: int) -> np.ndarray:
    """Draw at most ``most`` images per class at random, seeded by ``seed`` and the class's id.

    Returns positions, in ascending order. The draw is random because the first images of a pool are not
    typical: retrieved images are sorted by similarity to the query, and templates and clusters take turns.
    """
    chosen = []
    for label in np.unique(labels):
        rng = np.random.default_rng(derive_seed(seed, "diagnostics", class_ids[label]))
        members = np.flatnonzero(labels == label)
        chosen.append(members[rng.permutation(len(members))[:most]])
    return np.sort(np.concatenate(chosen)) if chosen else np.array([], dtype=np.int64)
