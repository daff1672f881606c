"""Draws of the training images: a study repeated on other real images, in one plan.

``dataset.draws: N`` unfolds every row into N. The row of draw 0 keeps its name, that of draw k is called
``{row}_draw{k}``. Validation and test images are the same in all draws. A row whose images depend on the
training images (it starts from them, learns from them or asks the corpus with them, or a row that it is built
on does) makes its own images in each draw, from those that the rows it is built on made in that draw. A row
that learns from another row's images learns from that row's training set of the draw. Any other makes or
retrieves its pool once, and its rows of further draws draw from that pool. Tables fold the rows together
again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from augbench.config.methods import ChooseMethod, DrawMethod, Method, PersonaliseMethod, RealMethod

_MARK = re.compile(r"_draw([1-9]\d*)$")


def drawn_name(name: str, draw: int) -> str:
    """Name of a row, or of a split of the training images, in a draw."""
    return f"{name}_draw{draw}" if draw else name


def fold(name: str) -> tuple[str, int]:
    """Name of a row in the config, and the draw, of an unfolded row's name."""
    found = _MARK.search(name)
    return (name[: found.start()], int(found[1])) if found else (name, 0)


def depends_on_training_images(rows: Mapping[str, Method], name: str) -> bool:
    """Whether other training images give a row, or any row that it is built on, other images."""
    row = rows[name]
    return row.depends_on_training_images or any(
        depends_on_training_images(rows, upstream) for upstream in row.built_on
    )


def unfold_rows(rows: Mapping[str, Method], draws: int) -> dict[str, Method]:
    """Rows of all draws by name: those of draw 0 first, in the order of the config."""
    unfolded = dict(rows)
    for draw in range(1, draws):
        for name in rows:
            unfolded[drawn_name(name, draw)] = _of_draw(name, rows, draw)
    return unfolded


def _of_draw(name: str, rows: Mapping[str, Method], draw: int) -> Method:
    row = rows[name]
    if isinstance(row, ChooseMethod | PersonaliseMethod):  # of classifiers or sets, which every draw has
        return row.renaming_edges(lambda upstream: drawn_name(upstream, draw))
    if isinstance(row, DrawMethod | RealMethod) or depends_on_training_images(rows, name):
        return row.renaming_edges(
            lambda upstream: drawn_name(upstream, draw if depends_on_training_images(rows, upstream) else 0)
        )
    return DrawMethod(
        mechanism="draw",
        label=row.label,
        family=row.group,
        pool=name,
        added_per_training_image=row.added_per_training_image,
        fill_to=row.fill_to,
        ranked=row.ranked,
        may_fall_short=row.may_fall_short,
        use=row.use,
    )
