"""Figures 3, 4, 5A and 5B, and the paper's smaller tables, for a small study of coloured squares."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from matplotlib import image as matplotlib_image
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from augbench.artifacts.pool import build_index, read_index
from augbench.artifacts.shards import ShardRow, encode_image, write_shard
from augbench.artifacts.store import Store
from augbench.config.study import Study, load_study, parse_study
from augbench.data.classes import ClassInfo, write_class_table
from augbench.data.splits import Split, write_split
from augbench.errors import UserError
from augbench.files import write_json, write_text
from augbench.plan.paths import BEST_ROWS, Plan
from augbench.report.figures import figure3, figure4, figure5a, figure5b, learning_curves
from augbench.report.figures.style import COLOURS, FONT_SIZE, MARKERS, WIDTH, styled
from augbench.report.figures.write import write_figure
from augbench.report.pictures import SIDE, choose, read_pictures, spread_classes, thumbnail
from augbench.report.protocol import paper_results
from augbench.report.render import read_csv, render_csv
from augbench.report.tables import paper_tables, table1
from augbench.report.tables.per_class import SCHEMA, read_per_class
from augbench.resample import Drawing, resample
from augbench.runtime.job import Job

CLASSES = tuple(f"class_{letter}" for letter in "abcdef")
REAL_IMAGES = 4
METHODS: dict[str, dict[str, Any]] = {
    "none": {"mechanism": "real", "label": "no added data"},
    "boomerang": {
        "mechanism": "sample",
        "label": "Boomerang",
        "start": "training_images",
        "prompt": {"templates": "empty"},
    },
    "clip_prompts": {"mechanism": "sample", "label": "CLIP prompts"},
    "ft_conditioning": {"mechanism": "personalise", "learn": "conditioning", "label": "FT conditioning"},
    "ft_cluster_conditioning_k5": {
        "mechanism": "personalise",
        "learn": "conditioning",
        "clusters": 5,
        "label": "FT cluster conditioning (k = 5)",
    },
    "retrieval": {"mechanism": "retrieve", "label": "Retrieval"},
    "retrieval_300": {
        "mechanism": "retrieve",
        "family": "scaling",
        "label": "Retrieval (300%)",
        "added_per_training_image": 3,
        "ranked": True,
        "may_fall_short": True,
    },
    "retrieval_200": {
        "mechanism": "draw",
        "pool": "retrieval_300",
        "label": "Retrieval (200%)",
        "added_per_training_image": 2,
        "ranked": True,
        "may_fall_short": True,
    },
}
# by method and class: number of added images, and accuracy in each of two runs
POOL = {"retrieval_300": (12, 12, 12, 12, 12, 7)}
ACCURACIES = {
    "none": ((0.5, 0.5, 0.5, 0.5, 0.5, 0.5), (0.5, 0.5, 0.5, 0.5, 0.5, 0.7)),
    "clip_prompts": ((0.6, 0.5, 0.4, 0.5, 0.9, 0.5), (0.6, 0.5, 0.4, 0.5, 0.7, 0.7)),
    "retrieval": ((0.7, 0.6, 0.6, 0.6, 0.3, 0.6), (0.7, 0.6, 0.6, 0.6, 0.3, 0.8)),
}


def study_of(root: Path, methods: dict[str, dict[str, Any]] = METHODS, **changes: Any) -> Study:
    config: dict[str, Any] = {
        "study": "squares",
        "dataset": {"kind": "image_folder", "root": str(root)},
        "corpus": {"kind": "image_folder", "root": str(root)},
        "diffusion": {"model": "resources/mini/stable-diffusion", "resolution": 32},
        "clip": {"model": "resources/mini/clip"},
        "methods": methods,
        "augmentation": {"images_per_class": 8, "resamples": 2},
        "classifier": {"arch": "resnet18", "resolution": 32},
        "report": {"paper_study": "imagenet10"},
    }
    return parse_study({**config, **changes})


def square(place: int, shade: int) -> Image.Image:
    return Image.new("RGB", (40, 32), (40 * place, shade, 90))


@dataclass(frozen=True)
class Squares:
    """The files of a study that figures read."""

    job: Job

    @property
    def plan(self) -> Plan:
        return self.job.plan

    def sets(self, methods: Sequence[str]) -> dict[str, str]:
        return {method: self.plan.resample(method, "0") for method in methods}

    @property
    def train(self) -> str:
        return self.plan.splits["train"]

    @property
    def classes(self) -> str:
        return self.plan.classes

    def collect(self, name: str, **changes: str) -> dict[str, str]:
        """Make a figure's data and return its files."""
        plan, files = self.plan, self.plan.figure_data(name)
        table, per_class = plan.table1["csv"], plan.per_class
        if name == "figure3":
            figure3.collect(
                self.job,
                "boomerang",
                self.sets(["boomerang"])["boomerang"],
                changes.get("train", self.train),
                self.classes,
                **files,
            )
        elif name == "figure4":
            figure4.collect(self.job, self.sets(plan.exemplified), self.train, self.classes, **files)
        elif name == "learning_curves":
            results = [plan.run_files(method, str(run))[0] for method in plan.methods for run in (0, 1)]
            learning_curves.write_data(plan.study, results, files["table"])
        elif name == "figure5a":
            figure5a.collect(
                self.job,
                per_class,
                table,
                self.sets(plan.class_changes),
                self.train,
                self.classes,
                files["table"],
                files["images"],
            )
        else:
            figure5b.collect(plan, table, per_class, self.train, self.sets([*plan.scaling]), files["table"])
        return files


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Squares:
    return make_squares(tmp_path_factory.mktemp("squares"))


