"""Components of variance of a balanced study: how much each random factor adds to an accuracy's spread.

Method of moments: mean squares of the analysis of variance (statsmodels) are set equal to their expectations
(Searle, Casella and McCulloch, *Variance Components*, 1992, chapter 4). Exact for balanced tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import prod, sqrt
from typing import TYPE_CHECKING

from augbench.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

REST = "rest"
FEWEST = 2  # rows, and runs, that a component needs


@dataclass(frozen=True)
class Component:
    """The spread that a factor, or factors together, add.

    Attributes
    ----------
    name : str
        ``split``, ``split:pool``, ... or :data:`REST`, the spread within the cells of all factors.
    df : int
        Degrees of freedom.
    variance : float
        Unbiased estimate in squared points; it can be negative if the true value is near 0.
    """

    name: str
    df: int
    variance: float

    @property
    def sd(self) -> float:
        """Standard deviation in points; 0 if the estimate of the variance is negative."""
        return sqrt(max(0.0, self.variance))


def components(
    table: pd.DataFrame, factors: Mapping[str, Sequence[str]], value: str = "value"
) -> list[Component]:
    """Estimate the components of variance of ``value``, one per factor and interaction of factors.

    Parameters
    ----------
    table : DataFrame
        One row per measurement, with a column per factor and the column ``value``.
    factors : mapping of str to sequence of str
        The factors, each with the factors that it is nested in: ``{"split": (), "pool": ("split",)}`` for
        pools made once per split. Factors of which none is nested in the other are crossed. Levels of a
        nested factor may have the same names in different groups.

    Returns
    -------
    list of Component
        Fewest factors first. Without repeated measurements, all factors together are the rest.

    Raises
    ------
    UserError
        The table is not balanced: its cells differ in size, or some are missing.
    """
    import numpy as np

    coded, levels = _coded(table, factors, value)
    terms = _terms(factors)
    cells = prod(levels.values())
    if cells * (repeats := len(coded) // cells) != len(coded) or _sizes(coded, [*factors]) != {repeats}:
        raise UserError(
            "components of variance",
            f"{len(coded)} measurements in cells of different size",
            f"a balanced table is needed: {' x '.join(f'{n} {name}' for name, n in levels.items())}",
        )
    if repeats == 1:
        terms = [term for term in terms if len(term) < len(factors)]
    squares, freedom = _mean_squares(coded, terms)
    # A mean square expects the variances of all terms that contain it, each times the measurements per level.
    expected = np.array(
        [
            [len(coded) / prod(levels[name] for name in other) if set(term) <= set(other) else 0.0
             for other in terms] + [1.0]
            for term in [*terms, tuple(factors)]
        ]
    )  # fmt: skip
    expected[-1, :-1] = 0.0
    variances = np.linalg.solve(expected, squares)
    names = [*map(":".join, terms), REST]
    return [Component(*row) for row in zip(names, freedom, map(float, variances), strict=True)]


def of_rows_and_runs(accuracies: Mapping[str, Mapping[int, float]]) -> dict[str, Component]:
    """Components ``row``, ``run`` and :data:`REST` of accuracies in percent, by method and run.

    Empty for fewer than two rows or runs, and for rows with different runs.
    """
    import pandas as pd

    runs = {tuple(sorted(own)) for own in accuracies.values()}
    if len(runs) != 1 or len(accuracies) < FEWEST or len(next(iter(runs))) < FEWEST:
        return {}
    values = [(method, run, value) for method, own in accuracies.items() for run, value in own.items()]
    frame = pd.DataFrame(values, columns=["row", "run", "value"])
    return {component.name: component for component in components(frame, {"row": (), "run": ()})}


def _coded(
    table: pd.DataFrame, factors: Mapping[str, Sequence[str]], value: str
) -> tuple[pd.DataFrame, dict[str, int]]:
    """The table with levels as numbers from 0 within their groups, and the levels of each factor."""
    import pandas as pd

    coded = pd.DataFrame({"value": table[value].astype(float)})
    for name, parents in factors.items():
        if parents:
            groups = table.groupby([*parents], sort=False)[name]
            coded[name] = groups.transform(lambda column: pd.factorize(column)[0])
        else:
            coded[name] = pd.factorize(table[name])[0]
    return coded, {name: int(coded[name].max()) + 1 for name in factors}


def _terms(factors: Mapping[str, Sequence[str]]) -> list[tuple[str, ...]]:
    """All factors and interactions, fewest factors first; a nested factor brings its parents."""
    found = {
        tuple(name for name in factors if name in {*chosen, *(p for one in chosen for p in factors[one])})
        for size in range(1, len(factors) + 1)
        for chosen in combinations(factors, size)
    }
    return sorted(found, key=lambda term: (len(term), [*factors].index(term[-1]), term))


def _sizes(coded: pd.DataFrame, factors: list[str]) -> set[int]:
    """Numbers of measurements that cells have, including 0 for missing cells."""
    counted = coded.groupby(factors).size()
    missing = prod(int(coded[name].max()) + 1 for name in factors) - len(counted)
    return {*map(int, counted), *([0] if missing else [])}


def _mean_squares(coded: pd.DataFrame, terms: list[tuple[str, ...]]) -> tuple[list[float], list[int]]:
    """Mean squares and degrees of freedom of the terms and of the residual, by statsmodels."""
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    formula = "value ~ " + " + ".join(":".join(f"C({name})" for name in term) for term in terms)
    found = anova_lm(ols(formula, coded).fit(), typ=1)
    return [float(value) for value in found["mean_sq"]], [round(value) for value in found["df"]]
