"""Table 1 in its formats, its footer, and Figure 1."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib import image as matplotlib_image
from matplotlib.colors import to_hex

from augbench.artifacts.pool import SCHEMA, Lack, with_lacks
from augbench.config.methods import RetrieveMethod
from augbench.config.study import Study, parse_study
from augbench.errors import UserError
from augbench.files import read_json, write_json
from augbench.plan.paths import Plan
from augbench.report.figures.figure1 import axis_start, best_of_families, draw, write_figure1
from augbench.report.protocol import CLASSIFIER, DIFFUSION, Facts, differences, paper_results
from augbench.report.render import (
    Layout,
    escape_latex,
    escape_markdown,
    render_csv,
    render_latex,
    render_markdown,
    render_terminal,
    spread,
)
from augbench.report.tables.table1 import (
    Row,
    Table1,
    build_table,
    layout_of,
    precision_notes,
    read_rows,
    standard_error,
    write_table1,
)
from augbench.report.tables.table1_text import write_table1_text

RUNS = {
    "none": (0.70, 0.72, 0.74),
    "real_20pct": (0.80, 0.80, 0.81),
    "simple_prompt": (0.71, 0.73, 0.72),
    "clip_prompts": (0.74, 0.75, 0.76),
    "retrieval": (0.75, 0.77, 0.79),
}


def study(**changes: Any) -> Study:
    config: dict[str, Any] = {
        "study": "demo_1",
        "dataset": {"kind": "fashion_mnist", "train_fraction": 0.05, "test_images_per_class": 200},
        "corpus": {"kind": "miniature"},
        "diffusion": {"model": "resources/mini/stable-diffusion", "resolution": 32, "steps": 25},
        "clip": {"model": "resources/mini/clip"},
        "methods": {
            "none": {"mechanism": "real", "label": "No added images"},
            "real_20pct": {"mechanism": "real", "split": "train2x", "label": "20% real"},
            "simple_prompt": {"mechanism": "sample"},
            "clip_prompts": {"mechanism": "sample", "label": "CLIP prompts | 50% & more_"},
            "retrieval": {"mechanism": "retrieve"},
        },
        "augmentation": {"images_per_class": 75, "resamples": 3},
        "classifier": {
            "arch": "resnet18",
            "layers": [1, 1, 1, 1],
            "base_width": 16,
            "resolution": 32,
            "max_epochs": 60,
        },
        "report": {"paper_study": "imagenet10", "notes": ["The models are\nminiature."]},
    }
    return parse_study({**config, **changes})


@pytest.fixture
def results(tmp_path: Path) -> list[Path]:
    """Results of three runs per method, in an order that is not the config's."""
    paths = []
    for method, accuracies in reversed(RUNS.items()):
        for run, accuracy in enumerate(accuracies):
            n_real = 1000 if method == "real_20pct" else 500
            n_added = 0 if method in ("none", "real_20pct") else 500
            value = {
                "method": method,
                "run": run,
                "classes": 10,
                "best_epoch": 3,
                "epochs": 9,
                "val_top1": 0.5,
                "test_top1": accuracy,
                "steps": 36 if n_added == 0 else 72,
                "stopped": "max_epochs",
                # of none, two runs of three; of clip_prompts, one
                "rising": (method == "none" and run > 0) or (method == "clip_prompts" and run == 0),
            }
            paths.append(tmp_path / f"{method}{run}.json")
            write_json(
                paths[-1], {**value, "n_real": n_real, "n_added": n_added, "n_val": 500, "n_test": 2000}
            )
    return paths


@pytest.fixture
def manifests(tmp_path: Path) -> list[Path]:
    """Retrieval's sets are identical; those of simple_prompt share half of their images."""
    paths = []
    for method, sets in {
        "retrieval": ([0, 1], [0, 1], [0, 1]),
        "simple_prompt": ([0, 1], [1, 2], [2, 1]),
    }.items():
        for run, indices in enumerate(sets):
            rows = [
                {
                    "class_id": "a",
                    "label": 0,
                    "index": i,
                    "path": "p",
                    "row": i,
                    "sha256": str(i),
                    "similarity": None,
                }
                for i in indices
            ]
            paths.append(tmp_path / "resamples" / method / "selected" / f"{run}.parquet")
            paths[-1].parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), paths[-1])
    return paths


@pytest.fixture
def table(results: list[Path], manifests: list[Path]) -> Table1:
    return build_table(study(), results, manifests)


def layout(table: Table1) -> Layout:
    return layout_of(table.study, table.rows, table.notes)


# --- numbers --------------------------------------------------------------------------------------


