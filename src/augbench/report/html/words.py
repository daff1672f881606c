"""Sentences of the report: what the study is, what it shows and does not show, and the figures' texts.

Every number comes from the config, Table 1, its statistics or the figures' tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from augbench.config.data import Caltech256, FashionMnist, ImageFolder, ParquetImages
from augbench.config.methods import GENERATED
from augbench.config.study import Study
from augbench.plan.paths import Plan
from augbench.report.contrasts import baseline_of, upper_bound
from augbench.report.figures import figure3, figure4, figure5a, figure5b, learning_curves
from augbench.report.figures.figure1 import FAMILIES, best_of_families
from augbench.report.figures.forest import compared
from augbench.report.html.parts import MINUS
from augbench.report.render import read_csv, signed, spread
from augbench.report.tables import contrasts, further_tests, statistics, table1
from augbench.report.tables.contrasts import SAME, UNKNOWN, margin_name
from augbench.report.tables.further_tests import described
from augbench.report.tables.statistics import difference

LEADERS = ("Best that generates", "Best that retrieves")


@dataclass(frozen=True)
class Headline:
    """One number of the summary: its role, and its row of the statistics of Table 1.

    ``among`` is the number of rows from which this one was chosen as the best.
    """

    role: str
    family: str
    row: statistics.Row
    among: int


def headlines(table: Sequence[table1.Row], rows: Sequence[statistics.Row]) -> list[Headline]:
    """The baseline, the best row that generates, the best that retrieves, and twice the real images.

    Roles without a row are left out.
    """
    by_method = {row.method: row for row in rows}
    groups = (
        ("Without added images", [entry for entry in table if entry.method == baseline_of(table)]),
        (LEADERS[0], [entry for entry in table if entry.family in GENERATED]),
        (LEADERS[1], [entry for entry in table if entry.family == "retrieval"]),
        ("Twice the real images", [bound for bound in [upper_bound(table)] if bound is not None]),
    )
    found = []
    for role, entries in groups:
        if entries:
            best = max(entries, key=lambda entry: entry.top1_percent)
            found.append(Headline(role, best.family, by_method[best.method], len(entries)))
    return found


def data_name(study: Study) -> str:
    """Name of the data set."""
    dataset = study.dataset
    if isinstance(dataset, FashionMnist):
        return "Fashion-MNIST"
    if isinstance(dataset, Caltech256):
        return "Caltech256"
    assert isinstance(dataset, ImageFolder | ParquetImages)
    names = {"imagenet": "ImageNet", "imagenet100": "ImageNet-100"}
    return names.get(str(dataset.classes), f"the images in {Path(dataset.root).name}")


def what_it_is(
    study: Study, table: Sequence[table1.Row], rows: Sequence[statistics.Row], classes: int
) -> str:
    """Describe the study in two sentences."""
    added = [entry for entry in table if entry.added_per_class > 0]
    base = next((entry for entry in table if entry.split == "train"), table[0])
    n, n_test = max(row.n for row in rows), max(row.n_test for row in rows)
    trained = (
        f"classifiers were trained on {base.real_per_class:.4g} real images per class of {data_name(study)}"
        f" ({classes:,} classes)"
    )
    ways = f", without added images and with images added in {len(added)} ways" if added else ""
    runs = f"the mean over {n} classifiers" if n > 1 else "that of a single classifier"
    if study.dataset.draws > 1:
        runs = f"the mean over {n} draws of the real images"
    return f"In this study, {trained}{ways}. Each accuracy is {runs}, on {n_test:,} test images."


def what_it_shows(
    table: Sequence[table1.Row], rows: Sequence[statistics.Row], tested: Sequence[contrasts.Row]
) -> list[str]:
    """One text per contrast that the summary tells.

    These are the headlines against the baseline, and retrieval against the best generating row of each
    family; or the contrasts that the config names.
    """
    leading = {headline.row.method for headline in headlines(table, rows)}
    told = [
        row
        for row in tested
        if row.kind in ("family", "named") or (row.kind == "baseline" and row.row in leading)
    ]
    return [_told(row) for row in told]


def _told(row: contrasts.Row) -> str:
    """A contrast's difference, and whether it is more than chance."""
    around = "" if row.low is None else f" (95% interval {signed(row.low)} to {signed(row.high)})"
    change = f"{signed(row.points)} points{around}".replace("-", MINUS)
    return f"{row.row_label}: {change} compared with {row.against_label}. {_verdict(row)}"


