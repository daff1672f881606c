"""The paper's other tables: cluster ablation, full ImageNet, Caltech256; our numbers beside the paper's.

Input: ``table1.csv`` and the paper's numbers. Output: CSV in full precision, Markdown and LaTeX for each
table that the study has rows for. A study of the paper fills the tables of its own data set. A miniature
study fills all of them and is compared by method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from augbench.config.study import Study
from augbench.files import write_text
from augbench.plan.paths import CLUSTER_ABLATION, Plan
from augbench.report.contrasts import baseline_of
from augbench.report.protocol import PROTOCOLS, PaperResult, paper_results
from augbench.report.render import Layout, render_csv, render_latex, render_markdown, signed, spread
from augbench.report.tables import table1

TABLES = {  # by name: the paper's study, and the table's title
    CLUSTER_ABLATION: ("imagenet10", "Vectors learned per class (the paper's cluster ablation)"),
    "imagenet_full": (
        "imagenet_full",
        "The best methods of each family on full data (the paper's full ImageNet)",
    ),
    "caltech256": (
        "caltech256",
        "The best methods of each family on a second data set (the paper's Caltech256)",
    ),
}


@dataclass(frozen=True)
class Row:
    """One method, in percent; None for missing values.

    Gains are percentage points over the table's row without added images. ``clusters`` is the number of
    vectors learned per class, in the cluster ablation only.
    """

    method: str
    label: str
    clusters: int | None
    n: int
    top1_percent: float
    stderr_percent: float | None
    gain_points: float | None
    paper_top1_percent: float | None
    paper_stderr_percent: float | None
    paper_gain_points: float | None


def build_rows(name: str, plan: Plan, table: Sequence[table1.Row]) -> list[Row]:
    """Build the rows of table ``name``."""
    paper = paper_results(TABLES[name][0])
    entries = {row.method: row for row in table}
    baseline = baseline_of(table)
    clusters = plan.clusters if name == CLUSTER_ABLATION else {}
    rows = []
    for method in plan.paper_tables[name]:
        entry, theirs = entries[method], paper.get(method)
        rows.append(
            Row(
                method=method,
                label=entry.label,
                clusters=clusters.get(method),
                n=entry.n,
                top1_percent=entry.top1_percent,
                stderr_percent=entry.stderr_percent,
                gain_points=entry.top1_percent - entries[baseline].top1_percent
                if baseline is not None and method != baseline
                else None,
                paper_top1_percent=theirs.top1 if theirs else None,
                paper_stderr_percent=theirs.stderr if theirs else None,
                paper_gain_points=_gain(theirs, paper["none"]) if method != "none" else None,
            )
        )
    return rows


def _gain(result: PaperResult | None, baseline: PaperResult) -> float | None:
    return None if result is None else result.top1 - baseline.top1


def _notes(name: str, study: Study) -> tuple[str, ...]:
    """Notes on the columns, and on what may be compared."""
    paper_study, _ = TABLES[name]
    notes = [
        "±: standard error of the mean over n classifiers. Gain: percentage points over training without"
        " added images, in the same study.",
        f"Paper: Burg et al., TMLR 2023 (arXiv 2304.10253), {PROTOCOLS[paper_study].name}; a dash where the"
        " paper gives no number.",
    ]
    if study.miniature is not None:
        notes.append(
            f"This study is a miniature, not {PROTOCOLS[paper_study].name}: its rows correspond to the"
            " paper's by method only. Compare the order and the sign of the gains, not the numbers."
        )
    notes.append(
        "Table 1 gives the number of added images; its footer lists every difference from the paper's"
        " protocol."
    )
    return tuple(notes)


def layout(name: str, study: Study, rows: Sequence[Row]) -> Layout:
    """Lay out table ``name``."""
    ablation = name == CLUSTER_ABLATION
    columns = ("This study (%)", "n", "Gain", "Paper (%)", "Paper's gain")
    header = ("Method", *(("k",) if ablation else ()), *columns)
    cells = [
        (
            row.label,
            *((str(row.clusters),) if ablation else ()),
            spread(row.top1_percent, row.stderr_percent),
            str(row.n),
            signed(row.gain_points),
            spread(row.paper_top1_percent, row.paper_stderr_percent),
            signed(row.paper_gain_points),
        )
        for row in rows
    ]
    return Layout(
        caption(name, study), header, (False, *[True] * (len(header) - 1)), tuple(cells), _notes(name, study)
    )


def caption(name: str, study: Study) -> str:
    """Caption of table ``name``."""
    return f"{TABLES[name][1]}: top-1 accuracy, study {study.study}."


def write_paper_tables(plan: Plan, table: str | Path, outs: Mapping[str, str | Path]) -> dict[str, list[Row]]:
    """Write ``plan.paper_tables`` to ``outs``, which maps ``{table}_{format}`` to paths.

    Formats are any of ``csv``, ``md`` and ``tex``.

    Parameters
    ----------
    table : path
        ``table1.csv``.
    """
    study, entries = plan.study, table1.read_rows(table)
    written = {}
    for name in plan.paper_tables:
        rows = written[name] = build_rows(name, plan, entries)
        shown = layout(name, study, rows)
        texts = {
            "csv": render_csv(rows, shown.notes),
            "md": render_markdown(shown),
            "tex": render_latex(shown, caption(name, study), f"{study.study}-{name}"),
        }
        for kind, text in texts.items():
            if f"{name}_{kind}" in outs:
                write_text(outs[f"{name}_{kind}"], text)
    return written