def test_standard_error_is_that_of_the_sample() -> None:
    # deviations -2, 0, 2: variance 8 / 2 = 4, standard deviation 2, divided by the root of 3
    assert standard_error([70.0, 72.0, 74.0]) == pytest.approx(2 / 3**0.5)
    # deviations -1.5, -0.5, 0.5, 1.5: variance 5 / 3, divided by 4
    assert standard_error([1.0, 2.0, 3.0, 4.0]) == pytest.approx((5 / 12) ** 0.5)
    assert standard_error([72.0]) is None


def test_rows_come_in_the_order_of_the_config_with_mean_and_error(table: Table1) -> None:
    assert [row.method for row in table.rows] == list(RUNS)
    none = table.rows[0]
    assert (none.top1_percent, none.stderr_percent, none.n) == (
        pytest.approx(72.0),
        pytest.approx(2 / 3**0.5),
        3,
    )
    assert [row.family for row in table.rows] == ["real", "real", "prompting", "prompting", "retrieval"]
    assert [row.added_per_class for row in table.rows] == [0, 0, 50, 50, 50]


def test_the_papers_numbers_stand_beside_ours(table: Table1) -> None:
    assert [(row.paper_top1_percent, row.paper_stderr_percent) for row in table.rows] == [
        (57.2, 0.2),
        (70.2, 0.3),
        (60.1, 0.2),
        (60.9, 0.2),
        (62.6, 0.1),
    ]
    assert paper_results("imagenet_full")["none"].stderr is None


def test_a_note_says_whether_rows_are_in_the_papers_order(table: Table1) -> None:
    # by hand: slopes 4.7, 5.0 and 8.6 / 3.26 over the three rows with added images
    (note,) = (note for note in table.notes if note.startswith("Paper: "))
    assert (
        "Over the 3 rows with added images, a difference of one point in the paper comes with +1.87 [+0.22 to"
        " +3.52] points here: the paper's order appears" in note
    )
    assert note.endswith("over 3 runs). Kendall's rank correlation of the means: +1.00.")


@pytest.mark.parametrize(
    ("paper_study", "rows"),
    [
        (
            "imagenet10",
            "none 57.2 0.2 | real_20pct 70.2 0.3 | boomerang 56.3 0.3 | simple_prompt_no_ws 60.0 0.3"
            " | simple_prompt 60.1 0.2 | sariyildiz_prompts 60.8 0.2 | clip_prompts 60.9 0.2"
            " | ft_conditioning 60.8 0.1 | ft_cluster_conditioning_k5 60.9 0.2"
            " | ft_cluster_conditioning_k10 60.8 0.2 | ft_cluster_conditioning_k15 60.6 0.3 | imagic 61.0 0.3"
            " | textual_inversion 61.0 0.4 | pseudoword_dm 61.2 0.2 | retrieval 62.6 0.1",
        ),
        (
            "imagenet_full",
            "none 76.1 None | clip_prompts 78.7 0.1 | pseudoword_dm 78.8 0.2 | retrieval 79.0 0.2",
        ),
        ("caltech256", "none 59.3 0.7 | pseudoword_dm 68.1 0.3 | clip_prompts 68.2 0.2 | retrieval 68.4 0.4"),
    ],
)
def test_the_papers_numbers_are_all_there(paper_study: str, rows: str) -> None:
    found = paper_results(paper_study).items()
    assert " | ".join(f"{name} {result.top1} {result.stderr}" for name, result in found) == rows


def test_overlap_is_shown_where_images_are_added(table: Table1) -> None:
    assert {row.method: row.overlap for row in table.rows} == {
        "none": None,
        "real_20pct": None,
        "simple_prompt": pytest.approx((0.5 + 0.5 + 1) / 3),
        "clip_prompts": None,
        "retrieval": 1.0,
    }


def test_a_single_run_has_no_spread(results: list[Path]) -> None:
    single = build_table(study(), [path for path in results if path.stem.endswith("0")])
    assert single.rows[0].stderr_percent is None and spread(72.0, None) == "72.0"


def test_a_method_without_results_is_an_error(results: list[Path]) -> None:
    with pytest.raises(UserError, match="none of retrieval"):
        build_table(study(), [path for path in results if "retrieval" not in path.name])


# --- training -------------------------------------------------------------------------------------


def test_rows_whose_runs_were_mostly_cut_while_rising_are_marked(table: Table1) -> None:
    assert {row.method: (row.steps, row.cut) for row in table.rows} == {
        "none": (36, 2),
        "real_20pct": (36, 0),
        "simple_prompt": (72, 0),
        "clip_prompts": (72, 1),
        "retrieval": (72, 0),
    }
    assert {"none"} == {row.method for row in table.rows if row.is_cut}
    cells = [line.split(" | ")[4] for line in render_markdown(layout(table)).splitlines()[2:7]]
    assert cells == ["36 ↑", "36", "72", "72", "72"]
    assert any(note.startswith("↑: most of the row's runs were cut") for note in table.notes)
    assert any("Rows differ in their steps" in note for note in table.notes)


