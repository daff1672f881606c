"""Sampling with the shipped miniature model: seeds, batches, safety."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from augbench.classes import load_class_table
from augbench.config import Diffusion
from augbench.errors import UserError
from augbench.generate import MAX_ATTEMPTS, Sampler

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
