"""The report in words: what the study is, what it shows and what it does not, and what its figures show to those who cannot see them.

Flows in: the config, Table 1, its statistics and the figures' tables. Flows out: sentences; no number in them comes from anywhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from augbench.config.data import Caltech256, FashionMnist, ImageFolder
from augbench.config.study import Study
from augbench.plan.paths import Plan
from augbench.report.figures import figure3, figure4, figure5a, figure5b
from augbench.report.figures.figure1 import FAMILIES, best_of_families, upper_bound
from augbench.report.figures.figure5a import GENERATED
from augbench.report.html.parts import MINUS
from augbench.report.render import read_csv, signed, spread
from augbench.report.tables import statistics, table1
from augbench.report.tables.statistics import baseline_of, retrieval_of

SURE = 0.05  # a corrected p below this is called more than chance


@dataclass(frozen=True)
class Headline:
    """One figure of the summary: what it stands for, and the row of Table 1's statistics; ``among`` counts the rows that it is the best of."""

    role: str
    family: str
    row: statistics.Row
    among: int


def headlines(table: Sequence[table1.Row], rows: Sequence[statistics.Row]) -> list[Headline]:
    """The baseline, the best row that generates, the best one that retrieves, twice the real images: those that there are."""
    by_method = {row.method: row for row in rows}
    groups = (
        ("Without added images", [entry for entry in table if entry.method == baseline_of(table)]),
        ("Best that generates", [entry for entry in table if entry.family in GENERATED]),
        ("Best that retrieves", [entry for entry in table if entry.family == "retrieval"]),
        ("Twice the real images", [bound for bound in [upper_bound(table)] if bound is not None]),
    )
    found = []
    for role, entries in groups:
        if entries:
            best = max(entries, key=lambda entry: entry.top1_percent)
            found.append(Headline(role, best.family, by_method[best.method], len(entries)))
    return found


def data_name(study: Study) -> str:
    """What the data set is called."""
    dataset = study.dataset
    if isinstance(dataset, FashionMnist):
        return "Fashion-MNIST"
    if isinstance(dataset, Caltech256):
        return "Caltech256"
    assert isinstance(dataset, ImageFolder)
    return "ImageNet" if dataset.classes == "imagenet" else f"the images in {Path(dataset.root).name}"


def what_it_is(
    study: Study, table: Sequence[table1.Row], rows: Sequence[statistics.Row], classes: int
) -> str:
    """The study in two sentences."""
    added = [entry for entry in table if entry.added_per_class > 0]
    base = next((entry for entry in table if entry.split == "train"), table[0])
    n, n_test = max(row.n for row in rows), max(row.n_test for row in rows)
    trained = f"classifiers were trained on {base.real_per_class:.4g} real images per class of {data_name(study)} ({classes:,} classes)"
    ways = f", alone and with images added in {len(added)} ways" if added else ""
    runs = f"the mean over {n} classifiers" if n > 1 else "a single classifier's"
    return f"In this study, {trained}{ways}. Each accuracy is {runs}, on {n_test:,} test images."


def what_it_shows(table: Sequence[table1.Row], rows: Sequence[statistics.Row]) -> list[str]:
    """One sentence per comparison of the headlines: with the baseline, and of generation with retrieval."""
    found = {headline.role: headline for headline in headlines(table, rows)}
    labels = {row.method: row.label for row in rows}
    sentences = []
    for role in ("Best that generates", "Best that retrieves", "Twice the real images"):
        headline = found.get(role)
        if headline is not None and headline.row.baseline_points is not None:
            row = headline.row
            compared = sum(other.baseline_p is not None for other in rows)
            verdict = _verdict(row.baseline_low, row.baseline_high, row.baseline_p_holm, row.n, compared)
            sentences.append(
                f"With {row.label}: {_points(row.baseline_points, row.baseline_low, row.baseline_high)} against no added images. {verdict}"
            )
    best, reference = found.get("Best that generates"), retrieval_of(table)
    if best is not None and reference is not None and best.row.retrieval_points is not None:
        row = best.row
        compared = sum(other.retrieval_p is not None for other in rows)
        verdict = _verdict(row.retrieval_low, row.retrieval_high, row.retrieval_p_holm, row.n, compared)
        sentences.append(
            f"With {row.label}: {_points(row.retrieval_points, row.retrieval_low, row.retrieval_high)} against {labels[reference]}. {verdict}"
        )
    return sentences


def _points(points: float | None, low: float | None, high: float | None) -> str:
    around = "" if low is None or high is None else f" (95% interval {signed(low)} to {signed(high)})"
    return f"{signed(points)} points{around}".replace("-", MINUS)


def _verdict(low: float | None, high: float | None, p: float | None, n: int, compared: int) -> str:
    """What a difference says, as far as runs can tell; ``p`` is corrected for ``compared`` comparisons."""
    if low is None or high is None:
        return "With a single run there is no telling whether this is chance."
    if p is not None and p < SURE:
        shown = "<\u00a00.001" if p < 0.001 else f"=\u00a0{p:.3f}"
        return f"That is more than chance between runs explains (p\u00a0{shown}, corrected for {_comparisons(compared)})."
    if low > 0 or high < 0:
        return f"Alone this would be more than chance; among {_comparisons(compared)} it is not."
    return f"The interval includes 0: {n} runs cannot tell this from chance."


