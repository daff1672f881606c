"""How a row uses its images: replaced, weighed, mixed, or without added ones at the end of training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from fake_cuda import fake_gpu
from full_size import CUDA, classified
from test_classifier import ALONE, TINY, Project, assert_same, labelled, run_tiny
from test_fake_cuda import waits_inside
from test_training_config import STEPS
from test_training_config import STUDY as PLAIN

from augbench.artifacts.pool import Lack, read_index, with_lacks
from augbench.artifacts.store import Store
from augbench.classifier import mixing
from augbench.classifier import train as training
from augbench.classifier.images import LabelledImages
from augbench.classifier.mixing import Mix, Share, Targets, draw_mix
from augbench.classifier.model import build
from augbench.classifier.replacing import replace_real
from augbench.classifier.schedule import Passes
from augbench.classifier.stage import Sources, open_runs
from augbench.classifier.state import State
from augbench.classifier.step import Gradients
from augbench.classifier.train import train_run
from augbench.commands.check.training import batch_problems, pass_images, training_warnings
from augbench.config.methods import SampleMethod
from augbench.config.study import Study, merge, parse_study
from augbench.config.use import CONCATENATED, Use
from augbench.errors import UserError
from augbench.files import read_json, write_json
from augbench.plan import recipes
from augbench.plan.paths import Plan
from augbench.report.tables.table1 import early_weights_notes

pytestmark = pytest.mark.usefixtures("one_thread")

STUDY = merge(PLAIN, {"methods": {"used": {"mechanism": "draw", "pool": "retrieval"}}})
NEUTRAL: dict[str, Any] = {
    "replace": 0.0, "weight": 1.0, "mixup": 0.0, "cutmix": 0.0, "pairs": "within", "label_smoothing": 0.0,
    "real_at_end": 0.0, "head_only": False,
}  # fmt: skip


def study(use: dict[str, Any], row: str = "used", **changes: Any) -> Study:
    return parse_study(merge(merge(STUDY, {"methods": {row: {"use": use}}}), changes))


# --- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "use", "error"),
    [
        ("used", {"weight": 0}, r"methods\.used\.use\.weight: 0; allowed: greater than 0"),
        ("used", {"replace": 1.1}, r"methods\.used\.use\.replace: 1\.1; allowed: less than or equal to 1"),
        ("used", {"mixup": -1}, r"methods\.used\.use\.mixup: -1; allowed: greater than or equal to 0"),
        ("used", {"label_smoothing": 1}, r"use\.label_smoothing: 1; allowed: less than 1"),
        ("used", {"pairs": "across"}, r"use\.pairs: 'across'; goes with mixup or cutmix, neither"),
        ("used", {"head_only": True}, r"use\.head_only: true; goes with real_at_end, which is not set"),
        ("used", {"replace": 1, "weight": 2}, r"use\.weight: 2; allowed with replace below 1; at 1, no real"),
        ("used", {"replace": 1, "real_at_end": 0.5}, r"use\.real_at_end: 0\.5; allowed with replace below 1"),
        ("used", {"replace": 1, "mixup": 1, "pairs": "across"}, r"use\.pairs: 'across'; allowed with replace"),
        ("used", {"real_at_end": 0.2}, r"real_at_end: 0\.2; goes with classifier\.schedule: steps; plateau"),
        ("none", {"weight": 0.5}, r"methods\.none\.use\.weight: 0\.5; goes with a row that adds images"),
        ("none", {"real_at_end": 0.5}, r"use\.real_at_end: 0\.5; goes with a row that adds .* label_smoothing$"),
        ("used", {"cut_mix": 1}, r"use\.cut_mix: unknown key; did you mean 'cutmix'"),
    ],
)  # fmt: skip
def test_a_use_that_means_nothing_is_one_line(row: str, use: dict[str, Any], error: str) -> None:
    with pytest.raises(UserError, match=error):
        study(use, row)


def test_no_more_images_are_replaced_than_a_set_has() -> None:
    half = {"methods": {"used": {"added_per_training_image": 0.5}}}
    assert study({"replace": 0.5}, **half).methods["used"].use.replace == 0.5
    with pytest.raises(
        UserError, match=r"use\.replace: 0\.6; allowed: at most added_per_training_image, 0\.5"
    ):
        study({"replace": 0.6}, **half)
    with pytest.raises(UserError, match=r"use\.replace: 0\.6; allowed without fill_to, which adds images"):
        study({"replace": 0.6}, methods={"used": {"fill_to": 200}})


def test_the_end_of_training_is_some_of_the_steps() -> None:
    assert study({"real_at_end": 0.2}, classifier=STEPS).methods["used"].use.end_steps(300) == 60
    with pytest.raises(UserError, match="allowed: a share of 300 steps that is neither none nor all of them"):
        study({"real_at_end": 0.001}, classifier=STEPS)


def test_recipes_of_classifiers_have_a_use_only_if_it_is_set_and_no_other_recipe_has_it() -> None:
    plain = recipes.classifier_recipe(study({}), "used")
    assert recipes.classifier_recipe(study(NEUTRAL), "used") == plain and "use" not in plain
    assert recipes.table_recipe(study(NEUTRAL)) == recipes.table_recipe(study({}))
    use = {"weight": 0.5, "mixup": 0.2, "pairs": "across"}
    assert recipes.classifier_recipe(study(use), "used") == {**plain, "use": use}
    assert recipes.resample_recipe(study(use), "used") == recipes.resample_recipe(study({}), "used")
    found, expected = (
        [make(config, "retrieval") for make in (recipes.retrieve_recipe, recipes.search_recipe)]
        for config in (study(use, "retrieval"), study({}))
    )
    assert found == expected


def test_a_row_keeps_its_use_in_every_draw_of_the_training_images() -> None:
    unfolded = study({"weight": 0.5}, "retrieval", dataset={"draws": 2}).unfolded
    assert unfolded.methods["retrieval_draw1"].use == Use(weight=0.5)
    assert unfolded.methods["used_draw1"].use == CONCATENATED


def test_a_row_with_a_use_of_its_own_is_no_size_of_its_pool() -> None:
    assert Plan(study({}), ("a",)).scaling == {"retrieval": "retrieval", "used": "retrieval"}
    assert Plan(study({"weight": 0.5}), ("a",)).scaling == {}


def test_a_row_of_real_images_with_a_use_is_a_control_and_no_baseline() -> None:
    rows = study({"mixup": 0.2}, "none").methods
    assert rows["none"].group == "control" and study({}, "none").methods["none"].group == "real"


def test_what_is_set_is_told_in_words() -> None:
    assert CONCATENATED.words == ""
    use = Use(replace=0.5, weight=0.3, mixup=0.2, cutmix=1.0, pairs="across", label_smoothing=0.1)
    assert use.words == (
        "added images replace 50% of the real images of each class, both drawn anew for each run; the loss "
        "of an"
        " added image has the weight 0.3 (weighted mean over a batch); MixUp (alpha 0.2) or CutMix (alpha 1) "
        "with"
        " partners of the other kind, real or added; label smoothing 0.1"
    )
    end = Use(real_at_end=0.25, head_only=True)
    assert end.words == "real images only in the last 25% of the steps, which train the last layer only"


# --- batches --------------------------------------------------------------------------------------

LABELS = np.array([0, 1, 2])
ADDED = np.array([False, True, True])
IMAGES = torch.tensor([1.0, 2.0, 5.0]).view(3, 1, 1, 1).expand(3, 3, 4, 4)


def share_of(use: Use, mix: Mix | None, places: tuple[int, ...] = (0, 1, 2)) -> Share:
    return Share.of(np.array(places), ADDED, mix, use)


def test_mixup_is_a_weighted_sum_of_an_image_and_its_partner() -> None:
    share = share_of(Use(mixup=1.0), Mix(np.array([2, 0, 1]), 0.75))
    mixed, targets = share.mixed(IMAGES, LABELS)
    assert mixed[:, 0, 0, 0].tolist() == [0.75 + 0.25 * 5, 1.5 + 0.25, 3.75 + 0.5]
    assert targets.partners is not None
    assert (targets.labels.tolist(), targets.partners.labels.tolist()) == ([0, 1, 2], [2, 0, 1])
    assert (targets.share, share.total) == (0.75, 3)


def test_cutmix_shows_the_partner_in_the_same_box_of_each_image() -> None:
    share = share_of(Use(cutmix=1.0), Mix(np.array([2, 0, 1]), 0.75, (0, 1, 2, 3)))
    mixed, targets = share.mixed(IMAGES, LABELS)
    assert mixed[0, 2].tolist() == [[1, 5, 5, 1], [1, 5, 5, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert mixed[1, 0, 0].tolist() == [2, 1, 1, 2] and mixed[2, 0, 1].tolist() == [5, 2, 2, 5]
    assert targets.share == 0.75


def test_a_process_reads_the_partners_that_others_have_in_their_share() -> None:
    use, mix = Use(mixup=1.0, weight=0.5), Mix(np.array([2, 0, 1]), 0.75)
    whole, targets = share_of(use, mix).mixed(IMAGES, LABELS)
    for places, read in (((0,), [0, 2]), ((1, 2), [1, 2, 0])):
        share = share_of(use, mix, places)
        assert share.read.tolist() == read
        mixed, own = share.mixed(IMAGES[share.read], LABELS)
        assert torch.equal(mixed, whole[list(places)])
        assert own.labels.tolist() == list(places) and own.partners is not None and own.weights is not None
        assert own.partners.labels.tolist() == mix.partners[list(places)].tolist()
        assert targets.weights is not None and torch.equal(own.weights, targets.weights[list(places)])
        assert share.total == share_of(use, mix).total


def test_nothing_of_the_partner_leaves_image_and_loss_as_they_are() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 3.0], [1.0, 1.5, 0.5]])
    _, plain = share_of(CONCATENATED, None).mixed(IMAGES, LABELS)
    for use, mix in (
        (Use(mixup=1.0), Mix(np.array([2, 0, 1]), 1.0)),
        (Use(cutmix=1.0), Mix(np.array([2, 0, 1]), 1.0, (2, 2, 2, 2))),
    ):
        mixed, targets = share_of(use, mix).mixed(IMAGES, LABELS)
        assert torch.equal(mixed, IMAGES) and torch.equal(targets.loss(logits), plain.loss(logits))


def test_the_box_of_cutmix_lies_in_the_image_and_its_area_is_the_partners_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Drawn:
        """Draws a share of 0.75, so that the box of an image of 8 pixels has a side of 4, around a place."""

        def __init__(self, middle: tuple[int, int]) -> None:
            self.middle = middle

        def beta(self, *_: float) -> float:
            return 0.75

        def permutation(self, count: int) -> np.ndarray:
            return np.arange(count)[::-1]

        def integers(self, side: int, size: int) -> np.ndarray:
            return np.array(self.middle)

    for middle, box, share in (((4, 3), (2, 1, 6, 5), 0.75), ((7, 0), (5, 0, 8, 2), 1 - 6 / 64)):
        monkeypatch.setattr(mixing.np.random, "default_rng", lambda _, middle=middle: Drawn(middle))
        found = draw_mix(Use(cutmix=1.0), ADDED, 8, 0)
        assert found is not None and found.partners.tolist() == [2, 1, 0]
        assert (found.box, found.share) == (box, share)


def test_shares_are_drawn_from_the_beta_distribution_and_steps_take_mixup_or_cutmix() -> None:
    use = Use(mixup=0.5, cutmix=2.0)
    found = [mix for seed in range(2000) if (mix := draw_mix(use, ADDED, 32, seed)) is not None]
    plain = [mix.share for mix in found if mix.box is None]
    assert 900 < len(plain) < 1100
    # Beta(a, a) has the mean 1/2 and the variance 1 / (4 (2 a + 1)): 1/8 for a = 0.5
    assert np.mean(plain) == pytest.approx(0.5, abs=0.04) and np.var(plain) == pytest.approx(1 / 8, abs=0.01)
    again = draw_mix(use, ADDED, 32, 7)
    assert again is not None and again.share == found[7].share
    assert draw_mix(Use(label_smoothing=0.1), ADDED, 32, 7) is None


def test_partners_across_are_of_the_other_kind_and_used_about_equally_often() -> None:
    added = np.array([False, True, True, False, True, True, True])
    for seed in range(20):
        mix = draw_mix(Use(mixup=1.0, pairs="across"), added, 32, seed)
        assert mix is not None and (added[mix.partners] != added).all()
        counts = np.bincount(mix.partners, minlength=7)
        assert sorted(counts[~added]) == [2, 3] and sorted(counts[added]) == [0, 0, 0, 1, 1]
        within = draw_mix(Use(mixup=1.0), added, 32, seed)
        assert within is not None and sorted(within.partners) == list(range(7))
    alone = draw_mix(Use(mixup=1.0, pairs="across"), np.zeros(3, dtype=bool), 32, 0)
    assert alone is not None and alone.partners.tolist() == [0, 1, 2]


# --- losses ---------------------------------------------------------------------------------------

# probabilities of three classes; the cross-entropies of labels 0, 1, 2 are ln 2, ln 4, ln 8
LOGITS = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25], [0.5, 0.375, 0.125]], dtype=torch.float64).log()
LN2 = float(np.log(2))


def mean_loss(share: Share) -> float:
    """Loss of the share, as the gradients of a step count it."""
    _, targets = share.mixed(IMAGES[share.read], LABELS)
    return float(targets.loss(LOGITS)) * share.own / share.total


def test_the_loss_is_the_weighted_mean_over_the_batch() -> None:
    assert mean_loss(share_of(CONCATENATED, None)) == pytest.approx((1 + 2 + 3) * LN2 / 3)
    # one real image of weight 1, two added ones of weight 0.5
    assert mean_loss(share_of(Use(weight=0.5), None)) == pytest.approx((1 + 0.5 * 2 + 0.5 * 3) * LN2 / 2)
    assert mean_loss(share_of(Use(weight=3.0), None)) == pytest.approx((1 + 3 * 2 + 3 * 3) * LN2 / 7)


def test_each_label_of_a_mixed_image_has_its_share_and_the_weight_of_its_image() -> None:
    mix = Mix(np.array([1, 0, 0]), 0.75)  # partners' labels 1, 0, 0, of kinds added, real, real
    partners = 2 + 1 + 1  # their cross-entropies, in ln 2
    plain = 0.75 * (1 + 2 + 3) + 0.25 * partners
    assert mean_loss(share_of(Use(mixup=1.0), mix)) == pytest.approx(plain * LN2 / 3)
    weighed = 0.75 * (1 + 0.5 * 2 + 0.5 * 3) + 0.25 * (0.5 * 2 + 1 + 1)
    total = 0.75 * (1 + 0.5 + 0.5) + 0.25 * (0.5 + 1 + 1)
    assert mean_loss(share_of(Use(mixup=1.0, weight=0.5), mix)) == pytest.approx(weighed * LN2 / total)


def test_smoothed_labels_give_every_class_an_equal_part() -> None:
    uniform = (1 + 2 + 2) / 3, (1 + 2 + 2) / 3, (1 + np.log(8 / 3) / LN2 + 3) / 3
    smoothed = sum(0.7 * own + 0.3 * rest for own, rest in zip((1, 2, 3), uniform, strict=True))
    assert mean_loss(share_of(Use(label_smoothing=0.3), None)) == pytest.approx(smoothed * LN2 / 3)


def test_gradients_are_those_of_the_weighted_mean() -> None:
    model = build(TINY, 3, 0).eval()
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    share = share_of(Use(weight=0.25), None)
    mixed, targets = share.mixed(images, LABELS)
    loss = Gradients(model, TINY, ALONE)(mixed, targets, share.total)
    found = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    losses = F.cross_entropy(model(images), torch.from_numpy(LABELS), reduction="none")
    summed = losses[0] + 0.25 * losses[1] + 0.25 * losses[2]
    (summed / 1.5).backward()
    assert loss.item() == pytest.approx(summed.item(), rel=1e-6)
    for ours, parameter in zip(found, model.parameters(), strict=True):
        assert parameter.grad is not None and torch.allclose(ours, parameter.grad, atol=1e-6)


def test_targets_are_cut_with_their_images() -> None:
    _, targets = share_of(Use(mixup=1.0, weight=0.5), Mix(np.array([1, 0, 0]), 0.75)).mixed(IMAGES, LABELS)
    parts = [targets[part].loss(LOGITS[part]) * len(LOGITS[part]) for part in (slice(0, 1), slice(1, 3))]
    assert isinstance(targets, Targets) and float(sum(parts)) == pytest.approx(
        float(targets.loss(LOGITS)) * 3
    )


# --- replaced images ------------------------------------------------------------------------------


def replaced(share: float, run: int = 0, ranked: bool = False) -> tuple[list[int], list[int]]:
    """Replace among three and five real images of two classes; the set has four and two added ones."""
    real, added = np.array([0, 0, 0, 1, 1, 1, 1, 1]), np.array([0, 0, 0, 0, 1, 1])
    stays, used = replace_real(real, added, share, class_ids="ab", run=run, study_seed=3, ranked=ranked)
    assert np.bincount(np.concatenate([real[stays], added[used]])).tolist() == [3, 5]
    return stays.tolist(), used.tolist()


def test_added_images_replace_a_share_of_each_class_which_keeps_its_size() -> None:
    assert replaced(0.0) == ([*range(8)], [])
    # 1 of 3 and 2 of 5 images, rounded up
    stays, used = replaced(0.25)
    assert len(stays) == 5 and sum(row < 3 for row in stays) == 2
    assert len(used) == 3 and used[1:] == [4, 5]
    # all 3, and the two that there are
    stays, used = replaced(1.0)
    assert len(stays) == 3 and min(stays) >= 3 and len(used) == 5


def test_runs_replace_others_and_a_smaller_share_some_of_the_same() -> None:
    runs = [replaced(0.25, run) for run in range(8)]
    assert len({tuple(stays) for stays, _ in runs}) > 1 and runs[3] == replaced(0.25, 3)
    for run in range(8):
        few, more = replaced(0.25, run), replaced(0.6, run)
        assert {*more[0]} <= {*few[0]} and {*few[1]} <= {*more[1]}
    assert all(replaced(0.5, run, ranked=True)[1] == [0, 1, 4, 5] for run in range(8))


def test_a_row_that_replaces_images_records_those_it_was_trained_on(tmp_path: Path) -> None:
    project = Project(tmp_path)
    row = SampleMethod(mechanism="sample", use=Use(replace=0.5))
    project.study = project.study.model_copy(update={"methods": {**project.study.methods, "m": row}})
    _, folders = project.train()
    results = [read_json(folder / "result.json") for folder in folders]
    # 12 real images of two classes and as many added ones, of which half are used
    assert all((result["n_real"], result["n_added"]) == (12, 12) for result in results)
    assert all(result["use"] == {"replace": 0.5} for result in results)
    # 24 images in batches of 16 are 2 steps per epoch
    assert [result["steps"] for result in results] == [4, 4]
    assert project.train()[0].tally.made == 0


def test_a_row_that_replaces_images_lacks_those_that_should_replace_real_ones(tmp_path: Path) -> None:
    """Half of 12 real images of a class are replaced: a set with 8 of 12 has enough, one with 2 lacks 4."""
    project = Project(tmp_path)
    row = SampleMethod(mechanism="sample", use=Use(replace=0.5))
    project.study = project.study.model_copy(update={"methods": {**project.study.methods, "m": row}})
    for manifest, there in zip(project.manifests, (8, 2), strict=True):
        drawn = read_index(manifest)
        first = drawn.filter([name == "a" for name in drawn.column("class_id").to_pylist()]).slice(0, there)
        rest = drawn.filter([name == "b" for name in drawn.column("class_id").to_pylist()])
        short = with_lacks(pa.concat_tables([first, rest]), {"a": Lack(12 - there, 12)})
        pq.write_table(short, manifest)
    folders = [project.folder / f"classifiers/m/selected/{run}" for run in (0, 1)]
    sources = Sources(
        "m", project.split("train"), project.split("val"), project.folder / "classes.parquet",
        dict(zip(folders, project.manifests, strict=True)), (),
    )  # fmt: skip
    store = Store(project.folder / ".store")
    assert [run.lacking for run in open_runs(project.study, store, sources)] == [0, 4]
    plain = project.study.model_copy(
        update={"methods": {**project.study.methods, "m": SampleMethod(mechanism="sample")}}
    )
    assert [run.lacking for run in open_runs(plain, store, sources)] == [4, 10]


# --- training -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sets() -> tuple[LabelledImages, LabelledImages, LabelledImages]:
    return labelled(0, 60), labelled(1000, 40), labelled(2000, 50)


Sets = tuple[LabelledImages, LabelledImages, LabelledImages]
FEW = {"schedule": "steps", "steps": 8, "validate_every": 2, "keep": "last", "max_epochs": 270}
ALL = Use(
    weight=0.5, mixup=0.4, cutmix=1.0, pairs="across", label_smoothing=0.1, real_at_end=0.5, head_only=True
)


@pytest.mark.parametrize("name", NEUTRAL)
def test_a_neutral_use_trains_to_the_plain_rows_weights(sets: Sets, name: str) -> None:
    """A row with the key at its neutral value, through the config; and the plain row."""
    use = study({name: NEUTRAL[name]}).methods["used"].use
    found, plain = (
        train_run(TINY.model_copy(update={**FEW, "steps": 3}), 2, *sets, 0, 5, ALONE, use=given, stays=stays)
        for given, stays in ((use, np.arange(60)), (CONCATENATED, None))
    )
    assert_same(found, plain)


def test_a_weight_next_to_1_goes_another_way_to_the_plain_rows_weights(sets: Sets) -> None:
    """In float32 the weight is 1. Only the sum that is the reported loss has another order."""
    config = TINY.model_copy(update={**FEW, "steps": 3})
    found, plain = (
        train_run(config, 2, *sets, 0, 5, ALONE, use=use) for use in (Use(weight=1 + 1e-12), CONCATENATED)
    )
    assert all(torch.equal(found.state[name], value) for name, value in plain.state.items())
    losses = [[point.train_loss for point in result.history] for result in (found, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("box", [None, (2, 2, 2, 2)])
def test_partners_without_a_share_leave_the_plain_rows_weights(
    sets: Sets, monkeypatch: pytest.MonkeyPatch, box: tuple[int, int, int, int] | None
) -> None:
    def unmixed(use: Use, added: np.ndarray, side: int, seed: int) -> Mix | None:
        partners = np.random.default_rng(seed).permutation(len(added))
        return Mix(partners, 1.0, box) if use.mixes else None

    monkeypatch.setattr(training, "draw_mix", unmixed)
    config = TINY.model_copy(update={**FEW, "steps": 3})
    found, plain = (
        train_run(config, 2, *sets, 0, 5, ALONE, use=use) for use in (Use(mixup=1.0), CONCATENATED)
    )
    assert_same(found, plain)


@pytest.mark.parametrize(
    "use",
    [
        {"weight": 0.5}, {"mixup": 1.0}, {"cutmix": 1.0, "pairs": "across"}, {"label_smoothing": 0.1},
        {"real_at_end": 0.5}, {"real_at_end": 0.5, "head_only": True},
    ],
    ids=lambda use: "_".join(use),
)  # fmt: skip
def test_each_use_trains_other_weights(sets: Sets, use: dict[str, Any]) -> None:
    plain, found = run_tiny(sets, **FEW), run_tiny(sets, use=Use(**use), **FEW)
    assert not torch.equal(found.state["fc.weight"], plain.state["fc.weight"])
    assert found.steps == plain.steps and all(np.isfinite(entry.train_loss) for entry in found.history)


@pytest.mark.parametrize("use", [{"mixup": 1.0}, {"cutmix": 1.0}, {"label_smoothing": 0.2}])
def test_a_row_without_added_images_is_mixed_too(sets: Sets, use: dict[str, float]) -> None:
    real, _, validation = sets
    config = TINY.model_copy(update={**FEW, "steps": 3})
    plain, found = (
        train_run(config, 2, real, None, validation, 0, 5, ALONE, use=given, repeats=2)
        for given in (CONCATENATED, Use(**use))
    )
    assert not torch.equal(found.state["fc.weight"], plain.state["fc.weight"])


@pytest.mark.parametrize("after", [1, 3])
def test_an_interrupted_run_goes_on_with_the_same_partners_and_stages(
    sets: Sets, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, save = run_tiny(sets, use=ALL, **FEW), State.save

    def save_and_stop(self: State, path: Path) -> None:
        save(self, path)
        if len(self.history) == after:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(State, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(sets, use=ALL, checkpoint=tmp_path / "run.pt", **FEW)
    assert_same(run_tiny(sets, use=ALL, checkpoint=tmp_path / "run.pt", **FEW), whole)


def test_passes_over_real_images_follow_those_over_all() -> None:
    passes = Passes(per_epoch=7, switch=11, per_real_epoch=4)
    assert [passes.at(step) for step in (0, 6, 8, 11, 14, 15)] == [
        (0, 0, 7, False),
        (0, 6, 1, False),
        (1, 1, 3, False),  # of the 6 batches that are left in this pass, 3 come before the switch
        (2, 0, 4, True),
        (2, 3, 1, True),
        (3, 0, 4, True),
    ]
    assert Passes(7).at(15) == (2, 1, 6, False)


def test_the_last_steps_see_real_images_only(sets: Sets, monkeypatch: pytest.MonkeyPatch) -> None:
    cut, seen = training._Training._cut, []

    def noted(self: Any, crops: Any, batches: list[np.ndarray]) -> Iterator[torch.Tensor]:
        seen.extend(batches)
        return cut(self, crops, batches)

    monkeypatch.setattr(training._Training, "_cut", noted)
    steps = {**FEW, "steps": 23, "validate_every": 5}
    found = run_tiny(sets, use=Use(real_at_end=0.4), **steps)  # 9 steps, from step 14 on
    assert sorted(np.concatenate(seen[:7])) == [*range(100)]
    assert sorted(np.concatenate(seen[14:18])) == sorted(np.concatenate(seen[18:22])) == [*range(60)]
    assert len(seen) == 23 and max(seen[22]) < 60
    assert [entry.epoch for entry in found.history] == [0, 1, 2, 3, 4]


def test_the_head_alone_trains_at_the_end(sets: Sets, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracy, states = training._accuracy, []

    def noted(model: torch.nn.Module, *given: Any) -> float:
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        return accuracy(model, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "_accuracy", noted)
    run_tiny(sets, use=Use(real_at_end=0.5, head_only=True), **FEW)
    before, switch, after, last = states
    for name, value in switch.items():
        head = name.startswith("fc.")
        assert torch.equal(last[name], after[name]) is torch.equal(value, last[name]) is not head, name
        assert head or name.endswith("running_mean") or not value.ndim or not torch.equal(before[name], value)


@pytest.mark.parametrize("box", [None, (0, 1, 2, 3)])
def test_a_gpu_does_not_wait_for_mixing_or_weights(box: tuple[int, int, int, int] | None) -> None:
    with fake_gpu() as gpu:
        images, logits = torch.zeros(3, 3, 4, 4, device=CUDA), torch.zeros(3, 3, device=CUDA)
        share = share_of(Use(mixup=1.0, weight=0.5, label_smoothing=0.1), Mix(np.array([2, 0, 1]), 0.75, box))
        with gpu.counting() as waits:
            mixed, targets = share.mixed(images, LABELS)
            loss = targets.loss(logits)
    assert mixed.device.type == loss.device.type == "cuda" and waits.total() == 0, waits


@pytest.mark.full
def test_a_step_at_full_size_does_not_wait_for_mixing_weights_or_stages(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with fake_gpu() as gpu:
        parts = waits_inside(gpu, monkeypatch, training._Training, "_part")
        classified(16, tmp_path, use=ALL)
    assert len(parts) == 2 and sum(part.total() for part in parts) == 0, parts


# --- check and plan -------------------------------------------------------------------------------

TRAIN = {f"class {label}": 50 for label in range(10)}


def test_a_row_that_replaces_images_has_as_many_in_a_pass_as_there_are_real_ones() -> None:
    assert pass_images(study({"weight": 0.5}), "used", TRAIN) == 1000
    assert pass_images(study({"replace": 0.3}), "used", TRAIN) == 500


def test_validations_before_the_last_stage_do_not_tell_whether_accuracy_rises_in_it() -> None:
    rows = {
        "classifier": {**STEPS, "lower_at": [], "keep": "last"}
    }  # validations every 8 steps; 18 after step 156
    assert [*training_warnings(study({}, **rows), TRAIN)] == []
    # 33 steps from step 267 on, with validations at 272, 280, 288, 296 and 300
    (warning,) = training_warnings(study({"real_at_end": 0.11}, **rows), TRAIN)
    assert "so 5 validations can tell" in warning and "the start of use.real_at_end" in warning


def test_weights_from_before_the_last_stage_may_be_scored_and_the_check_says_so() -> None:
    end, steps = {"real_at_end": 0.5}, {**STEPS, "lower_at": [], "validate_every": 2}
    (warning,) = training_warnings(study(end, classifier={**steps, "keep": "best"}), TRAIN)
    assert warning.startswith("warning: classifier.keep: best, and use.real_at_end in used: the weights")
    assert [*training_warnings(study(end, classifier={**steps, "keep": "last"}), TRAIN)] == []
    assert [*training_warnings(study({}, classifier={**steps, "keep": "best"}), TRAIN)] == []


def test_the_footer_counts_runs_whose_scored_weights_are_from_before_the_last_stage(tmp_path: Path) -> None:
    """Steps on real images alone are the last 30 of 60; runs keep the weights after step 30, 40 and 60."""
    steps = {"schedule": "steps", "steps": 60, "keep": "best", "validate_every": 10}
    use, results = study({"real_at_end": 0.5}, classifier=steps), []
    for run, kept in enumerate((30, 40, 60)):
        points = [
            {"step": step, "epoch": 0, "lr": 0.1, "train_loss": 1.0, "val_top1": 0.5}
            for step in range(10, 61, 10)
        ]
        history = {"validations": points, "best_epoch": 0, "stopped": "steps", "kept_step": kept}
        write_json(tmp_path / f"{run}/history.json", history)
        result = {"method": "used", "run": run, "n_real": 100, "n_added": 100}
        write_json(tmp_path / f"{run}/result.json", result)
        results.append(tmp_path / f"{run}/result.json")
    (note,) = early_weights_notes(use, results)
    assert note.startswith("used: in 1 of 3 runs, the best validation accuracy")
    assert [*early_weights_notes(use, results[1:])] == []
    last = study({"real_at_end": 0.5}, classifier={**steps, "keep": "last"})
    assert [*early_weights_notes(last, results)] == []


def test_real_images_that_are_too_few_at_the_end_are_named_before_the_run() -> None:
    groups = {"classifier": {**STEPS, "batch_norm_groups": 100}}
    assert not [*batch_problems(study({"real_at_end": 0.2}, **groups), TRAIN)]
    few = [*batch_problems(study({"real_at_end": 0.2, "replace": 0.7}, **groups), TRAIN)]
    assert [str(problem) for problem in few] == [
        "classifier.batch_norm_groups: 100, and row used in the steps of use.real_at_end has batches of 150"
        " images; allowed: at most 75, so that each part has two"
    ]
    one = {name: 1 for name in TRAIN}
    (problem,) = batch_problems(study({"real_at_end": 0.2, "replace": 0.7}, classifier=STEPS), one)
    assert str(problem).endswith("use.real_at_end: 0 real images; at least two are needed")
