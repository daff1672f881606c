"""Differences between runs that are not paired: Welch's t test, its interval, and the test of equality.

Runs of two studies with other training images have nothing in common that pairs run r of one with run r of
the other. The variance of the difference of two means is then the sum of both, with the degrees of freedom of
Welch and Satterthwaite (Welch, Biometrika 34, 1947).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev

from augbench.report.inference.paired import EQUAL, Difference, ErrorTerm


@dataclass(frozen=True)
class Unpaired(Difference):
    """A difference between the means of two sets of runs.

    Attributes
    ----------
    per_run : ErrorTerm or None
        As ``error``, for as many runs on both sides: the spread of one run's difference, and the degrees of
        freedom of Welch and Satterthwaite for ``n`` runs on each side. It tells how many runs are needed.
    """

    per_run: ErrorTerm | None = None


def compare_unpaired(
    own: Mapping[int, float],
    reference: Mapping[int, float],
    margin: float,
    errors: tuple[ErrorTerm | None, ErrorTerm | None] = (None, None),
) -> Unpaired:
    """Compare the mean of some runs with that of others.

    Parameters
    ----------
    own, reference : mapping of run to float
        Accuracies in percent, or differences in points; their runs may have the same numbers.
    margin : float
        Differences smaller than this, in points, count as none in the equivalence test.
    errors : tuple of ErrorTerm, optional
        Error of a single run on each side. Default: the spread of each side's values.

    Returns
    -------
    Unpaired
        ``n`` is the smaller number of runs, and ``error`` is on its scale: that of the mean is ``sd`` /
        sqrt(n). No error, interval or test if a side has a single run and no given error.
    """
    from scipy.stats import t

    sides = [_error(values, error) for values, error in zip((own, reference), errors, strict=True)]
    n, mean = min(len(own), len(reference)), fmean(own.values()) - fmean(reference.values())
    if None in sides:
        return Unpaired(n, mean, None, None, None, None, None)
    known = [
        (side, len(values)) for side, values in zip(sides, (own, reference), strict=True) if side is not None
    ]
    variance, df = _welch([(side.sd**2 / runs, side.df) for side, runs in known])
    if variance < EQUAL**2:
        none = ErrorTerm(0.0, n - 1)
        return Unpaired(n, mean, none, mean, mean, None, None, none)
    square, freedom = _welch(
        [(side.sd**2, side.df * max(1, n - 1) / max(1, runs - 1)) for side, runs in known]
    )
    error = ErrorTerm(sqrt(variance * n), df)
    scale, reach = sqrt(variance), error.half_width(n)
    return Unpaired(
        n,
        mean,
        error,
        mean - reach,
        mean + reach,
        float(2 * t.sf(abs(mean) / scale, df)),
        float(t.sf((margin - abs(mean)) / scale, df)),
        ErrorTerm(sqrt(square), freedom),
    )


def _welch(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The sum of variances with their degrees of freedom, and its own; 0 degrees if nothing varies."""
    variance = sum(part for part, _ in parts)
    below = sum(part**2 / freedom for part, freedom in parts if part)
    return variance, variance**2 / below if below else 0.0


def _error(values: Mapping[int, float], error: ErrorTerm | None) -> ErrorTerm | None:
    """The given error, or that of the values; None for a single value."""
    if error is not None or len(values) < 2:
        return error
    return ErrorTerm(stdev(values.values()), len(values) - 1)
