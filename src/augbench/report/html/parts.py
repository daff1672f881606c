"""Parts shared by the report and ``augbench browse``: templates, sortable tables, thumbnails with details.

The templates beside this module render these values. This module imports nothing heavy.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from augbench.artifacts.shards import media_type
from augbench.report.pictures import REAL, ImageRecord
from augbench.report.render import Layout

MINUS = "\u2212"
NUMBER = re.compile(r"[+\-\u2212]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")


@cache
def templates() -> Environment:
    """The templates; they escape everything except the style sheet and the script."""
    return Environment(
        loader=PackageLoader("augbench.report.html"),
        autoescape=lambda name: name is not None and name.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def data_uri(encoded: bytes) -> str:
    """An encoded image as a ``data:`` address."""
    return f"data:{media_type(encoded)};base64,{base64.b64encode(encoded).decode()}"


# --- tables -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A cell: its text, its sort key (empty sorts last), and a tint from -1 to 1, None for no tint."""

    text: str
    sort: str = ""
    tint: float | None = None


@dataclass(frozen=True)
class SortableTable:
    """A table that readers can sort.

    ``name`` is unique in the page. Each row's first cell names the row. ``numeric`` columns sort as numbers.
    ``source`` is the file with its numbers, relative to the page; empty if the page has no such file.
    """

    name: str
    title: str
    header: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    source: str = ""


def number_in(text: str) -> str:
    """The first number in a cell's text, the cell's sort key; empty if there is none."""
    found = NUMBER.search(text)
    return found.group().replace(",", "").replace(MINUS, "-") if found else ""


def minus_signs(text: str) -> str:
    """``text`` with a minus sign for each hyphen before a number."""
    return re.sub(r"(?<![\w.)])-(?=\d)", MINUS, text)


def table_of(name: str, layout: Layout, source: str = "") -> SortableTable:
    """Make a sortable table of a layout; a hyphen before a number becomes a minus sign."""
    rows = tuple(
        tuple(
            Cell(minus_signs(text), number_in(text)) if numeric else Cell(text)
            for text, numeric in zip(line, layout.numeric, strict=True)
        )
        for line in layout.cells
    )
    return SortableTable(
        name=name,
        title=layout.title,
        header=layout.header,
        numeric=layout.numeric,
        rows=rows,
        notes=layout.notes,
        source=source,
    )


# --- images -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Thumb:
    """A displayed image: its address or data, alternative text, and details as (name, value) pairs."""

    src: str
    alt: str
    details: tuple[tuple[str, str], ...]


def thumb_of(picture: ImageRecord, src: str, label: str, models: Mapping[str, str]) -> Thumb:
    """Make a thumbnail of a picture of the row ``label``; ``models`` maps hashes to names of models."""
    known = [("Method", label), ("Class", picture.class_name), ("Image", picture.image)]
    if picture.prompt is not None:
        known.append(("Prompt" if picture.similarity is None else "Query", picture.prompt or "(empty)"))
    if picture.seed is not None:
        known.append(("Seed", str(picture.seed)))
    if picture.source is not None:
        known.append(("Started from" if picture.similarity is None else "Found at", picture.source))
    if picture.similarity is not None:
        known.append(("Similarity to the query", f"{picture.similarity:.3f}"))
    if picture.safety_flags is not None and picture.seed is not None:
        known.append(("Samples refused by the safety checker", str(picture.safety_flags)))
    if picture.model is not None:
        known.append(("Model", model_name(picture.model, models)))
    real = picture.panel == REAL
    what, image = ("real image", picture.image) if real else (label, f"image {picture.image}")
    return Thumb(src, f"{picture.class_name}, {what}, {image}", tuple(known))


def model_name(content: str, models: Mapping[str, str]) -> str:
    """Name of the model with the hash ``content``: ``base``, or ``base+learned`` after fine-tuning."""
    base, _, learned = content.partition("+")
    name = models.get(base)
    return content if name is None else f"{name}{', fine-tuned' if learned else ''} ({content})"


def models_of(fingerprints: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Names of models by hash, from the fingerprints in ``provenance.json``."""
    return {fingerprint["id"]: Path(fingerprint["folder"]).name for fingerprint in fingerprints.values()}


@dataclass(frozen=True)
class Panel:
    """Images of the row ``name`` under its label; ``family`` sets the colour."""

    name: str
    label: str
    family: str
    thumbs: Sequence[Thumb]
