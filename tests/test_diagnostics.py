"""Diagnostics of added images: style distance, precision, coverage, agreement, fine-tuning records, table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from augbench.artifacts.pool import build_index, read_index
from augbench.artifacts.shards import ShardRow, encode_image, write_shard
from augbench.artifacts.store import Store
from augbench.config.study import Study, parse_study
from augbench.data import fashion_mnist
from augbench.data.classes import load_class_table, write_class_table
from augbench.data.splits import Split, write_split
from augbench.errors import UserError
from augbench.files import read_json, write_json
from augbench.measures.distances import (
    NEAREST,
    Coverage,
    StyleDistance,
    agreement_percent,
    nearest_sets,
    precision_and_coverage,
    repeated_percent,
    sample_per_class,
    style_distance,
)
from augbench.measures.eyes import Eyes, Seen
from augbench.miniature.corpus.style import clean_images, web_style
from augbench.report.tables.diagnostics import Row, read_rows, refused_per_image, write_diagnostics
from augbench.report.tables.learning import read_learning
from augbench.runtime.job import Job

torch.set_num_threads(1)
PROJECT = Path(__file__).resolve().parents[1]
CLIP, JUDGE = PROJECT / "resources/mini/clip", PROJECT / "resources/mini/judge"
CLASSES = load_class_table("fashion_mnist")
PER_CLASS = 12


@pytest.fixture(scope="module")
def eyes() -> Eyes:
    return Eyes({"folder": CLIP}, JUDGE, CLASSES, torch.device("cpu"))


@pytest.fixture(scope="module")
def garments(garment_files: Path) -> tuple[np.ndarray, np.ndarray]:
    """Grey images ``uint8 (900, 28, 28)`` and labels: three disjoint parts of 30 garments per class."""
    images, labels = fashion_mnist.load(garment_files, "train")
    chosen = np.concatenate(
        [
            np.flatnonzero(labels == label)[30 * part : 30 * part + 30]
            for part in range(3)
            for label in range(10)
        ]
    )
    return images[chosen], labels[chosen]


def pictures(images: torch.Tensor) -> list[Image.Image]:
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]


@pytest.fixture(scope="module")
def seen(eyes: Eyes, garments: tuple[np.ndarray, np.ndarray]) -> dict[str, Seen]:
    """Two parts of clean garments, and the third part in two web styles."""
    images, labels = garments
    parts = {
        "one": clean_images(images[:300]),
        "two": clean_images(images[300:600]),
        "mild": web_style(images[600:], np.arange(300), "mild", 0),
        "strong": web_style(images[600:], np.arange(300), "strong", 0),
    }
    return {name: eyes.look(pictures(part), labels[:300], name) for name, part in parts.items()}


# --- style distance -------------------------------------------------------------------------------


# (cos + 1)^3 is 8, 1 or 0 for a pair of these
RIGHT, UP, LEFT = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([-1.0, 0.0])


def distance(x: torch.Tensor, x_labels: object, y: torch.Tensor, y_labels: object) -> StyleDistance:
    found = style_distance(x, np.array(x_labels), y, np.array(y_labels))
    assert found is not None
    return found


def between(one: Seen, other: Seen) -> StyleDistance:
    return distance(one.embeddings, one.labels, other.embeddings, other.labels)


def test_in_one_class_both_distances_are_kids_without_pairs_of_an_image_with_itself() -> None:
    # x = right, up: 1 inside; y = right, right: 8 inside; between: mean of 8, 8, 1, 1
    found = distance(torch.stack([RIGHT, UP]), [0, 0], torch.stack([RIGHT, RIGHT]), [0, 0])
    assert (found.mixed, found.within_class) == (
        pytest.approx(1 + 8 - 2 * 4.5),
        pytest.approx(1 + 8 - 2 * 4.5),
    )
    # x = right, right: 8 inside; y = left, left, up: mean of 8, 1, 1 inside; between: mean of 0, 0, 1
    found = distance(torch.stack([RIGHT, RIGHT]), [0, 0], torch.stack([LEFT, LEFT, UP]), [0, 0, 0])
    assert (found.mixed, found.within_class) == (
        pytest.approx(8 + 10 / 3 - 2 / 3),
        pytest.approx(8 + 10 / 3 - 2 / 3),
    )


def test_the_mixture_takes_classes_in_equal_shares_whatever_their_numbers() -> None:
    x, y = torch.stack([RIGHT, RIGHT, RIGHT, UP, UP]), torch.stack([RIGHT, RIGHT, UP, UP])
    same = distance(x, [0, 0, 0, 1, 1], y, [0, 0, 1, 1])
    assert same.mixed == pytest.approx(0) and same.within_class == pytest.approx(0)
    # x: right and left, so (8 + 8 + 0 + 0) / 4; y: right and up, so (8 + 8 + 1 + 1) / 4;
    # between: mean of 8, 1, 0, 1; within class 1: 8 + 8 - 2
    other = distance(torch.stack([RIGHT, RIGHT, RIGHT, LEFT, LEFT]), [0, 0, 0, 1, 1], y, [0, 0, 1, 1])
    assert other.mixed == pytest.approx(4 + 4.5 - 2 * 2.5) and other.within_class == pytest.approx(
        (0 + 14) / 2
    )


def test_the_nearest_set_is_the_one_whose_classes_look_most_alike() -> None:
    labels = np.array([0, 0, 1, 1])
    sets = {
        "right, up": (torch.stack([RIGHT, RIGHT, UP, UP]), labels),
        "right, left": (torch.stack([RIGHT, RIGHT, LEFT, LEFT]), labels),
        "left, left": (torch.stack([LEFT, LEFT, LEFT, LEFT]), labels),
        "another class": (torch.stack([UP, UP]), np.array([7, 7])),
    }
    # right and right: 0; up and left: 8 + 8 - 2; right and left: 8 + 8
    assert nearest_sets(sets) == {
        "right, up": ("right, left", pytest.approx((0 + 14) / 2)),
        "right, left": ("right, up", pytest.approx((0 + 14) / 2)),
        "left, left": ("right, left", pytest.approx((16 + 0) / 2)),
    }
    # one class in common is enough
    assert nearest_sets({"a": sets["right, up"], "b": (sets["another class"][0], np.array([1, 1]))}) == {
        "a": ("b", pytest.approx(0)),
        "b": ("a", pytest.approx(0)),
    }


def test_classes_that_show_each_other_differ_within_a_class_only() -> None:
    x, y = torch.stack([RIGHT, RIGHT, UP, UP]), torch.stack([RIGHT, RIGHT, UP, UP])
    swapped = distance(x, [1, 1, 0, 0], y, [0, 0, 1, 1])
    assert swapped.mixed == pytest.approx(0) and swapped.within_class == pytest.approx(8 + 8 - 2 * 1)


def test_classes_with_a_single_image_have_no_distance() -> None:
    x, labels = torch.stack([RIGHT, RIGHT, UP]), np.array([0, 0, 1])
    assert style_distance(x[1:], labels[1:], x, labels) is None
    assert distance(x, labels, x[[0, 0, 2, 2]], [0, 0, 1, 1]) == StyleDistance(0, 0)  # class 0 only


def test_large_sets_are_summed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.nn.functional.normalize(
        torch.randn(40, 8, generator=torch.Generator().manual_seed(0)), dim=1
    )
    labels = np.arange(40) % 3
    whole = distance(points[:25], labels[:25], points[25:], labels[25:])
    monkeypatch.setattr("augbench.measures.distances.KERNEL_VALUES", 70)
    parts = distance(points[:25], labels[:25], points[25:], labels[25:])
    assert (parts.mixed, parts.within_class) == (
        pytest.approx(whole.mixed),
        pytest.approx(whole.within_class),
    )


def test_equal_distributions_have_distance_zero_on_average() -> None:
    generator, labels = torch.Generator().manual_seed(0), np.arange(60) % 3

    def draw(shift: float) -> torch.Tensor:
        """Draw three classes, each with its own direction; ``shift`` moves them all."""
        points = torch.randn(60, 4, generator=generator) / 2 + torch.eye(4)[labels] + shift * torch.eye(4)[3]
        return torch.nn.functional.normalize(points, dim=1)

    same = [distance(draw(0), labels, draw(0), labels) for _ in range(60)]
    for values in ([found.mixed for found in same], [found.within_class for found in same]):
        assert min(values) < 0 < max(values)
        assert abs(np.mean(values)) < 3 * np.std(values) / 60**0.5 < 0.06
    shifted = distance(draw(0), labels, draw(1), labels)
    assert shifted.mixed > 0.5 and shifted.within_class > 0.5


def test_web_style_is_farther_than_other_clean_images(seen: dict[str, Seen]) -> None:
    clean, mild, strong = (between(seen[name], seen["one"]) for name in ("two", "mild", "strong"))
    assert abs(clean.mixed) < mild.mixed / 5 and 1.5 * mild.mixed < strong.mixed
    assert abs(clean.within_class) < mild.within_class / 5 and 1.5 * mild.within_class < strong.within_class


def test_wrong_labels_are_no_style(seen: dict[str, Seen]) -> None:
    images, real = seen["two"], seen["one"]
    right, wrong = between(images, real), between(replace(images, labels=(images.labels + 1) % 10), real)
    assert wrong.mixed == pytest.approx(right.mixed, abs=1e-9)
    assert wrong.within_class > 10 * abs(right.within_class)


# --- precision, coverage, repeated images ---------------------------------------------------------


def on_a_line(*places: float) -> torch.Tensor:
    return torch.tensor(places)[:, None]


def covered(added: torch.Tensor, added_labels: object, real: torch.Tensor, real_labels: object) -> Coverage:
    found = precision_and_coverage(added, np.array(added_labels), real, np.array(real_labels))
    assert found is not None
    return found


SIX = on_a_line(0, 1, 2, 3, 4, 5)  # radii, to the fifth nearest neighbour: 5, 4, 3, 3, 4, 5


def test_precision_and_coverage_are_those_computed_by_hand() -> None:
    # -5 is on the ball of 0, 10 on that of 5, 10.5 in none; the balls of 0 and 5 hold an added image
    found = covered(on_a_line(-5, 10, 10.5), [0, 0, 0], SIX, [0] * 6)
    assert found == Coverage(pytest.approx(200 / 3), pytest.approx(200 / 6))
    # one image in the middle is in all balls
    assert covered(on_a_line(2.5), [0], SIX, [0] * 6) == Coverage(100, 100)
    assert covered(on_a_line(99), [0], SIX, [0] * 6) == Coverage(0, 0)


def test_classes_count_equally_and_only_for_themselves() -> None:
    real, labels = torch.cat([SIX, SIX + 100]), np.arange(12) // 6
    # class 0: two of two images, every ball; class 1: one of four; the other three show class 0
    added = torch.cat([on_a_line(2.5, 2.5), on_a_line(2.5, 2.5, 2.5, 102.5)])
    assert covered(added, [0, 0, 1, 1, 1, 1], real, labels) == Coverage((100 + 25) / 2, 100)


def test_classes_with_too_few_real_images_or_none_added_count_in_neither() -> None:
    real, labels = torch.cat([SIX, SIX[:5] + 100, SIX + 200]), np.repeat([0, 1, 2], [6, 5, 6])
    assert covered(on_a_line(2.5, 102), [0, 1], real, labels) == Coverage(100, 100)
    assert precision_and_coverage(on_a_line(102), np.array([1]), real, labels) is None


def test_a_set_covers_itself_whole_even_where_images_repeat() -> None:
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        points = torch.nn.functional.normalize(torch.randn(24, 5, generator=generator), dim=1)
        points = torch.cat([points, points[:1].repeat(NEAREST + 3, 1)])  # a ball of radius 0
        labels = torch.randint(2, (len(points),), generator=generator).numpy()
        assert covered(points, labels, points, labels) == Coverage(100, 100)


def test_another_sample_of_one_distribution_is_covered_as_theory_says() -> None:
    generator = torch.Generator().manual_seed(0)
    many, few = 30, 12
    found = [
        covered(
            torch.randn(few, 4, generator=generator),
            [0] * few,
            torch.randn(many, 4, generator=generator),
            [0] * many,
        ).coverage_percent
        for _ in range(200)
    ]
    steps = np.arange(1, NEAREST + 1)
    expected = 100 * (1 - np.prod((many - steps) / (few + many - steps)))  # Naeem et al., 2020, section 4
    assert abs(np.mean(found) - expected) < 3 * np.std(found) / 200**0.5 < 4


def test_scikit_learns_neighbours_give_the_same_figures(seen: dict[str, Seen]) -> None:
    real, added = seen["one"], seen["mild"]
    precision, coverage = [], []
    for label in range(10):
        centres, images = (
            part.embeddings[torch.from_numpy(part.labels == label)].double().numpy() for part in (real, added)
        )
        fitted = NearestNeighbors(algorithm="ball_tree").fit(centres)
        radii = fitted.kneighbors(n_neighbors=NEAREST)[0][:, -1]
        distances, places = fitted.kneighbors(images, len(centres))
        precision.append((distances <= radii[places]).any(1).mean())
        nearest = (
            NearestNeighbors(n_neighbors=1, algorithm="ball_tree").fit(images).kneighbors(centres)[0][:, 0]
        )
        coverage.append((nearest <= radii).mean())
    expected = Coverage(pytest.approx(100 * np.mean(precision)), pytest.approx(100 * np.mean(coverage)))
    assert covered(added.embeddings, added.labels, real.embeddings, real.labels) == expected
    assert 0.2 < np.mean(coverage) < 1 and 0.2 < np.mean(precision) < 1


def test_another_style_covers_less(seen: dict[str, Seen]) -> None:
    real = seen["one"]
    clean, mild, strong = (
        covered(seen[name].embeddings, seen[name].labels, real.embeddings, real.labels)
        for name in ("two", "mild", "strong")
    )
    assert clean.coverage_percent > 85 > mild.coverage_percent > strong.coverage_percent
    assert clean.precision_percent > mild.precision_percent > strong.precision_percent


def test_repeated_images_are_those_that_the_filter_of_duplicates_would_remove() -> None:
    near = torch.nn.functional.normalize(torch.tensor([1.0, 0.1]), dim=0)  # cosine 0.995 with RIGHT
    points, labels = torch.stack([RIGHT, near, UP, RIGHT, RIGHT]), np.array([0, 0, 0, 1, 1])
    # `near` in class 0, the second image of class 1
    assert repeated_percent(points, labels, 0.99) == pytest.approx(40)
    assert repeated_percent(points, labels, 0.999) == pytest.approx(20)
    assert repeated_percent(points, np.arange(5), 0.99) == 0


# --- agreement ------------------------------------------------------------------------------------


def test_real_images_agree_with_their_labels_and_not_with_permuted_ones(seen: dict[str, Seen]) -> None:
    images = seen["one"]
    assert images.judge is not None
    permuted = (images.labels + 1) % 10
    for predicted in (images.clip, images.judge):
        assert agreement_percent(predicted, images.labels) > 55
        assert agreement_percent(predicted, permuted) < 15
    assert agreement_percent(images.judge, images.labels) > 80


def test_the_judge_tells_web_style_too(seen: dict[str, Seen]) -> None:
    assert seen["mild"].judge is not None
    assert agreement_percent(seen["mild"].judge, seen["mild"].labels) > 70


def test_agreement_is_a_share_in_percent() -> None:
    assert agreement_percent(np.array([0, 1, 2, 2]), np.array([0, 1, 2, 3])) == 75


def test_the_class_order_of_the_study_counts(garments: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = garments
    reverse = Eyes({"folder": CLIP}, JUDGE, CLASSES[::-1], torch.device("cpu")).look(
        pictures(clean_images(images[:300])), 9 - labels[:300], "reverse"
    )
    assert reverse.judge is not None
    assert (
        agreement_percent(reverse.judge, reverse.labels) > 80
        and agreement_percent(reverse.clip, reverse.labels) > 55
    )


def test_a_judge_of_other_classes_is_refused() -> None:
    others = [replace(info, class_id=f"n{label}") for label, info in enumerate(CLASSES)]
    with pytest.raises(UserError, match=r"report.judge: .* does not know class 'n0', 'n1', 'n2' and 7 more"):
        Eyes({"folder": CLIP}, JUDGE, others, torch.device("cpu"))


# --- which images ---------------------------------------------------------------------------------


def test_images_are_drawn_per_class_and_repeat() -> None:
    labels = np.repeat([0, 1, 2], [20, 5, 20])
    chosen = sample_per_class(labels, ["a", "b", "c"], 8, 0)
    assert np.bincount(labels[chosen]).tolist() == [8, 5, 8] and (np.diff(chosen) > 0).all()
    assert chosen.tolist() == sample_per_class(labels, ["a", "b", "c"], 8, 0).tolist()
    assert chosen[:8].tolist() != list(range(8)) and chosen[:8].tolist() != (chosen[-8:] - 25).tolist()
    # other classes do not matter
    assert chosen[:8].tolist() == sample_per_class(labels[:20], ["a"], 8, 0).tolist()
    assert chosen.tolist() != sample_per_class(labels, ["a", "b", "c"], 8, 1).tolist()


# --- fine-tuning ----------------------------------------------------------------------------------


def records(folder: Path, candidate: str) -> tuple[Path, Path, Path]:
    """Write records. Class a has its lowest validation loss in epoch 2 and training loss in epoch 3.

    Class b has both in epoch 1, after which it stopped.
    """
    losses = {
        (1.0, "a"): [(None, 0.9), (0.8, 0.7), (0.7, 0.5), (0.6, 0.6)],
        (1.0, "b"): [(None, 0.7), (0.4, 0.3), (0.5, 0.4)],
        (0.1, "a"): [(None, 0.2), (0.1, 0.1)],
    }
    rows = [
        {"factor": factor, "class_id": class_id, "epoch": epoch, "train_loss": train, "val_loss": val}
        for (factor, class_id), epochs in losses.items()
        for epoch, (train, val) in enumerate(epochs)
    ]
    history, lr, selected = (
        folder / "finetune/m/history.parquet",
        folder / "finetune/m/lr.json",
        folder / "selected/m.json",
    )
    history.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows[::-1]), history)
    write_json(lr, {"factor": 1.0})
    write_json(
        selected,
        {
            "method": "m",
            "selected": candidate,
            "candidates": [{"candidate": candidate, "val_top1": 0.8, "result": "r.json"}],
        },
    )
    return history, lr, selected


@pytest.mark.parametrize(("candidate", "epoch"), [("val_loss", 1.5), ("train_loss", 2.0), ("epoch1", 1.0)])
def test_fine_tuning_is_summed_up_over_classes_at_the_learning_rate_chosen(
    tmp_path: Path, candidate: str, epoch: float
) -> None:
    learning = read_learning(*records(tmp_path, candidate), together=False)
    assert (learning.val_loss_start, learning.val_loss_best) == (pytest.approx(0.8), pytest.approx(0.4))
    assert (learning.lr_factor, learning.candidate, learning.candidate_epoch) == (1.0, candidate, epoch)


def test_a_best_loss_above_the_start_is_shown_as_it_is(tmp_path: Path) -> None:
    history, lr, selected = records(tmp_path, "val_loss")
    worse = [
        {"factor": 1.0, "class_id": "a", "epoch": epoch, "train_loss": 1.0, "val_loss": loss}
        for epoch, loss in enumerate((0.5, 0.7, 0.6))
    ]
    pq.write_table(pa.Table.from_pylist(worse), history)
    learning = read_learning(history, lr, selected, together=False)
    assert (learning.val_loss_start, learning.val_loss_best, learning.candidate_epoch) == (0.5, 0.6, 2)


def test_classes_that_share_a_unet_share_their_best_epoch(tmp_path: Path) -> None:
    history, lr, selected = records(tmp_path, "val_loss")
    losses = {"a": (0.9, 0.7, 0.2), "b": (0.7, 0.3, 0.6)}
    rows = [
        {"factor": 1.0, "class_id": c, "epoch": e, "train_loss": 1.0, "val_loss": loss}
        for c, values in losses.items()
        for e, loss in enumerate(values)
    ]
    pq.write_table(pa.Table.from_pylist(rows), history)
    learning = read_learning(history, lr, selected, together=True)
    assert (learning.val_loss_best, learning.candidate_epoch) == (pytest.approx(0.4), 2.0)
    apart = read_learning(history, lr, selected, together=False)
    assert (apart.val_loss_best, apart.candidate_epoch) == (pytest.approx(0.25), 1.5)


def test_a_loss_that_is_not_finite_is_never_the_best(tmp_path: Path) -> None:
    history, lr, selected = records(tmp_path, "val_loss")
    rows = [
        {"factor": 1.0, "class_id": "a", "epoch": epoch, "train_loss": 1.0, "val_loss": loss}
        for epoch, loss in enumerate((0.5, None, 0.4))
    ]
    pq.write_table(pa.Table.from_pylist(rows), history)
    learning = read_learning(history, lr, selected, together=False)
    assert (learning.val_loss_best, learning.candidate_epoch) == (0.4, 2.0)


def test_a_history_without_the_learning_rate_chosen_is_an_error(tmp_path: Path) -> None:
    history, lr, selected = records(tmp_path, "val_loss")
    write_json(lr, {"factor": 3.0})
    with pytest.raises(UserError, match="no complete history at factor 3"):
        read_learning(history, lr, selected, together=False)


# --- the table ------------------------------------------------------------------------------------


def study(**report: object) -> Study:
    return parse_study(
        {
            "study": "small",
            "dataset": {"kind": "fashion_mnist"},
            "corpus": {"kind": "miniature"},
            "diffusion": {"model": "resources/mini/stable-diffusion", "resolution": 32},
            "clip": {"model": str(CLIP)},
            "methods": {
                "none": {"mechanism": "real"},
                "permuted": {"mechanism": "sample", "label": "Wrong | labels"},
                "m": {"mechanism": "personalise", "learn": "conditioning"},
                "web": {"mechanism": "retrieve"},
            },
            "augmentation": {"images_per_class": PER_CLASS, "resamples": 1},
            "report": {"judge": str(JUDGE), "diagnosed_images_per_class": 10, **report},
        }
    )


def write_pool(folder: Path, method: str, images: torch.Tensor, labels: np.ndarray, flags: int) -> Path:
    """Write a method's shards, one per class; the first image follows ``flags`` flagged ones."""
    paths = []
    for label in range(10):
        info, members = CLASSES[label], pictures(images[torch.from_numpy(labels == label)])
        rows = [
            ShardRow(
                encode_image(image, "png", 95),
                label,
                info.class_id,
                i,
                "a prompt",
                "model",
                seed=i,
                safety_flags=flags * (i == 0),
            )
            for i, image in enumerate(members)
        ]
        paths.append(folder / f"shards/{method}/selected/{info.class_id}/0.parquet")
        write_shard(paths[-1], rows, {})
    build_index(paths, folder, folder / f"shards/{method}/selected/index.parquet")
    return folder / f"shards/{method}/selected/index.parquet"


