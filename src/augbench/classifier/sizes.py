"""Sizes that follow from the config. This module imports nothing heavy, because the report needs it too."""

from __future__ import annotations

from augbench.config.classifier import Classifier


def evaluation_resize(config: Classifier) -> int:
    """Shorter side before the centre crop, in pixels.

    By default the crop is 224/256 of it, as in torchvision's reference.
    """
    return config.evaluation_resize or round(config.resolution * 256 / 224)


def training_side(config: Classifier) -> int | None:
    """Shorter side that larger training images are scaled down to, in pixels; None: they are not."""
    return None if config.decoded_size == "file" else config.decoded_size or evaluation_resize(config)
