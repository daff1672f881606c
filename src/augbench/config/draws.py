"""Draws of the training images: a study repeated on other real images, in one plan.

``dataset.draws: N`` unfolds every row into N. The row of draw 0 keeps its name, that of draw k is called
``{row}_draw{k}``. Validation and test images are the same in all draws. A row whose images depend on the
training images (it starts from them, learns from them, or asks the corpus with them) makes its own images in
each draw. Any other makes or retrieves its pool once, and its rows of further draws draw from that pool. Tables fold the rows
together again.
"""

from __future__ import annotations

import re

from augbench.config.methods import DrawMethod, Method, RealMethod

_MARK = re.compile(r"_draw([1-9]\d*)$")


def drawn_name(name: str, draw: int) -> str:
    """Name of a row, or of a split of the training images, in a draw."""
    return f"{name}_draw{draw}" if draw else name


def fold(name: str) -> tuple[str, int]:
    """Name of a row in the config, and the draw, of an unfolded row's name."""
    found = _MARK.search(name)
    return (name[: found.start()], int(found[1])) if found else (name, 0)


def unfold_rows(rows: dict[str, Method], draws: int) -> dict[str, Method]:
    """Rows of all draws by name: those of draw 0 first, in the order of the config."""
    unfolded = dict(rows)
    for draw in range(1, draws):
        for name, row in rows.items():
            unfolded[drawn_name(name, draw)] = _of_draw(name, row, rows, draw)
    return unfolded


def _of_draw(name: str, row: Method, rows: dict[str, Method], draw: int) -> Method:
    if isinstance(row, DrawMethod):
        apart = rows[row.pool].depends_on_training_images
        return row.model_copy(update={"pool": drawn_name(row.pool, draw)}) if apart else row
    if isinstance(row, RealMethod) or row.depends_on_training_images:
        return row
    return DrawMethod(
        mechanism="draw",
        label=row.label,
        family=row.group,
        pool=name,
        added_per_training_image=row.added_per_training_image,
        ranked=row.ranked,
        may_fall_short=row.may_fall_short,
    )
