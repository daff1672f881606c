"""Paired comparisons of accuracies over runs: difference, interval, tests, Holm's correction.

Run r of every method has the same seed for weights and order. It also draws the same places from pools of
the same size (:mod:`augbench.resample`). Differences are therefore taken run by run. scipy and statsmodels
compute every test; they are imported where needed, because jobs and ``augbench plan`` start without them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev

CONFIDENCE = 0.95
ALPHA = 0.05  # a difference with a corrected p below this counts as more than chance
EQUAL = 1e-9  # spread in points below which all differences count as the same number


@dataclass(frozen=True)
class ErrorTerm:
    """What a paired difference is measured against.

    Attributes
    ----------
    sd : float
        Standard deviation of one run's difference between two rows, in points.
    df : float
        Degrees of freedom of ``sd``; whole numbers where runs are paired.
    """

    sd: float
    df: float

    def half_width(self, n: int) -> float:
        """Half the width of the 95% t interval of the mean over ``n`` runs."""
        from scipy.stats import t

        return float(t.ppf((1 + CONFIDENCE) / 2, self.df)) * self.sd / sqrt(n)


def pooled_error(accuracies: Mapping[str, Mapping[int, float]]) -> ErrorTerm | None:
    """The error of all rows together: the residual of the analysis of variance, rows x runs.

    It has (rows - 1) x (runs - 1) degrees of freedom, and assumes that all rows vary alike (randomised
    complete blocks; Montgomery, *Design and Analysis of Experiments*, chapter 4).

    Parameters
    ----------
    accuracies : mapping of method to mapping of run to float
        Accuracies of all rows in percent.

    Returns
    -------
    ErrorTerm or None
        None if rows have different runs, for a single run or row, and if nothing varies.
    """
    from augbench.report.inference.variance import REST, of_rows_and_runs

    rest = of_rows_and_runs(accuracies).get(REST)
    return None if rest is None or rest.sd < EQUAL else ErrorTerm(sqrt(2) * rest.sd, rest.df)


@dataclass(frozen=True)
class Difference:
    """A method's accuracy minus a reference's, paired by run.

    Attributes
    ----------
    n : int
        Number of pairs.
    points : float
        Mean difference in percentage points.
    error : ErrorTerm or None
        The given one, or else the sample standard deviation of the differences (ddof = 1); None for a
        single pair without a given one.
    low, high : float or None
        95% t interval of the mean; None without an error.
    p : float or None
        Two-sided t test; None without an error. With the differences' own error also None if all are equal,
        because the paired test is then undefined.
    p_same : float or None
        Equivalence test (two one-sided t tests, TOST): a small value says that the difference is smaller
        than the margin. None where ``p`` is.
    """

    n: int
    points: float
    error: ErrorTerm | None
    low: float | None
    high: float | None
    p: float | None
    p_same: float | None


def interval(
    values: Sequence[float], error: ErrorTerm | None = None
) -> tuple[float, float] | tuple[None, None]:
    """95% t interval of the mean; (None, None) for a single value.

    The error is the given one, or else that of the values, with n - 1 degrees of freedom.
    """
    from scipy.stats import sem, t

    if error is not None:
        reach = error.half_width(len(values))
        return fmean(values) - reach, fmean(values) + reach
    if len(values) < 2:
        return None, None
    if stdev(values) < EQUAL:
        return fmean(values), fmean(values)
    low, high = t.interval(CONFIDENCE, len(values) - 1, loc=fmean(values), scale=sem(values))
    return float(low), float(high)


def compare(
    own: Mapping[int, float], reference: Mapping[int, float], margin: float, error: ErrorTerm | None = None
) -> Difference | None:
    """Compare accuracies by run with a reference's, over their common runs; None without a common run.

    Parameters
    ----------
    own, reference : mapping of run to float
        Accuracies in percent.
    margin : float
        Differences smaller than this, in points, count as none in the equivalence test.
    error : ErrorTerm, optional
        Error of all rows (:func:`pooled_error`). Default: the spread of these differences alone.
    """
    from scipy.stats import t, ttest_rel
    from statsmodels.stats.weightstats import ttost_paired

    runs = sorted(own.keys() & reference.keys())
    if not runs:
        return None
    ours, theirs = [own[run] for run in runs], [reference[run] for run in runs]
    differences = [one - other for one, other in zip(ours, theirs, strict=True)]
    n, mean = len(runs), fmean(differences)
    low, high = interval(differences, error)
    p: float | None = None
    p_same: float | None = None
    if error is not None:
        scale = error.sd / sqrt(n)
        p = float(2 * t.sf(abs(mean) / scale, error.df))
        p_same = float(t.sf((margin - abs(mean)) / scale, error.df))
    elif n > 1:
        error = ErrorTerm(stdev(differences), n - 1)
        if error.sd > EQUAL:
            import numpy as np

            p = float(ttest_rel(ours, theirs).pvalue)
            p_same = float(ttost_paired(np.array(ours), np.array(theirs), -margin, margin)[0])
    return Difference(n, mean, error, low, high, p, p_same)


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