def make_squares(folder: Path) -> Squares:
    """Write training images, shards, sets, Table 1 and accuracies per class for six classes."""
    study = study_of(folder / "data")
    root = folder / "results/squares"
    old = Path.cwd()
    os.chdir(folder)
    plan = Plan(study, CLASSES)
    write_class_table(
        [ClassInfo(name, (name.replace("_", " "), "another name")) for name in CLASSES],
        plan.classes,
    )
    names = [
        (label, name, f"{name}/{place}.png")
        for label, name in enumerate(CLASSES)
        for place in range(REAL_IMAGES)
    ]
    for label, _, source in names:
        path = folder / "data" / source
        path.parent.mkdir(parents=True, exist_ok=True)
        square(label, 10 * int(path.stem)).save(path)
    ids = [source.replace("/", "-") for _, _, source in names]
    write_split(
        Split(
            ids,
            [name for _, name, _ in names],
            np.array([label for label, _, _ in names], dtype=np.int32),
            [s for _, _, s in names],
        ),
        plan.splits["train"],
    )
    for method in plan.study.pooled:
        for label, class_id in enumerate(CLASSES):
            rows = []
            for index in range(POOL.get(method, (8,) * 6)[label]):
                start = f"{class_id}-{index % REAL_IMAGES}.png"
                image = (
                    square(label, 10 * (index % REAL_IMAGES)).crop((4, 0, 36, 32))
                    if method == "boomerang"
                    else square(label, 200)
                )
                made: dict[str, Any] = (
                    {"seed": index} if method not in plan.study.retrieved else {"similarity": 0.5}
                )
                source = (
                    start
                    if method == "boomerang"
                    else f"https://example.org/{index}"
                    if method in plan.study.retrieved
                    else None
                )
                encoded = encode_image(
                    image.point(lambda value: value + 8) if method == "boomerang" else image, "png", 95
                )
                rows.append(
                    ShardRow(
                        encoded,
                        label,
                        class_id,
                        index,
                        f"a photo of {class_id}",
                        "model",
                        source=source,
                        **made,
                    )
                )
            write_shard(plan.shard(method, class_id, "0"), rows, {})
        build_index([plan.shard(method, class_id, "0") for class_id in CLASSES], root, plan.pool(method))
    for method in plan.study.augmented:
        pool = plan.pool(plan.study.pool_row(method))
        resample(
            pool,
            plan.splits["train"],
            [plan.resample(method, run) for run in plan.runs],
            study.seed,
            Drawing.of(study, method),
        )
    write_results(plan)
    os.chdir(old)
    return Squares(Job(study, Store(root / ".store"), 1))


