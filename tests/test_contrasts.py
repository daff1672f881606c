"""Which contrasts a study has, their table, and what `augbench plan` says that they will detect."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_report import study
from test_statistics import RUNS, hits_of, table

from augbench.cli import main
from augbench.commands.plan.detectable import describe, detectable_of, spread_of
from augbench.config.problems import ConfigError
from augbench.config.stages import Contrast, Report
from augbench.config.study import load_study, parse_study, read_yaml
from augbench.files import PROJECT, write_text
from augbench.plan import recipes
from augbench.report.contrasts import pairs_of, planned_pairs
from augbench.report.figures.forest import draw
from augbench.report.figures.style import styled
from augbench.report.inference.power import detectable, runs_needed
from augbench.report.render import render_csv
from augbench.report.tables import statistics
from augbench.report.tables.components import build_rows as build_components
from augbench.report.tables.contrasts import build_rows, read_rows, validation_of, write_contrasts

DEMO = PROJECT / "config/demo.yaml"


def demo(**report: Any) -> dict[str, Any]:
    """The demo's config with these settings of its report, not its own."""
    config = read_yaml(DEMO)
    config["report"] = {"judge": config["report"]["judge"], **report}
    return config


# --- the choice -----------------------------------------------------------------------------------


def test_by_default_rows_are_compared_with_none_with_twice_and_retrieval_with_each_familys_best() -> None:
    pairs = planned_pairs(study())
    assert [(pair.kind, pair.row, pair.against) for pair in pairs] == [
        ("baseline", "real_20pct", "none"),
        ("baseline", "simple_prompt", "none"),
        ("baseline", "clip_prompts", "none"),
        ("baseline", "retrieval", "none"),
        ("twice", "simple_prompt", "real_20pct"),
        ("twice", "clip_prompts", "real_20pct"),
        ("twice", "retrieval", "real_20pct"),
        ("family", "retrieval", "simple_prompt"),
    ]
    assert pairs[3].name == "retrieval against No added images"


def test_the_best_row_of_a_family_is_chosen_by_validation_accuracy() -> None:
    rows, runs = table({**RUNS, "simple_prompt": (60.0, 61.0, 62.0)})
    assert validation_of(runs)["clip_prompts"] == 70

    def best(**validation: float) -> list[str]:
        return [pair.against for pair in pairs_of(rows, (), validation) if pair.kind == "family"]

    assert best(clip_prompts=71.0, simple_prompt=72.0) == ["simple_prompt", "pseudoword_dm"]
    assert best(clip_prompts=72.0, simple_prompt=72.0) == ["clip_prompts", "pseudoword_dm"], (
        "the first of equals"
    )


def test_contrasts_that_the_config_names_replace_the_default_ones() -> None:
    named = [
        {"row": "retrieval", "against": "imagic"},
        {"name": "mine", "row": "none", "against": "boomerang"},
    ]
    pairs = planned_pairs(parse_study(demo(contrasts=named)))
    assert [(pair.kind, pair.name, pair.row, pair.against) for pair in pairs] == [
        ("named", "Retrieval against Imagic", "retrieval", "imagic"),
        ("named", "mine", "none", "boomerang"),
    ]