@pytest.fixture(scope="module")
def finished_study(tmp_path_factory: pytest.TempPathFactory, garment_files: Path) -> Path:
    """A study's folder with splits and pools: garments with wrong labels, clean, and in strong web style."""
    folder = tmp_path_factory.mktemp("small")
    images, labels = fashion_mnist.load(garment_files, "train")
    parts = [
        np.concatenate(
            [np.flatnonzero(labels == label)[PER_CLASS * k : PER_CLASS * (k + 1)] for label in range(10)]
        )
        for k in range(5)
    ]
    for name, part in (("train", parts[0]), ("val", parts[1])):
        ids = [f"train-{index:05d}" for index in part]
        write_split(
            Split(
                ids, [CLASSES[label].class_id for label in labels[part]], labels[part].astype(np.int32), ids
            ),
            folder / f"splits/{name}.parquet",
        )
    write_class_table(CLASSES, folder / "classes.parquet")
    write_json(folder / "clip.json", {"folder": str(CLIP)})
    write_pool(folder, "permuted", clean_images(images[parts[2]]), (labels[parts[2]] + 1) % 10, 3)
    write_pool(folder, "m", clean_images(images[parts[3]]), labels[parts[3]], 0)
    write_pool(
        folder,
        "web",
        web_style(images[parts[4]], np.arange(10 * PER_CLASS), "strong", 0),
        labels[parts[4]],
        0,
    )
    records(folder, "val_loss")
    return folder


