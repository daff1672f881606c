"""Power of the paired t test: the smallest difference that runs detect, and the runs that a difference needs.

A difference counts as detected if the two-sided test at level alpha rejects, in the right direction. The
formula is that of statsmodels' ``TTestPower`` with scipy's noncentral t distribution, because statsmodels'
own is undefined (NaN) for large differences, which few runs and many contrasts need.
"""

from __future__ import annotations

from bisect import bisect_left
from math import sqrt

POWER = 0.8  # probability of detecting a difference
MOST_RUNS = 10_000  # no more runs than this are looked at
LARGEST_EFFECT = 1e4  # standard deviations


def power(effect: float, n: int, alpha: float, per_run: float = 1) -> float:
    """Probability that ``n`` paired runs detect a mean difference of ``effect`` standard deviations.

    ``per_run`` degrees of freedom per run beyond the first: 1 for the spread of the difference itself, the
    number of rows minus 1 for that of all rows; between 1 and 2 for Welch's test of two sets of runs.
    """
    from scipy.stats import nct, t

    df = per_run * (n - 1)
    return float(nct.sf(t.isf(alpha / 2, df), df, effect * sqrt(n)))


def detectable(sd: float, n: int, alpha: float, per_run: int = 1) -> float | None:
    """Smallest difference that ``n`` paired runs detect with 80% power, in the unit of ``sd``.

    None for fewer than two runs, which have no spread to compare with.

    Parameters
    ----------
    sd : float
        Standard deviation of the paired differences.
    alpha : float
        Level of the two-sided test.
    per_run : int
        As in :func:`power`.
    """
    from scipy.optimize import brentq

    if n < 2:
        return None
    effect = brentq(lambda effect: power(effect, n, alpha, per_run) - POWER, 0.0, LARGEST_EFFECT)
    return float(effect) * sd


def runs_needed(points: float, sd: float, alpha: float, per_run: float = 1) -> int | None:
    """Fewest paired runs that detect a difference of ``points`` with 80% power.

    Two, the fewest that have a spread, if the differences do not vary; None if 10,000 runs are too few.
    """
    if sd <= 0:
        return 2
    counts = range(2, MOST_RUNS + 1)
    place = bisect_left(counts, POWER, key=lambda n: power(points / sd, n, alpha, per_run))
    return counts[place] if place < len(counts) else None
