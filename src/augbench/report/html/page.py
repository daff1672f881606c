"""The report of a study as one HTML file, which opens from a disk and loads nothing from elsewhere.

Input: the tables and figures in the study's folder, the thumbnails of :mod:`augbench.report.html.images`,
config and provenance. Output: ``report.html``, no larger than ``report.page_megabytes``. The image browser
takes the classes that changed most, as many as fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from augbench.data.classes import read_class_table
from augbench.errors import UserError
from augbench.files import read_json, write_text
from augbench.plan.paths import Plan
from augbench.report.answer import answer_of
from augbench.report.contrasts import baseline_of
from augbench.report.figures.style import COLOURS
from augbench.report.html.browser import ClassPanel, class_panels, fitting, row_labels
from augbench.report.html.images import MEGABYTE, ClassChange, most_changed
from augbench.report.html.parts import (
    MINUS,
    SortableTable,
    data_uri,
    minus_signs,
    models_of,
    table_of,
    templates,
)
from augbench.report.html.tables import (
    made_by,
    per_class_table,
    relative,
    retrieval_table,
    training_table,
)
from augbench.report.html.words import (
    LEADERS,
    FigureWords,
    Headline,
    figure_words,
    headlines,
    what_it_does_not_show,
    what_it_is,
    what_it_shows,
)
from augbench.report.pictures import read_encoded, short_name
from augbench.report.protocol import differs
from augbench.report.render import read_csv, read_markdown, spread
from augbench.report.tables import contrasts, statistics, table1
from augbench.report.tables.paper_tables import TABLES
from augbench.report.tables.per_class import read_per_class
from augbench.retrieval.shortfall import read_excluded

TITLES = {
    "table1": "Table 1: accuracy of every method",
    "contrasts": "Contrasts: which differences are more than chance",
    "statistics": "Statistics of Table 1",
    "components": "What the spread over runs consists of",
    "class_groups": "Macro accuracy, and that of frequent and rare classes",
    **{name: title for name, (_, title) in TABLES.items()},
    "further_tests": "Accuracy on test sets of other distributions",
    "diagnostics": "Diagnostics of the added images",
    "leakage": "Near-duplicates of training, validation and test images",
    "cost": "Cost of each method",
}


CONTENTS = (
    ("summary", "Summary"),
    ("accuracy", "Accuracy"),
    ("further", "Further tests"),
    ("figures", "Figures"),
    ("classes", "Classes"),
    ("images", "Images"),
    ("added", "Added images"),
    ("cost", "Cost"),
    ("provenance", "Provenance"),
)
BROWSER_BYTES = 3_000  # the browser's filter, lists and stage, without classes and rows
ROW_BYTES = 100  # a row's entries in the lists of two rows side by side, without its label


@dataclass(frozen=True)
class Shown:
    """A headline of the summary, as displayed text."""

    role: str
    family: str
    label: str
    accuracy: str
    interval: str


@dataclass(frozen=True)
class Mark:
    """A row of the overview chart; ``mean``, ``low`` and ``high`` are positions in percent of its width."""

    label: str
    family: str
    text: str
    mean: str
    low: str
    high: str


@dataclass(frozen=True)
class Glance:
    """The overview chart, from ``first`` to ``last`` percent of accuracy.

    ``base`` is the baseline's position in percent of the width, None without a baseline.
    """

    marks: tuple[Mark, ...]
    base: str | None
    first: str
    last: str
    caption: str


@dataclass(frozen=True)
class FigureView:
    """A figure in the page; sides in pixels.

    ``data`` is the file that it is drawn from, ``file`` its image, both relative to the page.
    """

    words: FigureWords
    src: str
    width: int
    height: int
    data: str
    file: str


def _interval(low: float | None, high: float | None, n: int) -> str:
    if low is None or high is None:
        return "a single run, no interval"
    return f"95%: {low:.1f} to {high:.1f}, n\u00a0=\u00a0{n}".replace("-", MINUS)


def _shown(headline: Headline) -> Shown:
    row = headline.row
    return Shown(
        headline.role,
        headline.family,
        row.label,
        f"{row.mean_percent:.1f}",
        _interval(row.low_percent, row.high_percent, row.n),
    )


def glance(table: Sequence[table1.Row], rows: Sequence[statistics.Row]) -> Glance:
    """Put the accuracies and intervals of all rows on one scale."""
    families = {entry.method: entry.family for entry in table}
    ends = [
        (row.mean_percent, row.mean_percent)
        if row.low_percent is None or row.high_percent is None
        else (row.low_percent, row.high_percent)
        for row in rows
    ]
    first, last = min(low for low, _ in ends), max(high for _, high in ends)
    margin = max(0.5, 0.04 * (last - first))
    first, last = max(0.0, first - margin), min(100.0, last + margin)

    def place(value: float) -> str:
        return f"{100 * (min(max(value, first), last) - first) / (last - first):.2f}"

    marks = tuple(
        Mark(
            label=row.label,
            family=families[row.method],
            text=spread(row.mean_percent, row.stderr_percent) + " %",
            mean=place(row.mean_percent),
            low=place(low),
            high=place(high),
        )
        for row, (low, high) in zip(rows, ends, strict=True)
    )
    base = next((row.mean_percent for row in rows if row.method == baseline_of(table)), None)
    caption = (
        "Dots: top-1 accuracy (%); its value and standard error are at the right. "
        "Bars: 95% interval of the mean over runs."
    )
    caption += "" if base is None else " Dashed line: accuracy without added images."
    return Glance(marks, None if base is None else place(base), f"{first:.1f}", f"{last:.1f}", caption)


def _figure(plan: Plan, name: str, path: str, table: Sequence[table1.Row]) -> FigureView:
    encoded = Path(path).read_bytes()
    width, height = Image.open(BytesIO(encoded)).size
    words, data = figure_words(plan, name, table), relative(plan, _data_of(plan, name))
    return FigureView(words, data_uri(encoded), width, height, data, relative(plan, path))


def _data_of(plan: Plan, figure: str) -> str:
    """Path of the file with a figure's numbers."""
    if figure.startswith("further_"):
        return plan.further_table["csv"]
    known = {"figure1": plan.table1, "forest": plan.statistics}
    return known[figure]["csv"] if figure in known else plan.figure_data(figure)["table"]


