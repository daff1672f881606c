"""Whether rows are in the order of published results: a slope over runs, and a rank correlation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from augbench.report.inference.paired import interval

LEAST_ROWS = 3


@dataclass(frozen=True)
class Order:
    """How accuracies of rows follow a reference's.

    Attributes
    ----------
    rows, n : int
        Number of rows compared, and of their common runs.
    slope : float
        Points here per point of the reference: least squares over rows in each run, mean over runs. At 1 rows
        differ as in the reference, at 0 differences have nothing to do with it, below 0 they are reversed.
    low, high : float or None
        95% t interval of the slope over runs; None for a single run.
    tau : float
        Kendall's tau-b between the rows' means and the reference.
    """

    rows: int
    n: int
    slope: float
    low: float | None
    high: float | None
    tau: float

    @property
    def verdict(self) -> str:
        """What the interval of the slope says."""
        if self.low is not None and self.low > 0:
            return "the paper's order appears"
        if self.high is not None and self.high < 0:
            return "the paper's order is reversed"
        return "whether the paper's order appears can't be told"


def follow(accuracies: Mapping[str, Mapping[int, float]], reference: Mapping[str, float]) -> Order | None:
    """Compare the rows' accuracies with a reference's.

    None for fewer than three rows, and if all are equal here or in the reference.

    Parameters
    ----------
    accuracies : mapping of method to mapping of run to float
        Accuracies in percent.
    reference : mapping of method to float
        The same of another study in percent. Rows that only one of the two has are left out.
    """
    from scipy.stats import kendalltau, linregress

    rows = [name for name in accuracies if name in reference]
    theirs = [reference[name] for name in rows]
    runs = sorted(set.intersection(*(set(accuracies[name]) for name in rows))) if rows else []
    means = [fmean(accuracies[name][run] for run in runs) for name in rows] if runs else []
    if len(rows) < LEAST_ROWS or len(set(theirs)) == 1 or len(set(means)) <= 1:
        return None
    slopes = [float(linregress(theirs, [accuracies[name][run] for name in rows]).slope) for run in runs]
    low, high = interval(slopes)
    return Order(len(rows), len(runs), fmean(slopes), low, high, float(kendalltau(means, theirs).statistic))
