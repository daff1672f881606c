"""Zero-shot classification with CLIP."""

from __future__ import annotations

from typing import Any

import torch

from augbench.config.methods import Prompting
from augbench.data.classes import ClassInfo
from augbench.models.folders import embed_texts
from augbench.prompts.stage import class_name
from augbench.prompts.templates import load_templates


def class_embeddings(clip: Any, tokenizer: Any, classes: list[ClassInfo], family: Prompting) -> torch.Tensor:
    """Embed the classes for zero-shot classification: unit embeddings ``float32 (C, D)``.

    Each is the normalised mean of the text embeddings of the class's name in all templates of ``family``.
    """
    templates = load_templates(family.templates)
    names = [class_name(info, family.class_name) for info in classes]
    texts = [[template.format(name) for template in templates] for name in names]
    means = [embed_texts(clip, tokenizer, of_class).mean(0) for of_class in texts]
    return torch.nn.functional.normalize(torch.stack(means), dim=-1)