@pytest.mark.parametrize(
    ("report", "problem"),
    [
        (
            {"contrasts": [{"row": "found", "against": "none"}]},
            "report.contrasts.0.row: 'found'; allowed: a row of methods: none, real_20pct,"
            " real_repeated, boomerang,",
        ),
        (
            {"contrasts": [{"row": "imagic", "against": "none"}, {"row": "none", "against": "clip"}]},
            "report.contrasts.1.against: 'clip'; allowed: a row of methods: none,",
        ),
        (
            {"contrasts": [{"row": "none", "against": "none"}]},
            "report.contrasts.0.against: 'none'; a row is compared with another row",
        ),
        (
            {"contrasts": [{"row": "none", "against": "imagic"}, {"row": "imagic", "against": "none"}]},
            "report.contrasts.1.row: 'imagic'; these two rows are compared already",
        ),
        ({"contrasts": [{"row": "none"}]}, "report.contrasts.0.against: missing; this key is required"),
        ({"contrasts": "all"}, "report.contrasts: 'all'; allowed: a list"),
        ({"margin": 0}, "report.margin: 0; allowed: greater than 0"),
        ({"margin": float("inf")}, "report.margin: "),
        (
            {
                "contrasts": [
                    {"row": "retrieval", "against": other, "name": "q"} for other in ("none", "imagic")
                ]
            },
            "report.contrasts.1.name: 'q'; allowed: a name that no other contrast has",
        ),
    ],
)
def test_a_wrong_contrast_is_named_with_what_is_allowed(report: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_study(demo(**report))
    assert str(caught.value).startswith(problem)


def test_contrasts_and_margin_are_in_the_recipes_of_the_statistics_alone_and_only_if_they_are_set() -> None:
    base = parse_study(demo())
    changed = parse_study(
        demo(contrasts=[{"row": "retrieval", "against": "none"}], margin=0.5, error="pooled")
    )
    assert recipes.table_recipe(base) == recipes.table_recipe(changed)
    assert recipes.classifier_recipe(base, "retrieval") == recipes.classifier_recipe(changed, "retrieval")
    assert recipes.statistics_recipe(base) == {"version": 2, "seed": 0}
    assert {"margin": 0.5, "error": "pooled"}.items() <= recipes.statistics_recipe(changed).items()
    assert recipes.config_recipe(base) == recipes.table_recipe(base)["study"]
    assert recipes.config_recipe(changed)["report"]["contrasts"][0]["row"] == "retrieval"


# --- the table ------------------------------------------------------------------------------------


def test_p_values_are_corrected_for_all_contrasts_together() -> None:
    rows, runs = table(RUNS)
    found = build_rows(rows, runs, hits_of(RUNS), 0, Report())
    assert [row.name for row in found] == [
        "CLIP_PROMPTS against NONE",
        "PSEUDOWORD_DM against NONE",
        "RETRIEVAL against NONE",
        "RETRIEVAL against CLIP_PROMPTS",
        "RETRIEVAL against PSEUDOWORD_DM",
    ]
    assert {row.contrasts for row in found} == {5}
    # differences to none: 1, 3, 2 and 5, 4, 6; to clip_prompts 4, 1, 4; to pseudoword_dm 2, 1, 3.
    # t = 2 sqrt(3), 5 sqrt(3), 3, 2 sqrt(3); pseudoword_dm is 3 above none in every run: no test
    p = [row.p for row in found]
    assert p[1] is None and p[0] == p[4] == pytest.approx(1 - (12 / 14) ** 0.5)
    assert p[2] == pytest.approx(1 - (75 / 77) ** 0.5) and p[3] == pytest.approx(1 - (9 / 11) ** 0.5)
    # sorted: 0.0131 x 4, 0.0742 x 3, 0.0742 x 2, 0.0955 x 1; none may fall below the one before
    corrected = [row.p_holm for row in found]
    assert corrected[2] == pytest.approx(4 * p[2]) and corrected[1] is None
    assert corrected[0] == corrected[4] == corrected[3] == pytest.approx(3 * p[0])
    assert {row.verdict for row in found} == {"can't tell"}


def test_power_takes_the_level_that_holms_method_asks_of_the_smallest_p() -> None:
    rows, runs = table(RUNS)
    first = build_rows(rows, runs, hits_of(RUNS), 0, Report(margin=2.0))[0]
    assert (first.sd_points, first.margin) == (pytest.approx(1), 2.0)
    assert first.detectable_alone == pytest.approx(detectable(1.0, 3, 0.05))
    assert first.detectable_holm == pytest.approx(detectable(1.0, 3, 0.01))
    assert first.runs_for_margin == runs_needed(2.0, 1.0, 0.01)


def test_a_name_that_begins_like_a_note_reads_back(tmp_path: Path) -> None:
    rows, runs = table(RUNS)
    named = Report(contrasts=(Contrast(row="retrieval", against="none", name="#1:\n two lines"),))
    written = write_contrasts("s", rows, runs, hits_of(RUNS), 0, named, {"csv": tmp_path / "c.csv"})
    assert read_rows(tmp_path / "c.csv") == written and written[0].name == "#1: two lines"


def test_two_runs_cannot_say_whether_rows_vary_alike() -> None:
    two = {row: {0: 70.0 + place, 1: 71.0 + place**2} for place, row in enumerate("abc")}
    said = statistics.spread_note(two, statistics.error_of(two, Report(error="pooled")))
    assert "So few runs can't say whether they do" in said


def test_a_pooled_error_is_one_for_all_contrasts_and_decides_more() -> None:
    # values: rows at 70 to 76 with residuals of rows x runs; 4 rows, 3 runs: (4 - 1) x (3 - 1) = 6
    rows, runs = table(RUNS)
    own, pooled = (
        build_rows(rows, runs, hits_of(RUNS), 0, Report.model_validate({"error": error}))
        for error in ("own", "pooled")
    )
    assert {row.df for row in own} == {2} and {row.df for row in pooled} == {6}
    assert len({row.sd_points for row in pooled}) == 1 and [row.points for row in own] == [
        row.points for row in pooled
    ]
    assert all(row.p is not None for row in pooled), "also where a row is 3 above another in every run"
    by_name = {row.name: row for row in pooled}
    lead = by_name["RETRIEVAL against NONE"]
    assert lead.verdict == "more" and lead.both_low is not None and lead.both_low > 0
    assert lead.detectable_holm == pytest.approx(detectable(lead.sd_points or 0, 3, 0.01, 3))
    assert lead.detectable_holm < 0.5 * detectable(1.0, 3, 0.01)
    made = {
        row.method: row for row in statistics.build_rows(rows, runs, hits_of(RUNS), 0, Report(error="pooled"))
    }
    assert (made["retrieval"].baseline_low, made["retrieval"].baseline_high) == (lead.low, lead.high)


def test_notes_say_which_error_is_used_and_whether_rows_vary_alike(tmp_path: Path) -> None:
    out = tmp_path / "contrasts.md"
    for error, said in (
        ("own", "Each contrast has the spread of its own differences."),
        (
            "pooled",
            "with 6 degrees of freedom. This assumes that all rows vary alike. Levene's test finds no",
        ),
    ):
        report = Report.model_validate({"error": error})
        write_contrasts("s", *table(RUNS), hits_of(RUNS), 0, report, {"md": out})
        assert said in " ".join(out.read_text().split())
    rng = np.random.default_rng(0)
    uneven = {
        row: dict(enumerate(map(float, rng.normal(75, sd, 10)))) for row, sd in {"a": 0.1, "b": 5.0}.items()
    }
    said = statistics.spread_note(uneven, statistics.error_of(uneven, Report(error="pooled")))
    assert "Rows do not vary alike (Levene's test)" in said and "report.error: own" in said


def test_a_clear_difference_and_a_clear_equality_are_told() -> None:
    own = {"none": (70.0, 70.1, 69.9), "clip_prompts": (75.0, 75.2, 75.0), "retrieval": (75.05, 75.2, 75.0)}
    rows, runs = table(own)
    found = {row.name: row.verdict for row in build_rows(rows, runs, hits_of(own), 0, Report())}
    assert found == {
        "CLIP_PROMPTS against NONE": "more",
        "RETRIEVAL against NONE": "more",
        "RETRIEVAL against CLIP_PROMPTS": "same",
    }
    turned = [Contrast(row="none", against="retrieval")]
    (less,) = build_rows(rows, runs, hits_of(own), 0, Report(contrasts=tuple(turned)))
    assert (less.verdict, less.kind, less.points) == ("less", "named", pytest.approx(-5.0833, abs=1e-3))


def test_the_file_reads_back_and_says_how_the_numbers_were_made(tmp_path: Path) -> None:
    rows, runs = table(RUNS)
    outs = {kind: tmp_path / f"contrasts.{kind}" for kind in ("csv", "md", "tex")}
    written = write_contrasts("demo_1", rows, runs, hits_of(RUNS), 0, Report(), outs)
    assert read_rows(outs["csv"]) == written
    for path in outs.values():
        text = " ".join(path.read_text(encoding="utf-8").split())
        for said in (
            "chosen by validation accuracy",
            "for all 5 contrasts",
            "10,000 bootstrap samples",
            "0.05 / 5",
        ):
            assert said in text
        assert "With 2 degrees of freedom the true one is 0.5 to 6.3 times that" in text
    assert "p of less than 1 point | Detectable | Runs for 1 point | Verdict |" in outs["md"].read_text()


def test_a_single_run_or_row_is_no_error(tmp_path: Path) -> None:
    single = {name: values[:1] for name, values in RUNS.items()}
    rows, runs = table(single)
    found = build_rows(rows, runs, hits_of(single), 0, Report())
    assert {(row.n, row.low, row.both_low, row.p_holm, row.verdict) for row in found} == {
        (1, None, None, None, "can't tell")
    }
    alone = {"none": RUNS["none"]}
    outs = {"md": tmp_path / "contrasts.md"}
    assert write_contrasts("one", *table(alone), hits_of(alone), 0, Report(), outs) == []
    assert "no two rows to compare" in outs["md"].read_text()


def test_what_was_not_varied_is_named_beside_the_components_of_the_spread() -> None:
    found = {row.source: row for row in build_components(*table(RUNS))}
    assert "one split" in found["real images"].meaning and found["real images"].sd_points is None
    # none: variance 4; added rows: variances 7, 4, 7
    assert (found["seed"].sd_points, found["seed"].df) == (pytest.approx(2), 2)
    drawn = found["seed and draw from the pool"]
    assert (drawn.sd_points, drawn.df) == (pytest.approx(6**0.5), 6) and "not separable" in drawn.meaning
    # 4 rows, run means 72.25, 74.5, 76.75: mean square 4 x 2 x 2.25^2 / 2 = 20.25; within rows 44 in all,
    # so the rest is 44 - 40.5 = 3.5 with 6 degrees of freedom
    assert found["run, own to a row"].sd_points == pytest.approx((3.5 / 6) ** 0.5)
    assert found["run, shared by all rows"].sd_points == pytest.approx(((20.25 - 3.5 / 6) / 4) ** 0.5)
    single = {name: values[:1] for name, values in RUNS.items()}
    assert {row.sd_points for row in build_components(*table(single))} == {None}


# --- before a run ---------------------------------------------------------------------------------


def test_without_results_the_plan_takes_shipped_spreads_and_names_them() -> None:
    mini = parse_study(demo())
    spread = spread_of(mini)
    assert (spread.smallest, spread.largest) == pytest.approx((2**0.5 * 0.5, 2**0.5 * 1.1))
    assert "miniature" in spread.source
    found = detectable_of(mini)
    assert found is not None and (found.runs, found.contrasts) == (3, 28)
    assert found.corrected == pytest.approx(
        [detectable(sd, 3, 0.05 / 28) for sd in (0.5 * 2**0.5, 1.1 * 2**0.5)]
    )
    # the paper's Table 1: standard errors 0.1 to 0.4 over 5 runs
    paper = spread_of(load_study([PROJECT / "config/imagenet10.yaml"]))
    assert (paper.smallest, paper.largest) == pytest.approx((0.1 * 10**0.5, 0.4 * 10**0.5))
    assert paper.source == "standard errors of the paper's imagenet10 over 5 runs"


def test_the_spread_of_a_finished_study_of_that_name_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows, runs = table(RUNS)
    path = "results/demo/tables/contrasts.csv"
    write_contrasts("demo", rows, runs, hits_of(RUNS), 0, Report(), {"csv": path})
    found = detectable_of(load_study([DEMO]))
    assert found is not None
    assert (found.spread.smallest, found.spread.largest) == pytest.approx((1, 3**0.5))
    assert describe(found).endswith(
        f"Standard deviation of a paired difference: 1.0 to 1.7 points, from the differences in {path}."
    )
    write_text(path, "name,points\nx,1\n")
    assert main(["plan", "--configfile", str(DEMO)]) == 1


def test_the_plan_prints_what_the_study_will_detect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = copy.deepcopy(demo(contrasts=[{"row": "retrieval", "against": "none"}]))
    (tmp_path / "study.yaml").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "--configfile", "study.yaml"]) == 0
    text = capsys.readouterr().out
    # 3 runs, one contrast: 3.2636 standard deviations
    assert "Detectable: with 3 runs per row, a difference of 2.3 to 5.1 points" in text
    assert main(["plan", "--json", "--configfile", "study.yaml"]) == 0
    assert json.loads(capsys.readouterr().out)["detectable"]["contrasts"] == 1
    config["augmentation"]["resamples"] = 1
    (tmp_path / "study.yaml").write_text(json.dumps(config))
    assert main(["plan", "--configfile", "study.yaml"]) == 0
    assert "A single run per row cannot tell any difference from chance." in capsys.readouterr().out


