"""Assemble the miniature's models into folders that ``from_pretrained`` loads without augbench.

Input: trained CLIP, VAE and U-Net, and corpus images that calibrate the safety checker. Output:
``stable-diffusion/`` (a whole ``StableDiffusionPipeline``) and ``clip/`` (a ``CLIPModel``), in half
precision and safetensors. The text tower is stored once: the weight map of ``clip`` points to the
pipeline's text encoder.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer

from augbench.files import write_json
from augbench.miniature.pretrain.clip import embed_images, image_processor
from augbench.miniature.pretrain.tokenizer import build_tokenizer
from augbench.miniature.pretrain.unet import NOISE_SCHEDULE

VISION_WEIGHTS = "vision.safetensors"


def safety_checker(
    clip: CLIPModel, unsafe: torch.Tensor, safe: torch.Tensor
) -> tuple[StableDiffusionSafetyChecker, float]:
    """Return Stable Diffusion's safety checker with one concept, and the concept's threshold.

    The concept is the mean embedding of the ``unsafe`` images. The threshold lies half-way between the
    0.9999 quantile of the safe images' cosines with the concept and the 0.01 quantile of the unsafe ones'.

    Parameters
    ----------
    unsafe, safe : Tensor, uint8 (N, 3, 32, 32)
        Images to calibrate on.
    """
    checker = StableDiffusionSafetyChecker(
        CLIPConfig.from_dict({**clip.config.to_dict(), "attn_implementation": "eager"})
    )
    checker.vision_model.load_state_dict(clip.vision_model.state_dict())
    checker.visual_projection.load_state_dict(clip.visual_projection.state_dict())
    unsafe_embeddings = embed_images(clip, unsafe)
    concept = F.normalize(unsafe_embeddings.mean(0), dim=0)
    below = torch.quantile(embed_images(clip, safe) @ concept, 0.9999)
    above = torch.quantile(unsafe_embeddings @ concept, 0.01)
    threshold = float(below + above) / 2
    with torch.no_grad():
        checker.concept_embeds.zero_()
        checker.concept_embeds[0] = concept
        checker.concept_embeds_weights.fill_(1.0)
        checker.concept_embeds_weights[0] = threshold
        checker.special_care_embeds.zero_()
        checker.special_care_embeds_weights.fill_(1.0)
    return checker.eval(), threshold


def text_tower(clip: CLIPModel) -> CLIPTextModel:
    """Return CLIP's text tower in the class that Stable Diffusion's pipeline takes."""
    text_encoder = CLIPTextModel(clip.config.text_config)
    text_encoder.load_state_dict(clip.text_model.state_dict())
    return text_encoder.eval()


def assemble(
    clip: CLIPModel,
    tokenizer: CLIPTokenizer,
    autoencoder: AutoencoderKL,
    unet: UNet2DConditionModel,
    checker: StableDiffusionSafetyChecker,
    folder: Path,
) -> None:
    """Write ``folder/stable-diffusion`` and ``folder/clip``. An existing ``folder`` is deleted first."""
    shutil.rmtree(folder, ignore_errors=True)
    scheduler = PNDMScheduler(**NOISE_SCHEDULE, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)
    pipeline = StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_tower(clip),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=checker,
        feature_extractor=image_processor(),
    )
    # as in Stable Diffusion's own file: PNDM ignores it, other samplers read it
    pipeline.scheduler.register_to_config(clip_sample=False)
    pipeline.to(dtype=torch.float16).save_pretrained(folder / "stable-diffusion")
    clip_folder = folder / "clip"
    tokenizer.save_pretrained(clip_folder)
    for vocabulary in (clip_folder, folder / "stable-diffusion/tokenizer"):
        build_tokenizer(vocabulary)  # files as Stable Diffusion's and CLIP's; transformers 5 writes another
        (vocabulary / "tokenizer.json").unlink()
    image_processor().save_pretrained(clip_folder)
    clip.config.save_pretrained(clip_folder)
    state = {name: value.half().contiguous() for name, value in clip.state_dict().items()}
    own = {name: value for name, value in state.items() if not name.startswith("text_model.")}
    # by the names of Stable Diffusion's own file, which CLIP shares; transformers 5 saves no prefix
    text = {name: value for name, value in state.items() if name not in own}
    save_file(text, folder / "stable-diffusion/text_encoder/model.safetensors", metadata={"format": "pt"})
    save_file(own, clip_folder / VISION_WEIGHTS, metadata={"format": "pt"})
    shared = "../stable-diffusion/text_encoder/model.safetensors"
    weight_map = {name: VISION_WEIGHTS if name in own else shared for name in sorted(state)}
    size = sum(value.numel() * value.element_size() for value in state.values())
    write_json(
        clip_folder / "model.safetensors.index.json",
        {"metadata": {"total_size": size}, "weight_map": weight_map},
    )


def calibration_images(
    images: np.ndarray, nsfw: np.ndarray, first_half: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the unsafe and up to 10,000 safe images of one half of the corpus.

    The first half (even rows) calibrates the safety checker, the other half measures it.
    """
    half = np.arange(len(images)) % 2 == (0 if first_half else 1)
    unsafe, safe = images[half & (nsfw == "NSFW")], images[half & (nsfw != "NSFW")][:10_000]
    return torch.from_numpy(unsafe), torch.from_numpy(safe)
