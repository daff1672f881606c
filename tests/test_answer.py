"""The study's answer in one sentence, for every case: golden sentences."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from augbench.files import write_text
from augbench.report.answer import answer_of
from augbench.report.render import read_markdown, render_csv
from augbench.report.tables import contrasts, table1
from augbench.report.tables.table1_text import write_table1_text

FAMILIES = {
    "none": "real",
    "twice": "real",
    "boomerang": "unconditional",
    "clip": "prompting",
    "imagic": "personalised",
    "found": "retrieval",
    "found_more": "retrieval",
}
LABELS = {
    "none": "no added data",
    "clip": "CLIP prompts",
    "found": "Retrieval",
    "found_more": "More retrieval",
}


def label(method: str) -> str:
    return LABELS.get(method, method.capitalize())


def table(*methods: str) -> list[table1.Row]:
    return [
        table1.Row(
            method=name,
            label=label(name),
            family=FAMILIES[name],
            split="train2x" if name == "twice" else "train",
            top1_percent=70.0,
            stderr_percent=0.5,
            n=5,
            real_per_class=50.0,
            added_per_class=0.0 if FAMILIES[name] == "real" else 50.0,
            overlap=None,
            paper_top1_percent=None,
            paper_stderr_percent=None,
        )
        for name in methods
    ]


def cut(rows: list[table1.Row], *methods: str) -> list[table1.Row]:
    """The rows, with all runs of ``methods`` cut while rising."""
    return [replace(row, cut=row.n) if row.method in methods else row for row in rows]


def contrast(row: str, against: str, points: float, verdict: str, **changes: Any) -> contrasts.Row:
    """A contrast of five runs with the interval +-0.5 and the given verdict."""
    made = contrasts.Row(
        name=f"{label(row)} against {label(against)}",
        kind="baseline" if against == "none" else "family",
        row=row,
        row_label=label(row),
        against=against,
        against_label=label(against),
        n=5,
        n_test=3000,
        points=points,
        sd_points=0.4,
        df=4,
        low=points - 0.5,
        high=points + 0.5,
        images_low=points - 0.3,
        images_high=points + 0.3,
        both_low=points - 0.6,
        both_high=points + 0.6,
        p=0.004,
        p_holm=0.01 if verdict in ("more", "less") else 0.4,
        p_same=0.2,
        p_same_holm=0.02 if verdict == "same" else 1.0,
        detectable_alone=0.7,
        detectable_holm=1.5,
        runs_for_margin=18,
        margin=1.0,
        contrasts=26,
    )
    found = replace(made, **changes)
    assert found.verdict == verdict
    return found


ALL = ("none", "twice", "boomerang", "clip", "imagic", "found")
START = "With 50 real images per class, "
ADDS = contrast("found", "none", 2.1, "more")


def test_retrieval_helps_and_is_compared_with_the_best_generated_rows() -> None:
    rows = [
        ADDS,
        contrast("found", "boomerang", 1.5, "more"),
        contrast("found", "clip", 0.3, "can't tell"),
        contrast("found", "imagic", 0.1, "same"),
    ]
    assert answer_of(table(*ALL), rows) == (
        START
        + "50 retrieved ones add 2.1 points [1.6 to 2.6]; none of the best generated rows is shown to be"
        " better than Retrieval: Boomerang is worse, Imagic is the same within 1 point, CLIP prompts can't "
        "be told from it"
        " (-0.3 points [-0.8 to +0.2] with 5 runs; 18 runs would show a difference of 1 point)."
    )


def test_no_generated_row_is_better_only_if_all_were_told_from_it() -> None:
    rows = [ADDS, contrast("found", "boomerang", 1.5, "more"), contrast("found", "clip", 1.2, "more")]
    assert answer_of(table(*ALL), rows).endswith(
        "; none of the best generated rows is better than Retrieval: Boomerang and CLIP prompts are worse."
    )
    rows = [ADDS, contrast("found", "boomerang", 0.1, "same"), contrast("found", "clip", 0.2, "same")]
    assert answer_of(table(*ALL), rows).endswith(
        "; none of the best generated rows is better than Retrieval: Boomerang and CLIP prompts are the same"
        " within 1 point."
    )
    assert answer_of(table(*ALL), rows[:2]).endswith("; Boomerang is the same as Retrieval within 1 point.")


def test_a_generated_row_is_better() -> None:
    rows = [ADDS, contrast("found", "clip", -1.2, "less"), contrast("found", "imagic", 0.1, "same")]
    assert answer_of(table(*ALL), rows) == (
        START + "50 retrieved ones add 2.1 points [1.6 to 2.6]; CLIP prompts is better than Retrieval, by 1.2"
        " points [0.7 to 1.7]; Imagic is the same as Retrieval within 1 point."
    )


def test_a_question_about_retrieval_and_one_generated_row_is_answered_in_full() -> None:
    asked = contrast("found", "clip", 2.0, "more", kind="named")
    assert answer_of(table(*ALL), [asked]) == (
        START + "CLIP prompts is worse than Retrieval, by 2.0 points [1.5 to 2.5]."
    )


def test_contrasts_with_one_name_are_both_told() -> None:
    rows = [
        replace(ADDS, kind="named", name="q"),
        contrast("clip", "none", 1.0, "more", kind="named"),
    ]
    said = answer_of(table(*ALL), [rows[0], replace(rows[1], name="q")])
    assert said.endswith("; CLIP prompts: 1.0 points [0.5 to 1.5] above no added data.")


def test_large_classes_are_counted_in_full() -> None:
    rows = [replace(row, real_per_class=12000.0) for row in table(*ALL)]
    assert answer_of(rows, [ADDS]).startswith("With 12,000 real images per class, ")


def test_negative_effects_cost() -> None:
    assert answer_of(table("none", "found"), [contrast("found", "none", -2.1, "less")]) == (
        START + "50 retrieved ones cost 2.1 points [1.6 to 2.6]."
    )


def test_an_effect_that_other_test_images_may_not_have_is_limited_to_these() -> None:
    row = replace(ADDS, both_low=-0.1, both_high=4.3)
    assert answer_of(table("none", "found"), [row]) == (
        START + "50 retrieved ones add 2.1 points [1.6 to 2.6] on these test images."
    )


def test_what_is_equal_within_the_margin_is_said_to_be() -> None:
    row = contrast("found", "none", 0.2, "same", margin=1.5)
    assert answer_of(table("none", "found"), [row]) == (
        START + "50 retrieved ones change accuracy by less than 1.5 points (+0.2 points [-0.3 to +0.7])."
    )


def test_what_cannot_be_told_comes_with_the_runs_that_would_tell() -> None:
    unknown = contrast("found", "none", 0.4, "can't tell")
    start = START + "it can't be told whether 50 retrieved ones help (+0.4 points [-0.1 to +0.9] with 5 runs"
    one = table("none", "found")
    assert answer_of(one, [unknown]) == f"{start}; 18 runs would show a difference of 1 point)."
    assert answer_of(one, [replace(unknown, runs_for_margin=4)]) == f"{start})."
    assert answer_of(one, [replace(unknown, runs_for_margin=None)]) == (
        f"{start}; more than 10,000 runs would show a difference of 1 point)."
    )


def test_of_several_unknown_rows_the_one_that_needs_most_runs_counts() -> None:
    rows = [
        ADDS,
        contrast("found", "boomerang", 0.6, "can't tell"),
        contrast("found", "clip", 0.5, "can't tell"),
    ]
    rows[1] = replace(rows[1], runs_for_margin=40)
    assert answer_of(table(*ALL), rows).endswith(
        "; Boomerang and CLIP prompts can't be told from Retrieval (with 5 runs; 40 runs would show a "
        "difference of"
        " 1 point)."
    )


def test_everything_equal_has_no_test() -> None:
    equal = {"sd_points": 0.0, "low": 0.0, "high": 0.0, "p": None, "p_holm": None, "p_same": None}
    rows = [
        contrast("found", against, 0.0, "can't tell", **equal, p_same_holm=None)
        for against in ("none", "clip")
    ]
    assert answer_of(table("none", "clip", "found"), rows) == (
        START
        + "it can't be told whether 50 retrieved ones help (the same difference in every run, so there is"
        " no test); CLIP prompts can't be told from Retrieval."
    )


def test_a_single_run_tells_nothing() -> None:
    single = dict.fromkeys(
        ("sd_points", "low", "high", "both_low", "both_high", "p", "p_holm", "p_same", "p_same_holm")
    )
    row = contrast("found", "none", 2.1, "can't tell", n=1, **single)
    assert answer_of(table("none", "found"), [row]) == (
        "Can't tell: a single run per row shows no spread (Retrieval against no added data: +2.1 points); at"
        " least 2 runs are needed, and 5 are better."
    )


def test_without_retrieval_the_rows_that_add_images_are_told() -> None:
    rows = [
        contrast("twice", "none", 5.0, "more"),
        contrast("boomerang", "none", -1.0, "less"),
        contrast("clip", "none", 2.0, "more"),
        contrast("imagic", "none", 0.3, "can't tell"),
    ]
    assert answer_of(table(*ALL[:-1]), rows) == (
        START
        + "images of CLIP prompts add 2.0 points [1.5 to 2.5]; images of Boomerang cost 1.0 points [0.5 to"
        " 1.5]; it can't be told whether images of Imagic help (+0.3 points [-0.2 to +0.8] with 5 runs; 18"
        " runs would show a difference of 1 point)."
    )


def test_many_rows_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    methods = [f"row{number}" for number in range(5)]
    for name in methods:
        monkeypatch.setitem(FAMILIES, name, "prompting")
    rows = [contrast(name, "none", 2.0, "more") for name in methods]
    assert answer_of(table("none", *methods), rows).endswith(
        "images of Row2 add 2.0 points [1.5 to 2.5]; those of 2 more rows add some."
    )
    rows = [contrast(name, "none", 0.2, "can't tell") for name in methods]
    assert answer_of(table("none", *methods), rows) == (
        START
        + "it can't be told whether the images of 5 rows help (with 5 runs; 18 runs would show a difference"
        " of 1 point)."
    )


def test_without_a_baseline_what_added_images_bring_is_unknown() -> None:
    assert answer_of(table("clip", "found"), [contrast("found", "clip", 1.2, "more")]) == (
        START
        + "CLIP prompts is worse than Retrieval, by 1.2 points [0.7 to 1.7]; the study has no row of the"
        " training images alone, so it can't say what added images bring."
    )


def test_of_several_rows_of_retrieval_the_first_one_is_meant() -> None:
    rows = [ADDS, contrast("found_more", "none", 3.0, "more")]
    assert answer_of(table("none", "found", "found_more"), rows) == (
        START + "50 retrieved ones (Retrieval) add 2.1 points [1.6 to 2.6]."
    )


def test_contrasts_of_the_config_are_told_as_they_are_named() -> None:
    named = [
        contrast("clip", "imagic", 1.0, "more", kind="named"),
        contrast("none", "found", -2.1, "less", kind="named"),
        contrast("imagic", "boomerang", 0.2, "same", kind="named"),
        contrast("clip", "twice", -3.0, "less", kind="named"),
        contrast("boomerang", "twice", 0.2, "can't tell", kind="named"),
    ]
    assert answer_of(table(*ALL), named) == (
        START + "50 retrieved ones add 2.1 points [1.6 to 2.6]; CLIP prompts: 1.0 points [0.5 to 1.5] above"
        " Imagic; Imagic and Boomerang are the same within 1 point; CLIP prompts: 3.0 points [2.5 to 3.5]"
        " below Twice; 1 more contrast is in contrasts.md."
    )


def test_a_study_with_one_row_has_nothing_to_compare() -> None:
    assert answer_of(table("none"), []) == "The study has no two rows to compare."


def test_rows_that_had_not_finished_learning_are_named() -> None:
    sentence = answer_of(table("none", "found"), [ADDS])
    assert answer_of(cut(table("none", "clip", "found"), "found"), [ADDS]) == (
        sentence + " The training of Retrieval was cut before it had finished learning; longer training may"
        " change the answer."
    )
    assert answer_of(cut(table("none", "clip", "found"), "none", "found"), [ADDS]).endswith(
        " The training of no added data and Retrieval was cut before they had finished learning; longer"
        " training may change the answer."
    )
    assert " The training of all rows was cut" in answer_of(
        cut(table("none", "found"), "none", "found"), [ADDS]
    )


def test_the_answer_is_the_first_line_of_table_1(tmp_path: Path) -> None:
    entries, rows = table(*ALL), [ADDS]
    write_text(tmp_path / "table1.csv", render_csv(entries, ["The footer."]))
    write_text(tmp_path / "contrasts.csv", render_csv(rows, ["A note."]))
    outs = {kind: tmp_path / f"table1.{kind}" for kind in ("md", "tex", "txt")}
    write_table1_text("demo", tmp_path / "table1.csv", tmp_path / "contrasts.csv", outs)
    sentence = START + "50 retrieved ones add 2.1 points [1.6 to 2.6]."
    assert outs["txt"].read_text(encoding="utf-8").splitlines()[0] == sentence
    layout = read_markdown(outs["md"], "Table 1")
    assert (layout.lead, layout.notes, len(layout.cells)) == (sentence, ("The footer.",), 6)
    assert sentence in outs["tex"].read_text(encoding="utf-8")


@pytest.mark.parametrize("points", [0.04, -0.04])
def test_a_small_difference_is_not_told_as_zero(points: float) -> None:
    row = contrast(
        "found", "none", points, "more" if points > 0 else "less", low=points / 2, high=points * 1.5
    )
    assert "0.04 points [0.02 to 0.1]" in answer_of(table("none", "found"), [row]).replace("0.06", "0.1")