def diagnose(folder: Path, config: Study, out: Path) -> list[Row]:
    job = Job(config, Store(folder / ".store"), 1)
    indexes = {name: folder / f"shards/{name}/selected/index.parquet" for name in ("permuted", "m", "web")}
    learned = [
        {"m": path}
        for path in (
            folder / "finetune/m/history.parquet",
            folder / "finetune/m/lr.json",
            folder / "selected/m.json",
        )
    ]
    outs = {kind: out / f"diagnostics.{kind}" for kind in ("csv", "md", "txt")}
    splits = folder / "splits"
    write_diagnostics(
        job,
        indexes,
        splits / "train.parquet",
        splits / "val.parquet",
        folder / "classes.parquet",
        folder / "clip.json",
        *learned,
        outs,
    )
    return read_rows(outs["csv"])


@pytest.fixture(scope="module")
def rows(finished_study: Path) -> dict[str, Row]:
    return {row.method: row for row in diagnose(finished_study, study(), finished_study / "tables")}


def test_real_images_come_first_then_methods_in_the_order_of_the_config(rows: dict[str, Row]) -> None:
    assert list(rows) == ["real:train", "real:val", "permuted", "m", "web"]
    assert [row.family for row in rows.values()] == ["real", "real", "prompting", "personalised", "retrieval"]
    assert {(row.pool, row.images) for row in rows.values()} == {(120, 100)}


