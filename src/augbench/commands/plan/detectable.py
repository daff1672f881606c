"""The smallest difference that a study will detect, before it runs, from spreads that were measured before.

Input: the config, and ``contrasts.csv`` of a finished study of the same name; without it,
``resources/spreads.yaml`` or the paper's standard errors. The source is named beside every number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

from augbench.config.study import Study, read_yaml
from augbench.errors import UserError
from augbench.files import RESOURCES
from augbench.plan.paths import Plan
from augbench.report.contrasts import planned_pairs

SPREADS = RESOURCES / "spreads.yaml"


@dataclass(frozen=True)
class Spread:
    """Standard deviations of a paired difference between two rows, in points: the smallest and the largest.

    ``source`` says where they come from.
    """

    smallest: float
    largest: float
    source: str


@dataclass(frozen=True)
class Detectable:
    """What a study's runs can detect, for the smallest and the largest spread.

    Attributes
    ----------
    runs, contrasts : int
        Runs per row (draws of the training images if there are several), and contrasts that are tested
        together.
    alone, corrected : tuple of float, or None
        Smallest difference in points that is detected with 80% power at level 0.05, and at 0.05 divided by
        the number of contrasts (Holm's smallest p); None for a single run.
    runs_for_margin : tuple of int or None
        Runs that detect a difference of ``margin`` at the second level; None for more than 10,000.
    """

    runs: int
    contrasts: int
    margin: float
    spread: Spread
    alone: tuple[float, float] | None
    corrected: tuple[float, float] | None
    runs_for_margin: tuple[int | None, int | None]


def spread_of(study: Study) -> Spread:
    """The spread of paired differences: measured in a finished study of the same name, or else shipped.

    Raises
    ------
    UserError
        The finished study's contrasts are damaged.
    """
    path = Path(Plan(study, ()).contrasts["csv"])
    if path.is_file() and (measured := _measured(path)):
        return Spread(min(measured), max(measured), f"the differences in {path}")
    table = read_yaml(SPREADS)
    if study.miniature is not None:
        own = table["miniature"]
        return _of_runs(own["run_sd_points"], own["source"])
    from augbench.report.protocol import MAIN_STUDY, paper_results

    known, paper = study.report.paper_study or MAIN_STUDY, table["paper"]
    errors = [result.stderr for result in paper_results(known).values() if result.stderr is not None]
    return _of_runs([error * sqrt(paper["runs"]) for error in errors], paper["source"].format(study=known))


def _measured(path: Path) -> list[float]:
    """Standard deviations of the paired differences in ``contrasts.csv``; empty for single runs."""
    from augbench.report.tables.contrasts import read_rows

    try:
        return [row.sd_points for row in read_rows(path) if row.sd_points]
    except (KeyError, TypeError, ValueError):
        raise UserError(str(path), "not a table of contrasts", "delete it and run the study again") from None


def _of_runs(sds: Sequence[float], source: str) -> Spread:
    """Spread of differences between rows whose runs are independent: that of a run times the root of 2."""
    return Spread(sqrt(2) * min(sds), sqrt(2) * max(sds), source)


def detectable_of(study: Study) -> Detectable | None:
    """What the study's runs can detect; None if it has no two rows to compare."""
    from augbench.report.inference.paired import ALPHA
    from augbench.report.inference.power import detectable, runs_needed

    draws, pairs, spread = study.dataset.draws, planned_pairs(study), spread_of(study)
    runs = draws if draws > 1 else study.augmentation.resamples
    if not pairs:
        return None
    corrected, sds = ALPHA / len(pairs), (spread.smallest, spread.largest)
    per_run = len(study.methods) - 1 if study.report.error == "pooled" else 1

    def smallest(alpha: float) -> tuple[float, float] | None:
        low, high = (detectable(sd, runs, alpha, per_run) for sd in sds)
        return None if low is None or high is None else (low, high)

    low, high = (runs_needed(study.report.margin, sd, corrected, per_run) for sd in sds)
    return Detectable(
        runs,
        len(pairs),
        study.report.margin,
        spread,
        smallest(ALPHA),
        smallest(corrected),
        (low, high),
    )


def describe(found: Detectable) -> str:
    """The result in words for the terminal."""
    from augbench.report.inference.power import MOST_RUNS
    from augbench.report.tables.contrasts import margin_name

    several = f"after correction for {found.contrasts} contrasts"
    if found.alone is None or found.corrected is None:
        first = "A single run per row cannot tell any difference from chance."
    else:
        first = (
            f"Detectable: with {found.runs} runs per row, a difference of {_range(*found.alone)} points as"
            f" the only contrast, of {_range(*found.corrected)} {several} (80% power)."
        )
    low, high = (
        str(runs) if runs is not None else f"more than {MOST_RUNS:,}" for runs in found.runs_for_margin
    )
    needed = low if low == high else f"{low} to {high}"
    sd = _range(found.spread.smallest, found.spread.largest)
    return (
        f"{first} {margin_name(found.margin)} {several}: {needed} runs. Standard deviation of a paired"
        f" difference: {sd} points, from {found.spread.source}."
    )


def _range(low: float, high: float) -> str:
    low_text, high_text = f"{low:.1f}", f"{high:.1f}"
    return low_text if low_text == high_text else f"{low_text} to {high_text}"
