"""Sizes that follow from the config; nothing heavy is imported, as the report needs them too."""

from __future__ import annotations

from augbench.config.stages import Classifier
from augbench.errors import UserError


def evaluation_resize(config: Classifier) -> int:
    """Shorter side before the centre crop, in pixels; by default the crop is 224/256 of it (torchvision's reference)."""
    side = config.evaluation_resize or round(config.resolution * 256 / 224)
    if side < config.resolution:
        raise UserError(
            "classifier.evaluation_resize", side, f"at least classifier.resolution ({config.resolution})"
        )
    return side
