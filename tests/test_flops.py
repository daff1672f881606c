"""Cost of an image of Stable Diffusion v1.4's real size, counted in our sampling loop on meta tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTokenizer

from augbench.config.study import load_study
from augbench.generate.sampler import Sampler

PROJECT = Path(__file__).resolve().parents[1]
TOKENIZER = PROJECT / "resources/mini/stable-diffusion/tokenizer"
Scheduler = PNDMScheduler | DDIMScheduler | DPMSolverMultistepScheduler
# from the model card
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
}


def real_size(scheduler: Scheduler) -> StableDiffusionPipeline:
    """Make Stable Diffusion v1.4 from its published configs, without weights and without pixel conversion."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64,
            cross_attention_dim=768,
            block_out_channels=(320, 640, 1280, 1280),
            attention_head_dim=8,
        )
        down, up = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
        vae = AutoencoderKL(
            3, 3, down, up, (128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=512
        )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        scheduler=scheduler,
        tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER),
        text_encoder=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.image_processor.postprocess = lambda pixels, **_: [
        Image.new("RGB", tuple(pixels.shape[-2:])) for _ in pixels
    ]
    return pipeline


@dataclass
class Cost:
    """Forward passes (a batch of n counts n) and floating-point operations (two per multiply-add)."""

    unet: int = 0
    decodes: int = 0
    flop: int = 0


@contextmanager
def counted(pipeline: StableDiffusionPipeline) -> Iterator[Cost]:
    """Count the calls and operations inside the context.

    The cost of a U-Net call depends only on its shapes, except that the first call also makes keys and
    values of the text. Therefore each shape runs twice, and later calls count as much as the second run.
    """
    cost, forward, decode = Cost(), pipeline.unet.forward, pipeline.vae.decode
    known: dict[torch.Size, list[tuple[Any, int]]] = {}

    def unet(sample: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        cost.unet += len(sample)
        runs = known.setdefault(sample.shape, [])
        if len(runs) == 2:
            cost.flop += runs[1][1]
        else:
            before = counter.get_total_flops()
            output = forward(sample, *arguments, **named)
            runs.append((output, counter.get_total_flops() - before))
        return runs[-1][0]

    def decoder(latents: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        cost.decodes += len(latents)
        return decode(latents, *arguments, **named)

    pipeline.unet.forward, pipeline.vae.decode = unet, decoder
    with FlopCounterMode(display=False) as counter:
        yield cost
    cost.flop += counter.get_total_flops()


def cost_of(
    scheduler: Scheduler,
    images: int,
    guidance_scale: float = 7.5,
    steps: int = 50,
    interval: tuple[float, float] | None = None,
) -> Cost:
    """Cost of sampling ``images`` images at the model's own size, with given text states."""
    pipeline = real_size(scheduler)
    states = {prompt: torch.zeros(77, 768) for prompt in ("a photo of a bag.", "")}
    sampler = Sampler(
        pipeline, steps, guidance_scale, 512, batch_size=4, conditioning=states, guidance_interval=interval
    )
    sampler._finite = lambda pixels, latents: pixels  # type: ignore[method-assign]  # they have no values
    with counted(pipeline) as cost:
        samples = sampler.sample(["a photo of a bag."] * images, [("bag", i) for i in range(images)], 0)
    assert [sample.image.size for sample in samples] == [(512, 512)] * images
    return cost


def pndm() -> PNDMScheduler:
    return PNDMScheduler(**SCHEDULE, skip_prk_steps=True)


def test_a_guided_image_with_pndm_is_102_forwards_and_one_decode() -> None:
    cost = cost_of(pndm(), 1)
    assert (cost.unet, cost.decodes) == (102, 1)
    assert cost.flop / 1e12 == pytest.approx(84.15, abs=0.01)


def test_a_guided_image_with_ddim_is_100_forwards_and_one_decode() -> None:
    cost = cost_of(DDIMScheduler(**SCHEDULE, clip_sample=False), 1)
    assert (cost.unet, cost.decodes) == (100, 1)
    assert cost.flop / 1e12 == pytest.approx(82.55, abs=0.01)


def test_batches_cost_nothing_extra_and_no_guidance_half_the_forwards() -> None:
    five = cost_of(pndm(), 5)
    assert (five.unet, five.decodes) == (5 * 102, 5)
    assert five.flop / 1e12 == pytest.approx(5 * 84.15, abs=0.05)
    assert cost_of(pndm(), 1, guidance_scale=1.0).unet == 51


def test_steps_outside_the_guidance_interval_cost_half() -> None:
    cost = cost_of(DDIMScheduler(**SCHEDULE, clip_sample=False), 2, interval=(0.28, 5.42))
    guided = 37  # timesteps 801 to 81 of 981, 961, ..., 1, by the schedule's noise levels
    assert (cost.unet, cost.decodes) == (2 * (50 + guided), 2)
    # the text is counted with the empty prompt and without it
    expected = 2 * ((50 + guided) * 0.8003 + 3 * 0.00295 + 2.5145)
    assert cost.flop / 1e12 == pytest.approx(expected, abs=0.02)


def test_the_fast_mode_costs_little_more_than_a_third_of_the_default() -> None:
    fast = load_study([PROJECT / "config/imagenet10.yaml", PROJECT / "config/overlays/fast.yaml"]).diffusion
    scheduler = DPMSolverMultistepScheduler.from_config(pndm().config)
    cost = cost_of(scheduler, 1, steps=fast.steps, interval=fast.guidance_interval)
    assert (cost.unet, cost.decodes) == (20 + 15, 1)
    assert cost.flop / 1e12 == pytest.approx(30.53, abs=0.01)
