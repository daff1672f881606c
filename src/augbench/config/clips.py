"""Names of CLIP models, as clip-retrieval spells them, and what open_clip publishes.

``open_clip:ARCH/TAG``, ``open_clip:ARCH/FILE`` and ``open_clip:FOLDER`` are open_clip's models;
``hf_clip:NAME`` and plain names are folders or ids in transformers' layout. Nothing here imports open_clip or
uses the network: tags come from ``resources/open_clip.yaml``, architectures from open_clip's own files.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from augbench.config.hub import HUB_ID
from augbench.files import RESOURCES

OPEN_CLIP, HF_CLIP = "open_clip:", "hf_clip:"
PUBLISHED = RESOURCES / "open_clip.yaml"
QUICK_GELU = "-quickgelu"  # ending of the architectures with that activation
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # open_clip's names, best first


@dataclass(frozen=True)
class ClipName:
    """The model that ``clip.model`` names.

    Attributes
    ----------
    library : str
        The library whose layout the model has.
    place : str
        Folder, or id on the Hub.
    architecture, tag : str, optional
        open_clip's names of them; no tag if a file has the weights, neither if the folder says what it is.
    weights : tuple of str
        Names that the file of weights may have, the first existing one counts; none: transformers' rules.
    """

    library: Literal["transformers", "open_clip"]
    place: str
    architecture: str | None = None
    tag: str | None = None
    weights: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Name for readers, without folders."""
        if self.architecture is not None:
            return f"{self.architecture}/{self.tag or self.weights[0]}"
        return Path(self.place).name


@cache
def published() -> dict[str, dict[str, dict[str, Any]]]:
    """What open_clip publishes, by architecture and tag.

    ``repository`` on the Hub; ``weights``, if the file has another name than :data:`WEIGHTS`; ``quick_gelu``,
    if the weights were trained with it; and of the preprocessing, what differs from OpenAI's.
    """
    found: dict[str, dict[str, dict[str, Any]]] = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    return found


@cache
def _configs() -> Path:
    spec = importlib.util.find_spec("open_clip")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "model_configs"


@cache
def architectures() -> frozenset[str]:
    """Names of open_clip's architectures."""
    return frozenset(path.stem for path in _configs().glob("*.json"))


def architecture_config(name: str) -> dict[str, Any]:
    """Config of one of open_clip's architectures, as open_clip has it."""
    found: dict[str, Any] = json.loads((_configs() / f"{name}.json").read_text(encoding="utf-8"))
    return found


@cache
def clip_name(model: str) -> ClipName:
    """Read the name of a CLIP model.

    Raises
    ------
    ValueError
        It names no model: an unknown prefix, an unknown tag, no weights, or weights that were trained with
        another activation than the architecture has.
    """
    if not model.startswith(OPEN_CLIP):
        if prefix := re.match(r"(openai_clip|nm|ja_clip):", model):
            raise ValueError(
                f"allowed: {OPEN_CLIP}..., {HF_CLIP}..., or a folder or Hub id without a prefix; not "
                f"{prefix.group()}... (OpenAI's own weights are openai/clip-vit-large-patch14 and "
                f"{OPEN_CLIP}ViT-L-14-quickgelu/openai)"
            )
        return ClipName("transformers", os.path.expanduser(model.removeprefix(HF_CLIP)))
    rest = model.removeprefix(OPEN_CLIP)
    architecture, _, weights = rest.partition("/")
    if architecture not in architectures():
        if not rest.strip():
            raise ValueError(f"allowed: {OPEN_CLIP}ARCHITECTURE/WEIGHTS or {OPEN_CLIP}FOLDER")
        return ClipName("open_clip", os.path.expanduser(rest), weights=WEIGHTS)
    tags = published().get(architecture, {})
    tag = weights.lower().replace("-", "_")  # as open_clip reads it
    if tag in tags:
        _require_activation(architecture, tag)
        model_of = tags[tag]
        return ClipName("open_clip", model_of["repository"], architecture, tag, _names(model_of))
    if not weights or not re.search(r"[/.]", weights):
        raise ValueError(
            f"{weights or 'nothing'!r} is no tag of {architecture}; allowed: {OPEN_CLIP}{architecture}/ and "
            f"one of {', '.join(tags) or '(open_clip publishes no weights)'}, or a file of weights"
        )
    folder, name = os.path.split(os.path.expanduser(weights))
    return ClipName("open_clip", folder or ".", architecture, weights=(name,))


def _names(model_of: dict[str, Any]) -> tuple[str, ...]:
    if (name := model_of.get("weights")) is None:
        return WEIGHTS
    return (f"{name.removesuffix('.bin')}.safetensors", name)


def _require_activation(architecture: str, tag: str) -> None:
    """Raise ValueError if weights were trained with QuickGELU and the architecture has another activation.

    open_clip computes other features then, and only warns (its issue 771).
    """
    quick = architecture_config(architecture).get("quick_gelu", False)
    if published()[architecture][tag].get("quick_gelu", False) and not quick:
        raise ValueError(
            f"{tag} was trained with QuickGELU, which {architecture} lacks, so its features would be wrong; "
            f"allowed: {OPEN_CLIP}{architecture}{QUICK_GELU}/{tag}"
        )


def same_clip(one: str, other: str) -> bool:
    """Whether two names are spellings of one CLIP model."""
    return clip_name(one) == clip_name(other)


def is_hub_id(name: ClipName) -> bool:
    """Whether a name may be a model's id on the Hub."""
    return re.fullmatch(HUB_ID, name.place) is not None and (
        name.tag is not None or name.architecture is None
    )