def _comparisons(count: int) -> str:
    return f"{count} comparison{'s' if count > 1 else ''}"


def what_it_does_not_show(
    study: Study, table: Sequence[table1.Row], rows: Sequence[statistics.Row], differences: int
) -> list[str]:
    """What a reader might take the numbers for, and should not."""
    sentences = [
        f"The {headline.role.lower().replace('best', 'best row')} was picked by its test accuracy among {headline.among} rows, so it looks a little better than it is."
        for headline in headlines(table, rows)
        if headline.among > 1
    ]
    sentences.append(
        "Intervals cover other draws of the added images and other seeds of the classifier. They do not cover other real images, another pool of added images or"
        " another fine-tuning, of which there was one each."
    )
    if study.miniature is not None:
        sentences.append(
            f"This is a miniature: small models and a web corpus made from {data_name(study)} (style shift: {study.miniature.shift}). It shows that the machinery works,"
            " and is no evidence about ImageNet, LAION or Stable Diffusion."
        )
    if differences:
        sentences.append(
            f"It differs from the paper's protocol in {differences} respects, listed under Provenance: compare the order of rows with the paper's, not the numbers."
        )
    return sentences


# --- figures ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FigureWords:
    """A figure's heading, the caption below it, and what stands in its place for those who cannot see it."""

    title: str
    caption: str
    alt: str


def figure_words(plan: Plan, name: str, table: Sequence[table1.Row]) -> FigureWords:
    """What figure ``name`` shows, from the table that it is drawn from."""
    if name == "figure1":
        return _figure1(table)
    path = plan.figure_data(name)["table"]
    return {"figure3": _figure3, "figure4": _figure4, "figure5a": _figure5a, "figure5b": _figure5b}[name](
        path
    )


def _figure1(table: Sequence[table1.Row]) -> FigureWords:
    bars = []
    for family, row in best_of_families(table).items():
        name = " ".join(FAMILIES[family].split())
        known = "" if family == "real" or row.label.lower() == name.lower() else f" ({row.label})"
        bars.append(f"{name}{known} {spread(row.top1_percent, row.stderr_percent)}%")
    bound = upper_bound(table)
    line = f" Dashed line: {bound.label}, {bound.top1_percent:.1f}%." if bound is not None else ""
    return FigureWords(
        "Figure 1: the best of each family",
        "The most accurate row of each family, by test accuracy; bars are standard errors over runs.",
        f"Bars of top-1 accuracy: {'; '.join(bars)}.{line}",
    )


def _listed(names: Sequence[str]) -> str:
    unique = list(dict.fromkeys(names))
    return ", ".join(unique[:12]) + (f" and {len(unique) - 12} more" if len(unique) > 12 else "")


def _figure3(path: str) -> FigureWords:
    rows = read_csv(path, figure3.Row)
    change = sum(row.change for row in rows) / len(rows)
    return FigureWords(
        "Figure 3: what a method does to the images that it starts from",
        "A: training images; B: what was made of them; C: the change, where mid-grey is none. Drawn at random.",
        f"{len(rows)} training images of {_listed([row.class_name for row in rows])}, each with what was made of it and the change between the two,"
        f" on average {change:.1f} of 255 levels.",
    )


def _figure4(path: str) -> FigureWords:
    rows = read_csv(path, figure4.Row)
    return FigureWords(
        "Figure 4: images of every method",
        "The same classes in every row; images were drawn at random from what classifiers were trained on.",
        f"A grid of example images. Classes: {_listed([row.class_name for row in rows])}. Rows, from the top: {_listed([row.label for row in rows])}.",
    )


def _figure5a(path: str) -> FigureWords:
    rows = read_csv(path, figure5a.Row)
    parts = []
    for label in dict.fromkeys(row.label for row in rows):
        own = sorted((row for row in rows if row.label == label), key=lambda row: row.rank)
        up, down = (sum(sign * row.change_points > 0 for row in own) for sign in (1, -1))
        worst, best = own[0], own[-1]
        parts.append(
            f"{label}: {up} classes up, {down} down, from {signed(worst.change_points)} points ({worst.class_name}) to {signed(best.change_points)} ({best.class_name})"
        )
    return FigureWords(
        "Figure 5A: which classes gain and which lose",
        "Change of every class against the baseline, sorted; below, images of the classes at both ends.",
        f"Sorted changes of accuracy per class. {'. '.join(parts)}. Below, real and added images of the worst-hit and the most-helped classes.",
    )


def _figure5b(path: str) -> FigureWords:
    rows = read_csv(path, figure5b.Row)
    series = {row.series: row.series_label for row in rows}
    lines = [
        f"{label}: {', '.join(f'{row.top1_percent:.1f}% at {row.asked_percent:g}%' for row in rows if row.series == name)}"
        for name, label in series.items()
        if name != figure5b.BASELINE
    ]
    base = next(
        (f" Baseline: {row.top1_percent:.1f}%." for row in rows if row.series == figure5b.BASELINE), ""
    )
    return FigureWords(
        "Figure 5B: accuracy against the number of added images",
        "Bars are standard errors; triangles say what the accuracy would be if classes that ran out of images were always or never right.",
        f"Top-1 accuracy by added images, in percent of the real ones. {'. '.join(lines)}.{base}",
    )