# --- the forest plot ------------------------------------------------------------------------------


def test_the_forest_plot_shows_every_difference_with_both_intervals() -> None:
    rows, runs = table(RUNS)
    made = statistics.build_rows(rows, runs, hits_of(RUNS), 0, Report())
    with styled():
        axes = draw(rows, made).axes[0]
    lines = [line.get_xdata() for line in axes.lines[1:]]
    for place, row in enumerate(made[1:]):
        over_runs, over_images, point = lines[3 * place : 3 * place + 3]
        assert tuple(over_runs) == (row.baseline_low, row.baseline_high)
        assert tuple(over_images) == (row.baseline_images_low, row.baseline_images_high)
        assert tuple(point) == (row.baseline_points,)
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [name.upper() for name in list(RUNS)[1:]]
    assert np.diff(axes.get_ylim())[0] < 0, "the first row is on top"


def test_the_forest_plot_of_single_runs_has_intervals_over_test_images_only() -> None:
    single = {name: values[:1] for name, values in RUNS.items()}
    rows, runs = table(single)
    with styled():
        figure = draw(rows, statistics.build_rows(rows, runs, hits_of(single), 0, Report()))
    assert len(figure.axes[0].lines) == 1 + 2 * 3
    assert "over runs" not in figure.get_supxlabel()


def test_the_same_tables_give_the_same_bytes(tmp_path: Path) -> None:
    from augbench.report.figures.forest import write_forest

    rows, runs = table(RUNS)
    write_text(tmp_path / "table1.csv", render_csv(rows))
    write_text(
        tmp_path / "statistics.csv", render_csv(statistics.build_rows(rows, runs, hits_of(RUNS), 0, Report()))
    )
    for name in ("one", "two"):
        outs = {kind: tmp_path / f"{name}.{kind}" for kind in ("pdf", "png")}
        write_forest(tmp_path / "table1.csv", tmp_path / "statistics.csv", outs)
    for kind in ("pdf", "png"):
        assert (tmp_path / f"one.{kind}").read_bytes() == (tmp_path / f"two.{kind}").read_bytes()