def test_without_a_cut_row_the_footer_has_no_sign_for_it(results: list[Path]) -> None:
    for path in results:
        write_json(path, {**read_json(path), "rising": False, "steps": 40})
    notes = build_table(study(), results).notes
    assert not any("↑" in note or "Rows differ in their steps" in note for note in notes)


def test_results_of_earlier_versions_are_read_with_the_history_beside_them(tmp_path: Path) -> None:
    paths = []
    for run in range(2):
        folder = tmp_path / str(run)
        epochs = [{"epoch": i, "lr": 0.1, "train_loss": 1.0, "val_top1": 0.5 + i / 100} for i in range(6)]
        write_json(folder / "history.json", {"best_epoch": 5, "val_top1": 0.55, "epochs": epochs})
        sizes = {"n_real": 500, "n_added": 0, "n_val": 500, "n_test": 2000}
        value = {"method": "none", "run": run, "classes": 10, "best_epoch": 5, "epochs": 6, **sizes}
        write_json(folder / "result.json", {**value, "val_top1": 0.55, "test_top1": 0.5})
        paths.append(folder / "result.json")
    config = study(methods={"none": {"mechanism": "real"}})
    (first, _) = build_table(config, paths).runs
    # 500 images in batches of 256 are 2 steps per epoch
    assert (first.steps, first.stopped, first.rising) == (12, "max_epochs", True)


def test_the_footer_says_what_controls_show(results: list[Path]) -> None:
    methods = {
        "none": {"mechanism": "real", "label": "No added images"},
        "real_20pct": {"mechanism": "real", "repeat": 2, "label": "same images twice"},
        "retrieval": {"mechanism": "retrieve", "label": "Retrieval"},
        "simple_prompt": {"mechanism": "draw", "pool": "retrieval", "labels": "shuffled", "label": "placebo"},
    }
    known = [path for path in results if not path.name.startswith("clip")]
    table = build_table(study(methods=methods), known)
    assert [row.family for row in table.rows] == ["real", "control", "retrieval", "control"]
    assert any(
        note.startswith("same images twice: a control") and "2 times per pass" in note for note in table.notes
    )
    assert any(note.startswith("placebo: a placebo. It adds images of Retrieval") for note in table.notes)
    assert [row.method for row in best_of_families(table.rows).values()] == ["none", "retrieval"]


def test_the_footer_says_how_a_row_uses_its_images_and_real_images_are_those_of_rows_that_keep_all(
    results: list[Path],
) -> None:
    methods = {
        "simple_prompt": {"mechanism": "sample", "label": "Half", "use": {"replace": 0.5, "mixup": 0.2}},
        "none": {"mechanism": "real"},
    }
    known = [path for path in results if path.stem[:-1] in methods]
    for path in known:
        if path.stem.startswith("simple_prompt"):
            write_json(path, {**read_json(path), "n_real": 250, "n_added": 250})
    table = build_table(study(methods=methods), known)
    assert [row.real_per_class for row in table.rows] == [25, 50]
    (note,) = [note for note in table.notes if note.startswith("Half: its classifiers use")]
    assert "replace 50% of the real images" in note and "MixUp (alpha 0.2) with partners" in note
    assert any("Real images per class: 50" in note for note in table.notes)


def test_a_schedule_of_steps_stands_beside_the_papers_rule_in_the_footer() -> None:
    def line(**changes: Any) -> str:
        config = study(classifier={"schedule": "steps", "steps": 300, **changes})
        (found,) = [line for line in footer(config).splitlines() if line.startswith("Schedule of training")]
        return found

    assert line(keep="last") == (
        "Schedule of training: 300 steps in every row, lr / 10 at 150 and 225, the last weights (paper:"
        " lr / 10"
        " after 10 epochs without a better validation accuracy, stop after 20 or 270, the best weights)"
    )
    assert "lr along a cosine to 0, the weights with the best" in line(decay="cosine")
    assert "lr never lowered" in line(lower_at=[])


def test_the_footer_counts_classes_whose_sets_lack_images_and_says_why(
    results: list[Path], manifests: list[Path]
) -> None:
    for path, lacks in zip(
        manifests,
        (
            {"a": Lack(1, 3, flagged=40), "b": Lack(2, 2, flagged=20)},
            {"a": Lack(2, 3, flagged=40)},
            {},
            {"c": Lack(5, 9)},
        ),
        strict=False,
    ):
        pq.write_table(with_lacks(pq.read_table(path), lacks), path)
    notes = build_table(study(), results, manifests).notes
    assert [note for note in notes if "fewer images than wanted" in note] == [
        "retrieval: training sets have fewer images than wanted of 2 classes, because the safety checker "
        "flagged"
        " 60 samples of the missing images, after which they were given up (augmentation.attempts_per_image)."
        " These classes stay in the study. Fewest images of a set: a 1 of 3, b 0 of 2.",
        "simple_prompt: training sets have fewer images than wanted of 1 classes, because retrieval found "
        "too few."
        " These classes stay in the study. Fewest images of a set: c 4 of 9.",
    ]


