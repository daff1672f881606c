"""Training a classifier (G3): ours from resident images; the step alone, plain, deterministic, compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from augbench.classifier.compute import Compute, Storage
from augbench.classifier.images import LabelledImages
from augbench.classifier.sizes import evaluation_resize
from augbench.config.classifier import Classifier
from benchmarks.classifier import CLASSES, CONFIGS, our_epochs, ready_step
from benchmarks.day.session import Ready, Session, Variant

IMAGES = {"full": 12_800, "mini": 640}
EPOCHS = 3  # of a call; the first is not counted, because kernels are chosen or compiled in it
STEPS = 20  # of a call of the step alone
OURS, OURS_COMPILED = "ours", "ours, compiled"
READY, PLAIN = "our step, batch ready", "plain mixed-precision step, batch ready"
READY_FREE = "our step, batch ready, not deterministic"
READY_COMPILED = "our step, batch ready, compiled"
READY_FREE_COMPILED = "our step, batch ready, not deterministic, compiled"


def random_images(count: int, side: int) -> LabelledImages:
    """Make noise images, which are decoded into the pool at its first use."""

    def load(rows: slice) -> Iterator[Image.Image]:
        random = np.random.default_rng(0)
        for _ in range(*rows.indices(count)):
            yield Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8))

    return LabelledImages(
        [str(number) for number in range(count)], np.arange(count) % CLASSES, load, "images"
    )


def ours(images: LabelledImages, config: Classifier, compute: Compute) -> Ready:
    """Our training; its window counts the epochs after the first."""
    run, seconds = our_epochs(images, config, compute, EPOCHS), []

    def call() -> None:
        seconds.extend(run().seconds[1:])

    def details() -> dict[str, Any]:
        counted = {"items": len(images.ids) * len(seconds), "seconds": sum(seconds)} if seconds else {}
        seconds.clear()
        return counted

    # compiled networks would be compiled again
    loop = (lambda: None) if compute.compiled else our_epochs(images, config, compute, 1)
    return Ready(call, len(images.ids) * EPOCHS, details, loop)


def step(config: Classifier, device: torch.device, **options: Any) -> Ready:
    """Training steps on a batch that is on the device already."""
    one = ready_step(config, device, **options)

    def call() -> None:
        for _ in range(STEPS):
            one()

    def work() -> float:
        with FlopCounterMode(display=False) as counter:
            one()
        return counter.get_total_flops() / config.batch_size

    counted: Callable[[], float] | None = None if options.get("compiled") else work
    return Ready(call, STEPS * config.batch_size, loop=one, work=counted, kernels=one)


def variants(session: Session) -> list[Variant]:
    """All variants, the most important first."""
    device, config = torch.device(session.device), CONFIGS[session.size]
    compute = Compute(device, storage=Storage("device" if session.device == "cuda" else "memory"))
    images = random_images(IMAGES[session.size], evaluation_resize(config))
    batch, alone = config.batch_size, partial(step, config, device)
    found = [
        Variant(PLAIN, partial(alone, ours=False), 5, 10, batch),
        Variant(OURS, partial(ours, images, config, compute), 3, 25, batch),
        Variant(READY, partial(alone, ours=True), 5, 10, batch),
        Variant(READY_FREE, partial(alone, ours=True, deterministic=False), 3, 10, batch),
    ]
    compiled = (
        Variant(READY_COMPILED, partial(alone, ours=True, compiled=True), 3, 60, batch),
        Variant(OURS_COMPILED, partial(ours, images, config, replace(compute, compiled=True)), 2, 60, batch),
        Variant(
            READY_FREE_COMPILED, partial(alone, ours=True, deterministic=False, compiled=True), 2, 60, batch
        ),
    )
    if session.compiled:
        return [*found, *compiled]
    for variant in compiled:
        session.skip_compiled(variant.name, batch)
    return found


def measure(session: Session) -> None:
    """Measure all variants."""
    session.ceiling(session.dtype)
    session.run(variants(session))