def test_wrong_labels_show_in_the_agreement_and_within_classes_not_in_the_style(rows: dict[str, Row]) -> None:
    right, wrong = rows["m"], rows["permuted"]
    assert right.agreement_judge_percent is not None and wrong.agreement_judge_percent is not None
    assert wrong.agreement_judge_percent < 20 < 70 < right.agreement_judge_percent
    assert wrong.agreement_clip_percent < 20 < 50 < right.agreement_clip_percent
    assert (
        wrong.style_mmd2 is not None
        and wrong.style_mmd2_within_class is not None
        and right.style_mmd2_within_class is not None
    )
    assert wrong.style_mmd2_within_class > 0.1 > wrong.style_mmd2
    assert wrong.style_mmd2_within_class > 5 * abs(right.style_mmd2_within_class)


def test_another_style_shows_in_the_distance(rows: dict[str, Row]) -> None:
    web, floor = rows["web"], rows["real:val"]
    assert web.style_mmd2 is not None and floor.style_mmd2 is not None
    assert web.style_mmd2 > 5 * abs(floor.style_mmd2)
    assert web.diversity is not None and floor.diversity is not None and web.diversity > floor.diversity
    assert rows["m"].nearest_row == web.label and rows["real:val"].nearest_row is None
    assert rows["real:train"].style_mmd2 is None and rows["real:train"].style_mmd2_within_class is None
    assert (
        web.coverage_percent is not None
        and floor.coverage_percent is not None
        and web.coverage_percent < floor.coverage_percent
    )
    assert (
        web.precision_percent is not None
        and floor.precision_percent is not None
        and web.precision_percent < floor.precision_percent
    )
    assert rows["real:train"].coverage_percent is None and rows["real:train"].precision_percent is None