def write_results(plan: Plan) -> None:
    """Write Table 1 and accuracies per class."""
    entries, rows = [], []
    for method in plan.methods:
        runs = np.array(ACCURACIES.get(method, ACCURACIES["clip_prompts"]))
        top1, added = float(100 * runs.mean()), 4.0 if method in plan.study.augmented else 0.0
        entries.append(
            table1.Row(
                method,
                str(plan.study.methods[method].label),
                plan.study.methods[method].group,
                "train",
                top1,
                0.5,
                2,
                4,
                added,
                None,
                None,
                None,
            )
        )
        for run, values in enumerate(runs):
            rows += [
                {"method": method, "run": run, "class_id": name, "n_test": 10, "top1": value}
                for name, value in zip(CLASSES, values, strict=True)
            ]
    write_text(plan.table1["csv"], render_csv(entries))
    import pyarrow as pa

    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), plan.per_class)
    for method in plan.methods:
        for run in (0, 1):
            write_history(plan, method, run)


def write_history(plan: Plan, method: str, run: int) -> None:
    """Write a run of three epochs of two steps; only the first row's was cut, before its rate was lowered."""
    cut = method == plan.methods[0]
    epochs = [
        {
            "epoch": i,
            "lr": 0.1 if cut or i < 2 else 0.01,
            "train_loss": 1.0,
            "val_top1": 0.5 + 0.02 * i + 0.04 * run,
        }
        for i in range(3)
    ]
    folder = Path(plan.run_files(method, str(run))[0]).parent
    sizes = {"n_real": 300, "n_added": 0}
    write_json(folder / "result.json", {"method": method, "run": run, **sizes})
    stopped = "max_epochs" if cut else "patience"
    write_json(folder / "history.json", {"best_epoch": 2, "epochs": epochs, "stopped": stopped})


