"""The ``diffusion`` and ``clip`` sections: the models, and how the diffusion model is sampled."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from augbench.config.base import Place, Positive, Section, key
from augbench.config.clips import ClipName, clip_name, is_hub_id
from augbench.config.hub import COMMIT, HUB_ID, HubModel, hub_model

Scheduler = Literal["pndm", "ddim", "dpmsolver++"]


def _ascending(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] >= interval[1]:
        raise ValueError(f"allowed: two noise levels, the lower one first, not {list(interval)}")
    return interval


GuidanceInterval = Annotated[
    tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]], AfterValidator(_ascending)
]
INTERVAL_SOURCE = "Kynkäänniemi et al., 2024"


class _Model(Section):
    model: Place
    revision: str | None = key(
        None,
        "Commit of the Hub model: 40 hexadecimal digits. Default: the commit in resources/models; required "
        "for models that are not listed there.",
    )
    mirrors: tuple[Place, ...] = key(
        (),
        "Places to try before the Hub: addresses that speak its protocol, or folders of fetched models.",
    )
    downloads: Place = key("results/downloads/models", "Folder that keeps fetched models.")

    @model_validator(mode="after")
    def _pinned(self) -> _Model:
        if self.revision is not None and not re.fullmatch(COMMIT, self.revision):
            raise ValueError("revision: allowed: a commit, 40 hexadecimal digits; a branch or tag may move")
        if self.revision is not None and not self._may_be_on_hub:
            raise ValueError("revision: goes with a model's id on the Hub (owner/name) only")
        return self

    @property
    def _may_be_on_hub(self) -> bool:
        return re.fullmatch(HUB_ID, self.model) is not None

    @property
    def hub(self) -> HubModel | None:
        """The model on the Hub, or None if ``model`` is a folder."""
        return hub_model(self.model, self.revision, self.mirrors, self.downloads)

    @property
    def folder(self) -> str:
        """Folder of the model, which is there once the model is fetched."""
        return self.hub.folder if self.hub else self.model


class Diffusion(_Model):
    """The diffusion model and the settings of its sampling."""

    model: Place = key(
        ...,
        "Folder of a Stable Diffusion 1.x or 2.x model in diffusers' layout, or its id on the Hub "
        "(owner/name), from which it is fetched once.",
        source="paper, section 3.2",
    )
    safety_checker: Place | None = key(
        "model",
        "Safety checker: `model` (the model's own), a folder with a checker and its feature extractor, or "
        "the id of one on the Hub. null switches it off.",
        source="paper, section 3.2",
    )
    safety_checker_revision: str | None = key(
        None, "Commit of the safety checker on the Hub, with the same default as `revision`."
    )
    resolution: int = key(
        512,
        description="Side of the generated images.",
        unit="pixels",
        source="paper, section 3.2",
        ge=8,
        multiple_of=8,
    )
    scheduler: Scheduler = key(
        "pndm",
        "Sampler; pndm is Stable Diffusion's own default.",
        source="Stable Diffusion v1.4's model card",
    )
    steps: Positive = key(50, "Sampling steps per image.", "steps", "Stable Diffusion v1.4's default")
    guidance_scale: float = key(
        7.5,
        "Classifier-free guidance scale; 1 switches guidance off. A method may set its own.",
        source="Stable Diffusion v1.4's default",
        ge=1,
    )
    guidance_interval: GuidanceInterval | None = key(
        None,
        "Use guidance only at noise levels above the first value and up to the second; elsewhere only the "
        "prompt is evaluated, at half the cost. An interval changes the images. Kynkäänniemi et al. use "
        "[0.28, 5.42] for a model with Stable Diffusion's noise schedule. Default: all noise levels.",
        "standard deviations of the noise, relative to the image",
        INTERVAL_SOURCE,
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = key(
        "float16",
        "Floating-point type that sampling computes in. auto: bfloat16 on GPUs that have it (compute "
        "capability 8.0 or more), float16 on others, float32 on the CPU. Where the VAE overflows in float16, "
        "the images concerned are decoded again in float32, and the log says so.",
    )

    @model_validator(mode="after")
    def _pinned_checker(self) -> Diffusion:
        if self.safety_checker_revision is None:
            return self
        if not re.fullmatch(COMMIT, self.safety_checker_revision):
            raise ValueError(
                "safety_checker_revision: allowed: a commit, 40 hexadecimal digits; a branch or tag may move"
            )
        if self.safety_checker is None or not re.fullmatch(HUB_ID, self.safety_checker):
            raise ValueError(
                "safety_checker_revision: goes with a safety checker's id on the Hub (owner/name) only"
            )
        return self

    @property
    def safety_checker_hub(self) -> HubModel | None:
        """The safety checker on the Hub, or None if it is the model's own, off, or in a folder."""
        return hub_model(
            self.safety_checker or "", self.safety_checker_revision, self.mirrors, self.downloads
        )

    @property
    def safety_checker_folder(self) -> str | None:
        """Folder of the safety checker, ``model`` if it is the model's own, or None if it is off."""
        return self.safety_checker_hub.folder if self.safety_checker_hub else self.safety_checker


class Clip(_Model):
    """The CLIP model that compares texts with images."""

    model: Place = key(
        ...,
        "Folder of a CLIP model in transformers' layout, or its id on the Hub (owner/name), from which it "
        "is fetched once. With Stable Diffusion 1.x, use the CLIP whose text tower is its text encoder. Or a "
        "model of open_clip, as clip-retrieval spells it: `open_clip:ARCHITECTURE/TAG` with `revision`, "
        "`open_clip:ARCHITECTURE/FILE`, or `open_clip:FOLDER` with open_clip_config.json in it.",
        source="paper, section 3.2",
    )

    @field_validator("model")
    @classmethod
    def _names_a_model(cls, model: str) -> str:
        clip_name(model)
        return model

    @model_validator(mode="after")
    def _pinned_weights(self) -> Clip:
        if self.named.tag is not None and self.revision is None:
            raise ValueError(
                f"revision: required, because {self.named.place} is fetched from the Hub; allowed: a commit of "
                "it, 40 hexadecimal digits"
            )
        return self

    @property
    def named(self) -> ClipName:
        """What ``model`` names: a library's model, by folder or id, architecture and weights."""
        return clip_name(self.model)

    @property
    def _may_be_on_hub(self) -> bool:
        return is_hub_id(self.named)

    @property
    def hub(self) -> HubModel | None:
        """The model on the Hub, or None if ``model`` is a folder."""
        if not self._may_be_on_hub:
            return None
        named = self.named
        return hub_model(named.place, self.revision, self.mirrors, self.downloads, named.weights)

    @property
    def folder(self) -> str:
        """Folder of the model, which is there once the model is fetched."""
        return self.hub.folder if self.hub else self.named.place
