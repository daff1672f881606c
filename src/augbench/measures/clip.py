"""Zero-shot classification with CLIP."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from augbench.config.methods import Prompting
from augbench.data.classes import ClassInfo
from augbench.prompts.stage import class_name
from augbench.prompts.templates import load_templates


def class_embeddings(
    embed_texts: Callable[[Sequence[str]], torch.Tensor], classes: list[ClassInfo], family: Prompting
) -> torch.Tensor:
    """Embed the classes for zero-shot classification: unit embeddings ``float32 (C, D)``.

    Each is the normalised mean of the text embeddings of the class's name in all templates of ``family``.

    Parameters
    ----------
    embed_texts : callable
        Computes unit embeddings of texts, as :meth:`augbench.models.clip.Clip.embed_texts`.
    """
    templates = load_templates(family.templates)
    names = [class_name(info, family.class_name) for info in classes]
    texts = [[template.format(name) for template in templates] for name in names]
    means = [embed_texts(of_class).mean(0) for of_class in texts]
    return torch.nn.functional.normalize(torch.stack(means), dim=-1)