def _verdict(row: contrasts.Row) -> str:
    """Say whether a difference is more than chance."""
    if row.low is None or row.high is None:
        return "A single run cannot show whether this is more than chance."
    if row.p_holm is None:
        return "The difference is the same in every run, so there is no test."
    if row.verdict == SAME:
        return f"The difference is smaller than {margin_name(row.margin)} (equivalence test)."
    if row.verdict != UNKNOWN:
        shown = "<\u00a00.001" if row.p_holm < 0.001 else f"=\u00a0{row.p_holm:.3f}"
        comparisons = _comparisons(row.contrasts)
        return (
            f"This is more than chance variation between runs (p\u00a0{shown}, corrected for {comparisons})."
        )
    if row.low > 0 or row.high < 0:
        return (
            "As the only comparison, this would be more than chance. After correction for"
            f" {_comparisons(row.contrasts)} it is not."
        )
    return f"The interval includes 0: with {row.n} runs, this may be chance."


def _comparisons(count: int) -> str:
    return f"{count} comparison{'s' if count > 1 else ''}"


def what_it_does_not_show(
    study: Study, table: Sequence[table1.Row], rows: Sequence[statistics.Row], differences: int
) -> list[str]:
    """Warn of conclusions that the numbers do not support."""
    sentences = [
        f"The {headline.role.lower().replace('best', 'best row')} was chosen by test accuracy among"
        f" {headline.among} rows, so its accuracy is slightly overestimated."
        for headline in headlines(table, rows)
        if headline.among > 1
    ]
    if cut := [row.label for row in table if row.is_cut]:
        sentences.append(
            f"Most classifiers of {', '.join(cut)} had not finished learning: they were cut while their"
            " validation accuracy was still rising. With more steps, accuracies and their order may change."
        )
    sentences.append(
        "The intervals cover other draws of the added images and other seeds of the classifier. They do not"
        " cover other real images, another pool of added images, or another fine-tuning: the study has only"
        " one of each."
        if study.dataset.draws == 1
        else "The intervals cover other real images, what is made and learned from them, and other seeds of"
        " the classifier. They do not cover another pool of the rows that make one pool for all draws."
    )
    if study.miniature is not None:
        sentences.append(
            "This is a miniature study. Its models are small, and its web corpus is made from"
            f" {data_name(study)} (style shift: {study.miniature.shift}). It shows that the program works. It"
            " is no evidence about ImageNet, LAION or Stable Diffusion."
        )
    if differences and study.report.paper_study is not None:
        sentences.append(
            f"This study differs from the paper's protocol in {differences} respects, listed under"
            " Provenance. Compare the order of the rows with the paper's, not the numbers."
        )
    return sentences


# --- figures ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FigureWords:
    """A figure's heading, its caption, and its alternative text."""

    title: str
    caption: str
    alt: str


def figure_words(plan: Plan, name: str, table: Sequence[table1.Row]) -> FigureWords:
    """Describe figure ``name`` from the table that it is drawn from."""
    if name == "figure1":
        return _figure1(table)
    if name == "forest":
        return _forest(statistics.read_rows(plan.statistics["csv"]))
    if name.startswith("further_"):
        return _further(plan, name.removeprefix("further_"))
    path = plan.figure_data(name)["table"]
    describe = {
        "figure3": _figure3,
        "figure4": _figure4,
        "figure5a": _figure5a,
        "figure5b": _figure5b,
        "learning_curves": _learning_curves,
    }
    return describe[name](path)


def _figure1(table: Sequence[table1.Row]) -> FigureWords:
    bars = []
    for family, row in best_of_families(table).items():
        name = " ".join(FAMILIES[family].split())
        known = "" if family == "real" or row.label.lower() == name.lower() else f" ({row.label})"
        bars.append(f"{name}{known} {spread(row.top1_percent, row.stderr_percent)}%")
    bound = upper_bound(table)
    line = f" Dashed line: {bound.label}, {bound.top1_percent:.1f}%." if bound is not None else ""
    return FigureWords(
        "Figure 1: the best method of each family",
        "The row with the highest test accuracy in each family. Error bars are standard errors over runs.",
        f"Bars of top-1 accuracy: {'; '.join(bars)}.{line}",
    )


def _forest(rows: Sequence[statistics.Row]) -> FigureWords:
    changes = [
        f"{row.label} {difference(row.baseline_points, row.baseline_low, row.baseline_high)}"
        for row in compared(rows)
    ]
    return FigureWords(
        "Difference from training without added images",
        "Every row's accuracy minus the baseline's, paired by run. Thick: 95% interval over runs. Thin: 95%"
        " interval over test images. No interval is corrected for the number of rows; the contrasts are.",
        f"Forest plot of differences in points, with 95% intervals over runs: {'; '.join(changes)}.",
    )


