"""Checks of the models that rows name, and of what a row asks of its model's pipeline."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from augbench.config.base import LONGEST_NAME, SLUG
from augbench.config.methods import PersonaliseMethod, SampleMethod
from augbench.config.models import ONLY_SD, Diffusion
from augbench.config.pipelines import LEARNED, SIZELESS, STABLE_DIFFUSION

if TYPE_CHECKING:
    from augbench.config.study import Study


def check_generators(study: Study) -> None:
    """Raise :class:`ValueError`, which names row, key and pipeline, if a row asks what its model can't do."""
    for name, generator in study.generators.items():
        if not re.fullmatch(SLUG, name) or len(name) > LONGEST_NAME:
            raise ValueError(
                f"generators.{name}: a name may contain a-z, 0-9 and _ only, at most {LONGEST_NAME} "
                "characters"
            )
        folder = os.path.expanduser(generator.model)
        if generator.pipeline is None and generator.hub is None and not os.path.isdir(folder):
            raise ValueError(
                f"generators.{name}.model: folder not found; set generators.{name}.pipeline, for the"
                " defaults of its class, or put the model there"
            )
    for name, row in study.generated.items():
        if (named := row.generator_name) is not None and named not in study.generators:
            allowed = ", ".join(study.generators) or "there is none"
            raise ValueError(f"methods.{name}.generator: allowed: a name in generators: {allowed}")
        model = study.generator_of(name)
        if model.other is not None:
            _check_row(f"methods.{name}", row, model)
        _check_sampling(f"methods.{name}", row, model)


def _check_row(where: str, row: SampleMethod | PersonaliseMethod, model: Diffusion) -> None:
    """Check a row whose model isn't Stable Diffusion 1.x or 2.x."""
    kind, own = model.pipeline_class, model.other
    assert own is not None
    for key in ("scheduler", "guidance_interval"):
        if getattr(row, key) is not None:
            raise ValueError(f"{where}.{key}: {ONLY_SD}; allowed with a {kind}: null")
    if isinstance(row, PersonaliseMethod) and row.learn not in LEARNED.get(kind, {}):
        allowed = ", ".join(
            (STABLE_DIFFUSION, *(other for other, what in LEARNED.items() if row.learn in what))
        )
        raise ValueError(
            f"{where}.learn: {row.learn} is allowed with {allowed}, and {model.model} is a {kind}"
        )
    if row.from_images and not own.starts:
        raise ValueError(f"{where}.start: allowed with a {kind}, which can't start from images: noise")
    if row.from_images and model.resolution is None and kind in SIZELESS:
        raise ValueError(
            f"{where}.start: allowed with a {kind}, whose files do not say the size of its images: noise, or"
            " a resolution of the model"
        )
    if row.negative_prompt is not None and not own.negative_prompt:
        raise ValueError(f"{where}.negative_prompt: allowed with a {kind}, which takes none: null")


def _check_sampling(where: str, row: SampleMethod | PersonaliseMethod, model: Diffusion) -> None:
    """Check a row's guidance and steps, which it may have from its model's section."""
    guidance = model.guidance_scale if row.guidance_scale is None else row.guidance_scale
    if row.negative_prompt is not None and guidance <= 1:
        raise ValueError(
            f"{where}.negative_prompt: has no effect with guidance_scale {guidance:g}; allowed: null, or a "
            "guidance_scale above 1"
        )
    steps = row.steps or model.steps
    if model.other is None or not isinstance(row, SampleMethod) or not row.from_images:
        return  # without a step, Stable Diffusion gives the image that it starts from
    if int(steps * row.noise_share) < 1:
        raise ValueError(
            f"{where}.start: {row.noise_share:g} of {steps} steps is less than one step; allowed: noise and "
            f"steps whose product is at least 1"
        )
