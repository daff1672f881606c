"""What a classifier begins with if its weights are not random: a model's fingerprint, and the class names.

Input: the fingerprint that a job has as ``first_weights``, and the class table. Output: a :class:`Start`,
from which :mod:`augbench.classifier.networks` builds the network, and the part of a recipe that names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from augbench.data.classes import ClassInfo
from augbench.files import canonical_hash, read_json


@dataclass(frozen=True)
class Start:
    """The model that a classifier begins with.

    Attributes
    ----------
    id : str
        Hash of its files.
    place : str
        Its folder or file.
    classes : tuple of ClassInfo
        The classes, in the order of the network's outputs; their names are the first last layer of ``clip``.
        Empty where a trained network is only loaded.
    """

    id: str
    place: str
    classes: tuple[ClassInfo, ...] = ()

    @property
    def recipe(self) -> dict[str, Any]:
        """What shapes the first weights, for recipes."""
        return {
            "weights": self.id,
            "names": canonical_hash([[row.class_id, *row.lemmas] for row in self.classes]),
        }


def read_start(path: str | Path | None, classes: Sequence[ClassInfo] = ()) -> Start | None:
    """Read the fingerprint at ``path``; None if there is none, because first weights are random."""
    if path is None:
        return None
    found = read_json(path)
    return Start(found["id"], found["folder"], tuple(classes))


def names_of(start: Start | None, arch: str) -> dict[str, Any]:
    """Return the part of a run's recipe that names its first weights; empty if they are random.

    Class names count for ``clip`` alone.
    """
    if start is None:
        return {}
    recipe = start.recipe
    return {"first_weights": recipe if arch == "clip" else recipe["weights"]}
