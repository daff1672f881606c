"""Load the CLIP that a study names.

Input: the content of ``models/clip.json``. Output: a :class:`~augbench.models.towers.Clip`. The library that
the model needs is imported here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from augbench.files import read_json
from augbench.models.folders import require_folder

if TYPE_CHECKING:
    import torch

    from augbench.models.towers import Clip


def load_clip(clip: Mapping[str, Any], device: torch.device) -> Clip:
    """Load the CLIP that ``models/clip.json`` names; raise :class:`UserError` if its folder is missing."""
    require_folder(clip["folder"])
    if "open_clip" in clip:
        from augbench.models.open_clip_model import load_open_clip

        return load_open_clip(clip, device)
    from augbench.models.transformers_clip import TransformersClip

    return TransformersClip(clip["folder"], device)


def clip_width(clip: Mapping[str, Any]) -> int:
    """Length of the embeddings of the CLIP that ``models/clip.json`` names."""
    if "open_clip" in clip:
        return int(clip["open_clip"]["model_cfg"]["embed_dim"])
    return int(read_json(Path(clip["folder"]) / "config.json").get("projection_dim", 512))
