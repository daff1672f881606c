"""Text-to-image pipelines of diffusers: what a config may ask of each, without importing diffusers."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from augbench.config.hub import HUB_ID, known_model
from augbench.files import RESOURCES

TABLE = RESOURCES / "pipelines.yaml"
STABLE_DIFFUSION_XL = "StableDiffusionXLPipeline"
# What rows can learn of other pipelines (augbench.personalise.families). A vector has an entry in files for
# each part of the pipeline that gets it, or for each argument of the pipeline's call.
LEARNED: dict[str, dict[str, tuple[str, ...]]] = {
    STABLE_DIFFUSION_XL: {
        "conditioning": ("prompt_embeds", "pooled_prompt_embeds"),
        "pseudoword": ("text_encoder", "text_encoder_2"),
        "lora": (),
    },
    "StableDiffusion3Pipeline": {"lora": ()},
}
SIZELESS = ("FluxPipeline",)  # of those that can start from images: networks' configs have no sample_size
STABLE_DIFFUSION = "StableDiffusionPipeline"  # 1.x and 2.x, which have a sampler of their own
PIPELINES_HERE = "allowed: a StableDiffusionPipeline, or one of resources/pipelines.yaml"


@dataclass(frozen=True)
class Pipeline:
    """Defaults and abilities of a class of pipelines.

    Attributes
    ----------
    steps, guidance_scale
        Defaults of its call.
    negative_prompt : bool
        Whether it takes a negative prompt.
    starts : bool
        Whether it can start from images.
    safety_checker : bool
        Whether its models may have a safety checker of their own.
    """

    steps: int
    guidance_scale: float
    negative_prompt: bool
    starts: bool
    safety_checker: bool


@cache
def pipelines() -> dict[str, Pipeline]:
    """Pipelines other than Stable Diffusion 1.x's and 2.x's, by the name of their class."""
    table = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return {name: Pipeline(**row) for name, row in table.items()}


def learned_entries(kind: str, learn: str) -> tuple[str, ...]:
    """Names of a learned vector's entries in files; empty if it is one entry without a name, or none."""
    return LEARNED.get(kind, {}).get(learn, ())


def tokenizer_of(part: str) -> str:
    """Name of a text encoder's tokenizer in a pipeline: ``tokenizer_2`` of ``text_encoder_2``."""
    return part.replace("text_encoder", "tokenizer")


def class_in(folder: str | Path) -> str | None:
    """Class of pipeline that a model's folder names; None if it has no readable ``model_index.json``."""
    try:
        index = json.loads(Path(folder, "model_index.json").read_text(encoding="utf-8"))
        return str(index["_class_name"])
    except (OSError, ValueError, KeyError, TypeError):  # `augbench check` says what is wrong
        return None


def class_of(model: str, given: str | None) -> str:
    """Class of a model's pipeline, as far as the config can tell.

    It is the class that the config gives, that ``resources/models`` has for a model on the Hub, or that the
    model's folder names. Any model without one counts as Stable Diffusion; the stages that read it say so if
    it is none. (The folder of a model in ``generators`` must be there or its class given.)
    """
    known = known_model(model).get("pipeline") if re.fullmatch(HUB_ID, model) else None
    found = given or known or class_in(os.path.expanduser(model))
    if found is None or found == STABLE_DIFFUSION or found not in pipelines():
        return STABLE_DIFFUSION
    return found
