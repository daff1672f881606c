"""Tests between studies: does the accuracy of a row change, and does a difference between two rows change?

Every study is compared with the first one. Where run r of both has the same training images, the same seed
and the same test images, differences are taken run by run, as within a study
(:mod:`augbench.report.inference.paired`); elsewhere runs are independent
(:mod:`augbench.report.inference.unpaired`). All p values of a comparison are corrected together by Holm's
method.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from augbench.commands.compare.studies import Finished
from augbench.report.answer import against
from augbench.report.inference.images import Hits, image_intervals, interval_of_both, paired_hits
from augbench.report.inference.paired import ALPHA, Difference, ErrorTerm, compare, holm, pooled_error
from augbench.report.inference.power import runs_needed
from augbench.report.inference.unpaired import Unpaired, compare_unpaired
from augbench.report.tables import contrasts
from augbench.report.tables.contrasts import verdict_of

ACCURACY, CHANGE = "accuracy", "change"


@dataclass(frozen=True)
class Pair:
    """Two rows whose difference is a contrast of a study."""

    row: str
    against: str
    name: str


@dataclass(frozen=True)
class Row:
    """One test between ``study`` and ``reference``, the first study; None where a single run has no value.

    Attributes
    ----------
    kind : str
        ``accuracy``: of ``row``. ``change``: of the difference between ``row`` and ``against``.
    paired : bool
        Whether differences are taken run by run.
    n, n_reference : int
        Runs of the study and of the reference that are used; with several draws of the training images,
        draws.
    value, reference_value : float
        Means over these runs: accuracy in percent, or the difference between the two rows in points.
    points : float
        ``value`` minus ``reference_value``.
    sd_points, df : float
        Spread of one run's difference, and the degrees of freedom of intervals and tests.
    low, high : float
        95% t interval over runs.
    images_low, images_high : float
        95% bootstrap interval over the test images, for the classifiers as they are; None for other images.
    both_low, both_high : float
        95% interval over other runs and other test images; None where runs are not paired.
    p, p_holm, p_same, p_same_holm : float
        As in :class:`augbench.report.tables.contrasts.Row`, corrected for all tests of the comparison.
    runs_for_margin : int
        Runs of each study that detect ``margin`` with 80% power at 0.05 divided by ``tests``; None if too
        many.
    tests : int
        Number of tests that are corrected together.
    """

    row: str  # first, because a label may begin with #, which marks notes in a CSV file
    against: str | None
    kind: str
    name: str
    study: str
    reference: str
    paired: bool
    n: int
    n_reference: int
    value: float
    reference_value: float
    points: float
    sd_points: float | None
    df: float | None
    low: float | None
    high: float | None
    images_low: float | None
    images_high: float | None
    both_low: float | None
    both_high: float | None
    p: float | None
    p_holm: float | None
    p_same: float | None
    p_same_holm: float | None
    runs_for_margin: int | None
    margin: float
    tests: int

    @property
    def verdict(self) -> str:
        """What the tests say, in the words of :mod:`augbench.report.tables.contrasts`."""
        return verdict_of(self.points, self.p_holm, self.p_same_holm)


def unpaired_because(first: Finished, other: Finished) -> str:
    """Why run r of two studies is not a pair; empty if it is one."""
    draws = (first.study.dataset.draws, other.study.dataset.draws)
    if first.study.seed != other.study.seed:
        return "the seeds differ"
    if (draws[0] == 1) != (draws[1] == 1):
        return "only one of them has several draws of the training images"
    if any(first.training_images(draw) != other.training_images(draw) for draw in range(min(draws))):
        return "the training images differ"
    return "" if first.tested_like(other) else "the test images or classes differ"


def of_one_draw(first: Finished, other: Finished) -> bool:
    """Whether both studies have a single draw of the training images, and not the same one."""
    if any(study.study.dataset.draws > 1 for study in (first, other)):
        return False
    return first.training_images(0) != other.training_images(0)


def pairs_of(studies: Sequence[Finished]) -> list[Pair]:
    """The contrasts of all studies whose rows the first study and another one have, each once."""
    found: dict[frozenset[str], Pair] = {}
    for study in studies:
        for one in study.contrasts:
            sides = {one.row, one.against}
            shared = [other for other in studies if sides <= other.rows.keys()]
            if len(shared) > 1 and shared[0] is studies[0]:
                found.setdefault(frozenset(sides), Pair(one.row, one.against, one.name))
    return [*found.values()]


def tested_in(study: Finished, pair: Pair) -> contrasts.Row | None:
    """The study's own test of a pair, with the pair's first row first; None if it is no contrast of it."""
    return next((one for one in against(study.contrasts, pair.against) if one.row == pair.row), None)


@dataclass(frozen=True)
class _Effect:
    """What is compared: an accuracy, or a difference of two, by run; and the same by run and test image."""

    values: dict[int, float]
    images: dict[int, np.ndarray]

    @classmethod
    def of(cls, study: Finished, hits: Hits | None, row: str, other: str | None) -> _Effect:
        """The effect of a study: the accuracy of ``row``, minus that of ``other`` if there is one."""
        own, below = study.accuracies[row], study.accuracies.get(other or "")
        if below is None or other is None:
            return cls(own, {} if hits is None else hits[row])
        runs = sorted(own.keys() & below.keys())
        images = {} if hits is None else {run: 1.0 * hits[row][run] - hits[other][run] for run in runs}
        return cls({run: own[run] - below[run] for run in runs}, images)

    def over(self, runs: Sequence[int]) -> _Effect:
        """The effect over some runs."""
        images = {run: self.images[run] for run in runs} if self.images else {}
        return _Effect({run: self.values[run] for run in runs}, images)

    def mean_images(self) -> dict[int, np.ndarray]:
        """The mean over runs, as that of one run."""
        return {0: np.mean([*self.images.values()], axis=0)}


@dataclass(frozen=True)
class _Test:
    """A test before the correction, and the images of its difference, (R, N); None for other test images."""

    row: str
    against: str | None
    name: str
    other: Finished
    paired: bool
    own: _Effect
    reference: _Effect
    found: Difference
    error: ErrorTerm | None
    by_image: np.ndarray | None


def build_rows(
    studies: Sequence[Finished], hits: Sequence[Hits | None], pairs: Sequence[Pair], seed: int
) -> list[Row]:
    """Compare every study with the first one: accuracies of all rows in common, then changes of contrasts.

    Parameters
    ----------
    hits : sequence of Hits or None
        Which test images every classifier got right, by study (:func:`studies.hits_of`).
    seed : int
        Seed of the bootstrap samples of the test images.
    """
    tests = [
        test
        for place, other in enumerate(studies[1:], start=1)
        for test in _tests(studies[0], other, (hits[0], hits[place]), pairs)
    ]
    with_images = [test.by_image for test in tests if test.by_image is not None]
    intervals = iter(image_intervals(with_images, seed) if with_images else [])
    p_holm = holm([test.found.p for test in tests])
    p_same_holm = holm([test.found.p_same for test in tests])
    margin = studies[0].study.report.margin
    rows = []
    for test, p, p_same in zip(tests, p_holm, p_same_holm, strict=True):
        found, images = test.found, None if test.by_image is None else next(intervals)
        both = (
            (None, None)
            if test.by_image is None or not test.paired
            else interval_of_both(test.by_image, test.error)
        )
        rows.append(
            Row(
                row=test.row,
                against=test.against,
                kind=ACCURACY if test.against is None else CHANGE,
                name=test.name,
                study=test.other.name,
                reference=studies[0].name,
                paired=test.paired,
                n=len(test.own.values),
                n_reference=len(test.reference.values),
                value=fmean(test.own.values.values()),
                reference_value=fmean(test.reference.values.values()),
                points=found.points,
                sd_points=None if (spread := _spread(found)) is None else spread.sd,
                df=None if found.error is None else float(found.error.df),
                low=found.low,
                high=found.high,
                images_low=None if images is None else images[0],
                images_high=None if images is None else images[1],
                both_low=both[0],
                both_high=both[1],
                p=found.p,
                p_holm=p,
                p_same=found.p_same,
                p_same_holm=p_same,
                runs_for_margin=_runs_for(margin, found, len(tests)),
                margin=margin,
                tests=len(tests),
            )
        )
    return rows


def _runs_for(margin: float, found: Difference, tests: int) -> int | None:
    """Runs of each study that detect the margin after the correction; None if too many, or of single runs."""
    if (spread := _spread(found)) is None or found.n < 2:
        return None
    return runs_needed(margin, spread.sd, ALPHA / tests, max(1.0, spread.df / (found.n - 1)))


def _spread(found: Difference) -> ErrorTerm | None:
    """The spread of one run's difference, with its degrees of freedom for ``n`` runs of each study."""
    return found.per_run if isinstance(found, Unpaired) else found.error


