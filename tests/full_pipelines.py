"""Text-to-image pipelines at their published sizes, with meta tensors instead of weights.

Sizes are those of the models' configs on the Hub; tokenizers are tiny (``tests/tiny_pipelines.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import tiny_pipelines as tiny
import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel


def _clip(kind: Any, width: int, layers: int) -> Any:
    """Text encoder of CLIP ViT-L/14 (width 768) or OpenCLIP ViT-bigG/14 (1280)."""
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        projection_dim=width,
        hidden_act="gelu" if width > 768 else "quick_gelu",
    )
    return kind(config)


def _t5() -> T5EncoderModel:
    """Encoder of T5 v1.1 XXL."""
    return T5EncoderModel(
        T5Config(
            vocab_size=32128,
            d_model=4096,
            d_kv=64,
            d_ff=10240,
            num_layers=24,
            num_heads=64,
            feed_forward_proj="gated-gelu",
        )
    )


def _on_cpu(kind: Any, **keys: Any) -> Any:
    with torch.device("cpu"):
        return kind(**keys)


def _vae(latents: int, quantised: bool, **keys: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=2,
        latent_channels=latents,
        sample_size=1024,
        use_quant_conv=quantised,
        use_post_quant_conv=quantised,
        **keys,
    )


def sdxl() -> StableDiffusionXLPipeline:
    unet = UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    return StableDiffusionXLPipeline(
        vae=_vae(4, quantised=True, scaling_factor=0.13025),
        text_encoder=_clip(CLIPTextModel, 768, 12),
        text_encoder_2=_clip(CLIPTextModelWithProjection, 1280, 32),
        tokenizer=tiny.clip_tokenizer(),
        tokenizer_2=tiny.clip_tokenizer(),
        unet=unet,
        scheduler=_on_cpu(
            EulerDiscreteScheduler,
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
        ),
    )


def sd3() -> StableDiffusion3Pipeline:
    """Stable Diffusion 3.5 Medium."""
    transformer = SD3Transformer2DModel(
        sample_size=128,
        num_layers=24,
        attention_head_dim=64,
        num_attention_heads=24,
        joint_attention_dim=4096,
        caption_projection_dim=1536,
        pooled_projection_dim=2048,
        in_channels=16,
        out_channels=16,
        patch_size=2,
        pos_embed_max_size=384,
        dual_attention_layers=tuple(range(13)),
        qk_norm="rms_norm",
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=_on_cpu(FlowMatchEulerDiscreteScheduler, shift=3.0),
        vae=_vae(16, quantised=False, shift_factor=0.0609, scaling_factor=1.5305),
        text_encoder=_clip(CLIPTextModelWithProjection, 768, 12),
        text_encoder_2=_clip(CLIPTextModelWithProjection, 1280, 32),
        text_encoder_3=_t5(),
        tokenizer=tiny.clip_tokenizer(),
        tokenizer_2=tiny.clip_tokenizer(),
        tokenizer_3=tiny.t5_tokenizer(),
    )


def flux() -> FluxPipeline:
    """FLUX.1 [schnell]."""
    return FluxPipeline(
        transformer=FluxTransformer2DModel(
            in_channels=64,
            num_layers=19,
            num_single_layers=38,
            attention_head_dim=128,
            num_attention_heads=24,
            joint_attention_dim=4096,
            pooled_projection_dim=768,
            guidance_embeds=False,
        ),
        scheduler=_on_cpu(FlowMatchEulerDiscreteScheduler),
        vae=_vae(16, quantised=False, shift_factor=0.1159, scaling_factor=0.3611),
        text_encoder=_clip(CLIPTextModel, 768, 12),
        text_encoder_2=_t5(),
        tokenizer=tiny.clip_tokenizer(),
        tokenizer_2=tiny.t5_tokenizer(),
    )


def pixart() -> PixArtSigmaPipeline:
    """PixArt-Sigma XL at 1024 pixels."""
    transformer = PixArtTransformer2DModel(
        sample_size=128,
        num_layers=28,
        num_attention_heads=16,
        attention_head_dim=72,
        cross_attention_dim=1152,
        caption_channels=4096,
        in_channels=4,
        out_channels=8,
        patch_size=2,
        use_additional_conditions=False,
    )
    return PixArtSigmaPipeline(
        transformer=transformer,
        vae=_vae(4, quantised=True, scaling_factor=0.13025),
        scheduler=_on_cpu(DPMSolverMultistepScheduler),
        text_encoder=_t5(),
        tokenizer=tiny.t5_tokenizer(),
    )


FULL: dict[str, Callable[[], Any]] = {"sdxl": sdxl, "sd3": sd3, "flux": flux, "pixart": pixart}


def without_weights(name: str, dtype: torch.dtype = torch.bfloat16) -> Any:
    """A pipeline of the published size on the meta device."""
    with torch.device("meta"):
        pipeline = FULL[name]()
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().to(dtype)
    return pipeline


@contextmanager
def published_size(name: str) -> Iterator[None]:
    """Context in which any folder of a pipeline holds one of the published size."""

    def load(*_: Any, dtype: torch.dtype, **__: Any) -> Any:
        return without_weights(name, dtype)

    with mock.patch.object(DiffusionPipeline, "from_pretrained", load):
        yield


@contextmanager
def published_parts(name: str) -> Iterator[None]:
    """Context as ``published_size``, in which a pipeline's U-Net and VAE are loaded by themselves, too."""

    def load(*_: Any, dtype: torch.dtype, **left_out: Any) -> Any:
        pipeline = without_weights(name, dtype)
        for part in [part for part, value in left_out.items() if value is None]:
            setattr(pipeline, part, None)
        return pipeline

    def loader(part: str) -> Any:
        return lambda *_, dtype, **__: getattr(without_weights(name, dtype), part)

    with (
        mock.patch.object(DiffusionPipeline, "from_pretrained", load),
        mock.patch.object(UNet2DConditionModel, "from_pretrained", loader("unet")),
        mock.patch.object(AutoencoderKL, "from_pretrained", loader("vae")),
    ):
        yield