def test_the_footer_says_why_classes_are_left_out_and_whether_they_were_learned(results: list[Path]) -> None:
    joint = {"mechanism": "personalise", "learn": "pseudoword", "train_unet": True}

    def left_out(**changes: Any) -> list[str]:
        config = study(**changes)
        methods = {**config.methods, "joint": parse_study(given(joint)).methods["joint"]}
        known = [*results, *copies(results, "joint")]
        table = build_table(config.model_copy(update={"methods": methods}), known, excluded={"b", "a"})
        return [note for note in table.notes if "2 classes (a, b)" in note or "on these classes" in note]

    def given(row: dict[str, Any]) -> dict[str, Any]:
        return {**study().model_dump(mode="json"), "methods": {"joint": row}, "report": {}}

    assert left_out() == [
        "Left out of the whole study because retrieval found too few images: 2 classes (a, b).",
        "The U-Net that all classes share (joint) was trained on these classes, too "
        "(finetune.excluded_classes).",
    ]
    assert len(left_out(finetune={"excluded_classes": "leave_out"})) == 1
    assert left_out(retrieval={"exclude": ["a", "b"]}) == [
        "Left out of the whole study by the config (retrieval.exclude): 2 classes (a, b)."
    ]


def copies(results: list[Path], method: str) -> list[Path]:
    """Results of another method, equal to those of the first."""
    found = []
    for path in results[:3]:
        found.append(path.with_name(f"{method}{path.name}"))
        write_json(found[-1], {**read_json(path), "method": method})
    return found


# --- formats --------------------------------------------------------------------------------------


def test_csv_keeps_full_precision_and_reads_back(
    table: Table1, results: list[Path], manifests: list[Path], tmp_path: Path
) -> None:
    write_table1(study(), results, manifests, {"csv": tmp_path / "t.csv"})
    assert read_rows(tmp_path / "t.csv") == list(table.rows)
    frame = pd.read_csv(tmp_path / "t.csv", comment="#")
    assert frame["stderr_percent"][0] == table.rows[0].stderr_percent


def test_there_is_one_row_per_run(results: list[Path], tmp_path: Path) -> None:
    write_table1(study(), results, [], {"runs": tmp_path / "runs.csv"})
    frame = pd.read_csv(tmp_path / "runs.csv")
    assert len(frame) == 15 and list(frame.method.unique()) == list(RUNS)
    assert frame.test_top1_percent[:3].tolist() == pytest.approx([70, 72, 74])
    assert set(frame.best_epoch) == {4}  # counted from 1


def test_every_format_carries_the_whole_footer(table: Table1, results: list[Path], tmp_path: Path) -> None:
    outs = {kind: tmp_path / f"t.{kind}" for kind in ("csv", "md", "tex", "txt")}
    write_table1(study(), results, [], {"csv": outs["csv"]})
    (tmp_path / "contrasts.csv").write_text(render_csv([]))
    shown = {kind: path for kind, path in outs.items() if kind != "csv"}
    write_table1_text("demo_1", outs["csv"], tmp_path / "contrasts.csv", shown)
    expected = build_table(study(), results).notes
    plain = {kind: " ".join(path.read_text(encoding="utf-8").split()) for kind, path in outs.items()}
    for note in expected:
        assert note in plain["csv"] and note in plain["txt"]
        assert escape_markdown(note) in plain["md"] and escape_latex(note) in plain["tex"]


def test_markdown_cells_survive_special_characters(table: Table1) -> None:
    lines = render_markdown(layout(table)).splitlines()
    assert r"| CLIP prompts \| 50% \& more\_ |" in lines[5]
    unescaped = lines[5].replace(r"\|", "")
    assert unescaped.count("|") == lines[0].count("|")


def test_latex_cells_survive_special_characters(table: Table1) -> None:
    assert r"CLIP prompts | 50\% \& more\_ &" in render_latex(layout(table), "caption", "label")
    assert (
        escape_latex(r"a_b^c~{d}\e $5 #1 ± <")
        == r"a\_b\textasciicircum{}c\textasciitilde{}\{d\}\textbackslash{}e \$5 \#1 $\pm$ \textless{}"
    )


def test_latex_rows_have_as_many_cells_as_columns(table: Table1) -> None:
    lines = [
        line for line in render_latex(layout(table), "caption", "label").splitlines() if line.endswith(r"\\")
    ]
    assert len(lines) == 6 and {line.replace(r"\&", "").count("&") for line in lines} == {8}
    assert r"72.0 $\pm$ 1.2" in lines[1]


