"""CLIP's image tower gives the same embeddings as transformers' own model, with less computation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPVisionConfig

from augbench.models.folders import ImageTower, load_clip, load_image_tower

CLIP = Path(__file__).resolve().parents[1] / "resources/mini/clip"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    shapes = [(int(height), int(width), 3) for height, width in rng.integers(20, 90, (40, 2))]
    return [Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)) for shape in shapes] + [
        Image.new("L", (50, 32), 77)
    ]


@pytest.fixture(scope="module")
def plain(images: list[Image.Image]) -> torch.Tensor:
    """Embeddings by transformers alone."""
    model, processor = (
        load_clip(CLIP, CPU)[0],
        CLIPImageProcessorPil.from_pretrained(CLIP, local_files_only=True),
    )
    with torch.inference_mode():
        return model.get_image_features(
            pixel_values=processor(
                [image.convert("RGB") for image in images], return_tensors="pt"
            ).pixel_values
        ).pooler_output


def test_embeddings_are_those_of_transformers_but_for_rounding(
    images: list[Image.Image], plain: torch.Tensor
) -> None:
    tower = load_image_tower(CLIP, CPU)
    assert torch.allclose(tower(images), plain, rtol=1e-5, atol=1e-5)
    assert torch.allclose(torch.cat([tower(images[:7]), tower(images[7:])]), plain, rtol=1e-5, atol=1e-5)


def test_what_the_network_sees_has_the_bits_that_the_image_processor_gives(images: list[Image.Image]) -> None:
    tower = load_image_tower(CLIP, CPU)
    seen: list[torch.Tensor] = []
    tower.model.vision_model.embeddings.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    tower(images)
    assert torch.equal(seen[0], tower.processor(images, return_tensors="pt").pixel_values)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"crop_size": {"height": 20, "width": 28}},
        {"size": {"height": 32, "width": 40}},
        {"size": {"shortest_edge": 24}},
    ],
)
def test_pixels_are_those_of_the_image_processor_whatever_it_does(
    images: list[Image.Image], changed: dict[str, Any]
) -> None:
    """The usual CLIP, a crop that is not square, a changed aspect ratio, and a crop larger than the image."""
    processor = CLIPImageProcessorPil.from_pretrained(CLIP, local_files_only=True, **changed)
    tower = ImageTower(load_clip(CLIP, CPU)[0], processor)
    ours, theirs = (
        tower.prepare(images),
        processor(images, do_rescale=False, do_normalize=False, return_tensors="pt").pixel_values,
    )
    assert ours.dtype == torch.uint8 and ours.is_contiguous() and torch.equal(ours, theirs)


def test_products_in_float16_change_unit_vectors_by_less_than_one_float16_step_of_1(
    images: list[Image.Image], plain: torch.Tensor
) -> None:
    halved = load_image_tower(CLIP, CPU, half=True)(images)
    assert halved.dtype == torch.float32
    assert 0 < (F.normalize(halved, dim=-1) - F.normalize(plain, dim=-1)).abs().max() < 2**-10


def test_a_tower_over_the_same_model_again_changes_nothing(images: list[Image.Image]) -> None:
    model, _ = load_clip(CLIP, CPU)
    first = load_image_tower(CLIP, CPU, model)(images)
    assert torch.equal(load_image_tower(CLIP, CPU, model)(images), first)


def test_the_last_layer_of_vit_l_14_is_computed_for_the_class_token_alone() -> None:
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        patch_size=14,
        projection_dim=768,
    )
    with torch.device("meta"):
        model = CLIPModel(CLIPConfig(vision_config=vision.to_dict(), projection_dim=768)).eval()
        pixels = torch.zeros(2, 3, 224, 224)

    def flops() -> int:
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            model.get_image_features(pixel_values=pixels)
        return counter.get_total_flops()

    whole = flops()
    ImageTower(model, CLIPImageProcessorPil())
    skipped = 2 * 2 * 256 * 1024**2 * (1 + 8)  # images, multiply and add, patches, output projection and MLP
    assert whole - flops() == skipped > 0.025 * whole
