"""Style of the figures: palette, font size, width of a column; and saving as PDF and PNG.

The same figure gives the same bytes.
"""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

from augbench.files import atomic_path

logging.getLogger("fontTools").setLevel(logging.WARNING)  # it logs every glyph that it embeds in a PDF

# The paper's blue, orange, green and red in Okabe and Ito's palette, which suits colour-blind readers.
COLOURS = {
    "real": "#0072B2",
    "unconditional": "#CC79A7",
    "prompting": "#E69F00",
    "personalised": "#009E73",
    "retrieval": "#D55E00",
    "hybrid": "#56B4E9",
    "control": "#666666",
}
# Families can also be distinguished without colour.
MARKERS = {
    "unconditional": "P",
    "prompting": "D",
    "personalised": "o",
    "retrieval": "s",
    "hybrid": "^",
    "control": "X",
}
WIDTH = 3.3  # inches; one column of a two-column page
FONT_SIZE = 7  # points
DPI = 300
PIXELS_SEEN = 64  # images up to this height are shown pixel by pixel
FONT = "DejaVu Sans"  # comes with matplotlib
# fonts that have what the first one lacks; of those that are installed, the first with a glyph draws it
WIDE_FONTS = (
    *(
        "Noto Sans CJK SC",
        "Noto Sans CJK JP",
        "Source Han Sans SC",
        "WenQuanYi Zen Hei",
        "WenQuanYi Micro Hei",
    ),
    *("Droid Sans Fallback", "PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "Microsoft YaHei"),
    *("Yu Gothic", "Malgun Gothic", "Arial Unicode MS", "Noto Sans", "Noto Sans Arabic", "Noto Sans Hebrew"),
    *("Noto Sans Devanagari", "Noto Sans Bengali", "Noto Sans Tamil", "Noto Sans Thai", "Noto Emoji"),
    *("Symbola", "Unifont"),
)
STYLE: dict[Any, Any] = {
    "font.size": FONT_SIZE,
    "axes.titlesize": FONT_SIZE,
    "axes.labelsize": FONT_SIZE,
    "xtick.labelsize": FONT_SIZE,
    "ytick.labelsize": FONT_SIZE,
    "legend.fontsize": FONT_SIZE,
    "pdf.fonttype": 42,
    "axes.linewidth": 0.6,
    "hatch.linewidth": 0.5,
    "lines.linewidth": 1.0,
    "text.parse_math": False,  # a label is text, also if it has dollar signs
}


def styled() -> Any:
    """Context manager that applies :data:`STYLE` with the fonts that are there."""
    return rc_context({**STYLE, "font.family": fonts()})


def fonts() -> list[str]:
    """Fonts that are there, in the order in which a glyph is looked for."""
    there = set(fontManager.get_font_names())
    return [FONT, *(name for name in WIDE_FONTS if name in there)]


def missing_glyphs(texts: Iterable[str]) -> str:
    """Characters of these texts that no font has; figures show boxes for them."""
    wanted = {letter for text in texts for letter in text if letter.isprintable()}
    for name in fonts():
        have = get_font(findfont(FontProperties(family=name))).get_charmap()
        wanted = {letter for letter in wanted if ord(letter) not in have}
    return "".join(sorted(wanted))


def shorten(label: str, most: int) -> str:
    """``label`` cut to ``most`` characters, between words if it has several."""
    cut = textwrap.shorten(label, most, placeholder="...")
    return label[: most - 3] + "..." if cut == "..." != label else cut


def wrap(label: str, width: int) -> str:
    """``label``, shortened to five lines of ``width`` characters; only a word of two lines is broken."""
    short = shorten(label, 5 * width)
    return textwrap.fill(short, width, break_long_words=max(map(len, short.split()), default=0) > 2 * width)


def legend_label(label: str, most: int) -> str:
    """``label``, shortened, as a label for a legend, which leaves out those that begin with ``_``."""
    return " " * label.startswith("_") + shorten(label, most)


def open_axes(axes: Axes) -> None:
    """Remove the frame at the top and at the right."""
    axes.spines[["top", "right"]].set_visible(False)


def open_canvas(figure: Figure) -> Axes:
    """Add axes over the whole figure, in inches from its lower left corner; many images on one are cheap."""
    canvas = figure.add_axes((0, 0, 1, 1))
    width, height = figure.get_size_inches()
    canvas.set(xlim=(0, width), ylim=(0, height), autoscale_on=False)
    canvas.set_axis_off()
    return canvas


def place_image(canvas: Axes, image: np.ndarray, left: float, bottom: float, side: float) -> None:
    """Draw a square image, uint8 (H, W, 3), at a place in inches; small images keep their pixels visible."""
    interpolation = "nearest" if image.shape[0] <= PIXELS_SEEN else "auto"
    canvas.imshow(
        image, extent=(left, left + side, bottom, bottom + side), interpolation=interpolation, aspect="auto"
    )


def save(figure: Figure, outs: Mapping[str, str | Path]) -> None:
    """Write ``figure`` to ``outs``: paths by format, any of ``pdf``, ``png``."""
    for kind, path in outs.items():
        # without creation date and matplotlib's version, so that the same data gives the same bytes
        metadata = {
            "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
            "png": {"Software": None},
        }[kind]
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format=kind, dpi=DPI, metadata=metadata)
