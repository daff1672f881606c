"""The course of a run: steps and reason, also of old files, and whether accuracy was still rising."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from augbench.classifier.history import Validation, is_rising, read_history
from augbench.classifier.schedule import PlateauSchedule, StepSchedule
from augbench.config.classifier import Classifier
from augbench.errors import UserError
from augbench.files import write_json

STEPS = Classifier(schedule="steps", steps=400)


def course(accuracies: Sequence[float], rates: Sequence[float]) -> list[Validation]:
    pairs = enumerate(zip(accuracies, rates, strict=True))
    return [Validation(i + 1, i, lr, 0.0, top1) for i, (top1, lr) in pairs]


def noise(rng: np.random.Generator, count: int) -> np.ndarray:
    """Accuracies on 500 images that fluctuate around 77%."""
    return np.round((0.77 + 0.006 * rng.normal(size=count)) * 500) / 500


# --- schedules ------------------------------------------------------------------------------------


def test_the_rate_is_lowered_at_stated_fractions_of_the_steps() -> None:
    config = Classifier(schedule="steps", steps=100, lr=1.0, lower_at=(0.5, 0.75))
    rates = [StepSchedule().lr_of(step, config) for step in (0, 49, 50, 74, 75, 99)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_a_cosine_falls_from_the_first_rate_to_zero() -> None:
    config = Classifier(schedule="steps", steps=100, lr=0.4, decay="cosine")
    rates = [StepSchedule().lr_of(step, config) for step in (0, 25, 50, 75)]
    # 0.4 / 2 x (1 + cos(pi / 4)) = 0.2 x 1.70711
    assert rates == pytest.approx([0.4, 0.341421, 0.2, 0.058579], abs=1e-6)


def test_validations_are_at_multiples_of_the_interval_and_at_the_last_step() -> None:
    config, state, seen = Classifier(schedule="steps", steps=25, validate_every=10), StepSchedule(), []
    while not state.finished(config):
        state = state.step(0.5, config)
        seen.append(state.steps)
    assert seen == [10, 20, 25] and state.reason(config) == "steps"
    assert Classifier(schedule="steps", steps=41).validation_interval == 2  # a fortieth, rounded up


@pytest.mark.parametrize(("keep", "kept"), [("best", (20, 0.6)), ("last", (40, 0.5))])
def test_the_best_or_the_last_weights_are_kept(keep: str, kept: tuple[int, float]) -> None:
    config = Classifier.model_validate({"schedule": "steps", "steps": 40, "validate_every": 10, "keep": keep})
    state = StepSchedule()
    for top1 in (0.3, 0.6, 0.6, 0.5):
        state = state.step(top1, config)
    assert (state.kept, state.kept_top1) == kept


def test_the_plateau_rule_says_why_it_ended() -> None:
    config, state = Classifier(stop_patience=2, max_epochs=5), PlateauSchedule(0.1)
    for top1 in (0.5, 0.4, 0.4):
        state = state.step(top1, config)
    assert state.finished(config) and state.reason(config) == "patience"
    state = PlateauSchedule(0.1)
    for top1 in (0.1, 0.2, 0.3, 0.4, 0.5):
        state = state.step(top1, config)
    assert state.finished(config) and state.reason(config) == "max_epochs"


# --- files ----------------------------------------------------------------------------------------


def old_file(folder: Path, accuracies: Sequence[float]) -> Path:
    """Write a history as earlier versions did: every epoch, but neither steps nor a reason."""
    epochs = [
        {"epoch": i, "lr": 0.1, "train_loss": 1.0, "val_top1": top1} for i, top1 in enumerate(accuracies)
    ]
    best = int(np.argmax(accuracies))
    values = {"best_epoch": best, "val_top1": max(accuracies), "model_sha256": "", "epochs": epochs}
    write_json(folder / "history.json", values)
    return folder / "history.json"


def test_steps_and_reason_of_old_histories_are_derived(tmp_path: Path) -> None:
    config = Classifier(batch_size=128, stop_patience=3, max_epochs=15)
    cut = read_history(old_file(tmp_path, np.linspace(0.2, 0.7, 15).tolist()), 500, config)
    # 500 images in batches of 128 are 4 steps per epoch
    assert (cut.steps, cut.epochs, cut.stopped, cut.kept_step) == (60, 15, "max_epochs", 60)
    assert [point.step for point in cut.validations][:3] == [4, 8, 12]
    ended = read_history(old_file(tmp_path, [0.3, 0.5, 0.4, 0.4, 0.4]), 1000, config)
    assert (ended.steps, ended.stopped, ended.rising, ended.kept_step) == (40, "patience", False, 16)


def test_a_damaged_history_is_named(tmp_path: Path) -> None:
    write_json(tmp_path / "history.json", {"best_epoch": 1})
    with pytest.raises(UserError, match=r"history\.json: not a classifier's history"):
        read_history(tmp_path / "history.json", 10, Classifier())


# --- rising ---------------------------------------------------------------------------------------


def test_a_run_cut_before_its_rate_was_ever_lowered_was_rising() -> None:
    flat = course([0.7] * 15, [0.1] * 15)
    assert is_rising(flat, "max_epochs", Classifier(max_epochs=15)) is True
    assert is_rising(flat, "patience", Classifier(max_epochs=15)) is False


def test_a_rise_after_the_last_reduction_counts_and_the_jump_it_brings_does_not() -> None:
    rates = [0.1] * 15 + [0.01] * 6
    jump = [0.6] * 15 + [0.75, 0.74, 0.75, 0.74, 0.75, 0.74]
    rise = [0.6] * 15 + [0.70, 0.71, 0.72, 0.73, 0.75, 0.76]
    assert is_rising(course(jump, rates), "steps", STEPS) is False
    assert is_rising(course(rise, rates), "steps", STEPS) is True


def test_too_few_validations_cannot_tell() -> None:
    assert is_rising(course([0.1, 0.2, 0.3, 0.4], [0.1] * 4), "steps", STEPS) is None


def test_the_end_of_a_cosine_is_tested_where_the_rate_is_small() -> None:
    config = Classifier(schedule="steps", steps=400, decay="cosine", lr=0.1)
    rates = [StepSchedule().lr_of(10 * i + 9, config) for i in range(40)]
    small = [rate <= 0.01 for rate in rates]
    assert 8 <= sum(small) <= 9  # the last ones; the cosine is below a tenth in its last fifth
    up = np.where(small, 0.7 + 0.005 * np.arange(40), 0.5)
    assert is_rising(course(up.tolist(), rates), "steps", config) is True
    down = np.where(small, 0.9 - 0.005 * np.arange(40), 0.5)
    assert is_rising(course(down.tolist(), rates), "steps", config) is False


def test_noise_around_a_plateau_raises_few_false_alarms() -> None:
    rng = np.random.default_rng(0)
    for rates in ([0.1] * 20 + [0.01] * 10 + [0.001] * 10, [0.1] * 40):
        alarms = [is_rising(course(noise(rng, 40).tolist(), rates), "steps", STEPS) for _ in range(1000)]
        assert 0 < np.mean(alarms) < 0.02  # stated level: 1%


def test_a_flat_run_of_the_plateau_rule_raises_few_false_alarms() -> None:
    """Patience 10 and at most 30 epochs: the rule ends some runs itself; few others count as rising."""
    config, rng, alarms = Classifier(max_epochs=30), np.random.default_rng(1), 0
    for _ in range(500):
        state, points = PlateauSchedule(0.1), []
        for top1 in noise(rng, 30).tolist():
            points.append(Validation(state.epochs + 1, state.epochs, state.lr, 0.0, top1))
            state = state.step(top1, config)
            if state.finished(config):
                break
        alarms += is_rising(points, state.reason(config), config) is True
    assert alarms < 0.1 * 500


def test_a_steady_rise_is_found_through_the_noise() -> None:
    rng = np.random.default_rng(2)
    rise = 0.004 * np.arange(20)  # 0.4 points per validation, 0.7 times the noise
    found = [
        is_rising(course((noise(rng, 20) + rise).tolist(), [0.1] * 20), "steps", STEPS) for _ in range(200)
    ]
    assert np.mean(found) > 0.9
