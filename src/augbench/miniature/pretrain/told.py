"""Whether the miniature's models know attributes: whether CLIP tells them, and generated images show them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from augbench.data.classes import ClassInfo
from augbench.miniature.corpus.attributes import ATTRIBUTES, held_out_class, scenes_of, templates_stating
from augbench.miniature.pretrain.clip import embed_images
from augbench.models.transformers_clip import embed_texts


def prompts_stating(info: ClassInfo, attribute: str) -> tuple[str, ...]:
    """Prompts for a class that state an attribute, as methods' prompts would."""
    name, kind = info.lemmas[0], ATTRIBUTES[attribute].kind
    if kind == "look":
        return tuple(template.format(name) for template in templates_stating(attribute, "clip"))
    if kind == "scene":
        return tuple(f"a photo of a {name} inside {scene}" for scene in scenes_of(attribute))
    return (f"a photo of a {attribute} {name}",)


def told(
    clip: Any,
    tokenizer: Any,
    classes: list[ClassInfo],
    images: torch.Tensor,
    labels: np.ndarray,
    attributes: list[str],
) -> dict[str, Any]:
    """Measure how often CLIP tells which attribute an image shows, given its class.

    An attribute is represented by the mean embedding of :func:`prompts_stating` it, and CLIP takes the
    nearest of all.

    Parameters
    ----------
    images : Tensor, uint8 (N, 3, 32, 32)
    labels : ndarray, int (N,)
    attributes : list of str
        The attribute that each image shows, or was asked for.

    Returns
    -------
    dict
        ``told``: the share over combinations of class and attribute that the corpus has; ``held_out``: the
        share over those that it does not have; ``of``: the share per attribute, over all its images.
    """
    names = list(ATTRIBUTES)
    embedded = embed_images(clip, images)
    right = np.zeros(len(labels), dtype=bool)
    for label, info in enumerate(classes):
        rows = np.flatnonzero(labels == label)
        texts = torch.stack(
            [embed_texts(clip, tokenizer, prompts_stating(info, name)).mean(0) for name in names]
        )
        nearest = (embedded[rows] @ F.normalize(texts, dim=-1).T).argmax(1).tolist()
        right[rows] = [names[found] == attributes[row] for found, row in zip(nearest, rows, strict=True)]
    shown = np.array(attributes)
    held_out = np.array(
        [held_out_class(name, len(classes)) == label for name, label in zip(attributes, labels, strict=True)]
    )
    return {
        "told": float(right[~held_out].mean()),
        "held_out": float(right[held_out].mean()),
        "of": {name: float(right[shown == name].mean()) for name in names},
    }
