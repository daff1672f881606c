"""Uncertainty that comes from the test images: right and wrong predictions per image, and their bootstrap.

Input: ``predictions.parquet`` of every classifier. All methods are scored on the same test images, so the
images of a difference are paired: each image's difference is resampled as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from augbench.artifacts.parquet import REMAKE, whole
from augbench.errors import UserError
from augbench.report.inference.paired import CONFIDENCE, ErrorTerm

RESAMPLES = 10_000  # bootstrap samples of the test images
BATCH_BYTES = 4e6  # memory of the samples that are held together; fits into a cache
# By method and run, (N,): whether each image's class was found; of averaged runs, in what share of them.
Hits = dict[str, dict[int, np.ndarray]]


def read_hits(predictions: Mapping[str, Sequence[str | Path]]) -> Hits:
    """Read which test images every classifier got right, in one order of images.

    Parameters
    ----------
    predictions : mapping of method to sequence of path
        ``predictions.parquet`` of every run, in the order of their numbers from 0.

    Raises
    ------
    UserError
        Predictions are damaged, or classifiers were scored on different images.
    """
    found: Hits = {}
    first: np.ndarray | None = None
    for method, paths in predictions.items():
        for path in map(Path, paths):
            with whole(path):
                table = pq.read_table(path, columns=["image_id", "label", "predicted"])
            ids, label, predicted = (table.column(name).to_numpy() for name in table.column_names)
            first = ids if first is None else first
            hits = label == predicted
            if not np.array_equal(ids, first):
                if not np.array_equal(np.sort(ids), np.sort(first)):
                    raise UserError(str(path), "scored on other test images than other runs", REMAKE)
                hits = hits[np.argsort(ids)][np.argsort(np.argsort(first))]
            own = found.setdefault(method, {})
            own[len(own)] = hits
    return found


def average_hits(hits: Hits, per_draw: int) -> Hits:
    """Average the runs of each draw of the training images; runs are numbered draw by draw."""
    return {
        method: {
            draw: np.mean([own[run] for run in own if run // per_draw == draw], axis=0)
            for draw in {run // per_draw for run in own}
        }
        for method, own in hits.items()
    }


def paired_hits(own: Mapping[int, np.ndarray], reference: Mapping[int, np.ndarray]) -> np.ndarray:
    """Difference in points per run and image, float (R, N), over the R runs that both have.

    100 where only ``own`` is right, -100 where only ``reference`` is, else 0.
    """
    runs = sorted(own.keys() & reference.keys())
    return np.array([100.0 * own[run] - 100.0 * reference[run] for run in runs])


def image_intervals(differences: Sequence[np.ndarray], seed: int) -> list[tuple[float, float]]:
    """95% percentile intervals of mean differences, from :data:`RESAMPLES` bootstrap samples of the images.

    Every sample of images is the same for all differences, all methods and all runs.

    Parameters
    ----------
    differences : sequence of ndarray, float (R, N)
        Differences per run and image (:func:`paired_hits`), of the same N images.
    seed : int
        Seed of the samples.
    """
    from scipy.stats import bootstrap

    means = np.stack([values.mean(axis=0) for values in differences])
    images = means.shape[1]
    if images == 1:  # all samples are this image
        return [(mean, mean) for mean in means[:, 0].tolist()]

    def resampled(places: np.ndarray, axis: int) -> np.ndarray:
        """Mean differences (C, B) of B samples of places (B, N); images may repeat in a sample."""
        samples = places.astype(int).reshape(-1, images)
        counts = np.stack([np.bincount(sample, minlength=images) for sample in samples])
        return means @ counts.T / images

    found = bootstrap(
        (np.arange(images),),
        resampled,
        n_resamples=RESAMPLES,
        batch=max(1, int(BATCH_BYTES / (16 * images))),
        vectorized=True,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return [(float(low), float(high)) for low, high in zip(found.low, found.high, strict=True)]


def interval_of_both(
    differences: np.ndarray, error: ErrorTerm | None = None
) -> tuple[float, float] | tuple[None, None]:
    """95% interval of the mean difference over other runs and other test images; None for a single run.

    Runs and images are crossed random factors: difference = mean + run + image + rest. The variance of the
    mean is that of the runs' means, with R - 1 degrees of freedom, plus that of the images alone, which the
    runs' means do not contain. The half-widths of both are added in squares (Howe, JASA 69, 1974).

    Parameters
    ----------
    differences : ndarray, float (R, N)
        Difference per run and image (:func:`paired_hits`).
    error : ErrorTerm, optional
        Error over runs. Default: the spread of these differences alone.
    """
    from scipy.stats import norm

    runs, images = differences.shape
    if runs < 2 or images < 2:
        return None, None
    mean, by_run, by_image = differences.mean(), differences.mean(axis=1), differences.mean(axis=0)
    rest = differences - by_run[:, None] - by_image[None] + mean
    rest_square = (rest**2).sum() / ((runs - 1) * (images - 1))
    image_variance = max(0.0, by_image.var(ddof=1) - rest_square / runs)
    tail = (1 + CONFIDENCE) / 2
    of_runs = (error or ErrorTerm(float(by_run.std(ddof=1)), runs - 1)).half_width(runs)
    of_images = norm.ppf(tail) * np.sqrt(image_variance / images)
    reach = float(np.hypot(of_runs, of_images))
    return float(mean) - reach, float(mean) + reach
