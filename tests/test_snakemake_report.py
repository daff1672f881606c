"""Snakemake's report (``--report``): one file, made offline, with a caption per figure and table."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import PROJECT, Workspace
from docutils.core import publish_doctree
from namespaces import namespace

from augbench.config.study import load_study
from augbench.plan.paths import Plan

CAPTIONS = sorted((PROJECT / "workflow/report").glob("*.rst"))
OF_EVERY_STUDY = {
    "workflow",
    "table1",
    "statistics",
    "contrasts",
    "components",
    "cost",
    "diagnostics",
    "leakage",
    "leakage_pairs",
    "retrieval_yield",
    "figure1",
    "forest",
}


def value(report: str, name: str) -> Any:
    """Value of a variable in the report's page."""
    found = re.search(rf"^\s*var {name} = ([{{\"].*);$", report, re.MULTILINE)
    assert found is not None
    return json.loads(found[1])


def test_the_report_of_a_finished_study_is_one_file_made_offline(current: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    command = [
        *namespace("--net"),
        sys.executable,
        "-m",
        "snakemake",
        "--configfile",
        "study.yaml",
        "--report",
        str(path),
    ]
    done = subprocess.run(
        command, cwd=current.folder, env=current.environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    report = path.read_text(encoding="utf-8")
    description, results, categories = (
        value(report, name) for name in ("workflow_desc", "results", "categories")
    )
    assert '<tt class="docutils literal">small</tt>' in description and "system-message" not in description
    assert re.findall(r"app\.showCategory\('([^']+)'\)", description) == sorted(categories)
    shown = {Path(name).relative_to("results/small").as_posix(): result for name, result in results.items()}
    plan = Plan(load_study([current.folder / "study.yaml"]), ())
    figures = {f"figures/{name}.png" for name in ("figure1", "forest", *plan.figures)}
    tables = {
        f"tables/{name}.csv"
        for name in (
            "table1",
            "statistics",
            "contrasts",
            "components",
            "cost",
            "diagnostics",
            "leakage",
            *plan.paper_tables,
        )
    } | {"retrieval/yield.csv"}
    pairs = {f"figures/leakage/{method}.png" for method in plan.guarded}
    assert len(figures) > 3 and shown.keys() == figures | tables | pairs
    assert {name: len(entries["Other"]) for name, entries in categories.items()} == {
        "Figures": len(figures),
        "Tables": len(tables),
        "Near-duplicates": len(pairs),
    }
    for name, result in shown.items():
        assert result["caption"].startswith("<p>") and "system-message" not in result["caption"], name
        assert result["data_uri"].startswith(f"data:{'image/png' if name.endswith('png') else 'text/csv'}"), (
            name
        )
    assert "from at most 200 images" in shown["tables/diagnostics.csv"]["caption"]
    assert current.plan() == {}


def test_the_studies_that_ship_have_a_caption_for_each_result_and_no_caption_is_left_over() -> None:
    wanted = set(OF_EVERY_STUDY)
    for files in (["demo", "overlays/web_tests"], ["imagenet10"], ["imagenet_full"], ["caltech256"]):
        plan = Plan(load_study([PROJECT / f"config/{name}.yaml" for name in files]), ())
        tables = {
            "class_groups": plan.class_groups,
            "class_sizes": plan.class_sizes,
            "further_tests": plan.further_tests,
        }
        wanted |= {*plan.figures, *plan.paper_tables, *(name for name, made in tables.items() if made)}
    assert {path.stem for path in CAPTIONS} == wanted


@pytest.mark.parametrize(
    "caption",
    [path for path in CAPTIONS if "{" not in path.read_text(encoding="utf-8")],
    ids=lambda path: path.stem,
)
def test_captions_are_sound_restructured_text(caption: Path) -> None:
    assert publish_doctree(caption.read_text(encoding="utf-8"), settings_overrides={"halt_level": 2}).children
