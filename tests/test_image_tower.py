"""CLIP's image tower gives the same embeddings as transformers' own model, with less computation."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPVisionConfig

from augbench.models import towers
from augbench.models.transformers_clip import TransformersClip, TransformersTower
from augbench.runtime.fit import BatchLimit
from augbench.runtime.overlap import Upload, Uploads

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
        TransformersClip(CLIP, CPU).model,
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
    tower = TransformersClip(CLIP, CPU).image_tower()
    assert torch.allclose(tower(images), plain, rtol=1e-5, atol=1e-5)
    assert torch.allclose(torch.cat([tower(images[:7]), tower(images[7:])]), plain, rtol=1e-5, atol=1e-5)


def test_what_the_network_sees_has_the_bits_that_the_image_processor_gives(images: list[Image.Image]) -> None:
    tower = TransformersClip(CLIP, CPU).image_tower()
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
    tower = TransformersTower(TransformersClip(CLIP, CPU).model, processor)
    ours, theirs = (
        tower.prepare(images),
        processor(images, do_rescale=False, do_normalize=False, return_tensors="pt").pixel_values,
    )
    assert ours.dtype == torch.uint8 and ours.is_contiguous() and torch.equal(ours, theirs)


def test_products_in_float16_change_unit_vectors_by_less_than_one_float16_step_of_1(
    images: list[Image.Image], plain: torch.Tensor
) -> None:
    halved = TransformersClip(CLIP, CPU).image_tower(half=True)(images)
    assert halved.dtype == torch.float32
    assert 0 < (F.normalize(halved, dim=-1) - F.normalize(plain, dim=-1)).abs().max() < 2**-10


def test_batches_that_are_copied_ahead_have_the_bits_of_batches_one_by_one(
    images: list[Image.Image], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also those that do not fit into memory, which are halved."""
    tower = TransformersClip(CLIP, CPU).image_tower()
    batches = [tower.prepare(images[first : first + 8]) for first in range(0, len(images), 8)]
    expected = [F.normalize(tower.embed(batch), dim=-1) for batch in batches]
    limit = BatchLimit(8, "embedding")
    assert all(map(torch.equal, tower.embed_all(iter(batches), limit), expected))
    embed = tower.embed

    def scarce(pixels: torch.Tensor) -> torch.Tensor:
        if len(pixels) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return embed(pixels)

    monkeypatch.setattr(tower, "embed", scarce)
    halves = list(tower.embed_all(iter(batches), limit))
    assert [len(part) for part in halves] == [4, 4] * 5 + [1] and limit.size == 4
    assert torch.allclose(torch.cat(halves), torch.cat(expected), rtol=1e-5, atol=1e-6)
    assert caplog.text.count("embedding: 8 images do not fit into the GPU's memory; going on with 4") == 1


def test_a_compiled_tower_sees_whole_batches_and_runs_small_ones_uncompiled(
    images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(towers, "compile_network", lambda network: None)
    tower, sizes = TransformersClip(CLIP, CPU).image_tower(compiled=True), []
    tower.model.vision_model.register_forward_pre_hook(
        lambda _, arguments, named: sizes.append(len(named["pixel_values"])), with_kwargs=True
    )
    batches = [tower.prepare(images[:count]) for count in (8, 5, 3)]
    found = list(tower.embed_all(iter(batches), BatchLimit(8, "embedding")))
    assert (sizes, [len(part) for part in found]) == ([8, 8, 3], [8, 5, 3])
    assert torch.allclose(found[1], found[0][:5], rtol=1e-5, atol=1e-6)


def test_on_a_gpu_a_batch_is_copied_while_the_one_before_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams and events are stood in for by a list of what would be queued, in order."""
    queued: list[str] = []

    class Event:
        def __init__(self, name: str) -> None:
            self.name = name

        def synchronize(self) -> None:
            queued.append(f"host waits for {self.name}")

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_event(self, event: Event) -> None:
            queued.append(f"{self.name} waits for {event.name}")

        def record_event(self) -> Event:
            queued.append(f"{self.name} records")
            return Event(f"{self.name} {len(queued)}")

    here, beside = Stream("compute"), Stream("copy")
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: here)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    uploads = Uploads(CPU)
    uploads._uploads = [Upload(beside), Upload(beside)]
    batches = [torch.full((size, 2), size) for size in (4, 3, 2)]
    for there, batch in zip(uploads.ahead(iter(batches)), batches, strict=True):
        assert torch.equal(there, batch) and there.data_ptr() != batch.data_ptr()
        queued.append(f"use {len(batch)}")
    assert queued == [
        "copy records", "copy records", "compute waits for copy 1", "use 4", "compute records",
        "host waits for copy 1", "copy waits for compute 5", "copy records", "compute waits for copy 2",
        "use 3", "compute records", "compute waits for copy 8", "use 2", "compute records",
    ]  # fmt: skip


def test_a_tower_over_the_same_model_again_changes_nothing(images: list[Image.Image]) -> None:
    network = TransformersClip(CLIP, CPU)
    first = network.image_tower()(images)
    assert torch.equal(network.image_tower()(images), first)


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
    TransformersTower(model, CLIPImageProcessorPil())
    skipped = 2 * 2 * 256 * 1024**2 * (1 + 8)  # images, multiply and add, patches, output projection and MLP
    assert whole - flops() == skipped > 0.025 * whole
