"""Sampling with the shipped miniature model: seeds, batches, safety."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from augbench.classes import load_class_table
from augbench.config import Diffusion
from augbench.errors import UserError
from augbench.generate import MAX_ATTEMPTS, Sampler, square

MINI = Path(__file__).resolve().parents[1] / "resources/mini"
PROMPTS = [f"A photo of {info.name}." for info in load_class_table("fashion_mnist")] * 2
SCOPES = [("class", index) for index in range(len(PROMPTS))]
# Largest difference in grey levels (of 255) that another batch size may make: float32 sums in another order.
TOLERANCE = 2


@pytest.fixture(scope="module")
def pipeline() -> Any:
    import torch

    from augbench.models import load_pipeline

    torch.set_num_threads(1)
    diffusion = Diffusion(model=str(MINI / "stable-diffusion"), resolution=32, dtype="float32")
    return load_pipeline(diffusion, torch.device("cpu"))


def sampled(pipeline: Any, batch_size: int, chosen: slice = slice(None)) -> np.ndarray:
    sampler = Sampler(pipeline, 6, 3.0, 32, batch_size)
    return np.stack([np.asarray(sample.image, dtype=int) for sample in sampler.sample(PROMPTS[chosen], SCOPES[chosen], 0)])


def test_image_i_is_the_same_for_batch_size_1_and_16_and_any_company(pipeline: Any) -> None:
    together = sampled(pipeline, 16)
    alone = sampled(pipeline, 1)
    some = sampled(pipeline, 16, slice(3, 9))
    assert np.abs(together - alone).max() <= TOLERANCE
    assert np.abs(together[3:9] - some).max() <= TOLERANCE


def test_another_index_is_another_image(pipeline: Any) -> None:
    images = sampled(pipeline, 16)
    assert np.abs(images[0] - images[10]).mean() > 3  # the same prompt, another seed


class Flagging:
    """The pipeline with a safety checker that also flags the first ``times`` samples of given batches' first images."""

    def __init__(self, pipeline: Any, times: int) -> None:
        self.pipeline, self.times, self.calls = pipeline, times, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pipeline, name)

    def __call__(self, **arguments: Any) -> Any:
        output = self.pipeline(**arguments)
        self.calls += 1
        if self.calls <= self.times:
            output.nsfw_content_detected = [True, *output.nsfw_content_detected[1:]]
        return output


def test_a_flagged_image_is_replaced_by_the_next_seed_and_counted(pipeline: Any) -> None:
    plain = Sampler(pipeline, 2, 3.0, 32, 4).sample(PROMPTS[:4], SCOPES[:4], 0)
    replaced = Sampler(Flagging(pipeline, 2), 2, 3.0, 32, 4).sample(PROMPTS[:4], SCOPES[:4], 0)  # type: ignore[arg-type]
    assert [sample.safety_flags for sample in replaced] == [2, 0, 0, 0]
    assert replaced[0].seed != plain[0].seed and [s.seed for s in replaced[1:]] == [s.seed for s in plain[1:]]


def test_an_image_that_is_always_flagged_ends_in_a_clear_error(pipeline: Any) -> None:
    sampler = Sampler(Flagging(pipeline, MAX_ATTEMPTS), 1, 1.0, 32, 2)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=rf"safety checker: 1 of 2 images flagged {MAX_ATTEMPTS} times each"):
        sampler.sample(PROMPTS[:2], SCOPES[:2], 0)


def test_plain_diffusers_loads_the_shipped_model() -> None:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPModel, CLIPTokenizer

    shipped = StableDiffusionPipeline.from_pretrained(MINI / "stable-diffusion", local_files_only=True)
    assert shipped.safety_checker is not None and shipped.feature_extractor is not None
    ids = CLIPTokenizer.from_pretrained(MINI / "clip")(["a photo of a cat"]).input_ids[0]
    assert ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert CLIPModel.from_pretrained(MINI / "clip").config.text_config.vocab_size == 49408


def test_clips_text_tower_is_the_diffusion_models() -> None:
    import torch
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPModel

    pipeline = StableDiffusionPipeline.from_pretrained(MINI / "stable-diffusion", local_files_only=True)
    clip = CLIPModel.from_pretrained(MINI / "clip")
    ids = torch.tensor([[49406, 320, 1125, 49407]])
    with torch.inference_mode():
        ours = pipeline.text_encoder.float()(ids).last_hidden_state
        theirs = clip.float().text_model(ids).last_hidden_state
    assert torch.equal(ours, theirs)


def test_the_shipped_weights_stay_small() -> None:
    assert sum(path.stat().st_size for path in MINI.rglob("*") if path.is_file()) <= 40e6


def garments(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (count, 4, 4, 3), dtype=np.uint8)
    return [Image.fromarray(values).resize((40, 48)) for values in coarse]


def boomerangs(pipeline: Any, noise: float, batch_size: int = 4) -> np.ndarray:
    sampler = Sampler(pipeline, 100, 1.0, 32, batch_size, noise=noise)
    samples = sampler.sample([""] * 4, SCOPES[:4], 0, starts=garments(4))
    return np.stack([np.asarray(sample.image, dtype=float) for sample in samples])


@pytest.fixture(scope="module")
def ddim_pipeline() -> Any:
    import torch

    from augbench.models import load_pipeline

    return load_pipeline(Diffusion(model=str(MINI / "stable-diffusion"), resolution=32, scheduler="ddim", dtype="float32"), torch.device("cpu"))


def test_a_boomerang_comes_back_nearer_to_its_image_the_less_noise_it_got(ddim_pipeline: Any) -> None:
    originals = np.stack([np.asarray(square(image, 32), dtype=float) for image in garments(4)])
    distances = [np.abs(boomerangs(ddim_pipeline, noise) - originals).mean() for noise in (0.05, 0.3, 0.9)]
    assert distances[0] < distances[1] < distances[2]


def test_a_boomerang_walks_its_share_of_the_steps_without_guidance(ddim_pipeline: Any) -> None:
    sizes: list[int] = []
    hook = ddim_pipeline.unet.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    try:
        boomerangs(ddim_pipeline, 0.2)
    finally:
        hook.remove()
    assert sizes == [4] * 20  # 100 steps x 0.2; one sample per image, not two


def test_a_boomerang_is_the_same_in_any_batch(ddim_pipeline: Any) -> None:
    assert np.abs(boomerangs(ddim_pipeline, 0.1) - boomerangs(ddim_pipeline, 0.1, batch_size=1)).max() <= TOLERANCE


def test_learned_conditioning_stands_for_its_prompt(pipeline: Any) -> None:
    states, _ = pipeline.encode_prompt(["A photo of bag."], pipeline.device, 1, False)
    plain = Sampler(pipeline, 2, 3.0, 32, 2).sample(["A photo of bag."], SCOPES[:1], 0)
    learned = Sampler(pipeline, 2, 3.0, 32, 2, conditioning={"<bag>": states[0]}).sample(["<bag>"], SCOPES[:1], 0)
    other = Sampler(pipeline, 2, 3.0, 32, 2, conditioning={"<bag>": -states[0]}).sample(["<bag>"], SCOPES[:1], 0)
    assert np.array_equal(np.asarray(plain[0].image), np.asarray(learned[0].image))
    assert not np.array_equal(np.asarray(plain[0].image), np.asarray(other[0].image))
