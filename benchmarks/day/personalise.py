"""Fine-tuning (G6, G7): many classes at once beside diffusers' examples, at several batch sizes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import personalise as full
from benchmarks.day.session import Ready, Session, Variant
from benchmarks.networks import tokenizer

CLASSES = {"full": 64, "mini": 4}
# frozen and trained U-Net, the most important first
BATCHES = {"full": ((64, 26, 16, 4), (16, 26, 64, 4)), "mini": ((8, 4), (8,))}


class Candidates:
    """Makes the variants from one set of random networks."""

    def __init__(self, session: Session, folder: Path) -> None:
        dtype = getattr(torch, session.dtype)
        self.parts = full.make_parts(session.size, torch.device(session.device), dtype, dtype, trained=False)
        self.classes, self.folder = CLASSES[session.size], folder
        self.images = full.random_images(self.classes * 4, self.parts.resolution)
        self.states = full.start_states(self.parts)

    def one_class(self) -> Ready:
        """diffusers' textual inversion."""
        return Ready(full.textual_inversion(self.parts, self.images), full.ACCUMULATED)

    def pseudo_words(self, batch: int, cached: bool = True) -> Ready:
        """Our pseudo-words; the encoder and the tokenizer that they change are copies."""
        own = replace(self.parts, text_encoder=deepcopy(self.parts.text_encoder), tokenizer=tokenizer())
        call, images = full.pseudoword_call(own, self.classes, batch, self.folder)
        if not cached:
            call = full.encoding_first(own, self.images, batch, call)
        return _ready(call, images, cached)

    def conditioning(
        self, batch: int, trained: bool = False, compiled: bool = False, accumulated: int = 1
    ) -> Ready:
        """Our conditioning vectors, with a frozen or a trained U-Net."""
        unet = full.new_unet(self.parts.unet) if trained else self.parts.unet
        if compiled and not trained:
            unet = deepcopy(unet)
        call, images = full.conditioning_call(
            self.parts, unet, self.states, self.classes, batch, self.folder, compiled, accumulated
        )
        return _ready(call, images, not compiled)

    def text_to_image(self, batch: int) -> Ready:
        """diffusers' text-to-image training."""
        unet = full.new_unet(self.parts.unet)
        return Ready(full.text_to_image(self.parts, unet, self.images, batch), batch)


def _ready(call: Callable[[], None], images: int, counted: bool) -> Ready:
    def work() -> float:
        with FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops() / images

    return Ready(call, images, work=work if counted else None)


def variants(make: Candidates, size: str) -> list[Variant]:
    """Variants without compilation, the most important first."""
    (frozen, *other_frozen), (trained, *other_trained) = BATCHES[size]
    largest_first: dict[str, Any] = {"alone": True}

    def batched(name: str, build: Callable[..., Ready], batch: int, windows: int, **more: Any) -> Variant:
        return Variant(f"{name}, batches of {batch}", partial(build, batch), windows, 10, batch, **more)

    found = [
        Variant(full.ONE_CLASS, make.one_class, 5, 10, 1),
        batched(full.PSEUDOWORDS, make.pseudo_words, frozen, 5),
        batched(full.CONDITIONING, make.conditioning, frozen, 3),
        batched(full.UNET_LOOP, make.text_to_image, trained, 3, **largest_first),
        batched(full.UNET, partial(make.conditioning, trained=True), trained, 3, **largest_first),
        batched(
            full.ACCUMULATING,
            partial(make.conditioning, trained=True, accumulated=2),
            trained // 2,
            2,
            **largest_first,
        ),
        batched(full.UNCACHED, partial(make.pseudo_words, cached=False), frozen, 2),
    ]
    for batch in other_frozen:
        found += [
            batched(full.PSEUDOWORDS, make.pseudo_words, batch, 2),
            batched(full.CONDITIONING, make.conditioning, batch, 2),
        ]
    for batch in other_trained:
        found += [
            batched(full.UNET, partial(make.conditioning, trained=True), batch, 2, **largest_first),
            batched(full.UNET_LOOP, make.text_to_image, batch, 2, **largest_first),
        ]
    return found


def compiled(make: Candidates, size: str) -> list[Variant]:
    """Compiled variants at the most important batch sizes."""
    (frozen, *_), (trained, *_) = BATCHES[size]
    build = partial(make.conditioning, compiled=True)
    return [
        Variant(full.COMPILED[full.CONDITIONING], partial(build, frozen), 2, 120, frozen, alone=True),
        Variant(full.COMPILED[full.UNET], partial(build, trained, trained=True), 2, 120, trained, alone=True),
    ]


def measure(session: Session) -> None:
    """Measure all variants."""
    session.ceiling(session.dtype)
    with tempfile.TemporaryDirectory(dir=session.scratch) as folder:
        make = Candidates(session, Path(folder))
        found = variants(make, session.size)
        late = compiled(make, session.size)
        if session.compiled:
            found += late
        else:
            for variant in late:
                session.skip_compiled(variant.name, variant.batch)
        session.run(found)
