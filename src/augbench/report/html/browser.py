"""The page's image browser: the images of each class, for as many classes as fit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from augbench.data.classes import ClassInfo
from augbench.plan.paths import Plan
from augbench.report.html.images import ClassChange
from augbench.report.html.parts import Panel, Thumb, data_uri, templates, thumb_of
from augbench.report.html.tables import signed_points
from augbench.report.pictures import REAL, ImageRecord, short_name


@dataclass(frozen=True)
class Choice:
    """An entry in the browser's list of classes; ``size`` is the mean size of the class's change."""

    id: str
    name: str
    size: str


@dataclass(frozen=True)
class ClassPanel:
    """One class of the image browser, rendered."""

    choice: Choice
    html: str


def row_labels(plan: Plan) -> dict[str, str]:
    """Labels of the rows whose images the browser shows, by name; first the real images."""
    added = {method: plan.study.label(method) for method in plan.study.examined}
    return {REAL: "Real training images", **added}


def class_panels(
    plan: Plan,
    changes: Sequence[ClassChange],
    pictures: Iterable[tuple[ImageRecord, bytes]],
    models: dict[str, str],
) -> list[ClassPanel]:
    """Render the classes that have thumbnails, in the order of ``changes``."""
    by_class: dict[str, dict[str, list[Thumb]]] = {}
    labels = row_labels(plan)
    families = {REAL: "real", **{method: plan.study.methods[method].group for method in plan.study.examined}}
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
                Panel(panel, labels[panel], families[panel], thumbs)
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
    """Describe a class's change in one line."""
    info: ClassInfo = change.info
    also = f"Also {', '.join(info.lemmas[1:])}. " if len(info.lemmas) > 1 else ""
    added = [method for method in change.points if plan.study.methods[method].adds_images]
    if change.baseline_percent is None or not added:
        return also.strip()
    worst, best = (pick(added, key=lambda method: change.points[method]) for pick in (min, max))
    return (
        f"{also}Without added images, {change.baseline_percent:.1f}% of its {change.n_test} test images are"
        f" right. With added images this changes by {signed_points(change.points[worst])} points"
        f" ({plan.study.label(worst)}) to {signed_points(change.points[best])} points"
        f" ({plan.study.label(best)})."
    )


def fitting(panels: Sequence[ClassPanel], room: float) -> list[ClassPanel]:
    """The first panels, as many as fit into ``room`` bytes together with their entries in the list."""
    fitting: list[ClassPanel] = []
    for panel in panels:
        # label, markup, the link from the table, and the choice of a class for two rows side by side
        entry = 440 + 3 * len(panel.choice.name.encode()) + 3 * len(panel.choice.id)
        room -= len(panel.html.encode()) + entry
        if room < 0:
            break
        fitting.append(panel)
    return fitting
