"""`augbench debug`: the script of any job runs alone, on the terminal, under Python's debugger."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Workspace


def debug(
    workspace: Workspace, *arguments: str, typed: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "augbench.cli",
        "debug",
        "--configfile",
        "study.yaml",
        "--target",
        *arguments,
    ]
    given = {**workspace.environment(), **environment}
    return subprocess.run(
        command, cwd=workspace.folder, env=given, input=typed, capture_output=True, text=True
    )


@pytest.fixture
def statistics(finished: Workspace) -> Iterator[Path]:
    """A table of the finished study; its files get their old times back, so that no job is planned."""
    files = list((finished.results / "tables").glob("statistics.*"))
    times = {path: path.stat().st_mtime_ns for path in files}
    yield finished.results / "tables/statistics.md"
    for path, time in times.items():
        os.utime(path, ns=(time, time))


def test_a_script_stops_at_its_first_line_and_then_makes_its_file(
    finished: Workspace, statistics: Path
) -> None:
    before = statistics.read_text()
    os.utime(statistics, (0, 0))
    target = str(statistics.relative_to(finished.folder))
    done = debug(finished, target, typed="print('rule', snakemake.rule)\ncontinue\n")
    assert done.returncode == 0, done.stderr
    assert "paired_statistics.py(1)<module>()" in done.stdout and "rule statistics" in done.stdout
    assert statistics.read_text() == before and statistics.stat().st_mtime > 0
    assert "ended; torch not imported" in done.stderr


@pytest.mark.usefixtures("statistics")
def test_a_breakpoint_in_the_package_opens_the_debugger(finished: Workspace, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import builtins\n"
        "from augbench.report import render\n"
        "kept = render.render_csv\n"
        "def stopping(*given):\n"
        "    breakpoint()\n"
        "    return kept(*given)\n"
        "render.render_csv = stopping\n"
    )
    path = os.pathsep.join([str(tmp_path), finished.environment()["PYTHONPATH"]])
    done = debug(
        finished, "statistics", "--run", typed="print('rows', len(given[0]))\ncontinue\n", PYTHONPATH=path
    )
    assert done.returncode == 0, done.stderr
    assert "stopping()" in done.stdout and "rows " in done.stdout


def test_what_no_script_makes_is_one_clear_line(finished: Workspace) -> None:
    for target, problem in (
        ("results/small/nothing.csv", "No rule to produce"),
        ("table1", "no script makes it"),
    ):
        done = debug(finished, target)
        assert done.returncode == 1
        assert done.stderr.startswith(f"augbench: {target}: ") and problem in done.stderr
        assert done.stderr.count("\n") == 1