def test_terminal_table_is_aligned(table: Table1) -> None:
    lines = render_terminal(layout(table)).splitlines()
    rows = [line for line in lines if " ± " in line and not line.startswith(("*", " "))]
    assert len(rows) == 5 and len({len(line) for line in rows}) == 1


def test_notes_of_the_config_end_the_footer(table: Table1) -> None:
    assert table.notes[-1] == "The models are miniature."


# --- cuts -----------------------------------------------------------------------------------------


AS_THE_PAPER = {"decoded_size": "file", "batch_norm_groups": 8}


def footer(config: Study) -> str:
    return "\n".join(map(str, differences(config, Facts(10, 50, 1000, 2000))))


@pytest.mark.parametrize(
    "line",
    [
        "Data set: Fashion-MNIST (paper: 10% of ImageNet)",
        "Real images per class: 50 (paper: 74 to 130)",
        "Test images: 2,000 (paper: 49,500)",
        "Validation images per training image: 2 (paper: 1)",
        "Images generated: 75 per class (paper: 390 per class)",
        "Diffusion model: stable-diffusion (paper: Stable Diffusion v1.4)",
        "Sampling steps: 25 (paper: 50)",
        "Aesthetics filter of retrieval: none (paper: score of at least 5)",
        "Images kept by retrieval: 1 per training image (paper: 130 per class)",
        "Images of retrieval that a class needs to stay: 1 per training image (paper: 130 per class)",
        "Images of retrieval that the corpus tags as unsafe: left out (paper: kept)",
        "Retrieval corpus: miniature, 55,000 images, style shift mild (paper: LAION-5B)",
        "CLIP model of the queries: clip (paper: clip-vit-large-patch14)",
        "Training sets per method: 3 (paper: 5)",
        "Classifier: ResNet with 1-1-1-1 blocks, 16 channels in its first stage (paper: ResNet-50)",
        "Maximum number of epochs: 60 (paper: 270)",
    ],
)
def test_the_footer_names_each_cut(line: str) -> None:
    assert line in footer(study()).splitlines()


def test_the_footer_names_the_type_of_matrix_products_that_a_gpu_took() -> None:
    def lines(dtypes: list[str]) -> list[str]:
        return [str(line) for line in differences(study(), Facts(10, 50, 1000, 2000, dtypes))]

    assert lines(["float32"]) == lines([])
    (line,) = set(lines(["bfloat16", "float16", "float32"])) - set(lines([]))
    assert line == (
        "Matrix products in training and scoring: bfloat16, float16, which the paper does not state; weights "
        "are"
        " float32"
    )


def test_rows_that_differ_alike_share_a_line_of_the_footer() -> None:
    retrieval = {"mechanism": "retrieve", "min_aesthetics": 5.0, "duplicate_threshold": 0.99}
    rows = {
        "retrieval": retrieval,
        "all": retrieval,
        "part": {**retrieval, "corpus_share": 0.1, "ranked": True, "min_side": 64},
    }
    lines = footer(study(methods={"none": {"mechanism": "real"}, **rows})).splitlines()
    assert [line for line in lines if "duplicates" in line] == [
        "Similarity threshold for duplicates in retrieval, all, part: 0.99 (paper: 0.94)"
    ]
    assert "Share of the corpus searched by part: 0.1 (paper: all)" in lines
    assert "Training sets of part: the most similar images (paper: random draws)" in lines
    assert "Minimum side of images in part, pixels: 64 (paper: none)" in lines
    assert not any("Aesthetics" in line or "near several queries" in line for line in lines)


def test_the_footer_names_other_limits_of_retrieval_and_another_scale_of_learning_rates() -> None:
    retrieval = {"mechanism": "retrieve", "images_per_class": 130, "least_images": 130, "drop_tagged": False}
    methods = {
        "none": {"mechanism": "real"},
        "retrieval": retrieval,
        "joint": {"mechanism": "personalise", "learn": "pseudoword", "train_unet": True},
    }
    paper = footer(study(methods=methods))
    assert not any(
        text in paper for text in ("needs to stay", "tags as unsafe", "checker flags", "scales the")
    )
    methods["retrieval"] = {**retrieval, "least_images": 100, "drop_unsafe": False}
    lines = footer(study(methods=methods, finetune={"lr_counts": "own"})).splitlines()
    assert "Images of retrieval that a class needs to stay: 100 per class (paper: 130 per class)" in lines
    assert "Images of retrieval that the safety checker flags: kept (paper: left out)" in lines
    assert (
        "Images whose number scales the learning rates of vectors: the vector's own (paper: all of a batch)"
        in lines
    )


