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
    """What zero-shot classification compares images with: unit embeddings ``float32 (C, D)``, each the mean of its templates' text embeddings."""
    templates = load_templates(family.templates)
    means = [
        embed_texts(clip, tokenizer, [t.format(class_name(info, family.class_name)) for t in templates]).mean(
            0
        )
        for info in classes
    ]
    return torch.nn.functional.normalize(torch.stack(means), dim=-1)
