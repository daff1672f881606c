"""Size of open_clip's networks, from their configs: multiplications of an image, and parameters.

Transformers alone are counted; embeddings of positions and heads are less than a hundredth of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# width, layers and width of the MLP, relative to the width, of timm's vision transformers
TIMM_TRANSFORMERS = {
    "base": (768, 12, 4.0),
    "large": (1024, 24, 4.0),
    "so400m": (1152, 27, 3.7362),
    "giantopt": (1536, 40, 4.0),
}


@dataclass(frozen=True)
class _Transformer:
    """A transformer: its width, layers, and the width of its MLP, relative to the width."""

    width: int
    layers: int
    mlp_ratio: float

    @property
    def weights(self) -> float:
        return self.layers * (4 + 2 * self.mlp_ratio) * self.width**2

    def operations(self, tokens: int) -> float:
        """Multiplications and additions for a sequence of ``tokens`` tokens."""
        return 2 * tokens * self.weights + 4 * self.layers * tokens**2 * self.width


def _image_transformer(vision: Mapping[str, Any]) -> tuple[_Transformer, int] | None:
    """The image tower and the side of its patches; None if it is no vision transformer known here."""
    if name := vision.get("timm_model_name"):
        found = re.match(r"vit_([a-z0-9]+)_patch(\d+)_siglip", name)
        if found is None or found.group(1) not in TIMM_TRANSFORMERS:
            return None
        return _Transformer(*TIMM_TRANSFORMERS[found.group(1)]), int(found.group(2))
    if isinstance(vision.get("layers", 12), list):  # a ResNet
        return None
    width, layers = vision.get("width", 768), vision.get("layers", 12)
    return _Transformer(width, layers, vision.get("mlp_ratio", 4.0)), vision.get("patch_size", 16)


def image_operations(model_cfg: Mapping[str, Any]) -> float | None:
    """Multiplications and additions to embed an image; None if the image tower is of another kind."""
    vision = model_cfg["vision_cfg"]
    if (found := _image_transformer(vision)) is None:
        return None
    transformer, patch = found
    side = vision.get("image_size", 224)
    height, width = side if isinstance(side, list) else (side, side)
    patches = (height // patch) * (width // patch)
    return transformer.operations(patches + 1) + 2 * patches * 3 * patch**2 * transformer.width


def parameters(model_cfg: Mapping[str, Any]) -> float | None:
    """Number of parameters; None if the image tower is of another kind."""
    if (found := _image_transformer(model_cfg["vision_cfg"])) is None:
        return None
    text, width = model_cfg["text_cfg"], model_cfg["text_cfg"].get("width", 512)
    tower = _Transformer(width, text.get("layers", 12), text.get("mlp_ratio", 4.0))
    return found[0].weights + tower.weights + width * text.get("vocab_size", 49408)