def test_a_checker_that_is_off_or_another_one_is_named() -> None:
    def line(checker: str | None) -> list[str]:
        found = footer(
            study(diffusion={"model": "resources/mini/stable-diffusion", "safety_checker": checker})
        )
        return [line for line in found.splitlines() if line.startswith("Safety checker")]

    assert line("model") == []
    assert line(None) == ["Safety checker: none (paper: the model's own)"]
    assert line("mine/checker") == ["Safety checker: mine/checker (paper: the model's own)"]


def test_the_settings_of_other_generators_are_named_by_row() -> None:
    generators = {"turbo": {"model": "stabilityai/sdxl-turbo", "safety_checker": None}}
    row = {"mechanism": "sample", "generator": "turbo"}
    led = {**row, "guidance_scale": 3.0, "negative_prompt": "a drawing"}
    lines = footer(study(generators=generators, methods={"fast": row, "led": led})).splitlines()
    for line in (
        "Diffusion model of fast, led: sdxl-turbo (paper: Stable Diffusion v1.4)",
        "Safety checker of fast, led: none (paper: the model's own)",
        "Sampler of fast, led: the model's own (paper: pndm)",
        "Sampling steps of fast, led: 1 (paper: 50)",
        "Guidance scale of fast: 0 (paper: 7.5)",
        "Guidance scale of led: 3 (paper: 7.5)",
        "Negative prompt of led: 'a drawing' (paper: none)",
    ):
        assert line in lines
    said = ("Safety checker:", "Sampler:", "Sampling steps:", "Resolution of generated", "Diffusion model:")
    assert not any(line.startswith(said) for line in lines), "no row has the study's own model"


def test_what_is_as_in_the_paper_is_not_named() -> None:
    text = footer(study())
    assert "Guidance" not in text and "Batch size" not in text and "before stopping" not in text


def test_rows_of_the_paper_that_are_missing_are_named() -> None:
    assert (
        "pseudoword_dm" in footer(study()).splitlines()[-1]
        and "clip_prompts" not in footer(study()).splitlines()[-1]
    )


def test_a_learning_rate_at_the_end_of_its_grid_is_reported(results: list[Path], tmp_path: Path) -> None:
    paths = []
    for name, chosen in (("clip_prompts", 3.0), ("retrieval", 1.0)):
        paths.append(tmp_path / name / "lr.json")
        write_json(
            paths[-1], {"factor": chosen, "factors": [{"factor": x, "val_loss": x} for x in (1.0, 0.3, 3.0)]}
        )
    notes = build_table(study(), results, lrs=paths).notes
    (note,) = (note for note in notes if note.startswith("Learning rates at an end of their grid"))
    assert f"{study().label('clip_prompts')} (x 3, the highest of 3 factors)." in note
    assert not any("end of their grid" in note for note in build_table(study(), results, lrs=paths[1:]).notes)


def test_the_type_that_fine_tuning_computed_in_is_reported_unless_it_is_float32(tmp_path: Path) -> None:
    rows = {
        name: {"mechanism": "personalise", "learn": "pseudoword", "label": label, "candidates": [1]}
        for name, label in (("a", "Both"), ("b", "Half"), ("c", "Unsearched"))
    }
    paths = [tmp_path / name / "lr.json" for name in "ab"]
    write_json(paths[0], {"dtypes": ["bfloat16", "float16"]})
    write_json(paths[1], {"dtypes": ["float16"]})
    notes = "; ".join(precision_notes(study(methods=rows, finetune={"dtype": "auto"}), paths))
    ending = "what trains is kept in float32"
    assert notes == (
        f"Fine-tuning computed in bfloat16, {ending}: Both.; Fine-tuning computed in float16, {ending}: "
        "Both, Half.; "
        f"Fine-tuning computed in the GPU's fast type (auto), {ending}: Unsearched."
    )
    write_json(paths[0], {"dtypes": ["float32"]})
    write_json(paths[1], {})  # of version 0.1
    assert not [*precision_notes(study(methods=rows), paths)]


def test_a_rate_that_is_not_searched_and_how_crops_and_batches_differ_are_in_the_footer() -> None:
    row = {"mechanism": "personalise", "learn": "pseudoword"}
    config = study(
        methods={"a": row, "b": {**row, "lr_grid": [1.0, 3.0]}, "none": {"mechanism": "real"}},
        classifier={"batch_size": 128, "decoded_size": 300, "batch_norm_groups": 2},
    )
    text = footer(config).splitlines()
    assert "Learning rate of a: not searched (paper: searched)" in text
    assert not any("Learning rate of" in line and "b" in line.partition(":")[0].split() for line in text)
    assert "Shorter side of images before random crops, pixels: at most 300 (paper: that of the file)" in text
    assert "Images that are normalised together in training: 64 (paper: 32)" in text


