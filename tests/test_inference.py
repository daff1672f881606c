"""Intervals, tests, power and components of variance: worked examples, and simulations of known truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats
from statsmodels.formula.api import ols
from statsmodels.stats.power import TTestPower

from augbench.classifier.score import SCHEMA
from augbench.errors import UserError
from augbench.report.inference.images import (
    RESAMPLES,
    image_intervals,
    interval_of_both,
    paired_hits,
    read_hits,
)
from augbench.report.inference.order import follow
from augbench.report.inference.paired import ErrorTerm, compare, holm, interval, pooled_error
from augbench.report.inference.power import detectable, power, runs_needed
from augbench.report.inference.variance import components

NONE = {0: 70.0, 1: 72.0, 2: 74.0}
CLIP = {0: 71.0, 1: 75.0, 2: 76.0}
SIMULATIONS = 1000


# --- differences over runs ------------------------------------------------------------------------


def test_the_interval_of_three_runs_is_the_hand_computed_one() -> None:
    # mean 72, standard error 2 / sqrt(3) = 1.1547, t for two degrees of freedom 4.30265: 72 +- 4.96826
    assert interval([70.0, 72.0, 74.0]) == pytest.approx((67.03174, 76.96826), abs=1e-4)
    assert interval([72.0]) == (None, None)
    assert interval([72.0, 72.0]) == (72.0, 72.0)


def test_a_paired_difference_is_the_hand_computed_one() -> None:
    # differences 1, 3, 2: mean 2, deviation 1, standard error 1 / sqrt(3), so t = 2 sqrt(3) = 3.4641;
    # for two degrees of freedom p = 1 - t / sqrt(t^2 + 2)
    found = compare(CLIP, NONE, margin=4)
    assert found is not None
    assert (found.n, found.points, found.error) == (3, pytest.approx(2), ErrorTerm(pytest.approx(1), 2))
    assert (found.low, found.high) == pytest.approx((2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5), abs=1e-4)
    assert found.p == pytest.approx(1 - (12 / 14) ** 0.5)
    # of the two one-sided tests the one against +4 decides: t = (2 - 4) sqrt(3) = -3.4641, one tail
    assert found.p_same == pytest.approx((1 - (12 / 14) ** 0.5) / 2)


def test_runs_are_paired_by_number_and_not_by_order() -> None:
    own = {2: 76.0, 0: 71.0, 1: 75.0}
    assert compare(own, NONE, 1) == compare(CLIP, NONE, 1)
    alone = compare({1: 75.0, 7: 10.0}, NONE, 1)
    assert alone is not None
    assert (alone.points, alone.error, alone.low, alone.p, alone.p_same) == (3.0, None, None, None, None)
    assert compare({7: 10.0}, NONE, 1) is None


def test_equal_differences_have_no_test() -> None:
    found = compare({run: value + 3 for run, value in NONE.items()}, NONE, 1)
    assert found is not None and (found.points, found.p, found.p_same) == (3, None, None)
    assert (found.low, found.high) == (3, 3)


def test_holms_correction_is_the_hand_computed_one() -> None:
    # sorted: 0.01 x 4, 0.02 x 3, 0.03 x 2 = 0.06, 0.04 x 1, which may not fall below 0.06
    assert holm([0.03, 0.01, None, 0.04, 0.02]) == [
        pytest.approx(0.06),
        pytest.approx(0.04),
        None,
        pytest.approx(0.06),
        pytest.approx(0.06),
    ]
    assert holm([0.7, 0.9]) == [1.0, 1.0] and holm([0.2]) == [0.2] and holm([None]) == [None]


def test_intervals_over_runs_cover_the_truth_in_95_of_100_studies() -> None:
    values = 2 + np.random.default_rng(0).normal(0, 0.8, (SIMULATIONS, 5))
    ends = [interval(row.tolist()) for row in values]
    covered = np.mean([low is not None and low <= 2 <= high for low, high in ends])
    assert 0.93 <= covered <= 0.97


def test_of_true_equalities_one_in_twenty_families_has_a_false_alarm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # 5 contrasts of 5 runs with a common reference and no true difference, corrected together
    values = np.random.default_rng(1).normal(75, 1, (SIMULATIONS, 6, 5))
    p = stats.ttest_1samp(values[:, 1:] - values[:, :1], 0, axis=-1).pvalue
    monkeypatch.setattr("gc.collect", lambda: 0)  # statsmodels collects garbage in every correction
    alarms = np.mean([min(filter(None, holm(list(row)))) < 0.05 for row in p])
    assert alarms <= 0.07


def blocks(rng: np.random.Generator, truth: np.ndarray, runs: int) -> dict[str, dict[int, float]]:
    """Accuracies of rows with true means ``truth``: each run shifts all rows, and each value has an error."""
    values = truth[:, None] + rng.normal(0, 1.5, runs)[None] + rng.normal(0, 0.8, (len(truth), runs))
    return {f"row{row}": dict(enumerate(map(float, own))) for row, own in enumerate(values)}


def test_the_pooled_error_is_that_of_statsmodels_analysis_of_rows_and_runs() -> None:
    study = blocks(np.random.default_rng(6), np.array([70.0, 71, 72, 75, 76]), 4)
    frame = pd.DataFrame(
        [(row, run, value) for row, own in study.items() for run, value in own.items()],
        columns=["row", "run", "value"],
    )
    theirs = ols("value ~ C(row) + C(run)", frame).fit().t_test("C(row)[T.row3] - C(row)[T.row1] = 0")
    error = pooled_error(study)
    found = compare(study["row3"], study["row1"], 2.0, error)
    assert found is not None and error is not None and error.df == 4 * 3
    assert found.points == pytest.approx(theirs.effect[0])
    assert (found.low, found.high) == pytest.approx(tuple(theirs.conf_int()[0]))
    assert found.p == pytest.approx(theirs.pvalue)
    shifted = [
        ols("value ~ C(row) + C(run)", frame).fit().t_test(f"C(row)[T.row3] - C(row)[T.row1] = {margin}")
        for margin in (-2, 2)
    ]
    one_sided = stats.t.sf(shifted[0].tvalue[0, 0], 12), stats.t.cdf(shifted[1].tvalue[0, 0], 12)
    assert found.p_same == pytest.approx(max(one_sided))
    one_run = {row: {0: own[0]} for row, own in study.items()}
    assert pooled_error(one_run) is None and pooled_error({"row0": study["row0"]}) is None
    assert pooled_error({**study, "row0": {9: 1.0}}) is None, "rows with different runs"


def test_pooled_intervals_of_three_runs_cover_the_truth_and_families_rarely_have_a_false_alarm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gc.collect", lambda: 0)  # statsmodels collects garbage in every correction
    rng, truth = np.random.default_rng(7), np.array([75.0, 75, 75, 75, 75, 77])
    # the residual of 6 rows and 3 runs, as the test above has it from statsmodels
    covered, alarms = [], []
    for _ in range(SIMULATIONS):
        study = blocks(rng, truth, 3)
        values = np.array([[*own.values()] for own in study.values()])
        rest = values - values.mean(0) - values.mean(1)[:, None] + values.mean()
        error = ErrorTerm(float(np.sqrt(2 * (rest**2).sum() / 10)), 10)
        found = [compare(study[f"row{row}"], study["row0"], 1.0, error) for row in range(1, 6)]
        covered.append(found[-1].low <= 2 <= found[-1].high)
        alarms.append(min(holm([one.p for one in found[:-1]])) < 0.05)
    assert 0.93 <= np.mean(covered) <= 0.97 and np.mean(alarms) <= 0.07
    assert pooled_error(study) == ErrorTerm(pytest.approx(error.sd), error.df)


def test_with_a_pooled_error_power_has_the_degrees_of_freedom_of_all_rows() -> None:
    assert power(2.0, 3, 0.01, 13) > 3 * power(2.0, 3, 0.01)
    # 14 rows, 3 runs: 26 degrees of freedom
    rng = np.random.default_rng(8)
    sd = np.sqrt(rng.chisquare(26, 20_000) / 26)
    t = (rng.normal(0, 1, 20_000) + 2.0 * np.sqrt(3)) / sd
    assert np.mean(t > stats.t.isf(0.005, 26)) == pytest.approx(power(2.0, 3, 0.01, 13), abs=0.01)
    assert runs_needed(1.0, 0.9, 0.01, 13) < runs_needed(1.0, 0.9, 0.01)


# --- order of rows --------------------------------------------------------------------------------

PAPER = {"a": 60.0, "b": 61.0, "c": 63.0, "d": 59.0}


@pytest.mark.parametrize(
    ("slopes", "verdict"),
    [
        ((0.4, 0.5, 0.6), "the paper's order appears"),
        ((-0.4, -0.5, -0.6), "the paper's order is reversed"),
        ((-0.9, 0.5, 0.7), "whether the paper's order appears can't be told"),
        ((0.5,), "whether the paper's order appears can't be told"),
    ],
)
def test_the_slope_is_the_mean_over_runs(slopes: tuple[float, ...], verdict: str) -> None:
    ours = {row: {run: 10 * run + slope * x for run, slope in enumerate(slopes)} for row, x in PAPER.items()}
    found = follow({**ours, "not in the paper": {0: 1.0}}, {**PAPER, "not here": 1.0})
    assert found is not None and (found.rows, found.n, found.verdict) == (4, len(slopes), verdict)
    assert found.slope == pytest.approx(np.mean(slopes)) and found.tau == np.sign(np.mean(slopes))
    low, high = interval(slopes)
    assert (found.low, found.high) == ((None, None) if low is None else pytest.approx((low, high)))


def test_too_few_rows_and_equal_ones_have_no_order() -> None:
    two = {"a": {0: 1.0}, "b": {0: 2.0}}
    three = {**two, "c": {0: 1.0}}
    assert follow({}, PAPER) is None and follow(two, PAPER) is None and follow(three, PAPER) is not None
    assert follow(three, dict.fromkeys(PAPER, 60.0)) is None
    assert follow({key: {0: 1.0} for key in PAPER}, PAPER) is None
    assert follow({**three, "c": {1: 1.0}}, PAPER) is None  # no run that all rows have


# --- power ----------------------------------------------------------------------------------------


def test_power_is_that_of_statsmodels() -> None:
    for effect, n, alpha in ((1.0, 10, 0.05), (0.4, 30, 0.01), (5.0, 5, 0.05 / 26), (2.0, 3, 0.05)):
        theirs = TTestPower().power(effect, n, alpha / 2, alternative="larger")
        assert power(effect, n, alpha) == pytest.approx(theirs)
        # both directions together differ by less than alpha / 2
        assert TTestPower().power(effect, n, alpha) - theirs < alpha / 2
    assert runs_needed(2.0, 2.0, 0.05) == 10 == np.ceil(TTestPower().solve_power(1.0, None, 0.05, 0.8))


@pytest.mark.parametrize(("n", "alpha"), [(2, 0.05), (3, 0.05 / 26), (5, 0.05), (5, 0.05 / 44), (30, 0.01)])
def test_the_detectable_difference_is_detected_in_80_of_100_studies(n: int, alpha: float) -> None:
    smallest = detectable(0.7, n, alpha)
    assert smallest is not None
    runs = smallest + np.random.default_rng(2).normal(0, 0.7, (20_000, n))
    found = (stats.ttest_1samp(runs, 0, axis=1).pvalue < alpha) & (runs.mean(axis=1) > 0)
    assert found.mean() == pytest.approx(0.8, abs=0.01)


def test_the_runs_needed_are_enough_and_one_less_is_not() -> None:
    for points, sd in ((1.0, 0.4), (1.0, 0.7), (0.5, 1.6), (3.0, 1.0)):
        runs = runs_needed(points, sd, 0.05 / 26)
        assert runs is not None
        enough, less = (detectable(sd, n, 0.05 / 26) for n in (runs, runs - 1))
        assert enough is not None and enough <= points and (less is None or less > points)


def test_power_has_ends() -> None:
    assert detectable(1.0, 1, 0.05) is None, "a single run has no spread"
    assert runs_needed(1.0, 0.0, 0.05) == 2, "without spread the fewest runs are enough"
    assert runs_needed(0.001, 5.0, 0.05) is None, "more than 10,000"


# --- test images ----------------------------------------------------------------------------------


def test_differences_are_taken_run_by_run_and_image_by_image() -> None:
    own = {0: np.array([True, True, False]), 1: np.array([True, False, False]), 5: np.array([True] * 3)}
    reference = {1: np.array([False, False, True]), 0: np.array([True, False, False])}
    assert paired_hits(own, reference).tolist() == [[0, 100, 0], [100, 0, -100]]


def test_the_bootstrap_of_two_images_is_the_hand_computed_one() -> None:
    # samples of two images with 0 and 100: means 0 and 100 with probability 1/4 each, so 95% is 0 to 100
    assert image_intervals([np.array([[0.0, 100.0]])], 0) == [(0.0, 100.0)]
    assert image_intervals([np.full((2, 3), 50.0)], 0) == [(50.0, 50.0)]


def test_every_difference_sees_the_same_samples_and_a_seed_repeats_them() -> None:
    values = np.random.default_rng(3).choice([-100.0, 0.0, 100.0], (2, 400))
    (low, high), (mirrored_low, mirrored_high) = image_intervals([values, -values], 7)
    assert (mirrored_low, mirrored_high) == pytest.approx((-high, -low))
    assert image_intervals([values], 7) == [(low, high)] != image_intervals([values], 8)
    error = values.mean(axis=0).std() / 20
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.04)
    assert RESAMPLES == 10_000


def test_intervals_over_test_images_cover_the_truth_in_95_of_100_studies() -> None:
    # an image is right for one row and wrong for the other with probability 0.15, the reverse with 0.12
    hits = np.random.default_rng(4).choice([100.0, -100.0, 0.0], (SIMULATIONS, 1, 400), p=[0.15, 0.12, 0.73])
    covered = np.mean([low <= 3 <= high for low, high in image_intervals(list(hits), 0)])
    assert 0.93 <= covered <= 0.97


def binary_study(rng: np.random.Generator, runs: int, images: int) -> np.ndarray:
    """Differences of two equally good rows: images favour one, runs have good days."""
    difficulty, favour = rng.normal(1.2, 1.5, images), rng.normal(0, 1.8, images)
    days = rng.normal(0, 0.06, (2, runs, 1))
    chance = [
        1 / (1 + np.exp(-(difficulty + sign * favour / 2 + day)))
        for sign, day in zip((1, -1), days, strict=True)
    ]
    one, other = ({run: hits for run, hits in enumerate(rng.random((runs, images)) < p)} for p in chance)
    return paired_hits(one, other)


@pytest.mark.parametrize("runs", [pytest.param(3, marks=pytest.mark.full), 5])
def test_intervals_over_runs_and_images_cover_the_truth_where_neither_alone_does(runs: int) -> None:
    rng = np.random.default_rng(5)
    studies = [binary_study(rng, runs, 500) for _ in range(SIMULATIONS)]
    both = [interval_of_both(study) for study in studies]
    over_runs = [interval(study.mean(axis=1).tolist()) for study in studies]

    def covered(ends: list) -> float:
        return float(np.mean([low <= 0 <= high for low, high in ends]))

    assert 0.93 <= covered(both) <= 0.98 - 0.01 * (runs == 5)
    assert covered(over_runs) < 0.93 and covered(image_intervals(studies, 0)) < 0.95
    assert all(low <= one[0] and one[1] <= high for (low, high), one in zip(both, over_runs, strict=True))


def test_the_interval_of_both_is_the_hand_computed_one() -> None:
    # runs' means 0 and 2: variance 2, error squared 2 / 2 = 1, times t = 12.7062;
    # images' means 0, 1, 2: variance 1; no rest, so error squared 1 / 3, times 1.95996
    values = np.array([[-1.0, 0.0, 1.0], [1.0, 2.0, 3.0]])
    reach = np.hypot(12.7062, 1.95996 / 3**0.5)
    assert interval_of_both(values) == pytest.approx((1 - reach, 1 + reach), abs=1e-3)
    assert interval_of_both(values[:1]) == (None, None)


def predictions(path: Path, ids: list[str], right: list[bool]) -> Path:
    rows = [
        {"image_id": name, "label": 1, "predicted": int(hit), "probability": 0.5}
        for name, hit in zip(ids, right, strict=True)
    ]
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)
    return path


def test_images_are_matched_by_name_and_other_images_are_refused(tmp_path: Path) -> None:
    first = predictions(tmp_path / "none/0/predictions.parquet", ["b", "c", "a"], [True, False, True])
    second = predictions(tmp_path / "none/1/predictions.parquet", ["a", "b", "c"], [False, True, True])
    hits = read_hits({"none": [first, second]})["none"]
    assert hits[0].tolist() == [True, False, True] and hits[1].tolist() == [True, True, False]
    other = predictions(tmp_path / "clip/0/predictions.parquet", ["a", "b", "d"], [True] * 3)
    with pytest.raises(UserError, match="scored on other test images"):
        read_hits({"none": [first], "clip": [other]})


# --- components of variance -----------------------------------------------------------------------


def test_components_of_crossed_factors_are_the_hand_computed_ones() -> None:
    # row means 72, 74; run means 70.5, 73.5, 75; grand mean 73. Sums of squares: rows 6, runs 21, all 28,
    # so the rest is 1. Mean squares: rows 6 / 1, runs 21 / 2, rest 1 / 2.
    # Components: rest 0.5; runs (10.5 - 0.5) / 2 rows = 5; rows (6 - 0.5) / 3 runs = 11 / 6
    values = [("none", run, value) for run, value in NONE.items()]
    values += [("clip", run, value) for run, value in CLIP.items()]
    table = pd.DataFrame(values, columns=["row", "run", "value"])
    found = {one.name: (one.df, one.variance) for one in components(table, {"row": (), "run": ()})}
    assert found == {
        "row": (1, pytest.approx(11 / 6)),
        "run": (2, pytest.approx(5)),
        "rest": (2, pytest.approx(0.5)),
    }


def test_components_of_nested_factors_are_the_hand_computed_ones() -> None:
    # pools' means 2, 6, 2, 6; splits' means 4, 4. Mean squares: splits 0; pools 2 x 16 / 2 = 16;
    # within pools (2 + 2 + 0 + 8) / 4 = 3. Components: rest 3; pools (16 - 3) / 2; splits (0 - 16) / 4
    values = [
        (split, pool, value)
        for split, pools in {"A": ((1, 3), (5, 7)), "B": ((2, 2), (4, 8))}.items()
        for pool, pair in enumerate(pools)
        for value in pair
    ]
    table = pd.DataFrame(values, columns=["split", "pool", "value"])
    split, pool, rest = components(table, {"split": (), "pool": ("split",)})
    assert (split.name, pool.name, rest.name) == ("split", "split:pool", "rest")
    assert (rest.variance, pool.variance, split.variance) == pytest.approx((3, 6.5, -4))
    assert (split.sd, pool.sd, rest.df) == (0, pytest.approx(6.5**0.5), 4)


def test_components_of_simulated_studies_are_the_true_ones_on_average() -> None:
    # splits (deviation 2), pools made once per split (1), seeds that all pools share (0.7), rest 0.5
    rng, true = np.random.default_rng(6), {"split": 4.0, "seed": 0.49, "split:pool": 1.0, "rest": 0.25}
    studies = []
    for _ in range(60):
        split, pool, seed = (rng.normal(0, sd, size) for sd, size in ((2, 5), (1, (5, 3)), (0.7, 4)))
        values = [
            (s, f"{s}{p}", r, split[s] + pool[s, p] + seed[r] + rng.normal(0, 0.5))
            for s in range(5)
            for p in range(3)
            for r in range(4)
        ]
        table = pd.DataFrame(values, columns=["split", "pool", "seed", "value"])
        found = components(table, {"split": (), "pool": ("split",), "seed": ()})
        studies.append({one.name: one.variance for one in found})
    frame = pd.DataFrame(studies)
    assert list(frame.columns) == ["split", "seed", "split:pool", "split:seed", "rest"]
    for name, variance in {**true, "split:seed": 0.0}.items():
        error = frame[name].std() / 60**0.5
        assert abs(frame[name].mean() - variance) < 3 * error, name


def test_an_unbalanced_table_is_refused() -> None:
    table = pd.DataFrame({"row": ["a", "a", "b"], "run": [0, 1, 0], "value": [1.0, 2.0, 3.0]})
    with pytest.raises(UserError, match="a balanced table is needed: 2 row x 2 run"):
        components(table, {"row": (), "run": ()})