def test_refused_samples_are_counted_over_the_whole_pool(finished_study: Path, rows: dict[str, Row]) -> None:
    assert rows["permuted"].refused_per_image == pytest.approx(30 / 120) and rows["m"].refused_per_image == 0
    assert rows["web"].refused_per_image is None and rows["real:val"].refused_per_image is None
    index = read_index(finished_study / "shards/permuted/selected/index.parquet")
    assert refused_per_image(index, finished_study) == pytest.approx(0.25)


def test_only_personalised_methods_have_losses(rows: dict[str, Row]) -> None:
    assert (rows["m"].val_loss_start, rows["m"].val_loss_best) == (pytest.approx(0.8), pytest.approx(0.4))
    assert (rows["m"].lr_factor, rows["m"].candidate, rows["m"].candidate_epoch) == (1.0, "val_loss", 1.5)
    assert {row.candidate for name, row in rows.items() if name != "m"} == {None}


def test_every_format_has_every_row_and_the_footer(finished_study: Path, rows: dict[str, Row]) -> None:
    tables = finished_study / "tables"
    frame = pd.read_csv(tables / "diagnostics.csv", comment="#")
    assert frame.style_mmd2[4] == rows["web"].style_mmd2
    plain = " ".join((tables / "diagnostics.txt").read_text(encoding="utf-8").split())
    notes = [
        line[2:]
        for line in (tables / "diagnostics.csv").read_text(encoding="utf-8").splitlines()
        if line.startswith("# ")
    ]
    assert len(notes) == 13 and all(" ".join(note.split()) in plain for note in notes)
    assert "0.8000 to 0.4000 1 val_loss (epoch 1.5)" in plain
    markdown = (tables / "diagnostics.md").read_text(encoding="utf-8").splitlines()
    assert r"| Wrong \| labels | 100 of 120 |" in markdown[4] and len(markdown) == 2 + 5 + 1 + 13


