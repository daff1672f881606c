"""The report as one page: what people see of a study, in one file that opens from a disk and asks nobody for anything.

Flows in: the tables and figures of a study as they stand in its folder, the thumbnails of :mod:`augbench.report.html.images`, config and provenance. Flows
out: ``report.html``, no larger than ``report.page_megabytes``: classes go into its image browser in the order of how much they changed, as long as there is room.
"""

from __future__ import annotations

import base64
import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from augbench.artifacts.shards import media_type
from augbench.data.classes import ClassInfo, read_class_table
from augbench.errors import UserError
from augbench.files import read_json, write_text
from augbench.plan.paths import Plan
from augbench.report.figures.style import COLOURS
from augbench.report.html.images import MEGABYTE, ClassChange, most_changed
from augbench.report.html.parts import (
    MINUS,
    Cell,
    Panel,
    SortableTable,
    Thumb,
    models_of,
    table_of,
    templates,
    thumb_of,
)
from augbench.report.html.words import (
    FigureWords,
    Headline,
    figure_words,
    headlines,
    what_it_does_not_show,
    what_it_is,
    what_it_shows,
)
from augbench.report.pictures import REAL, ImageRecord, read_encoded, short_name
from augbench.report.render import NONE, Layout, read_markdown, signed, spread
from augbench.report.tables import statistics, table1
from augbench.report.tables.paper_tables import TABLES
from augbench.report.tables.per_class import read_per_class
from augbench.retrieval.shortfall import ALL, read_excluded

TITLES = {
    "table1": "Table 1: accuracy of every method",
    "statistics": "Statistics of Table 1",
    **{name: title for name, (_, title) in TABLES.items()},
    "diagnostics": "What added images are like",
    "leakage": "Near-duplicates of validation and test images",
    "cost": "What each method cost",
}
DIFFERS = "Differs from the protocol: "
BROWSER_BYTES = 2_000  # of filter, list and stage around the classes
FULL_TINT = 10.0  # points of change from which a cell has its full colour


@dataclass(frozen=True)
class Shown:
    """A headline as it is shown."""

    role: str
    family: str
    label: str
    accuracy: str
    interval: str


@dataclass(frozen=True)
class Mark:
    """A row of the chart at a glance; places are percent of the chart's width."""

    label: str
    family: str
    text: str
    mean: str
    low: str
    high: str


@dataclass(frozen=True)
class Glance:
    """The chart at a glance, from ``first`` to ``last`` percent of accuracy; ``base`` is where the baseline lies, None without one."""

    marks: tuple[Mark, ...]
    base: str | None
    first: str
    last: str
    caption: str


@dataclass(frozen=True)
class FigureView:
    """A figure in the page; sides in pixels."""

    words: FigureWords
    src: str
    width: int
    height: int


@dataclass(frozen=True)
class Choice:
    """A class to choose in the image browser; ``size`` says how much it changed."""

    id: str
    name: str
    size: str


def data_uri(encoded: bytes) -> str:
    """An encoded image as an address that holds it."""
    return f"data:{media_type(encoded)};base64,{base64.b64encode(encoded).decode()}"


# --- parts ------------------------------------------------------------------------------------------------------------


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
    """Accuracies of all rows with their intervals, on one scale."""
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
            row.label,
            families[row.method],
            spread(row.mean_percent, row.stderr_percent) + " %",
            place(row.mean_percent),
            place(low),
            place(high),
        )
        for row, (low, high) in zip(rows, ends, strict=True)
    )
    base = next((row.mean_percent for row in rows if row.method == statistics.baseline_of(table)), None)
    caption = "Dots: top-1 accuracy (%), with its standard error at the right. Bars: 95% interval of the mean over runs."
    caption += "" if base is None else " Dashed: without added images."
    return Glance(marks, None if base is None else place(base), f"{first:.1f}", f"{last:.1f}", caption)


def _figure(plan: Plan, name: str, path: str, table: Sequence[table1.Row]) -> FigureView:
    encoded = Path(path).read_bytes()
    width, height = Image.open(BytesIO(encoded)).size
    return FigureView(figure_words(plan, name, table), data_uri(encoded), width, height)


def _signed(points: float) -> str:
    return signed(points).replace("-", MINUS)