def _pair(shown: Sequence[Headline], rows: Sequence[str]) -> tuple[str, str]:
    """The rows that stand side by side at first: the best that generates and the best that retrieves.

    Without one of them, the real images or the first row that adds images takes its place.
    """
    best = [headline.row.method for headline in shown if headline.role in LEADERS]
    found = [row for row in dict.fromkeys([*best, *rows]) if row in rows]
    return found[0], found[min(1, len(found) - 1)]


def write_report(plan: Plan, out: str | Path) -> None:
    """Write the report of a study from its finished tables and figures.

    Raises
    ------
    UserError
        A table, a figure or a record is damaged; or the page is too large even without images.
    """
    table, rows = table1.read_rows(plan.table1["csv"]), statistics.read_rows(plan.statistics["csv"])
    changes = most_changed(read_per_class(plan.per_class), table, read_class_table(plan.classes))
    record, labels = read_json(plan.provenance), row_labels(plan)
    tables = {
        name: table_of(
            name, read_markdown(path, TITLES[name]), relative(plan, str(Path(path).with_suffix(".csv")))
        )
        for name, path in plan.report_tables.items()
    }
    panels = class_panels(plan, changes, read_encoded(plan.report_images), models_of(record["models"]))
    values = {
        "study": plan.study.study,
        "hues": {**COLOURS, "scaling": COLOURS["retrieval"]},
        **_summary(plan, table, rows, tables["table1"].notes, len(changes)),
        **_tables(plan, tables),
        **_figures(plan, table),
        "per_class": per_class_table(changes, plan),
        "excluded": sorted(read_excluded(plan.excluded)),
        "rows": labels,
        "pair": _pair(headlines(table, rows), [*labels]),
        **_records(plan, record),
    }
    budget = plan.study.report.page_megabytes * MEGABYTE
    bare = len(_render(values, changes, []).encode())
    if bare > budget:
        raise UserError(
            "report.page_megabytes",
            plan.study.report.page_megabytes,
            f"the page has {bare / MEGABYTE:.1f} MB even without images; allow more than that",
        )
    lists = BROWSER_BYTES + sum(ROW_BYTES + 2 * len(label.encode()) for label in labels.values())
    write_text(out, _render(values, changes, fitting(panels, budget - bare - lists)))


