"""The ``diffusion`` and ``clip`` sections: the models, and how the diffusion model is sampled."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PrivateAttr, field_validator, model_validator

from augbench.config.base import Place, Positive, Section, key
from augbench.config.clips import ClipName, clip_name, is_hub_id
from augbench.config.hub import COMMIT, HUB_ID, HubModel, hub_model, known_model
from augbench.config.pipelines import STABLE_DIFFUSION, Pipeline, class_of, pipelines

Scheduler = Literal["pndm", "ddim", "dpmsolver++"]


def _ascending(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] >= interval[1]:
        raise ValueError(f"allowed: two noise levels, the lower one first, not {list(interval)}")
    return interval


GuidanceInterval = Annotated[
    tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]], AfterValidator(_ascending)
]
NO_SAFETY_CHECKER = (
    "allowed: a folder or Hub id of a safety checker (CompVis/stable-diffusion-safety-checker), "
    "or null to go without"
)
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


STORED_SIDE = 512  # pixels of retrieved images where the model's own size is not known
ONLY_SD = "goes with Stable Diffusion 1.x and 2.x"


class Diffusion(_Model):
    """A diffusion model and the settings of its sampling.

    Defaults are those of Stable Diffusion. Another model takes its pipeline's own, or those of its model card
    where `resources/models` has them (1 step of SDXL-Turbo); `null` is the model's own sampler and size.
    """

    model: Place = key(
        ...,
        "Folder of a Stable Diffusion 1.x or 2.x model in diffusers' layout, or of any text-to-image pipeline"
        " in resources/pipelines.yaml, or its id on the Hub (owner/name), from which it is fetched once.",
        source="paper, section 3.2",
    )
    pipeline: str | None = key(
        None,
        "Class of the model's pipeline (StableDiffusionXLPipeline), needed for a model on the Hub that is"
        " not in resources/models. Default: the class that resources/models or the model's folder names;"
        " else Stable Diffusion's.",
        new=True,
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
    resolution: int | None = key(
        512,
        description="Side of the generated images. null: the model's own.",
        unit="pixels",
        source="paper, section 3.2",
        ge=8,
        multiple_of=8,
    )
    scheduler: Scheduler | None = key(
        "pndm",
        "Sampler; pndm is Stable Diffusion's own default. Other models have their own: null.",
        source="Stable Diffusion v1.4's model card",
    )
    steps: Positive = key(50, "Sampling steps per image.", "steps", "Stable Diffusion v1.4's default")
    guidance_scale: float = key(
        7.5,
        "Classifier-free guidance scale; 1 and less switches guidance off. A method may set its own.",
        source="Stable Diffusion v1.4's default",
        ge=0,
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
        "Floating-point type that sampling computes in; bfloat16 by default for models other than Stable "
        "Diffusion. auto: bfloat16 on GPUs that have it (compute capability 8.0 or more), float16 on others, "
        "float32 on the CPU. Where Stable Diffusion's VAE overflows in float16, the images concerned are "
        "decoded again in float32, and the log says so.",
    )
    _pipeline_class: str = PrivateAttr(STABLE_DIFFUSION)

    @model_validator(mode="after")
    def _fits_the_model(self) -> Diffusion:
        if self.pipeline is not None and self.pipeline not in (STABLE_DIFFUSION, *pipelines()):
            raise ValueError(f"pipeline: allowed: {', '.join((STABLE_DIFFUSION, *pipelines()))}")
        self._pipeline_class = kind = class_of(self.model, self.pipeline)
        if (own := self.other) is None:
            for name, allowed in (
                ("resolution", "a whole number"),
                ("scheduler", "'pndm', 'ddim', 'dpmsolver++'"),
            ):
                if getattr(self, name) is None:
                    raise ValueError(
                        f"{name}: allowed: {allowed}; null {ONLY_SD.replace('goes', 'does not go')}"
                    )
            return self
        if self.scheduler is not None:
            raise ValueError(f"scheduler: {ONLY_SD}; allowed with a {kind}: null, its own")
        if self.guidance_interval is not None:
            raise ValueError(f"guidance_interval: {ONLY_SD}; allowed with a {kind}: null")
        if self.safety_checker == "model" and not own.safety_checker:
            raise ValueError(f"safety_checker: a {kind} has none of its own; {NO_SAFETY_CHECKER}")
        return self

    @property
    def pipeline_class(self) -> str:
        """Class of the model's pipeline."""
        return self._pipeline_class

    @property
    def other(self) -> Pipeline | None:
        """What the model's pipeline can do, if it is another one than Stable Diffusion 1.x's and 2.x's."""
        kind = self._pipeline_class
        return None if kind == STABLE_DIFFUSION else pipelines().get(kind)

    @property
    def side(self) -> int:
        """Side in pixels at which retrieved images are stored: ``resolution``, or a common one for null."""
        return STORED_SIDE if self.resolution is None else self.resolution

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


def with_own_defaults(section: Any) -> Any:
    """A ``diffusion`` section as written, with the defaults of its model unless Stable Diffusion.

    They are added before the section is checked. A validator that did so would turn JSON into Python, for
    which pydantic's strict mode has other rules.
    """
    if not isinstance(section, Mapping) or not isinstance(model := section.get("model"), str):
        return section
    named = section.get("pipeline")
    kind = class_of(model, named if isinstance(named, str) else None)
    if kind == STABLE_DIFFUSION:
        return section
    own = pipelines()[kind]
    defaults = {
        "resolution": None,
        "scheduler": None,
        "steps": own.steps,
        "guidance_scale": own.guidance_scale,
        "dtype": "bfloat16",
        **known_model(model).get("defaults", {}),
    }
    return {**defaults, **section}


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
                f"revision: required, because {self.named.place} is fetched from the Hub; allowed: a commit"
                " of it, 40 hexadecimal digits"
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