def per_class_table(changes: Sequence[ClassChange], plan: Plan) -> SortableTable:
    """Every class's accuracy without added images, and each method's change against it, the most changed class first."""
    methods = [method for method in plan.methods if any(method in change.points for change in changes)]

    def cell(points: float) -> Cell:
        tint = max(-1.0, min(1.0, points / FULL_TINT))
        return Cell(_signed(points), f"{points:.4f}", tint if points else None)

    rows = tuple(
        (
            Cell(short_name(change.info)),
            Cell(change.info.class_id),
            Cell(str(change.n_test), str(change.n_test)),
            Cell(NONE)
            if change.baseline_percent is None
            else Cell(f"{change.baseline_percent:.1f}", f"{change.baseline_percent:.4f}"),
            Cell(NONE) if change.size is None else Cell(f"{change.size:.1f}", f"{change.size:.4f}"),
            *(cell(change.points[method]) for method in methods),
        )
        for change in changes
    )
    header = (
        "Class",
        "Id",
        "Test images",
        "Baseline (%)",
        "Mean size of change",
        *map(plan.study.label, methods),
    )
    notes = (
        "Methods: mean over runs of the class's accuracy less the baseline's of the same run, in percentage points. Mean size of change: over rows that add images, signs left out.",
        "With n test images of a class, one image is 100 / n points: the ends of each order are partly chance, the more so the more classes there are.",
    )
    return SortableTable(
        "per_class",
        "Change of every class against the baseline",
        header,
        (False, False, *[True] * (len(header) - 2)),
        rows,
        notes,
    )


def retrieval_table(path: str | Path, plan: Plan) -> SortableTable:
    """What became of the candidates that retrieval looked at, all classes together."""
    fates: dict[str, Counter[str]] = {}
    with Path(path).open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            if row["class_id"] == ALL:
                fates.setdefault(row["method"], Counter())[row["fate"]] += int(row["candidates"])
    cells = tuple(
        (plan.study.label(method), fate, f"{count:,}", f"{count / counts.total():.1%}")
        for method, counts in fates.items()
        for fate, count in counts.most_common()
    )
    notes = (
        "Candidates: nearest neighbours of each class's query that were looked at, in all classes. 'not needed': good ones beyond the number wanted. A candidate's"
        " whole story stands in retrieval/*/ledgers.",
    )
    return table_of(
        "retrieval",
        Layout(
            "What retrieval gave",
            ("Method", "What became of it", "Candidates", "Share"),
            (False, False, True, True),
            cells,
            notes,
        ),
    )


def made_by(record: dict[str, Any]) -> list[tuple[str, str]]:
    """The head of the provenance record, as pairs of name and value."""
    models = [f"{name}: {model['folder']} ({model['id']})" for name, model in record["models"].items()]
    machines = sorted(
        {machine for made in (record, *record["computed"]) for machine in (made["cpu"], *made["gpus"])}
    )
    facts = [
        ("Written", record["written"]),
        (
            "Code",
            f"augbench {record['version']}"
            + (f", revision {record['revision']}" if record["revision"] else ""),
        ),
        ("Python", record["python"]),
        ("System", record["platform"]),
        ("Machines", ", ".join(machines)),
        ("Models", "; ".join(models) or NONE),
        ("Seed", str(record["seeds"]["study"])),
        (
            "Packages",
            ", ".join(f"{name} {version}" for name, version in record["packages"].items() if version),
        ),
    ]
    if len(record["computed"]) > 1:
        facts.append(
            (
                "Mixed",
                f"jobs ran in {len(record['computed'])} different surroundings; the record below lists them",
            )
        )
    return facts


# --- image browser ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassPanel:
    """One class of the image browser, rendered."""

    choice: Choice
    html: str


def class_panels(
    plan: Plan,
    changes: Sequence[ClassChange],
    pictures: Iterable[tuple[ImageRecord, bytes]],
    models: dict[str, str],
) -> list[ClassPanel]:
    """The classes that there are thumbnails of, in the order of ``changes``."""
    by_class: dict[str, dict[str, list[Thumb]]] = {}
    labels = {
        REAL: "Real training images",
        **{method: plan.study.label(method) for method in plan.study.pooled},
    }
    families = {REAL: "real", **{method: plan.study.methods[method].group for method in plan.study.pooled}}
    for picture, encoded in pictures:
        own = by_class.setdefault(picture.class_id, {})
        own.setdefault(picture.panel, []).append(
            thumb_of(picture, data_uri(encoded), labels[picture.panel], models)
        )
    render: Any = templates().get_template("parts.html").module
    found = []
    for change in changes:
        if change.info.class_id in by_class:
            panels = [
                Panel(labels[panel], families[panel], thumbs)
                for panel, thumbs in by_class[change.info.class_id].items()
            ]
            choice = Choice(
                change.info.class_id,
                short_name(change.info),
                "" if change.size is None else f"{change.size:.1f}",
            )
            found.append(
                ClassPanel(choice, render.class_panel(choice.id, choice.name, _about(change, plan), panels))
            )
    return found