def _tests(
    first: Finished, other: Finished, hits: tuple[Hits | None, Hits | None], pairs: Sequence[Pair]
) -> Iterator[_Test]:
    """Yield the tests of one study against the first."""
    paired = not unpaired_because(first, other)
    labels, margin = first.labels, first.study.report.margin
    wanted: list[tuple[str, str | None, str]] = [
        (row, None, labels[row]) for row in first.rows if row in other.rows
    ]
    wanted += [
        (pair.row, pair.against, pair.name)
        for pair in pairs
        if {pair.row, pair.against} <= first.rows.keys() & other.rows.keys()
    ]
    errors = errors_of(first, other, paired)
    for row, below, name in wanted:
        own, reference = (
            _Effect.of(study, its, row, below) for study, its in ((other, hits[1]), (first, hits[0]))
        )
        if paired:
            common = sorted(own.values.keys() & reference.values.keys())
            own, reference = own.over(common), reference.over(common)
        yield _test(own, reference, other, paired, (row, below, name), errors if below else (), margin)


def errors_of(first: Finished, other: Finished, paired: bool) -> tuple[ErrorTerm | None, ...]:
    """Errors of a change: of the paired difference, or of either study; empty if each change has its own.

    With ``report.error: pooled`` it is one for all rows (:func:`pooled_error`). What a run does to all rows
    of a study alike is not in it. That cancels in the change of a difference, but not in that of an accuracy,
    so accuracies always have their own.
    """
    if first.study.report.error != "pooled":
        return ()
    if not paired:
        return pooled_error(other.accuracies), pooled_error(first.accuracies)
    return (pooled_error(run_differences(first, other)),)


def run_differences(first: Finished, other: Finished) -> dict[str, dict[int, float]]:
    """Accuracy in ``other`` minus that in ``first`` of each row in common, in points by row and run."""
    mine, theirs = other.accuracies, first.accuracies
    return {
        row: {run: mine[row][run] - theirs[row][run] for run in sorted(mine[row].keys() & theirs[row].keys())}
        for row in first.rows
        if row in other.rows
    }


def _test(
    own: _Effect,
    reference: _Effect,
    other: Finished,
    paired: bool,
    names: tuple[str, str | None, str],
    errors: Sequence[ErrorTerm | None],
    margin: float,
) -> _Test:
    error = errors[0] if paired and errors else None
    if paired:
        found = compare(own.values, reference.values, margin, error)
        assert found is not None  # both studies have a run 0
    else:
        sides = (errors[0], errors[1]) if errors else (None, None)
        found = compare_unpaired(own.values, reference.values, margin, sides)
    by_image = None
    if own.images and reference.images:
        by_image = (
            paired_hits(own.images, reference.images)
            if paired
            else paired_hits(own.mean_images(), reference.mean_images())
        )
    return _Test(*names, other, paired, own, reference, found, error, by_image)