def _further(plan: Plan, test: str) -> FigureWords:
    """Words of the forest plot of a further test set."""
    rows = [row for row in further_tests.read_rows(plan.further_table["csv"]) if row.test == test]
    words, what = _forest(rows), described(plan.study.dataset.further_tests[test])
    return FigureWords(
        f"{words.title}, on {test}",
        f"The same on {test}: {what}. Crosses: the differences on the ordinary test images. {words.caption}",
        words.alt.replace("Forest plot", f"Forest plot on {test}"),
    )


def _listed(names: Sequence[str]) -> str:
    unique = list(dict.fromkeys(names))
    return ", ".join(unique[:12]) + (f" and {len(unique) - 12} more" if len(unique) > 12 else "")


def _figure3(path: str) -> FigureWords:
    rows = read_csv(path, figure3.Row)
    change = sum(row.change for row in rows) / len(rows)
    return FigureWords(
        "Figure 3: training images before and after",
        "A: training images. B: the images made from them. C: the change; mid-grey means no change."
        " The training images were drawn at random.",
        f"{len(rows)} training images of {_listed([row.class_name for row in rows])}, each with the image"
        f" made from it and the change between the two, on average {change:.1f} of 255 levels.",
    )


def _figure4(path: str) -> FigureWords:
    rows = read_csv(path, figure4.Row)
    return FigureWords(
        "Figure 4: images of every method",
        "The same classes in every row. Images were drawn at random from those that classifiers were"
        " trained on.",
        f"A grid of example images. Classes: {_listed([row.class_name for row in rows])}."
        f" Rows, from the top: {_listed([row.label for row in rows])}.",
    )


def _figure5a(path: str) -> FigureWords:
    rows = read_csv(path, figure5a.Row)
    parts = []
    for label in dict.fromkeys(row.label for row in rows):
        own = sorted((row for row in rows if row.label == label), key=lambda row: row.rank)
        up, down = (sum(sign * row.change_points > 0 for row in own) for sign in (1, -1))
        worst, best = own[0], own[-1]
        parts.append(
            f"{label}: {up} classes up, {down} down, from {signed(worst.change_points)} points"
            f" ({worst.class_name}) to {signed(best.change_points)} ({best.class_name})"
        )
    return FigureWords(
        "Figure 5A: which classes gain and which lose",
        "Change of each class's accuracy compared with the baseline, sorted. Below: images of the classes"
        " with the largest losses and gains.",
        f"Sorted changes of accuracy per class. {'. '.join(parts)}. Below, real and added images of the"
        " classes with the largest losses and gains.",
    )


def _figure5b(path: str) -> FigureWords:
    rows = read_csv(path, figure5b.Row)
    series = {row.series: row.series_label for row in rows}

    def points(name: str) -> str:
        own = (row for row in rows if row.series == name)
        return ", ".join(f"{row.top1_percent:.1f}% at {row.asked_percent:g}%" for row in own)

    lines = [f"{label}: {points(name)}" for name, label in series.items() if name != figure5b.BASELINE]
    base = next(
        (f" Baseline: {row.top1_percent:.1f}%." for row in rows if row.series == figure5b.BASELINE), ""
    )
    return FigureWords(
        "Figure 5B: accuracy against the number of added images",
        "Bars are standard errors. Triangles show the accuracy if the classes that ran out of images were"
        " always right, or always wrong, as the paper estimates it. The line shows what classifiers reach"
        " that were trained with the images available; the paper does not say whether its own were.",
        f"Top-1 accuracy by number of added images, in percent of the real ones. {'. '.join(lines)}.{base}",
    )


def _learning_curves(path: str) -> FigureWords:
    parts = []
    for runs in learning_curves.by_method(read_csv(path, learning_curves.Row)).values():
        (first, start), (last, end) = (learning_curves.mean_curve(runs)[place] for place in (0, -1))
        lowered = sorted({row.step for run in runs for row in learning_curves.reductions(run)})
        rate = f", learning rate lowered after steps {_listed(list(map(str, lowered)))}" if lowered else ""
        cut = ", most runs cut while rising" if learning_curves.is_cut(runs) else ""
        parts.append(
            f"{runs[0][0].label}: {start:.1f}% at step {first}, {end:.1f}% at step {last}{rate}{cut}"
        )
    return FigureWords(
        "Learning curves: validation accuracy over steps",
        "Thin lines: single runs. Thick line: their mean, as far as all runs have validations. Triangles:"
        " the learning rate is divided by 10. Grey: mean of the first row. The accuracy axis leaves out the"
        f" lowest values of the first steps. {table1.CUT}: most runs were cut while accuracy was still"
        " rising.",
        f"Validation accuracy over optimiser steps, a panel per row, means over runs. {'. '.join(parts)}.",
    )
