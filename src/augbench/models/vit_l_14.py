"""Whether a CLIP is OpenAI's ViT-L/14, for which thresholds and the aesthetics predictor were made."""

from __future__ import annotations

from pathlib import Path

from augbench.config.clips import QUICK_GELU, architecture_config
from augbench.config.models import Clip
from augbench.files import read_json
from augbench.models.open_clip_files import networks_config

ARCHITECTURE = f"ViT-L-14{QUICK_GELU}"
SIZE = {"hidden_size": 1024, "num_hidden_layers": 24, "patch_size": 14}


def is_vit_l_14(clip: Clip) -> bool:
    """Whether a CLIP is OpenAI's ViT-L/14, by its name or a folder's config; True if neither tells."""
    named = clip.named
    if named.library == "transformers":
        path = Path(clip.folder) / "config.json"
        try:
            vision = read_json(path).get("vision_config") if path.is_file() else None
        except (ValueError, AttributeError):  # `augbench check` names it
            return True
        return not vision or {name: vision.get(name) for name in SIZE} == SIZE
    if named.architecture is not None:
        return named.architecture == ARCHITECTURE and named.tag in ("openai", None)
    config = networks_config(named, clip.folder)
    usual = architecture_config(ARCHITECTURE)
    return config is None or all(config.get(name) == usual[name] for name in ("embed_dim", "vision_cfg"))