def test_without_a_judge_its_column_is_empty(finished_study: Path, tmp_path: Path) -> None:
    found = diagnose(finished_study, study(judge=None, diagnosed_images_per_class=2), tmp_path)
    assert {row.agreement_judge_percent for row in found} == {None} and {row.images for row in found} == {20}
    assert "report.judge names no classifier in this study" in (tmp_path / "diagnostics.csv").read_text(
        encoding="utf-8"
    )


def test_an_index_of_other_labels_is_refused(finished_study: Path, tmp_path: Path) -> None:
    folder = finished_study
    index = read_index(folder / "shards/m/selected/index.parquet")
    other = index.set_column(
        1,
        index.schema.field(1),
        pa.array([(label + 1) % 10 for label in index.column("label").to_pylist()], pa.int32()),
    )
    pq.write_table(other, tmp_path / "index.parquet")
    job = Job(study(), Store(folder / ".store"), 1)
    splits = folder / "splits"
    with pytest.raises(UserError, match=r"index\.parquet"):
        write_diagnostics(
            job,
            {"web": tmp_path / "index.parquet"},
            splits / "train.parquet",
            splits / "val.parquet",
            folder / "classes.parquet",
            folder / "clip.json",
            {},
            {},
            {},
            {"csv": tmp_path / "d.csv"},
        )
    assert not (tmp_path / "d.csv").exists()


def test_the_shipped_judge_is_small_and_knows_its_classes() -> None:
    assert sum(path.stat().st_size for path in JUDGE.iterdir()) < 6e6
    assert read_json(JUDGE / "config.json")["class_ids"] == [info.class_id for info in CLASSES]
