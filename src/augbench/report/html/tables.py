"""Tables that only the page has: the change of every class, the outcome of retrieval, the provenance."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any
from urllib.parse import quote

from augbench.plan.paths import Plan
from augbench.report.html.images import ClassChange
from augbench.report.html.parts import MINUS, Cell, SortableTable, table_of
from augbench.report.pictures import short_name
from augbench.report.render import NONE, Layout, signed
from augbench.report.tables.table1 import RunRow
from augbench.retrieval.shortfall import ALL

FULL_TINT = 10.0  # points of change at which a cell reaches its full colour


def relative(plan: Plan, path: str) -> str:
    """Address of a file of the study, relative to the report."""
    return quote(path.removeprefix(f"{plan.root}/"))


def signed_points(points: float) -> str:
    """A change in percentage points, with its sign."""
    return signed(points).replace("-", MINUS)


def per_class_table(changes: Sequence[ClassChange], plan: Plan) -> SortableTable:
    """Accuracy of every class without added images, and each method's change, in the order of ``changes``."""
    methods = [method for method in plan.methods if any(method in change.points for change in changes)]

    def cell(points: float) -> Cell:
        tint = max(-1.0, min(1.0, points / FULL_TINT))
        return Cell(signed_points(points), f"{points:.4f}", tint if points else None)

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
    columns = ("Class", "Id", "Test images", "Baseline (%)", "Mean size of change")
    header = (*columns, *map(plan.study.label, methods))
    notes = (
        "Columns of methods: the class's accuracy minus the baseline's accuracy of the same run, in"
        " percentage points; mean over runs. Mean size of change: mean absolute change over the rows that"
        " add images.",
        "If a class has n test images, one image is worth 100 / n points. The largest gains and losses are"
        " therefore partly chance, and more so with more classes.",
    )
    return SortableTable(
        name="per_class",
        title="Change of every class against the baseline",
        header=header,
        numeric=(False, False, *[True] * (len(header) - 2)),
        rows=rows,
        notes=notes,
        source=relative(plan, plan.per_class),
    )


def training_table(runs: Sequence[RunRow], plan: Plan) -> SortableTable:
    """How the classifiers of every row were trained: steps, epochs, and why they ended."""
    cells = []
    for method in plan.methods:
        own = [run for run in runs if run.method == method]
        ended = Counter(run.stopped or NONE for run in own)
        rising = sum(run.rising is True for run in own)
        unknown = sum(run.rising is None for run in own)
        cells.append(
            (
                plan.study.label(method),
                f"{fmean(run.steps or 0 for run in own):,.0f}",
                f"{fmean(run.epochs for run in own):.4g}",
                f"{fmean(run.best_epoch for run in own):.4g}",
                ", ".join(f"{reason}: {count}" for reason, count in ended.most_common()),
                f"{rising} of {len(own)}" + (f" ({unknown} unknown)" if unknown else ""),
            )
        )
    notes = (
        "Steps, epochs and the epoch of the kept weights: means over runs. Ended by: patience (validation"
        " accuracy no longer improved), max_epochs (the limit cut the run), steps (the fixed number of steps"
        " was done).",
        "Cut while rising: runs that ended while validation accuracy was still rising, by a test on their"
        " history (docs/training.md). Unknown: fewer than six validations after the last reduction of the"
        " learning rate.",
    )
    header = ("Method", "Steps", "Epochs", "Kept epoch", "Ended by", "Cut while rising")
    numeric = (False, True, True, True, False, True)
    title = "Training of the classifiers"
    layout = Layout(title, header, numeric, tuple(cells), notes)
    return table_of("training", layout, relative(plan, plan.table1["runs"]))


def retrieval_table(path: str | Path, plan: Plan) -> SortableTable:
    """Outcomes of the candidates that retrieval examined, all classes together."""
    fates: dict[str, Counter[str]] = {}
    with Path(path).open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            if row["class_id"] == ALL:
                method, _ = plan.study.row_and_draw(row["method"])
                fates.setdefault(method, Counter())[row["fate"]] += int(row["candidates"])
    cells = tuple(
        (plan.study.label(method), fate, f"{count:,}", f"{count / counts.total():.1%}")
        for method, counts in fates.items()
        for fate, count in counts.most_common()
    )
    notes = (
        "Candidates: the nearest neighbours of each class's query that were examined, all classes together."
        " 'not needed': suitable candidates beyond the number wanted. 'not selected': suitable candidates"
        " that a row's `select` did not choose. retrieval/*/ledgers lists every candidate.",
    )
    return table_of(
        "retrieval",
        Layout(
            "Outcome of retrieval",
            ("Method", "Outcome", "Candidates", "Share"),
            (False, False, True, True),
            cells,
            notes,
        ),
        relative(plan, str(path)),
    )


def made_by(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Summary of the provenance record, as (name, value) pairs."""
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
                f"jobs ran in {len(record['computed'])} different environments; the record below lists them",
            )
        )
    return facts