def test_the_papers_own_protocol_has_no_cuts_but_missing_rows() -> None:
    paper = study(
        dataset={"kind": "image_folder", "root": "data", "classes": "imagenet"},
        corpus=None,
        methods={"none": {"mechanism": "real"}, "clip_prompts": {"mechanism": "sample"}},
        diffusion={"model": "CompVis/stable-diffusion-v1-4"},
        augmentation={"images_per_class": 390},
        classifier=AS_THE_PAPER,
    )
    assert [difference.what for difference in differences(paper, Facts(990, 128.0, 126_720, 49_500))] == [
        "Rows of the paper not run"
    ]


def test_caltech_is_compared_with_the_papers_caltech() -> None:
    config = study(
        dataset={"kind": "caltech256", "root": "data"},
        corpus=None,
        methods={"none": {"mechanism": "real"}, "clip_prompts": {"mechanism": "sample"}},
        diffusion={"model": "CompVis/stable-diffusion-v1-4"},
        augmentation={"images_per_training_image": 3},
        classifier={"batch_size": 1024, "lr": 0.003, **AS_THE_PAPER},
        report={"paper_study": "caltech256"},
    )
    assert [difference.what for difference in differences(config, Facts(251, 90, 3000, 3000))] == [
        "Rows of the paper not run"
    ]


def test_the_classifiers_defaults_are_the_papers() -> None:
    assert (CLASSIFIER.arch, CLASSIFIER.resolution, CLASSIFIER.batch_size, CLASSIFIER.lr) == (
        "resnet50",
        224,
        256,
        0.1,
    )
    assert (
        CLASSIFIER.plateau_patience,
        CLASSIFIER.stop_patience,
        CLASSIFIER.max_epochs,
        CLASSIFIER.layers,
    ) == (10, 20, 270, None)
    assert (
        CLASSIFIER.momentum,
        CLASSIFIER.weight_decay,
        CLASSIFIER.min_crop_area,
        CLASSIFIER.stem,
        CLASSIFIER.base_width,
    ) == (0.9, 1e-4, 0.08, "imagenet", 64)


def test_the_diffusion_models_and_retrievals_defaults_are_the_papers() -> None:
    assert (DIFFUSION.resolution, DIFFUSION.scheduler, DIFFUSION.steps, DIFFUSION.guidance_scale) == (
        512,
        "pndm",
        50,
        7.5,
    )
    method = RetrieveMethod(mechanism="retrieve")
    assert (method.duplicate_threshold, method.first_k, method.growth_limit, method.drop_unsafe) == (
        0.94,
        1.4,
        10,
        True,
    )


# --- a study of one's own data --------------------------------------------------------------------


def own(**changes: Any) -> Study:
    """The study without ``report.paper_study``."""
    return study(**{"report": {}, **changes})


def test_a_study_of_ones_own_data_has_no_number_of_the_paper(results: list[Path], tmp_path: Path) -> None:
    outs = {kind: tmp_path / f"t.{kind}" for kind in ("csv", "md", "tex", "txt")}
    made = write_table1(own(), results, [], {"csv": outs["csv"]})
    (tmp_path / "contrasts.csv").write_text(render_csv([]))
    shown = {kind: path for kind, path in outs.items() if kind != "csv"}
    write_table1_text("demo_1", outs["csv"], tmp_path / "contrasts.csv", shown)
    for kind, path in outs.items():
        text = path.read_text(encoding="utf-8").lower()
        assert "differs from the defaults: sampling steps: 25 (default: 50)" in " ".join(text.split()), kind
        assert not re.search(r"paper|burg|protocol", text), kind
    assert read_rows(outs["csv"]) == list(made.rows)
    assert layout(made).header[-1] == "Overlap"


def test_ones_own_data_and_models_are_no_difference_and_settings_are() -> None:
    # no line on data, models, corpus and amounts, which have no default
    assert footer(own()).splitlines() == [
        "Resolution of generated images, pixels: 32 (default: 512)",
        "Sampling steps: 25 (default: 50)",
        "Training sets per method: 3 (default: 5)",
        "Classifier: ResNet with 1-1-1-1 blocks, 16 channels in its first stage (default: ResNet-50)",
        "Classifier's input size, pixels: 32 (default: 224)",
        "Maximum number of epochs: 60 (default: 270)",
    ]


def test_a_study_with_the_defaults_differs_in_nothing() -> None:
    rows = {
        "none": {"mechanism": "real"},
        "clip_prompts": {"mechanism": "sample"},
        "pseudoword": {"mechanism": "personalise", "learn": "pseudoword"},
        "joint": {"mechanism": "personalise", "learn": "conditioning", "train_unet": True},
        "retrieval": {"mechanism": "retrieve"},
    }
    for corpus in ({"kind": "miniature"}, {"kind": "image_folder", "root": "web"}):
        plain = own(
            diffusion={"model": "sd"},
            methods=rows,
            corpus=corpus,
            augmentation={"images_per_class": 75},
            classifier={},
        )
        assert footer(plain) == ""


