"""The report as one page, for a small study of coloured squares: its contents, and that it loads nothing."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import chdir
from dataclasses import dataclass, field, fields, replace
from html.parser import HTMLParser
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from test_answer import contrast
from test_figures import ACCURACIES, CLASSES, METHODS, Squares, make_squares, study_of

from augbench.artifacts.pool import read_index
from augbench.artifacts.shards import encode_image
from augbench.artifacts.store import Store
from augbench.config.study import Study
from augbench.data.classes import ClassInfo, write_class_table
from augbench.errors import UserError
from augbench.files import write_json, write_text
from augbench.plan.paths import Plan
from augbench.report.figures.figure1 import write_figure1
from augbench.report.figures.forest import write_forest
from augbench.report.figures.write import write_figure
from augbench.report.html.browser import class_panels
from augbench.report.html.images import ClassChange, collect, most_changed
from augbench.report.html.page import write_report
from augbench.report.html.parts import MINUS, model_name, number_in, table_of
from augbench.report.html.tables import training_table
from augbench.report.html.words import headlines, what_it_does_not_show, what_it_shows
from augbench.report.pictures import REAL, ImageRecord, read_encoded, write_encoded
from augbench.report.render import Layout, read_markdown, render_csv, render_markdown
from augbench.report.tables import class_groups, components, contrasts, diagnostics, statistics, table1
from augbench.report.tables.cost import write_cost
from augbench.report.tables.paper_tables import write_paper_tables
from augbench.report.tables.per_class import SCHEMA, read_per_class
from augbench.report.tables.table1_text import write_table1_text
from augbench.runtime.job import Job
from augbench.runtime.provenance import write_provenance

VOID = {"meta", "link", "img", "input", "br", "hr"}
CUTS = (
    "Differs from the protocol: Classes: 6 (paper: 990).",
    "Differs from the protocol: Maximum number of epochs: 15 (paper: 270).",
)


@dataclass
class Page(HTMLParser):
    """A parsed page: its elements with attributes, ids, and the text of cells and headings."""

    html: str
    elements: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)
    open: list[tuple[str, dict[str, str], list[str]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.html)
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = {name: value or "" for name, value in attrs}
        self.elements.append((tag, known))
        if tag not in VOID:
            self.open.append((tag, known, []))

    def handle_data(self, data: str) -> None:
        for _, _, pieces in self.open:
            pieces.append(data)

    def handle_endtag(self, tag: str) -> None:
        name, _, pieces = self.open.pop()
        assert name == tag
        self.texts.append((tag, " ".join("".join(pieces).split())))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [known for name, known in self.elements if name == tag]

    def text_of(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]


def write_tables(squares: Squares) -> None:
    """Write all tables, figures and records that the workflow makes before the report, with its code."""
    plan, study = squares.plan, squares.job.study
    runs = [
        table1.RunRow(method, number, 100 * float(np.mean(values)), 50.0, 1, 2, 24, 24, 10, 60)
        for method in plan.methods
        for number, values in enumerate(ACCURACIES.get(method, ACCURACIES["clip_prompts"]))
    ]
    entries = [row for row in table1.read_rows(plan.table1["csv"]) if row.method in plan.methods]
    write_text(plan.table1["csv"], render_csv(entries, ("± is the standard error.", *CUTS)))
    write_text(plan.table1["runs"], render_csv(runs))
    # 60 test images, of which as many are right as the accuracies say
    hits = {
        method: {
            run.run: np.arange(60) < round(0.6 * run.test_top1_percent)
            for run in runs
            if run.method == method
        }
        for method in plan.methods
    }
    statistics.write_statistics(study.study, entries, runs, hits, 0, study.report, plan.statistics)
    contrasts.write_contrasts(study.study, entries, runs, hits, 0, study.report, plan.contrasts)
    components.write_components(study.study, entries, runs, plan.components)
    class_labels = {class_id: label for label, class_id in enumerate(CLASSES)}
    groups = class_groups.build_rows(
        entries,
        runs,
        hits,
        labels=np.arange(60) % len(CLASSES),
        training_images=dict.fromkeys(CLASSES, 6),
        class_labels=class_labels,
        seed=0,
        report=study.report,
    )
    class_groups.write_class_groups(study.study, entries, groups, plan.class_groups)
    write_table1_text(study.study, plan.table1["csv"], plan.contrasts["csv"], plan.table1_text)
    write_paper_tables(plan, plan.table1["csv"], plan.paper_table_files)
    write_cost(plan, plan.table1["csv"], plan.cost)
    write_figure1(plan.table1["csv"], plan.figure1)
    if plan.forest:
        write_forest(plan.table1["csv"], plan.statistics["csv"], plan.forest)
    for name, outs in plan.figures.items():
        write_figure(name, **squares.collect(name), outs=outs)
    if plan.study.pooled:
        unknown = {column.name: None for column in fields(diagnostics.Row)}
        rows = [
            diagnostics.Row(
                **{
                    **unknown,
                    "method": name,
                    "label": plan.study.label(name),
                    "family": plan.study.methods[name].group,
                    "pool": 48,
                    "images": 48,
                    "agreement_clip_percent": 90.0,
                }
            )
            for name in plan.study.pooled
        ]
        diagnostics._write(study, rows, plan.diagnostics)
        checked = tuple((plan.study.label(name), "48") for name in plan.study.pooled)
        write_text(
            plan.leakage_table["md"],
            render_markdown(Layout("", ("Images of", "Checked"), (False, True), checked, ())),
        )
        write_text(plan.leakage_table["csv"], "method,checked\n")
        write_text(
            plan.retrieval_summary["fates"],
            "method,class_id,fate,candidates\n"
            "retrieval,all classes,kept,48\nretrieval,all classes,no image,16\n",
        )
        write_json(plan.retrieval_summary["excluded"], {"exclude": "auto", "excluded": [], "short": {}})
    write_text(plan.config, yaml.safe_dump(study.model_dump(mode="json")))
    write_json(plan.diffusion, {"folder": "models/small-diffusion", "id": "model", "files": {}})
    write_provenance(
        study,
        Store(Path("results/.store"), Path(plan.root)),
        plan.config,
        [plan.diffusion],
        plan.provenance,
    )


def collect_images(squares: Squares, study: Study | None = None) -> None:
    plan, job = squares.plan, replace(squares.job, study=study or squares.job.study)
    collect(
        job,
        plan.per_class,
        plan.table1["csv"],
        squares.sets([*plan.study.pooled]),
        squares.train,
        squares.classes,
        plan.report_images,
    )


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Squares:
    folder = tmp_path_factory.mktemp("squares")
    made = make_squares(folder)
    with chdir(folder):
        write_tables(made)
        collect_images(made)
        write_report(made.plan, made.plan.report)
    return made


@pytest.fixture(autouse=True)
def in_the_studys_folder(squares: Squares, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(squares.job.store.root.parents[2])


@pytest.fixture(scope="module")
def page(squares: Squares) -> Page:
    return Page((squares.job.store.root.parent / "report.html").read_text())


def with_report(study: Study, **changes: Any) -> Study:
    """The study with other settings of the report, including settings that a config may not give."""
    return study.model_copy(update={"report": study.report.model_copy(update=changes)})


# --- the page -------------------------------------------------------------------------------------


def test_the_page_loads_nothing(page: Page) -> None:
    addresses = [
        known[name]
        for _, known in page.elements
        for name in ("src", "href", "action", "srcset", "poster")
        if name in known
    ]
    files = {known["href"] for known in page.all("a") if not known["href"].startswith("#")}
    assert len(addresses) > 50
    assert all(address.startswith(("data:", "#")) or address in files for address in addresses)
    assert (
        "url(" not in page.html
        and "@import" not in page.html
        and not any(known.get("src") for known in page.all("script"))
    )
    (policy,) = (
        known["content"] for known in page.all("meta") if known.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'") and "img-src data:;" in policy and "http" not in policy


def test_every_table_and_figure_leads_to_its_file(squares: Squares, page: Page) -> None:
    folder = squares.job.store.root.parent
    files = {known["href"] for known in page.all("a") if not known["href"].startswith("#")}
    assert all((folder / name).is_file() for name in files), "relative to the page"
    tables = {f"tables/{name}.csv" for name in squares.plan.report_tables}
    figures = {f"figures/{name}.png" for name in squares.plan.report_figures}
    drawn_from = {f"figures/{name}.csv" for name in squares.plan.figures}
    others = {"tables/table1_runs.csv", "tables/per_class.parquet", "config.yaml", "provenance.json"}
    assert tables | figures | drawn_from | others <= files
    # a table, then its file
    assert re.search(
        r'Table 1: accuracy.*?<a href="tables/table1.csv">.*?Training of the', page.html, re.DOTALL
    )


def test_two_rows_can_be_put_side_by_side(squares: Squares, page: Page) -> None:
    options = [known["value"] for known in page.all("option")]
    rows = [REAL, *squares.job.study.examined]
    assert options == [
        *rows,
        *rows,
        *(known["value"] for known in page.all("input") if known["type"] == "radio"),
    ]
    chosen = [known["value"] for known in page.all("option") if "selected" in known]
    entries, rows_of = table1.read_rows(squares.plan.table1["csv"]), squares.plan.statistics["csv"]
    best = {one.role: one.row.method for one in headlines(entries, statistics.read_rows(rows_of))}
    assert chosen == [best["Best that generates"], best["Best that retrieves"]]
    strips = {known["data-row"] for known in page.all("section") if "data-row" in known}
    assert strips == set(rows)


def test_headings_are_in_order_ids_are_unique_and_links_lead_somewhere(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.elements if tag in ("h1", "h2", "h3", "h4")]
    assert (
        levels[0] == 1
        and levels.count(1) == 1
        and all(after <= before + 1 for before, after in pairwise(levels))
    )
    ids = [known["id"] for _, known in page.elements if "id" in known]
    assert len(ids) == len(set(ids))
    for _, known in page.elements:
        for name in ("href", "aria-labelledby", "for"):
            if known.get(name, "").startswith("#") or name != "href":
                assert all(target.removeprefix("#") in ids for target in known.get(name, "").split()), known
    assert {"header", "nav", "main", "footer"} <= {tag for tag, _ in page.elements}


def test_every_image_says_what_it_shows(page: Page) -> None:
    images = [known for known in page.all("img") if known["src"] != "data:,"]
    assert all(known["alt"] for known in images)
    figures = [known["alt"] for known in images if known["width"] != "128"]
    assert len(figures) == 7
    assert (
        "Bars of top-1 accuracy: No added images 51.7 ± 0.5%" in figures[0]
        and "Retrieval 58.3 ± 0.5%" in figures[0]
    )
    assert "Forest plot" in figures[1] and "Retrieval +6.7 [+6.7 to +6.7]" in figures[1]
    assert "on average 8.0 of 255 levels" in figures[2]
    assert "Retrieval: 5 classes up, 1 down, from -20.0 points (class e)" in figures[4]
    assert "Retrieval: 56.7% at 200%, 56.7% at 300%. Baseline: 51.7%." in figures[5]
    assert "no added data: 52.0% at step 2, 56.0% at step 6, most runs cut while rising" in figures[6]
    assert "Boomerang: 52.0% at step 2, 56.0% at step 6, learning rate lowered after steps 4." in figures[6]


def test_the_training_of_every_row_is_told(page: Page) -> None:
    runs = [
        table1.RunRow("none", run, 50.0, 50.0, 2, 15, 500, 0, 500, 3000, 60, stopped, rising)
        for run, (stopped, rising) in enumerate(
            [("max_epochs", True), ("max_epochs", None), ("patience", False)]
        )
    ]
    (first, *_) = training_table(runs, Plan(study_of(Path("data"), {"none": METHODS["none"]}), ())).rows
    assert [cell.text for cell in first[1:]] == [
        "60",
        "15",
        "2",
        "max_epochs: 2, patience: 1",
        "1 of 3 (1 unknown)",
    ]
    assert "Training of the classifiers" in page.text_of("h3")


def test_the_page_begins_with_the_studys_answer(squares: Squares, page: Page) -> None:
    answer = read_markdown(squares.plan.table1["md"], "").lead
    assert answer.startswith("With 4 real images per class, ")
    texts = page.text_of("p")
    assert answer.replace("-", MINUS) in texts
    place = texts.index(answer.replace("-", MINUS))
    assert all("In this study" not in text for text in texts[:place])


def test_tables_are_those_of_the_files(squares: Squares, page: Page) -> None:
    cells = page.text_of("td") + page.text_of("th")
    for name, path in squares.plan.report_tables.items():
        layout = read_markdown(path, name)
        assert layout.cells
        for line in layout.cells:
            assert {text.replace("-", MINUS) for text in line} <= {
                text.replace("-", MINUS) for text in cells
            }, name
    buttons = page.text_of("button")
    assert {"Top-1 (%)", "Against baseline", "Verdict", "Downloads (MB)", "Mean size of change"} <= set(
        buttons
    )
    assert {"no image", "25.0%"} <= set(cells), "what retrieval gave"


def test_cuts_against_the_protocol_and_what_made_the_results_are_told(squares: Squares, page: Page) -> None:
    items = page.text_of("li")
    assert "Classes: 6 (paper: 990)" in items and "Maximum number of epochs: 15 (paper: 270)" in items
    assert any("differs from the paper's protocol in 2 respects" in text for text in items)
    described = page.text_of("dd")
    assert "diffusion: models/small-diffusion (model)" in described
    pre = page.text_of("pre")
    assert "study: squares" in pre[0] and '"study": "squares"' in pre[1]


def test_the_page_is_the_same_for_the_same_files(squares: Squares, tmp_path: Path) -> None:
    write_report(squares.plan, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == Path(squares.plan.report).read_bytes()


# --- words ----------------------------------------------------------------------------------------


def row(method: str, mean: float, **known: Any) -> statistics.Row:
    return statistics.Row(method, method.upper(), 3, mean, 0.5, mean - 2, mean + 2, 1000, 1.0, None, **known)


def entry(method: str, family: str, top1: float, split: str = "train") -> table1.Row:
    return table1.Row(
        method, method.upper(), family, split, top1, 0.5, 3, 50, 50 * (family != "real"), None, None, None
    )


TABLE = [
    entry("none", "real", 60),
    entry("twice", "real", 70, "train2x"),
    entry("clip", "prompting", 64),
    entry("imagic", "personalised", 66),
    entry("found", "retrieval", 63),
]


def test_the_summary_names_the_best_row_of_each_kind_and_how_many_it_was_chosen_from() -> None:
    rows = [row("none", 60), row("twice", 70), row("clip", 64), row("imagic", 66), row("found", 63)]
    found = [(headline.role, headline.row.method, headline.among) for headline in headlines(TABLE, rows)]
    assert found == [
        ("Without added images", "none", 1),
        ("Best that generates", "imagic", 2),
        ("Best that retrieves", "found", 1),
        ("Twice the real images", "twice", 1),
    ]
    better = [replace(TABLE[2], top1_percent=67.0) if other.method == "clip" else other for other in TABLE]
    assert headlines(better, rows)[1].row.method == "clip"


def test_a_difference_is_called_more_than_chance_only_after_correction() -> None:
    rows = [row("none", 60), row("twice", 70), row("clip", 64), row("imagic", 66), row("found", 63)]
    tested = [
        contrast("twice", "none", 10, "more", p_holm=0.0001, contrasts=4),
        contrast("clip", "none", 4, "more"),
        contrast("imagic", "none", 6, "can't tell", contrasts=4),
        contrast("found", "none", 0.2, "can't tell"),
        contrast("found", "imagic", 0.1, "same"),
    ]
    assert what_it_shows(TABLE, rows, tested) == [
        "Twice: +10.0 points (95% interval +9.5 to +10.5) compared with no added data. This is more than"
        " chance variation between runs (p\u00a0<\u00a00.001, corrected for 4 comparisons).",
        "Imagic: +6.0 points (95% interval +5.5 to +6.5) compared with no added data. As the only comparison,"
        " this would be more than chance. After correction for 4 comparisons it is not.",
        f"Retrieval: +0.2 points (95% interval {MINUS}0.3 to +0.7) compared with no added data. The interval"
        " includes 0: with 5 runs, this may be chance.",
        f"Retrieval: +0.1 points (95% interval {MINUS}0.4 to +0.6) compared with Imagic. The difference is"
        " smaller than 1 point (equivalence test).",
    ]


def test_single_runs_and_equal_runs_are_told_as_what_they_are() -> None:
    rows = [row("none", 60), row("twice", 70), row("clip", 64), row("imagic", 66), row("found", 63)]
    alone = dict.fromkeys(("low", "high", "p", "p_holm", "p_same_holm"))
    equal = {**alone, "low": 3.0, "high": 3.0}
    tested = [
        contrast("found", "none", 3, "can't tell", **alone),
        contrast("imagic", "none", 3, "can't tell", **equal),
    ]
    assert what_it_shows(TABLE, rows, tested) == [
        "Retrieval: +3.0 points compared with no added data. A single run cannot show whether this is more"
        " than chance.",
        "Imagic: +3.0 points (95% interval +3.0 to +3.0) compared with no added data. The difference is the"
        " same in every run, so there is no test.",
    ]


def test_what_is_not_shown_is_said_of_a_miniature_and_of_picked_rows(squares: Squares) -> None:
    from augbench.config.study import load_study

    demo = load_study([Path(__file__).resolve().parents[1] / "config/demo.yaml"])
    rows = [row(other.method, other.top1_percent) for other in TABLE]
    said = what_it_does_not_show(demo, TABLE, rows, 0)
    assert any("among 2 rows" in text for text in said) and any(
        "no evidence about ImageNet" in text for text in said
    )
    assert not any("protocol" in text for text in said)
    assert not any("miniature" in text for text in what_it_does_not_show(squares.job.study, TABLE, rows, 0))


# --- classes and images ---------------------------------------------------------------------------


def test_rows_that_had_not_finished_learning_are_named(squares: Squares) -> None:
    table = [entry("none", "real", 50), replace(entry("best", "prompting", 60), cut=2)]
    rows = [row("none", 50), row("best", 60)]
    (sentence,) = [
        text
        for text in what_it_does_not_show(squares.job.study, table, rows, 0)
        if "had not finished learning" in text
    ]
    assert (
        sentence.startswith("Most classifiers of BEST had not finished learning") and "NONE" not in sentence
    )


def test_the_most_changed_class_is_first(squares: Squares) -> None:
    classes = [ClassInfo(name, (name,)) for name in CLASSES]
    found = most_changed(
        read_per_class(squares.plan.per_class), table1.read_rows(squares.plan.table1["csv"]), classes
    )
    others = len(METHODS) - 2  # rows with the accuracies of clip_prompts
    sizes = {change.info.class_id: change.size for change in found}
    assert sizes["class_e"] == pytest.approx(fmean([30] * others + [20])) == max(sizes.values())
    assert sizes["class_b"] == pytest.approx(fmean([0] * others + [10]))
    assert [change.info.class_id for change in found] == [
        "class_e",
        "class_a",
        "class_c",
        "class_b",
        "class_d",
        "class_f",
    ]
    assert found[0].points["retrieval"] == pytest.approx(-20) and found[0].baseline_percent == pytest.approx(
        50
    )


def test_without_a_baseline_classes_stay_in_their_order(squares: Squares) -> None:
    table = [other for other in table1.read_rows(squares.plan.table1["csv"]) if other.family != "real"]
    found = most_changed(
        read_per_class(squares.plan.per_class), table, [ClassInfo(name, (name,)) for name in CLASSES]
    )
    assert [change.info.class_id for change in found] == list(CLASSES) and all(
        change.size is None and not change.points for change in found
    )


def test_images_are_those_that_classifiers_were_trained_on(squares: Squares) -> None:
    shown = read_encoded(squares.plan.report_images)
    panels = {picture.panel for picture, _ in shown}
    assert panels == {"real", *squares.plan.study.pooled}
    for method in squares.plan.study.pooled:
        trained_on = {
            (known["class_id"], str(known["index"]))
            for known in read_index(squares.plan.resample(method, "0")).to_pylist()
        }
        own = [(picture.class_id, picture.image) for picture, _ in shown if picture.panel == method]
        per_class = squares.job.study.report.page_images_per_class
        assert set(own) <= trained_on and len(own) == len(set(own)) == sum(
            min(per_class, sum(key[0] == name for key in trained_on)) for name in CLASSES
        )
    places = {
        panel: [
            picture.image for picture, _ in shown if (picture.panel, picture.class_id) == (panel, "class_a")
        ]
        for panel in ("clip_prompts", "ft_conditioning")
    }
    assert places["clip_prompts"] == places["ft_conditioning"], (
        "generated images of one place start from the same noise"
    )


def test_an_image_opens_into_all_that_its_shard_says_of_it(page: Page) -> None:
    known = [
        dict(json.loads(thumb["data-details"])) for thumb in page.all("button") if "data-details" in thumb
    ]
    retrieved = next(details for details in known if details["Method"] == "Retrieval")
    assert (
        retrieved["Found at"] == f"https://example.org/{retrieved['Image']}"
        and retrieved["Similarity to the query"] == "0.500"
    )
    generated = next(details for details in known if details["Method"] == "CLIP prompts")
    assert (
        generated["Prompt"] == f"a photo of {generated['Class'].replace(' ', '_')}"
        and generated["Seed"] == generated["Image"]
    )
    assert generated["Model"] == "small-diffusion (model)"
    assert generated["Samples refused by the safety checker"] == "0"
    started = next(details for details in known if details["Method"] == "Boomerang")
    assert started["Started from"].startswith("class_") and "Similarity to the query" not in started


def test_a_model_is_named_with_what_was_learned() -> None:
    assert model_name("12ab+34cd", {"12ab": "sd"}) == "sd, fine-tuned (12ab+34cd)"
    assert model_name("12ab", {}) == "12ab"


def test_texts_from_the_web_stay_texts(squares: Squares) -> None:
    evil = "</template><script>alert(1)</script><img src=x onerror=alert(1)>\" onload='x"
    encoded = encode_image(Image.new("RGB", (8, 8)), "png", 92)
    picture = ImageRecord(
        "retrieval",
        "class_a",
        evil,
        0,
        "0",
        source=f"https://example.org/{evil}",
        prompt=evil,
        similarity=0.5,
    )
    change = ClassChange(ClassInfo("class_a", (evil,)), 10, 50.0, {"retrieval": 1.0}, 1.0)
    (panel,) = class_panels(squares.plan, [change], [(picture, encoded)], {})
    found = Page(panel.html)
    assert [tag for tag, _ in found.elements] == [
        "template",
        "h3",
        "p",
        "section",
        "h4",
        "div",
        "button",
        "img",
    ]
    details = dict(json.loads(found.all("button")[0]["data-details"]))
    assert (
        details["Query"] == evil and details["Found at"].endswith(evil) and evil in found.all("img")[0]["alt"]
    )


def squeezed(squares: Squares, megabytes: float, out: Path) -> tuple[Page, list[str]]:
    """A report of at most ``megabytes``, and the classes in its image browser."""
    study = with_report(squares.job.study, page_megabytes=megabytes)
    write_report(Plan(study, CLASSES), out)
    assert out.stat().st_size <= megabytes * 1e6
    found = Page(out.read_text())
    return found, [known["value"] for known in found.all("input") if known.get("type") == "radio"]


def test_where_classes_do_not_fit_the_most_changed_ones_are_shown_and_the_others_named(
    squares: Squares, page: Page, tmp_path: Path
) -> None:
    whole = len(page.html.encode()) / 1e6
    panels = sum(len(text) for text in page.html.split("<template ")[1:]) / 1e6
    found, chosen = squeezed(squares, whole - panels / 3, tmp_path / "small.html")
    assert (
        chosen
        and len(chosen) < len(CLASSES)
        and chosen == ["class_e", "class_a", "class_c", "class_b", "class_d", "class_f"][: len(chosen)]
    )
    assert any(
        f"{len(CLASSES) - len(chosen)} classes are not on this page; augbench browse shows them" in text
        for text in found.text_of("summary")
    )
    links = {known["data-class"] for known in found.all("a") if "data-class" in known}
    assert links == set(chosen), "the table leads to the classes that are there, and to no others"
    full, everything = squeezed(squares, whole + 0.01, tmp_path / "full.html")
    assert len(everything) == len(CLASSES) and not any(
        "not on this page" in text for text in full.text_of("summary")
    )
    with pytest.raises(UserError, match="even without images"):
        squeezed(squares, 0.1, tmp_path / "none.html")


def test_thumbnails_stop_where_the_page_is_full(squares: Squares) -> None:
    whole = read_encoded(squares.plan.report_images)
    size = sum(len(encoded) * 4 / 3 + 600 for _, encoded in whole) / 1e6
    try:
        collect_images(squares, with_report(squares.job.study, page_megabytes=size / 2))
        kept = read_encoded(squares.plan.report_images)
        assert kept == whole[: len(kept)] and 0 < len({picture.class_id for picture, _ in kept}) < len(
            CLASSES
        )
    finally:
        collect_images(squares)


def test_large_images_become_small_ones(squares: Squares) -> None:
    from augbench.report.html.images import QUALITY, SIDE
    from augbench.report.pictures import encode_thumbnail

    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (400, 600, 3), dtype=np.uint8))
    encoded = encode_thumbnail(noise, SIDE, QUALITY)
    opened = Image.open(BytesIO(encoded))
    assert opened.size == (SIDE, SIDE) and opened.format == "JPEG"


@pytest.fixture
def copied(squares: Squares, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """A copy of the study folder, to change."""
    shutil.copytree("results", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    return squares.plan


def test_a_study_of_real_images_alone_has_a_report(squares: Squares, copied: Plan, tmp_path: Path) -> None:
    study = squares.job.study.model_copy(update={"methods": {"none": squares.job.study.methods["none"]}})
    alone = Squares(Job(study, Store(tmp_path / "results/squares/.store"), 1))
    write_tables(alone)
    collect_images(alone)
    write_report(alone.plan, tmp_path / "alone.html")
    found = Page((tmp_path / "alone.html").read_text())
    assert "The study has no rows to compare." in found.text_of("li") and "Added images" not in found.text_of(
        "h2"
    )
    assert {panel for panel in found.text_of("h4")} == {"Real training images"}


def test_a_thousand_classes_fit_into_a_small_page(squares: Squares, copied: Plan, tmp_path: Path) -> None:
    classes, shown, rng = 1000, 150, np.random.default_rng(0)
    infos = [
        ClassInfo(f"n{number:08d}", (f"class number {number}", "another name")) for number in range(classes)
    ]
    write_class_table(infos, copied.path("classes.parquet"))
    rows = {"class_id": [info.class_id for info in infos], "n_test": [50] * classes}
    tables = [
        pa.table(
            {"method": [method] * classes, "run": [run] * classes, **rows, "top1": rng.random(classes)}
        ).cast(SCHEMA)
        for method in copied.methods
        for run in range(2)
    ]
    pq.write_table(pa.concat_tables(tables), copied.per_class)
    ranked = most_changed(read_per_class(copied.per_class), table1.read_rows(copied.table1["csv"]), infos)
    noise = encode_image(Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)), "jpeg", 82)
    pictures = [
        (
            ImageRecord(
                panel, change.info.class_id, "a class", place, str(place), prompt="a photo", seed=place
            ),
            noise,
        )
        for change in ranked[:shown]
        for panel in ("real", *copied.study.pooled)
        for place in range(4)
    ]
    write_encoded(pictures, copied.report_images)
    study = with_report(squares.job.study, page_megabytes=5)
    write_report(Plan(study, ()), tmp_path / "large.html")
    assert 4.8e6 < (tmp_path / "large.html").stat().st_size <= 5e6
    found = Page((tmp_path / "large.html").read_text())
    chosen = [known["value"] for known in found.all("input") if known.get("type") == "radio"]
    assert chosen == [change.info.class_id for change in ranked[: len(chosen)]] and 20 < len(chosen) < shown
    assert (
        f"{classes - len(chosen)} classes are not on this page; augbench browse shows them"
        in found.text_of("summary")
    )
    assert sum(known.get("data-class") is not None for known in found.all("a")) == len(chosen)


# --- tables ---------------------------------------------------------------------------------------


def test_markdown_reads_back_as_what_people_see(tmp_path: Path) -> None:
    layout = Layout(
        "A title",
        ("Method", "Top-1 (%)"),
        (False, True),
        (("a | b \\", "1.0 ± 0.1"), ("val_loss *x* <y>", "-"), ("", "#3 ~")),
        ("A note: [1] | 2.", "Another_one"),
    )
    (tmp_path / "table.md").write_text(render_markdown(layout))
    assert read_markdown(tmp_path / "table.md", "A title") == layout


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("72.7 ± 0.9", "72.7"),
        ("+0.3 [-1.9 to +2.5]", "+0.3"),
        ("1,234.5", "1234.5"),
        ("< 0.001", "0.001"),
        ("-", ""),
        (f"{MINUS}3.1", "-3.1"),
        ("300 of 520", "300"),
    ],
)
def test_cells_sort_by_their_first_number(text: str, number: str) -> None:
    assert number_in(text) == number


def test_a_minus_is_typeset_as_one_and_a_dash_is_none() -> None:
    cells = table_of(
        "t", Layout("", ("a", "b"), (False, True), (("x-1", "-0.5 [-1.0 to -0.1]"), ("y", "-")), ())
    ).rows
    assert [[cell.text for cell in line] for line in cells] == [
        ["x-1", f"{MINUS}0.5 [{MINUS}1.0 to {MINUS}0.1]"],
        ["y", "-"],
    ]