@pytest.fixture(autouse=True)
def in_the_studys_folder(squares: Squares, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(squares.job.store.root.parents[2])


def check_drawn(outs: dict[str, Path], figure_height: float | None = None) -> None:
    """Check that both files exist and that the PNG is one column wide."""
    assert outs["pdf"].read_bytes().startswith(b"%PDF")
    height, width = matplotlib_image.imread(outs["png"]).shape[:2]
    assert width == round(300 * WIDTH)
    if figure_height is not None:
        assert height == pytest.approx(300 * figure_height, abs=1)


def texts_of(figure: Figure) -> list[str]:
    own = [
        text
        for text in figure.findobj(
            lambda artist: hasattr(artist, "get_text") and hasattr(artist, "get_fontsize")
        )
    ]
    shown = [text for text in own if text.get_visible() and text.get_text()]
    assert all(text.get_fontsize() >= FONT_SIZE for text in shown)
    return [text.get_text() for text in shown]


# --- style ----------------------------------------------------------------------------------------


# Machado, Oliveira and Fernandes (IEEE TVCG 15, 2009), severity 1, in linear RGB
BLIND = {
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def lab(colour: str, simulation: list[list[float]]) -> np.ndarray:
    """CIELAB of a colour as seen with a colour-vision deficiency."""
    value = np.array(to_rgb(colour))
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(simulation) @ linear, 0, 1)
    xyz = (
        np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
        @ seen
        / [0.9505, 1, 1.089]
    )
    x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("kind", BLIND)
def test_families_have_colours_that_colour_blind_readers_tell_apart(kind: str) -> None:
    seen = {family: lab(colour, BLIND[kind]) for family, colour in COLOURS.items()}
    closest = min(
        (float(np.linalg.norm(seen[one] - seen[other])), one, other) for one, other in combinations(seen, 2)
    )
    # 2.3 is just noticeable; matplotlib's default red and green are 7 apart in deuteranopia
    assert closest[0] > 15, closest
    assert np.linalg.norm(lab("#d62728", BLIND["deuteranopia"]) - lab("#2ca02c", BLIND["deuteranopia"])) < 8


def test_families_are_told_apart_by_their_marks_too() -> None:
    assert len(set(MARKERS.values())) == len(MARKERS) == len(COLOURS) - 1


# --- pictures -------------------------------------------------------------------------------------


def test_choice_depends_on_seed_and_scope_alone_and_is_a_random_one() -> None:
    assert choose(50, 3, 0, "4", "bag") == choose(50, 3, 0, "4", "bag")
    assert len({tuple(choose(50, 3, 0, "4", f"class {number}")) for number in range(20)}) > 15
    assert choose(2, 5, 0) == [0, 1]


def test_classes_are_spread_over_the_table() -> None:
    classes = [ClassInfo(str(number), (str(number),)) for number in range(100)]
    assert [info.class_id for info in spread_classes(classes, 4)] == ["0", "33", "66", "99"]
    assert spread_classes(classes[:3], 4) == classes[:3]


def test_thumbnails_are_square_and_small() -> None:
    assert thumbnail(Image.new("RGB", (800, 500))).size == (SIDE, SIDE)
    assert thumbnail(Image.new("RGB", (28, 40))).size == (28, 28)


# --- figure 3 -------------------------------------------------------------------------------------


def test_figure3_shows_every_class_beside_what_it_started_from(squares: Squares, tmp_path: Path) -> None:
    files = squares.collect("figure3")
    rows = read_csv(files["table"], figure3.Row)
    assert len(rows) == 12 and {row.class_id for row in rows} == set(CLASSES)
    assert all(row.training_image == f"{row.class_id}-{row.index % REAL_IMAGES}.png" for row in rows)
    assert [row.change for row in rows] == pytest.approx([8] * 12)
    pictures = read_pictures(files["images"])
    change = next(image for picture, image in pictures if picture.panel == figure3.CHANGE)
    assert np.unique(change).tolist() == [131], "8 levels brighter is 4 above mid-grey"
    outs = {kind: tmp_path / f"f.{kind}" for kind in ("pdf", "png")}
    write_figure("figure3", files["table"], outs, files["images"])
    check_drawn(outs)
    with styled():
        texts = texts_of(figure3.draw(rows, pictures))
    assert {"A", "B", "C", "Real", "Boomerang"} <= set(texts) and any(
        "Mean change: 8.0 of 255" in text for text in texts
    )


def test_figure3_refuses_images_that_did_not_start_from_the_training_split(
    squares: Squares, tmp_path: Path
) -> None:
    write_split(
        Split(["other"], ["class_a"], np.zeros(1, dtype=np.int32), ["class_a/0.png"]),
        tmp_path / "train.parquet",
    )
    with pytest.raises(UserError, match="which is not in the training split"):
        squares.collect("figure3", train=str(tmp_path / "train.parquet"))


# --- figure 4 -------------------------------------------------------------------------------------


def test_figure4_shows_the_same_classes_of_every_method_and_names_every_image(
    squares: Squares, tmp_path: Path
) -> None:
    files = squares.collect("figure4")
    rows = read_csv(files["table"], figure4.Row)
    methods = ["real", "clip_prompts", "ft_conditioning", "retrieval", "ft_cluster_conditioning_k5"]
    assert list(dict.fromkeys(row.method for row in rows)) == methods
    assert list(dict.fromkeys(row.letter for row in rows)) == list("ADEIJ"), (
        "the paper's letters for its rows, the next one for the row that its figure lacks"
    )
    shown = [(row.class_id, row.place) for row in rows if row.method == "real"]
    assert len(shown) == 8 and all(
        [(row.class_id, row.place) for row in rows if row.method == method] == shown for method in methods
    )
    trained_on = {
        (row["class_id"], str(row["index"]))
        for row in read_index(squares.plan.resample("retrieval", "0")).to_pylist()
    }
    retrieved = [row for row in rows if row.method == "retrieval"]
    assert all(
        (row.class_id, row.image) in trained_on and row.source == f"https://example.org/{row.image}"
        for row in retrieved
    )
    assert all(
        row.prompt == f"a photo of {row.class_id}" and row.seed == int(row.image)
        for row in rows
        if row.method == "clip_prompts"
    )
    outs = {kind: tmp_path / f"f.{kind}" for kind in ("pdf", "png")}
    write_figure("figure4", files["table"], outs, files["images"])
    check_drawn(outs)
    with styled():
        figure = figure4.draw(rows, read_pictures(files["images"]))
    assert len(figure.axes[0].images) == 5 * 8
    texts = texts_of(figure)
    assert {"A", "J", "Real training images", "Retrieval", "class a", "class f"} <= set(texts) and texts[
        -1
    ].startswith(figure4.SAME_NOISE)
    generated = next(number for number, row in enumerate(rows) if row.seed is not None)
    assert not figure4.same_noise(
        [*rows[:generated], replace(rows[generated], seed=99), *rows[generated + 1 :]]
    )


# --- figure 5A ------------------------------------------------------------------------------------


def test_changes_are_paired_by_run(squares: Squares) -> None:
    per_class = read_per_class(squares.plan.per_class)
    mean, stderr = figure5a.changes(per_class["clip_prompts"], per_class["none"])
    assert mean == pytest.approx([10, 0, -10, 0, 30, 0])
    # class e: 40 and 20 points, standard deviation 200 ** 0.5, over the root of 2; class f: no difference
    assert stderr == pytest.approx([0, 0, 0, 0, 10, 0], abs=1e-9)
    mean, stderr = figure5a.changes(
        replace(per_class["clip_prompts"], runs=(0,), top1=per_class["clip_prompts"].top1[:1]),
        per_class["none"],
    )
    assert mean[4] == pytest.approx(40) and stderr is None
    with pytest.raises(UserError, match="differ in classes"):
        figure5a.changes(replace(per_class["none"], class_ids=CLASSES[::-1]), per_class["none"])


def test_figure5a_sorts_classes_and_shows_both_ends(squares: Squares, tmp_path: Path) -> None:
    files = squares.collect("figure5a")
    rows = read_csv(files["table"], figure5a.Row)
    assert list(dict.fromkeys(row.method for row in rows)) == ["boomerang", "retrieval"], (
        "the first that generates stands for Pseudoword + DM, which this study lacks"
    )
    own = [row for row in rows if row.method == "retrieval"]
    assert [row.rank for row in own] == list(range(6)) and [row.change_points for row in own] == sorted(
        row.change_points for row in own
    )
    assert (own[0].class_id, own[0].change_points, own[-1].class_id) == (
        "class_e",
        pytest.approx(-20),
        "class_a",
    )
    worst, best = figure5a.ends(own)
    assert (
        [row.class_id for row in worst] == ["class_e", own[1].class_id]
        and best[0].class_id == "class_a"
        and len(best) == 2
    )
    pictures = read_pictures(files["images"])
    panels = {(picture.panel, picture.class_id) for picture, _ in pictures}
    assert {(panel, row.class_id) for row in (*worst, *best) for panel in ("real", "retrieval")} <= panels
    outs = {kind: tmp_path / f"f.{kind}" for kind in ("pdf", "png")}
    write_figure("figure5a", files["table"], outs, files["images"])
    check_drawn(outs)
    with styled():
        figure = figure5a.draw(rows, pictures)
    texts = texts_of(figure)
    assert "Retrieval: 5 up, 1 down" in texts and any(
        "standard error of the mean over runs" in text for text in texts
    )
    assert "class e" in texts and any(text.startswith("\u221220.0") for text in texts)
    marks = [container[0].get_ydata() for container in figure.axes[0].containers]
    assert [list(values) for values in marks] == [
        [row.change_points for row in rows if row.method == method] for method in ("boomerang", "retrieval")
    ]


def test_figure5a_shows_the_papers_rows_or_those_that_the_config_names() -> None:
    learned = {"mechanism": "personalise", "learn": "pseudoword", "train_unet": True, "lr_grid": [1.0]}
    rows = {**METHODS, "pseudoword_dm": learned}
    assert Plan(study_of(Path("data"), rows), ()).class_changes == ["pseudoword_dm", "retrieval"]
    named = {"class_changes": ["retrieval", "clip_prompts"]}
    assert Plan(study_of(Path("data"), report=named), ()).class_changes == ["retrieval", "clip_prompts"]
    with pytest.raises(
        UserError, match=r"report.class_changes.0.*allowed: a row that adds images: boomerang"
    ):
        study_of(Path("data"), report={"class_changes": ["none"]})


@pytest.mark.parametrize(
    ("removed", "left"), [("retrieval", ("clip_prompts",)), ("none", ("retrieval", "clip_prompts"))]
)
def test_rows_of_figure5a_that_an_overlay_removes_are_left_out(removed: str, left: tuple[str, ...]) -> None:
    named = {"class_changes": ["retrieval", "clip_prompts"]}
    rows = {**METHODS, "other": {"mechanism": "real"}, removed: None}
    assert study_of(Path("data"), rows, report=named).report.class_changes == left
    if removed == "retrieval":
        alone = {"class_changes": ["retrieval"]}
        assert study_of(Path("data"), rows, report=alone).report.class_changes is None


def test_many_classes_are_drawn_as_a_line_with_a_band() -> None:
    rows = [
        figure5a.Row(
            "retrieval", "Retrieval", "retrieval", rank, str(rank), str(rank), 50, 50, 50, rank - 100.0, 1.0
        )
        for rank in range(300)
    ]
    with styled():
        figure = figure5a.draw(rows, [])
    assert [len(line.get_xdata()) for line in figure.axes[0].lines][-1] == 300
    assert any("band: standard error" in text for text in texts_of(figure))


def test_no_class_is_at_both_ends() -> None:
    rows = [
        figure5a.Row("m", "m", "retrieval", rank, str(rank), str(rank), 50, 50, 50, rank, None)
        for rank in range(3)
    ]
    worst, best = figure5a.ends(rows)
    assert ([row.class_id for row in worst], [row.class_id for row in best]) == (["0"], ["2"])


# --- figure 5B ------------------------------------------------------------------------------------


def test_best_and_worst_case_count_short_classes_as_right_and_as_wrong(squares: Squares) -> None:
    none = read_per_class(squares.plan.per_class)["none"]
    assert figure5b.bounds(none, []) == pytest.approx((100 * none.top1.mean(), 100 * none.top1.mean()))
    # five of six classes half right: 2.5 / 6; with the sixth all right: 3.5 / 6
    assert figure5b.bounds(none, ["class_f"]) == pytest.approx((250 / 6, 350 / 6))


def test_figure5b_has_a_point_per_size_and_marks_where_a_class_ran_out(
    squares: Squares, tmp_path: Path
) -> None:
    table = squares.collect("figure5b")["table"]
    rows = read_csv(table, figure5b.Row)
    assert [
        (row.series_label, row.method, row.asked_percent, row.added_images, row.short_classes) for row in rows
    ] == [
        ("Retrieval", "retrieval_200", 200, 47, 1),
        ("Retrieval", "retrieval_300", 300, 67, 1),
        ("no added data", "none", 0, 0, 0),
    ]
    point = rows[0]
    assert point.worst_percent is not None and point.best_percent is not None
    assert (
        point.worst_percent < point.top1_percent < point.best_percent
        and point.best_percent - point.worst_percent == pytest.approx(100 / 6)
    )
    outs = {kind: tmp_path / f"f.{kind}" for kind in ("pdf", "png")}
    write_figure("figure5b", table, outs)
    check_drawn(outs, figure5b.HEIGHT)
    with styled():
        figure = figure5b.draw(rows)
    texts = texts_of(figure)
    assert {"Retrieval", "no added data", "200%\n47", "300%\n67"} <= set(texts) and any(
        text.startswith("worst case") for text in texts
    )
    assert any("standard error, n = 2" in text for text in texts)
    drawn = figure.axes[0].containers[0][0]
    assert list(drawn.get_ydata()) == [row.top1_percent for row in rows[:2]]


def test_without_short_classes_there_are_no_marks() -> None:
    rows = [
        figure5b.Row("a", "A", "personalised", f"a{size}", size, size, 60, 0.1, 5, 0, None, None)
        for size in (100.0, 500.0)
    ]
    with styled():
        figure = figure5b.draw(rows)
    assert not any("case" in text for text in texts_of(figure))
    with pytest.raises(UserError, match="no row to draw"):
        figure5b.draw([])


# --- learning curves ------------------------------------------------------------------------------


def test_learning_curves_have_a_panel_per_row_with_its_runs_and_their_mean(squares: Squares) -> None:
    rows = read_csv(squares.collect("learning_curves")["table"], learning_curves.Row)
    figure = learning_curves.draw(rows)
    methods = [*squares.plan.methods]
    panels = [axes for axes in figure.axes if axes.axison]
    assert len(panels) == len(methods)
    titles = [axes.get_title() for axes in panels]
    assert titles[0] == f"{squares.plan.study.label(methods[0])} ↑" and "↑" not in titles[1]
    # the reference, two runs with a mark each where the rate falls, and the mean of the runs
    assert len(panels[1].get_lines()) == 1 + 2 * 2 + 1
    runs = learning_curves.by_method(rows)[methods[1]]
    # means of two runs: 50 + 2 v + (0 + 4) / 2 percent after epoch v = 0, 1, 2; 300 images are 2 steps
    assert np.allclose(learning_curves.mean_curve(runs), [(2, 52), (4, 54), (6, 56)])
    assert [[row.step for row in learning_curves.reductions(run)] for run in runs] == [[4], [4]]
    texts_of(figure)


def test_curves_of_runs_that_ended_earlier_end_the_mean() -> None:
    def run(number: int, count: int) -> list[learning_curves.Row]:
        return [
            learning_curves.Row("m", "M", "real", number, step, 0.1, 50.0 + number, "patience", False)
            for step in range(count)
        ]

    assert learning_curves.mean_curve([run(0, 3), run(2, 5)]) == [(0, 51), (1, 51), (2, 51)]


# --- bytes, plans ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["figure3", "figure4", "figure5a", "figure5b", "learning_curves"])
def test_the_same_data_gives_the_same_bytes(squares: Squares, tmp_path: Path, name: str) -> None:
    first = {kind: Path(path).read_bytes() for kind, path in squares.collect(name).items()}
    files = squares.collect(name)
    assert {kind: Path(path).read_bytes() for kind, path in files.items()} == first
    for copy in ("one", "two"):
        outs = {kind: tmp_path / f"{copy}.{kind}" for kind in ("pdf", "png")}
        write_figure(name, **files, outs=outs)
    for kind in ("pdf", "png"):
        assert (tmp_path / f"one.{kind}").read_bytes() == (tmp_path / f"two.{kind}").read_bytes()


def test_a_study_plans_the_figures_that_it_has_rows_for(squares: Squares) -> None:
    figures = ["figure3", "figure4", "figure5a", "figure5b", "learning_curves"]
    assert [*squares.plan.figures] == figures
    assert squares.plan.scaling == {"retrieval_300": "retrieval_300", "retrieval_200": "retrieval_300"}
    few = {name: METHODS[name] for name in ("none", "boomerang")}
    placebo = {"mechanism": "draw", "pool": "retrieval_300", "labels": "shuffled"}
    rows = {name: METHODS[name] for name in ("none", "retrieval_300")} | {"placebo": placebo}
    assert "figure5b" not in Plan(study_of(Path("data"), rows), ()).figures
    assert [*Plan(study_of(Path("data"), few), ()).figures] == ["figure3", "figure5a", "learning_curves"]
    alone = Plan(study_of(Path("data"), {"none": METHODS["none"]}), ())
    assert [*alone.figures] == ["learning_curves"]
    assert [*Plan(study_of(Path("data"), {"clip_prompts": METHODS["clip_prompts"]}), ()).figures] == [
        "figure4",
        "learning_curves",
    ]


# --- tables ---------------------------------------------------------------------------------------


PROJECT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("config", "tables"),
    [
        ("imagenet10", ["cluster_ablation"]),
        ("imagenet_full", ["imagenet_full"]),
        ("caltech256", ["caltech256"]),
        ("demo", ["cluster_ablation", "imagenet_full", "caltech256"]),
    ],
)
def test_a_study_has_the_tables_of_its_data_set_and_a_miniature_all_of_them(
    config: str, tables: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(PROJECT)
    assert [*Plan(load_study([PROJECT / f"config/{config}.yaml"]), ()).paper_tables] == tables


def test_the_smaller_tables_rows_are_the_papers() -> None:
    assert set(BEST_ROWS) == set(paper_results("imagenet_full")) == set(paper_results("caltech256"))


def test_the_cluster_ablation_stands_beside_the_papers(squares: Squares, tmp_path: Path) -> None:
    outs = {f"cluster_ablation_{kind}": tmp_path / f"t.{kind}" for kind in ("csv", "md", "tex")}
    written = paper_tables.write_paper_tables(squares.plan, squares.plan.table1["csv"], outs)
    rows = written["cluster_ablation"]
    assert read_csv(tmp_path / "t.csv", paper_tables.Row) == rows
    assert [(row.clusters, row.paper_top1_percent, row.paper_stderr_percent) for row in rows] == [
        (1, 60.8, 0.1),
        (5, 60.9, 0.2),
    ]
    assert [row.paper_gain_points for row in rows] == pytest.approx([3.6, 3.7])
    assert rows[0].gain_points == pytest.approx(
        100 * (np.mean(ACCURACIES["clip_prompts"]) - np.mean(ACCURACIES["none"]))
    )
    assert "| FT cluster conditioning (k = 5) | 5 |" in (tmp_path / "t.md").read_text()
    latex = (tmp_path / "t.tex").read_text()
    assert (
        r"\caption{Vectors learned per class" in latex
        and r"60.9 $\pm$ 0.2 & +3.7 \\" in latex
        and "miniature" not in latex
    )


def test_a_miniature_says_that_its_numbers_are_no_imagenet(squares: Squares, tmp_path: Path) -> None:
    study = study_of(Path("data"), corpus={"kind": "miniature"}, dataset={"kind": "fashion_mnist"})
    paper_tables.write_paper_tables(
        Plan(study, ()),
        squares.plan.table1["csv"],
        {"imagenet_full_md": tmp_path / "t.md", "imagenet_full_csv": tmp_path / "t.csv"},
    )
    assert "This study is a miniature, not ImageNet" in (tmp_path / "t.md").read_text()
    with (tmp_path / "t.csv").open() as stream:
        rows = list(csv.DictReader(line for line in stream if not line.startswith("#")))
    assert [(row["method"], row["paper_top1_percent"]) for row in rows] == [
        ("none", "76.1"),
        ("clip_prompts", "78.7"),
        ("retrieval", "79.0"),
    ]
    assert rows[0]["gain_points"] == rows[0]["paper_gain_points"] == ""
