"""Components of variance: what the spread over runs consists of, and what the study did not vary.

Input: ``table1.csv`` and ``table1_runs.csv``. Output: ``components.csv`` (full precision) and Markdown, one
row per source of spread. What differs between the runs of one row is the seed and, where images are added,
the draw from the pool: together, so that the two cannot be separated. With several draws of the training
images these differ, too, and can be separated if a draw has several runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import fmean, variance

from augbench.report.inference.variance import FEWEST, REST, components, of_rows_and_runs
from augbench.report.render import NONE, Layout, write_table
from augbench.report.tables import table1
from augbench.report.tables.statistics import accuracies_of
from augbench.report.tables.table1 import RunRow, average_draws


@dataclass(frozen=True)
class Row:
    """A source of spread: its standard deviation in percentage points, None where it cannot be known."""

    source: str
    sd_points: float | None
    df: int
    meaning: str


def build_rows(table: Sequence[table1.Row], runs: Sequence[RunRow], per_draw: int | None = None) -> list[Row]:
    """Build the components of the spread.

    ``per_draw`` is the number of runs of each draw of the training images; None if there is one draw, so that
    all runs share their training images and pools.
    """
    if per_draw is not None:
        return _of_draws(table, runs, per_draw)
    adding = {row.method: row.added_per_class > 0 for row in table}
    accuracies = accuracies_of(runs)
    real = [[*accuracies[method].values()] for method, adds in adding.items() if not adds]
    augmented = [[*accuracies[method].values()] for method, adds in adding.items() if adds]
    return [
        Row("real images", None, 0, "not varied: the study has one split of real images"),
        Row("pool and fine-tuning", None, 0, "not varied: one pool and at most one fine-tuning per row"),
        Row("seed", *_pooled(real), "rows without added images: initial weights and order of images"),
        Row("seed and draw from the pool", *_pooled(augmented), "rows with added images; not separable,"
            " because run r has its own seed and its own draw"),
        *_shared(accuracies),
    ]  # fmt: skip


def _of_draws(table: Sequence[table1.Row], runs: Sequence[RunRow], per_draw: int) -> list[Row]:
    """The components where runs of different draws differ in their training images."""
    adding = [row.method for row in table if row.added_per_class > 0]
    real = [run for run in runs if run.method not in adding]
    augmented = [run for run in runs if run.method in adding]
    made = "real images, and what is made from them"
    return [
        *_in_draws(real, per_draw, "real images", "seed", "rows without added images"),
        *_in_draws(augmented, per_draw, made, "seed and draw from the pool", "rows with added images"),
        *_shared(accuracies_of(average_draws(runs, per_draw))),
    ]


def _in_draws(runs: Sequence[RunRow], per_draw: int, images: str, rest: str, rows: str) -> list[Row]:
    """The spread between draws (``images``) and between runs of one draw (``rest``) of some ``rows``."""
    import pandas as pd

    accuracies = accuracies_of(runs)
    if per_draw == 1:
        together = _pooled([[*own.values()] for own in accuracies.values()])
        why = "not separable, because each draw of the real images has one classifier"
        return [Row(f"{images}; {rest}", *together, f"{rows}: {why}")]
    sd: dict[str, tuple[float | None, int]] = {"row:draw": (None, 0), REST: (None, 0)}
    if runs:
        values = [
            (method, run // per_draw, top1) for method, own in accuracies.items() for run, top1 in own.items()
        ]
        frame = pd.DataFrame(values, columns=["row", "draw", "value"])
        sd |= {one.name: (one.sd, one.df) for one in components(frame, {"row": (), "draw": ("row",)})}
    return [
        Row(images, *sd["row:draw"], f"{rows}: between draws of the real images"),
        Row(rest, *sd[REST], f"{rows}: between runs of one draw"),
    ]


def _pooled(rows: Sequence[Sequence[float]]) -> tuple[float | None, int]:
    """Standard deviation within rows, pooled over rows of several runs, and its degrees of freedom."""
    several = [values for values in rows if len(values) >= FEWEST]
    freedom = sum(len(values) - 1 for values in several)
    if not freedom:
        return None, 0
    return sqrt(sum(variance(values) * (len(values) - 1) for values in several) / freedom), freedom


def _shared(accuracies: Mapping[str, Mapping[int, float]]) -> list[Row]:
    """What the rows of one run share, and what is each row's own; not for rows with different runs."""
    sd: dict[str, tuple[float | None, int]] = {"run": (None, 0), REST: (None, 0)}
    sd |= {name: (found.sd, found.df) for name, found in of_rows_and_runs(accuracies).items()}
    return [
        Row("run, shared by all rows", *sd["run"], "what run r does to all rows alike, through its seed;"
            " pairing by run removes it"),
        Row("run, own to a row", *sd[REST], "what is left in paired differences, which have the square root"
            " of 2 times this"),
    ]  # fmt: skip


# --- display ------------------------------------------------------------------------------------------------

HEADER = ("Source", "Standard deviation (points)", "Degrees of freedom", "What it is")
NUMERIC = (False, True, True, False)


def _notes(table: Sequence[table1.Row]) -> tuple[str, ...]:
    overlaps = [row.overlap for row in table if row.overlap is not None]
    notes = [
        "Standard deviations of one run's accuracy, in percentage points. The last two are components of a"
        " balanced analysis of variance, rows x runs (method of moments; a negative estimate counts as 0)."
        " With few degrees of freedom they are rough.",
        "No interval or test of this study covers what was not varied.",
    ]
    if overlaps:
        notes.append(
            f"Sets of one row share {fmean(overlaps):.0%} of their images on average. At 100% the draw does"
            " not vary either."
        )
    return tuple(notes)


def _cells(row: Row) -> tuple[str, ...]:
    sd = NONE if row.sd_points is None else f"{row.sd_points:.2f}"
    return row.source, sd, str(row.df) if row.df else NONE, row.meaning


def write_components(
    study: str,
    table: Sequence[table1.Row],
    runs: Sequence[RunRow],
    outs: Mapping[str, str | Path],
    per_draw: int | None = None,
) -> list[Row]:
    """Write the components to ``outs``, which maps formats (any of ``csv``, ``md``) to paths.

    The other parameters are those of :func:`build_rows`.
    """
    rows, notes = build_rows(table, runs, per_draw), _notes(table)
    title = f"Components of the spread, study {study}"
    layout = Layout(title, HEADER, NUMERIC, tuple(map(_cells, rows)), notes)
    write_table(outs, layout, rows)
    return rows
