"""Paired comparisons of accuracies over runs: difference, interval, tests, Holm's correction.

Run r of every method has the same seed for weights and order. It also draws the same places from pools of
the same size (:mod:`augbench.resample`). Differences are therefore taken run by run. scipy and statsmodels
compute every test; they are imported where needed, because jobs and ``augbench plan`` start without them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

CONFIDENCE = 0.95
ALPHA = 0.05  # a difference with a corrected p below this counts as more than chance
EQUAL = 1e-9  # spread in points below which all differences count as the same number


@dataclass(frozen=True)
class Difference:
    """A method's accuracy minus a reference's, paired by run.

    Attributes
    ----------
    n : int
        Number of pairs.
    points : float
        Mean difference in percentage points.
    sd : float or None
        Sample standard deviation of the differences (ddof = 1) in points; None for a single pair.
    low, high : float or None
        95% t interval of the mean; None for a single pair.
    p : float or None
        Two-sided paired t test; None for a single pair, or if all differences are equal, because the test
        is then undefined.
    p_same : float or None
        Equivalence test (two one-sided t tests, TOST): a small value says that the difference is smaller
        than the margin. None where ``p`` is.
    """

    n: int
    points: float
    sd: float | None
    low: float | None
    high: float | None
    p: float | None
    p_same: float | None


def interval(values: Sequence[float]) -> tuple[float, float] | tuple[None, None]:
    """95% t interval of the mean, with n - 1 degrees of freedom; (None, None) for a single value."""
    from scipy.stats import sem, t

    if len(values) < 2:
        return None, None
    if stdev(values) < EQUAL:
        return fmean(values), fmean(values)
    low, high = t.interval(CONFIDENCE, len(values) - 1, loc=fmean(values), scale=sem(values))
    return float(low), float(high)


def compare(own: Mapping[int, float], reference: Mapping[int, float], margin: float) -> Difference | None:
    """Compare accuracies by run with a reference's, over their common runs; None without a common run.

    Parameters
    ----------
    own, reference : mapping of run to float
        Accuracies in percent.
    margin : float
        Differences smaller than this, in points, count as none in the equivalence test.
    """
    from scipy.stats import ttest_rel
    from statsmodels.stats.weightstats import ttost_paired

    runs = sorted(own.keys() & reference.keys())
    if not runs:
        return None
    ours, theirs = [own[run] for run in runs], [reference[run] for run in runs]
    differences = [one - other for one, other in zip(ours, theirs, strict=True)]
    low, high = interval(differences)
    sd = stdev(differences) if len(runs) > 1 else None
    p, p_same = None, None
    if sd is not None and sd > EQUAL:
        import numpy as np

        p = float(ttest_rel(ours, theirs).pvalue)
        p_same = float(ttost_paired(np.array(ours), np.array(theirs), -margin, margin)[0])
    return Difference(len(runs), fmean(differences), sd, low, high, p, p_same)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct p values by Holm's step-down method (Scandinavian Journal of Statistics 6, 1979).

    None stays None and is not counted.
    """
    from statsmodels.stats.multitest import multipletests

    known = [place for place, p in enumerate(p_values) if p is not None]
    adjusted: list[float | None] = [None] * len(p_values)
    if known:
        corrected = multipletests([p_values[place] for place in known], method="holm")[1]
        for place, p in zip(known, corrected, strict=True):
            adjusted[place] = float(p)
    return adjusted
