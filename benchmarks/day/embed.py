"""CLIP's image tower from pixels in memory (G4), and transformers' own loop in half precision."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from transformers import CLIPImageProcessor, CLIPModel

from augbench.models.transformers_clip import TransformersTower
from augbench.runtime.fit import BatchLimit
from benchmarks.day.session import Ready, Session, Variant
from benchmarks.embed import flops_per_image
from benchmarks.networks import random_clip

BATCHES = {"full": (256, 64, 1024), "mini": (64, 32)}
AT_ONCE = {"full": 2048, "mini": 128}  # images of a call
COMPILED = "ours, compiled"
THEIRS = "transformers, half precision, pixels on the device"


def new_model(session: Session) -> CLIPModel:
    """Make CLIP with random weights on the device."""
    with torch.device(session.device):
        return random_clip(session.size).eval()


def ours(session: Session, model: CLIPModel, batch: int, compiled: bool = False) -> Ready:
    """Our tower, from uint8 pixels in main memory to embeddings there, with copies beside the computation."""
    side = model.config.vision_config.image_size
    processor = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    tower = TransformersTower(model, processor, half=session.device == "cuda", compiled=compiled)
    pixels = torch.randint(256, (batch, 3, side, side), dtype=torch.uint8)
    calls, limit = max(1, AT_ONCE[session.size] // batch), BatchLimit(batch, "embedding")

    def one() -> None:
        tower.embed(pixels)

    def call() -> None:
        for _ in tower.embed_all([pixels] * calls, limit):
            pass

    def work() -> float:
        return float(flops_per_image(new_model(session), side))

    return Ready(call, calls * batch, loop=one, work=work, kernels=one)


def theirs(session: Session, batch: int) -> Ready:
    """transformers' tower with half-precision weights."""
    model = new_model(session)
    dtype: Any = torch.float16 if session.device == "cuda" else torch.float32
    side = model.config.vision_config.image_size
    model = model.to(dtype)
    pixels = torch.randn(batch, 3, side, side, device=session.device, dtype=dtype)

    def call() -> None:
        with torch.inference_mode():
            model.get_image_features(pixel_values=pixels)

    return Ready(call, batch, kernels=call)


def measure(session: Session) -> None:
    """Measure all variants."""
    session.ceiling("float16" if session.device == "cuda" else "float32")
    first, *others = BATCHES[session.size]

    def built(batch: int, compiled: bool = False) -> Ready:
        return ours(session, new_model(session), batch, compiled)

    variants = [
        Variant(f"ours, batches of {first}", partial(built, first), 5, 10, first),
        Variant(THEIRS, partial(theirs, session, first), 3, 10, first),
        *(Variant(f"ours, batches of {batch}", partial(built, batch), 2, 10, batch) for batch in others),
    ]
    if session.compiled:
        variants.insert(2, Variant(COMPILED, partial(built, first, True), 3, 40, first))
    else:
        session.skip_compiled(COMPILED, first)
    session.run(variants)
