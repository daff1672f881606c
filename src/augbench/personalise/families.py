"""Models other than Stable Diffusion 1.x and 2.x that rows learn of: their network, prompts and scheduler.

The formulas are those of diffusers' public training examples (``train_dreambooth_lora_sdxl.py``,
``textual_inversion_sdxl.py``, ``train_dreambooth_lora_sd3.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    DDPMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)

from augbench.config.models import Diffusion
from augbench.config.pipelines import learned_entries, tokenizer_of
from augbench.models.folders import own_side

States = tuple[torch.Tensor, ...]
Predict = Callable[..., torch.Tensor]  # of noisy latents, timesteps and text states: a network's prediction


@dataclass(frozen=True)
class Family:
    """What training needs to know of a pipeline.

    Attributes
    ----------
    part : str
        Name of the network in the pipeline.
    network, scheduler : type
        Classes of diffusers.
    encode : callable
        Function from a pipeline with text encoders, a prompt and a device to the text states of the prompt.
    predict : callable
        Function from a network and the side of the images in pixels to what makes its prediction.
    """

    part: str
    network: type[Any]
    scheduler: type[Any]
    encode: Callable[[Any, str, torch.device], States]
    predict: Callable[[Any, int], Predict]


def _encode_xl(pipeline: Any, prompt: str, device: torch.device) -> States:
    states, _, pooled, _ = pipeline.encode_prompt(prompt, device=device, do_classifier_free_guidance=False)
    return states, pooled


def _predict_xl(unet: Any, side: int) -> Predict:
    """SDXL's U-Net is also told the size of the image and where it was cut: whole squares of ``side``."""

    def predict(noisy: torch.Tensor, timesteps: torch.Tensor, *states: torch.Tensor) -> torch.Tensor:
        text, pooled = states
        sizes = noisy.new_full((1, 6), side)  # filled on the device: a copy of a list would wait for it
        sizes[:, 2:4] = 0
        added = {"text_embeds": pooled, "time_ids": sizes.expand(len(noisy), -1)}
        predicted: torch.Tensor = unet(noisy, timesteps, text, added_cond_kwargs=added, return_dict=False)[0]
        return predicted

    return predict


def _encode_3(pipeline: Any, prompt: str, device: torch.device) -> States:
    states, _, pooled, _ = pipeline.encode_prompt(
        prompt, None, None, device=device, do_classifier_free_guidance=False
    )
    return states, pooled


def _predict_3(transformer: Any, side: int) -> Predict:
    def predict(noisy: torch.Tensor, timesteps: torch.Tensor, *states: torch.Tensor) -> torch.Tensor:
        text, pooled = states
        predicted: torch.Tensor = transformer(
            hidden_states=noisy,
            timestep=timesteps,
            encoder_hidden_states=text,
            pooled_projections=pooled,
            return_dict=False,
        )[0]
        return predicted

    return predict


FAMILIES = {
    "StableDiffusionXLPipeline": Family("unet", UNet2DConditionModel, DDPMScheduler, _encode_xl, _predict_xl),
    "StableDiffusion3Pipeline": Family(
        "transformer", SD3Transformer2DModel, FlowMatchEulerDiscreteScheduler, _encode_3, _predict_3
    ),
}


def family_of(model: Diffusion) -> Family | None:
    """The family of a model; None for Stable Diffusion 1.x and 2.x."""
    return FAMILIES.get(model.pipeline_class)


def load_encoder(model: Diffusion, family: Family, dtype: torch.dtype, device: torch.device) -> Any:
    """Load a pipeline with its text encoders alone, frozen."""
    pipeline = DiffusionPipeline.from_pretrained(
        model.folder, dtype=dtype, local_files_only=True, vae=None, **{family.part: None}
    )
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False)
    return pipeline.to(device)


def word_encoders(model: Diffusion, pipeline: Any) -> list[tuple[Any, Any]]:
    """The text encoders of a pipeline that learn words, each with its tokenizer."""
    parts = learned_entries(model.pipeline_class, "pseudoword")
    return [(getattr(pipeline, part), getattr(pipeline, tokenizer_of(part))) for part in parts]


def side_of(model: Diffusion) -> int:
    """Side in pixels of the images that a model learns from: ``resolution``, or the model's own."""
    return model.resolution or own_side(model.folder)
