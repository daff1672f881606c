"""Forest plots of further tests: every row's difference from the baseline on one test set.

Input: ``further_tests.csv``. Output: a PDF and a PNG per set, as the forest plot of the ordinary test images,
whose differences are shown as crosses.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from augbench.report.figures.forest import draw
from augbench.report.figures.style import save, styled
from augbench.report.tables.further_tests import ORDINARY, read_rows


def write_figures(path: str | Path, outs: Mapping[str, Mapping[str, str | Path]]) -> None:
    """Draw the figures from ``further_tests.csv``, to paths by set and format (``pdf``, ``png``)."""
    rows = read_rows(path)
    ordinary = {row.method: row.baseline_points for row in rows if row.test == ORDINARY}
    with styled():
        for test, files in outs.items():
            own = [row for row in rows if row.test == test]
            save(draw(own, own, test, ordinary), files)