def _about(change: ClassChange, plan: Plan) -> str:
    """What happened to a class, in a line."""
    info: ClassInfo = change.info
    also = f"Also {', '.join(info.lemmas[1:])}. " if len(info.lemmas) > 1 else ""
    added = [method for method in change.points if method in plan.study.augmented]
    if change.baseline_percent is None or not added:
        return also.strip()
    worst, best = (pick(added, key=lambda method: change.points[method]) for pick in (min, max))
    return (
        f"{also}Without added images {change.baseline_percent:.1f}% of its {change.n_test} test images are right. Adding some changes that by between"
        f" {_signed(change.points[worst])} points with {plan.study.label(worst)} and {_signed(change.points[best])} with {plan.study.label(best)}."
    )


def _fitting(panels: Sequence[ClassPanel], room: float) -> list[ClassPanel]:
    """The first panels, as many as fit into ``room`` bytes with their entries in the list of classes."""
    fitting: list[ClassPanel] = []
    for panel in panels:
        entry = (
            400 + 2 * len(panel.choice.name.encode()) + 2 * len(panel.choice.id)
        )  # label, markup, link from the table
        room -= len(panel.html.encode()) + entry
        if room < 0:
            break
        fitting.append(panel)
    return fitting


# --- the page ---------------------------------------------------------------------------------------------------------


def write_report(plan: Plan, out: str | Path) -> None:
    """Write the report of a study whose tables and figures are made.

    Raises
    ------
    UserError
        A table, a figure or a record is damaged; or the page is too large without a single image.
    """
    study = plan.study
    table, rows = table1.read_rows(plan.table1["csv"]), statistics.read_rows(plan.statistics["csv"])
    classes = read_class_table(plan.path("classes.parquet"))
    record = read_json(plan.path("provenance.json"))
    tables = {
        name: table_of(name, read_markdown(path, TITLES[name])) for name, path in plan.report_tables.items()
    }
    protocol = [
        note.removeprefix(DIFFERS).removesuffix(".")
        for note in tables["table1"].notes
        if note.startswith(DIFFERS)
    ]
    changes = most_changed(read_per_class(plan.per_class), table, classes)
    panels = class_panels(plan, changes, read_encoded(plan.report_images), models_of(record["models"]))
    yields = [retrieval_table(plan.retrieval_summary["fates"], plan)] if plan.study.retrieved else []
    added = (
        [tables[name] for name in ("diagnostics",) if name in tables]
        + yields
        + [tables[name] for name in ("leakage",) if name in tables]
    )
    contents = [
        ("summary", "Summary"),
        ("accuracy", "Accuracy"),
        ("figures", "Figures"),
        ("classes", "Classes"),
        ("images", "Images"),
    ]
    contents += [
        *([("added", "Added images")] if added else []),
        ("cost", "Cost"),
        ("provenance", "Provenance"),
    ]
    values: dict[str, Any] = {
        "study": study.study,
        "hues": {**COLOURS, "scaling": COLOURS["retrieval"]},
        "contents": contents,
        "what_it_is": what_it_is(study, table, rows, len(changes)),
        "headlines": [_shown(headline) for headline in headlines(table, rows)],
        "shows": what_it_shows(table, rows),
        "shows_not": what_it_does_not_show(study, table, rows, len(protocol)),
        "glance": glance(table, rows),
        "accuracy": [tables[name] for name in ("table1", "statistics", *plan.paper_tables)],
        "figures": [_figure(plan, name, path, table) for name, path in plan.report_figures.items()],
        "per_class": per_class_table(changes, plan),
        "excluded": sorted(read_excluded(plan.excluded)),
        "added": added,
        "cost": [tables["cost"]],
        "differences": protocol,
        "made_by": made_by(record),
        "config": Path(plan.path("config.yaml")).read_text(encoding="utf-8"),
        "provenance": Path(plan.path("provenance.json")).read_text(encoding="utf-8"),
    }
    budget = study.report.page_megabytes * MEGABYTE
    bare = len(_render(values, changes, []).encode())
    if bare > budget:
        raise UserError(
            "report.page_megabytes",
            study.report.page_megabytes,
            f"the page has {bare / MEGABYTE:.1f} MB without a single image; ask for more",
        )
    write_text(out, _render(values, changes, _fitting(panels, budget - bare - BROWSER_BYTES)))


def _render(values: dict[str, Any], changes: Sequence[ClassChange], panels: Sequence[ClassPanel]) -> str:
    """The page with the classes of ``panels`` in its image browser."""
    shown = {panel.choice.id for panel in panels}
    left_out = [short_name(change.info) for change in changes if change.info.class_id not in shown]
    lead = "Images were drawn at random from what classifiers were trained on: the training split, and each method's first training set. Choose a class; an image opens into its details."
    if left_out and panels:
        lead += (
            f" The {len(panels)} classes that changed most are here: the others did not fit into this file."
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
