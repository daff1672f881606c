"""Roles of a study's rows, and the contrasts that are tested: fixed by the config before anything runs.

A contrast compares one row with another. By default these are: each row against the baseline; each row
against twice the real images; and retrieval against the best generating row of each family. "Best" is chosen
by validation accuracy, never by test accuracy. Scaling rows (Figure 5B) are in no family here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from augbench.config.methods import GENERATED
from augbench.config.stages import Contrast
from augbench.config.study import Study

Kind = Literal["baseline", "twice", "family", "named"]


class Entry(Protocol):
    """A row of the study: its name, its label, its family, and the split that it is trained on."""

    @property
    def method(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def family(self) -> str: ...
    @property
    def split(self) -> str: ...


E = TypeVar("E", bound=Entry)


@dataclass(frozen=True)
class Pair:
    """A row and the row that it is compared with; ``kind`` is the reason for the comparison."""

    kind: Kind
    name: str
    row: str
    against: str


@dataclass(frozen=True)
class PlannedRow:
    """A row of a study that has not run."""

    method: str
    label: str
    family: str
    split: str


def baseline_of(rows: Sequence[Entry]) -> str | None:
    """The method of the row with the training split alone; the first one if there are several."""
    return next((row.method for row in rows if row.family == "real" and row.split == "train"), None)


def upper_bound(rows: Sequence[E]) -> E | None:
    """The row trained on twice as many real images (paper, section 3: 20% ImageNet), or None."""
    return next((row for row in rows if row.family == "real" and row.split == "train2x"), None)


def retrieval_of(rows: Sequence[Entry]) -> str | None:
    """The method of the first row of family ``retrieval``.

    Not the best one: that would be chosen by the same accuracies that are then compared.
    """
    return next((row.method for row in rows if row.family == "retrieval"), None)


def pairs_of(
    rows: Sequence[Entry], named: Sequence[Contrast], validation: Mapping[str, float] | None = None
) -> list[Pair]:
    """The contrasts of a study: those that the config names, or else the default ones.

    Parameters
    ----------
    rows : sequence of Entry
        The study's rows, in the config's order.
    named : sequence of Contrast
        ``report.contrasts``.
    validation : mapping of method to float, optional
        Mean validation accuracy, by which the best row of a family is chosen; the first one if rows are
        equal. Without it, as before a run, the first row stands for the best.
    """
    labels = {row.method: row.label for row in rows}

    def pair(kind: Kind, row: str, against: str, name: str | None = None) -> Pair:
        return Pair(kind, name or f"{labels[row]} against {labels[against]}", row, against)

    if named:
        return [
            pair("named", item.row, item.against, item.name and " ".join(item.name.split())) for item in named
        ]
    baseline, bound, retrieval = baseline_of(rows), upper_bound(rows), retrieval_of(rows)
    found = []
    if baseline is not None:
        found += [pair("baseline", row.method, baseline) for row in rows if row.method != baseline]
    if bound is not None:
        others = [row.method for row in rows if row.method not in (bound.method, baseline)]
        found += [pair("twice", method, bound.method) for method in others]
    if retrieval is not None:
        found += [
            pair("family", retrieval, max(members, key=lambda method: (validation or {}).get(method, 0.0)))
            for family in GENERATED
            if (members := [row.method for row in rows if row.family == family])
        ]
    return found


def planned_pairs(study: Study) -> list[Pair]:
    """The contrasts of a study that has not run; the best row of a family is not known yet."""
    rows = [
        PlannedRow(name, study.label(name), method.group, method.real_split)
        for name, method in study.methods.items()
    ]
    return pairs_of(rows, study.report.contrasts)
