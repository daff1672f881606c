"""Random networks of the real architectures and the miniature's, for benchmarks where no weights are.

``full`` is Stable Diffusion v1.4 and CLIP ViT-L/14 from their published configs, ``mini`` the shipped
miniature from its config files. Speed does not depend on weights. Only the miniature's tokenizer is read: its
vocabulary is that of both.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

PROJECT = Path(__file__).resolve().parents[1]
MINIATURE = PROJECT / "resources/mini/stable-diffusion"
# from the model card of Stable Diffusion v1.4
NOISE_SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
RESOLUTION = {"full": 512, "mini": 32}
TEXT = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "projection_dim": 768,
}
IMAGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "projection_dim": 768,
}
CHANNELS = (128, 256, 512, 512)  # of the VAE
FULL: dict[str, dict[str, Any]] = {
    "unet": {
        "sample_size": 64,
        "cross_attention_dim": 768,
        "block_out_channels": (320, 640, 1280, 1280),
        "attention_head_dim": 8,
    },
    "vae": {
        "down_block_types": ("DownEncoderBlock2D",) * len(CHANNELS),
        "up_block_types": ("UpDecoderBlock2D",) * len(CHANNELS),
        "block_out_channels": CHANNELS,
        "layers_per_block": 2,
        "latent_channels": 4,
        "sample_size": 512,
    },
    "text_encoder": TEXT,
    "safety_checker": {"text_config": TEXT, "vision_config": IMAGE, "projection_dim": 768},
    "clip": {"text_config": TEXT, "vision_config": IMAGE, "projection_dim": 768},
}


def config(size: str, part: str) -> dict[str, Any]:
    """Return the config of a part of the model, as its class's ``from_config`` or config class takes it."""
    if size == "full":
        return dict(FULL[part])
    folder = MINIATURE.parent / "clip" if part == "clip" else MINIATURE / part
    return json.loads((folder / "config.json").read_text())


def random_unet(size: str) -> UNet2DConditionModel:
    """Make a U-Net with random weights, float32, on torch's default device."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_config(config(size, "unet"))


def random_vae(size: str) -> AutoencoderKL:
    """Make a VAE with random weights, float32, on torch's default device."""
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_config(config(size, "vae"))


def random_text_encoder(size: str) -> CLIPTextModel:
    """Make CLIP's text encoder with random weights, float32, on torch's default device."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(CLIPTextConfig.from_dict(config(size, "text_encoder")))


def random_clip(size: str) -> CLIPModel:
    """Make CLIP with random weights, float32, on torch's default device."""
    from transformers import CLIPConfig, CLIPModel

    return CLIPModel(CLIPConfig.from_dict(config(size, "clip")))


def tokenizer() -> CLIPTokenizer:
    """Load the tokenizer; no network is needed."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(MINIATURE / "tokenizer", local_files_only=True)


def random_pipeline(size: str, device: str) -> StableDiffusionPipeline:
    """Make Stable Diffusion with random weights, float32, made on ``device``: PNDM, safety checker on."""
    import torch
    from diffusers import PNDMScheduler, StableDiffusionPipeline
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    torch.manual_seed(0)
    with torch.device(device):
        unet, vae, text_encoder = random_unet(size), random_vae(size), random_text_encoder(size)
        checker = StableDiffusionSafetyChecker(CLIPConfig.from_dict(config(size, "safety_checker")))
    processor = {} if size == "full" else _read("feature_extractor/preprocessor_config.json")
    return StableDiffusionPipeline(
        vae=vae.eval(),
        unet=unet.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer(),
        scheduler=PNDMScheduler(
            **NOISE_SCHEDULE, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1
        ),
        safety_checker=checker.eval(),
        feature_extractor=CLIPImageProcessor.from_dict(processor),
    )


def _read(name: str) -> dict[str, Any]:
    return json.loads((MINIATURE / name).read_text())