def test_only_ones_own_data_has_none_of_the_papers_tables() -> None:
    rows = {
        "none": {"mechanism": "real"},
        "clip_prompts": {"mechanism": "sample"},
        "retrieval": {"mechanism": "retrieve"},
        "k1": {"mechanism": "personalise", "learn": "conditioning"},
        "k5": {"mechanism": "personalise", "learn": "conditioning", "clusters": 5},
    }
    data = {
        "dataset": {"kind": "image_folder", "root": "data"},
        "corpus": {"kind": "image_folder", "root": "w"},
    }
    assert Plan(own(methods=rows, **data), ()).paper_tables == {}
    beside = study(methods=rows, report={"paper_study": "caltech256"}, **data)
    assert Plan(beside, ()).paper_tables == {"caltech256": ["none", "clip_prompts", "retrieval"]}


# --- figure ---------------------------------------------------------------------------------------


def row(method: str, family: str, top1: float, split: str = "train") -> Row:
    return Row(method, method, family, split, top1, 0.3, 3, 50, 50, None, None, None)


def test_each_family_shows_its_best_method(table: Table1) -> None:
    assert {family: best.method for family, best in best_of_families(table.rows).items()} == {
        "real": "none",
        "prompting": "clip_prompts",
        "retrieval": "retrieval",
    }


def test_bars_have_the_papers_colours_and_the_axis_says_where_it_starts(table: Table1) -> None:
    (axes,) = draw(table.rows).axes
    assert [to_hex(bar.get_facecolor()).upper() for bar in axes.patches[:3]] == [
        "#0072B2",
        "#E69F00",
        "#D55E00",
    ]
    start = axes.get_ylim()[0]
    assert f"axis starts at {start:g}, not at 0" in axes.get_ylabel()
    assert [bar.get_y() + bar.get_height() for bar in axes.patches[:3]] == pytest.approx([72, 75, 77])


def test_values_and_upper_bound_are_printed(table: Table1) -> None:
    (axes,) = draw(table.rows).axes
    texts = [text.get_text() for text in axes.texts]
    assert {"72.0 ± 1.2", "75.0 ± 0.6", "77.0 ± 1.2", "20% real: 80.3"} <= set(texts)


def test_figure1_breaks_no_word_of_a_long_label() -> None:
    (axes,) = draw(
        [
            row("none", "real", 50),
            replace(row("ft", "personalised", 60), label="Electroencephalographically (k = 5)"),
        ]
    ).axes
    ticks = [tick.get_text() for tick in axes.get_xticklabels()]
    assert "(Electroencephalographically" in ticks[1].split("\n")


def test_without_an_upper_bound_there_is_no_line(table: Table1) -> None:
    (axes,) = draw([entry for entry in table.rows if entry.split == "train"]).axes
    assert not any("real" in text.get_text() for text in axes.texts)


def test_the_axis_starts_below_the_lowest_bar_at_a_round_number() -> None:
    paper = [row("none", "real", 57.2), row("retrieval", "retrieval", 62.6)]
    assert 50 <= axis_start(paper) < 56.9 and axis_start(paper) == int(axis_start(paper))
    assert axis_start([row("none", "real", 1.0)]) == 0


def test_the_same_table_gives_the_same_bytes(table: Table1, results: list[Path], tmp_path: Path) -> None:
    write_table1(study(), results, [], {"csv": tmp_path / "t.csv"})
    for name in ("one", "two"):
        write_figure1(tmp_path / "t.csv", {"pdf": tmp_path / f"{name}.pdf", "png": tmp_path / f"{name}.png"})
    assert (tmp_path / "one.pdf").read_bytes() == (tmp_path / "two.pdf").read_bytes()
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    width = matplotlib_image.imread(tmp_path / "one.png").shape[1]
    assert width == 990  # 3.3 inches at 300 dpi


def test_a_table_without_families_of_the_figure_is_an_error() -> None:
    with pytest.raises(UserError, match="no row of its families"):
        draw([row("boomerang", "unconditional", 50)])


def test_labels_with_commas_and_quotes_read_back(table: Table1, tmp_path: Path) -> None:
    odd = replace(table.rows[0], label='a, "b"')
    (tmp_path / "t.csv").write_text(render_csv([odd], ["a note, with a comma"]), encoding="utf-8")
    assert read_rows(tmp_path / "t.csv") == [odd]
    assert len(next(csv.reader(io.StringIO(render_csv([odd]).splitlines()[1])))) == 14


def test_numbers_of_numpy_are_written_as_numbers(table: Table1) -> None:
    ours = replace(table.rows[0], top1_percent=81.3)
    theirs = replace(ours, top1_percent=np.float64(81.3))
    assert render_csv([theirs]) == render_csv([ours])