def _summary(
    plan: Plan,
    table: Sequence[table1.Row],
    rows: Sequence[statistics.Row],
    notes: Sequence[str],
    classes: int,
) -> dict[str, Any]:
    """The study's answer, the numbers that it rests on, and what they do not show.

    Departures from the protocol are among the ``notes`` of Table 1. ``classes`` is the number of classes.
    """
    study, tested, prefix = plan.study, contrasts.read_rows(plan.contrasts["csv"]), differs(plan.study)
    different = [note.removeprefix(prefix).removesuffix(".") for note in notes if note.startswith(prefix)]
    return {
        "answer": minus_signs(answer_of(table, tested)),
        "headlines": [_shown(headline) for headline in headlines(table, rows)],
        "shows": what_it_shows(table, rows, tested),
        "glance": glance(table, rows),
        "what_it_is": what_it_is(study, table, rows, classes),
        "shows_not": what_it_does_not_show(study, table, rows, len(different)),
        "differences": different,
        "beside_the_paper": study.report.paper_study is not None,
    }


def _tables(plan: Plan, tables: Mapping[str, SortableTable]) -> dict[str, Any]:
    """The tables of each section, and the sections that the page has."""
    groups = ["class_groups"] if plan.class_groups else []
    found = {
        "accuracy": [
            tables["table1"],
            training_table(read_csv(plan.table1["runs"], table1.RunRow), plan),
            *(tables[name] for name in ("contrasts", "statistics", *groups, "components")),
            *(tables[name] for name in plan.paper_tables),
        ],
        "further": [tables[name] for name in ("further_tests",) if name in tables],
        "added": [
            *(tables[name] for name in ("diagnostics",) if name in tables),
            *([retrieval_table(plan.retrieval_summary["fates"], plan)] if plan.study.retrieved else []),
            *(tables[name] for name in ("leakage",) if name in tables),
        ],
        "cost": [tables["cost"]],
    }
    optional = {"added": bool(found["added"]), "further": bool(plan.further_tests)}
    return {**found, "contents": [section for section in CONTENTS if optional.get(section[0], True)]}


def _figures(plan: Plan, table: Sequence[table1.Row]) -> dict[str, list[FigureView]]:
    """The figures, apart from those of further tests."""
    views: dict[str, list[FigureView]] = {"figures": [], "further_figures": []}
    for name, path in plan.report_figures.items():
        where = "further_figures" if name.startswith("further_") else "figures"
        views[where].append(_figure(plan, name, path, table))
    return views


def _records(plan: Plan, record: dict[str, Any]) -> dict[str, Any]:
    """The files that the page names and shows: config, provenance, and those with the numbers."""
    files = {
        "statistics": plan.statistics["csv"],
        "contrasts": plan.contrasts["csv"],
        "config": plan.config,
        "provenance": plan.provenance,
    }
    return {
        "files": {name: relative(plan, path) for name, path in files.items()},
        "made_by": made_by(record),
        "config": Path(plan.config).read_text(encoding="utf-8"),
        "provenance": Path(plan.provenance).read_text(encoding="utf-8"),
    }


def _render(values: dict[str, Any], changes: Sequence[ClassChange], panels: Sequence[ClassPanel]) -> str:
    """Render the page with the classes of ``panels`` in its image browser."""
    shown = {panel.choice.id for panel in panels}
    left_out = [short_name(change.info) for change in changes if change.info.class_id not in shown]
    lead = (
        "These images were drawn at random from the images that classifiers were trained on: the training"
        " split, and each method's first training set. Choose a class. Click an image to see its details."
    )
    if left_out and panels:
        lead += (
            f" This file has room for the {len(panels)} classes that changed most; the others are not shown."
        )
    page = templates().get_template("report.html")
    return page.render(
        **values,
        links=[change.info.class_id if change.info.class_id in shown else "" for change in changes],
        choices=[panel.choice for panel in panels],
        panels=[panel.html for panel in panels],
        images_lead=lead,
        left_out=left_out,
    )
