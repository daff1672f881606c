"""Generation (G1, G2): diffusers' pipeline one at a time and in batches, ours eager, compiled and fast.

Windows of the exact mode have fewer steps than a real image, since all steps cost the same. The time of a
step is measured between the scheduler's calls, from which :func:`benchmarks.day.rates.rate` computes the time
of a whole image. The fast mode runs with its own number of steps.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from itertools import count, islice
from typing import TYPE_CHECKING, Any

import torch
from diffusers import StableDiffusionPipeline
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.day.rates import WHOLE_STEPS as STEPS
from benchmarks.day.session import Ready, Session, Variant
from benchmarks.generate import Setting, asked, our_sampler, prompts, work_per_image
from benchmarks.networks import random_pipeline

if TYPE_CHECKING:
    from augbench.generate.sampler import Sampler

SHORT = {"full": 20, "mini": 4}  # of an image in a window
BATCH = {"full": 32, "mini": 4}  # of ours; the kernels of start-up are compiled for it
OTHERS = {"full": (16, 32, 64), "mini": (2, 4)}  # among them the best batch of diffusers' pipeline
ONE, ONE_FLOAT32 = "diffusers, one at a time", "diffusers, one at a time, float32"
EAGER, FAST = "ours, eager", "ours, eager, fast mode"
COMPILED, COMPILED_FAST = "ours, compiled", "ours, compiled, fast mode"
ATTENTION = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
FLASH3 = "FlashAttention 3"  # where its package is installed
MOST_WIDE = 256  # head of FlashAttention


class StepClock:
    """Measures the time between a scheduler's steps without waiting for the GPU.

    It wraps the scheduler's ``step`` and ``set_timesteps``, which every sampling loop calls.
    """

    def __init__(self, scheduler: Any, device: str) -> None:
        self.device, self.loops = device, [[]]  # type: ignore[var-annotated]
        set_timesteps, step = scheduler.set_timesteps, scheduler.step

        @functools.wraps(set_timesteps)
        def begin(*arguments: Any, **named: Any) -> Any:
            self.loops.append([])
            return set_timesteps(*arguments, **named)

        @functools.wraps(step)
        def timed(*arguments: Any, **named: Any) -> Any:
            result = step(*arguments, **named)
            self.loops[-1].append(self._mark())
            return result

        scheduler.set_timesteps, scheduler.step = begin, timed

    def _mark(self) -> Any:
        if self.device != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, first: Any, end: Any) -> float:
        return first.elapsed_time(end) / 1000 if self.device == "cuda" else end - first

    def take(self) -> dict[str, Any]:
        """Return calls per loop and the median seconds of a step since the last call, and forget them."""
        loops, self.loops = [loop for loop in self.loops if len(loop) > 1], [[]]
        if not loops:
            return {}
        seconds = [self._seconds(loop[0], loop[-1]) / (len(loop) - 1) for loop in loops]
        return {"calls": len(loops[-1]), "step_seconds": statistics.median(seconds)}


class Candidates:
    """Makes the variants; pipelines are made when they are first needed."""

    def __init__(self, session: Session) -> None:
        self.session, self.size, self.device = session, session.size, session.device
        half = session.device == "cuda"
        self.theirs = Setting(self.size, self.device, "float16" if half else "float32", SHORT[self.size])
        self.own = replace(self.theirs, dtype=session.dtype)
        self.source = prompts()

    def pipeline(self, dtype: str) -> StableDiffusionPipeline:
        """Make a new pipeline with random weights in ``dtype``."""
        made = random_pipeline(self.size, self.device).to(dtype=getattr(torch, dtype))
        made.set_progress_bar_config(disable=True)
        return made

    @cached_property
    def plain(self) -> StableDiffusionPipeline:
        """diffusers' pipeline, which its candidates share."""
        return self.pipeline(self.theirs.dtype)

    @cached_property
    def ours(self) -> StableDiffusionPipeline:
        """The pipeline of our eager candidates."""
        return self.pipeline(self.own.dtype)

    @cached_property
    def compiled(self) -> StableDiffusionPipeline:
        """The pipeline of our compiled candidates."""
        return self.pipeline(self.own.dtype)

    def diffusers(self, batch: int, float32: bool = False) -> Ready:
        """diffusers' own pipeline with its defaults."""
        pipeline = self.pipeline("float32") if float32 else self.plain
        own = _with_own_scheduler(pipeline)
        clock = StepClock(own.scheduler, self.device)

        def call() -> None:
            own(list(islice(self.source, batch)), **asked(self.theirs))

        return Ready(call, batch, clock.take, extra={"steps": self.theirs.steps, "mode": "exact"})

    def sampler(
        self, pipeline: StableDiffusionPipeline, batch: int, compiled: bool = False, fast: bool = False
    ) -> Sampler:
        """Our sampler; fast mode has all of its steps."""
        setting = replace(self.own, steps=STEPS[self.size]) if fast else self.own
        return our_sampler(_with_own_scheduler(pipeline), setting, batch, compiled, fast)

    def augbench(self, batch: int, compiled: bool = False, fast: bool = False, attention: str = "") -> Ready:
        """Our sampler, as a study uses it: two batches; the first is finished beside the second."""
        pipeline = self.compiled if compiled else self.ours
        sampler, seeds = self.sampler(pipeline, batch, compiled, fast), count()
        clock = StepClock(sampler.pipeline.scheduler, self.device)

        def call() -> None:
            scopes = [("benchmark", number) for number in islice(seeds, 2 * batch)]
            sampler.sample(list(islice(self.source, 2 * batch)), scopes, 0)

        def loop() -> None:
            sampler.pixels(list(islice(self.source, batch)), list(islice(seeds, batch)), None)

        def work() -> float:
            whole = sampler if fast else self.whole(pipeline, batch)
            return work_per_image(replace(self.own, steps=whole.steps), whole)

        calls = [call, loop, sampler.warm_up]
        if attention:
            calls = [_attending(function, attention) for function in calls]
        extra = {"steps": sampler.steps, "mode": "fast" if fast else "exact"}
        return Ready(calls[0], 2 * batch, clock.take, calls[1], work, calls[2], extra)

    def whole(self, pipeline: StableDiffusionPipeline, batch: int) -> Sampler:
        """Our sampler with all steps of an image, to count its work."""
        setting = replace(self.own, steps=STEPS[self.size])
        return our_sampler(_with_own_scheduler(pipeline), setting, batch)

    def variant(self, name: str, windows: int, seconds: float, batch: int, **options: Any) -> Variant:
        """Our sampler as a variant."""
        return Variant(name, functools.partial(self.augbench, batch, **options), windows, seconds, batch)


def _with_own_scheduler(pipeline: StableDiffusionPipeline) -> StableDiffusionPipeline:
    parts = {**pipeline.components, "scheduler": copy.deepcopy(pipeline.scheduler)}
    own = StableDiffusionPipeline(**parts)
    own.set_progress_bar_config(disable=True)
    return own


def _attending(call: Callable[[], Any], name: str) -> Callable[[], None]:
    """Return ``call`` with one attention back end wherever it can work; elsewhere torch's others."""

    def chosen() -> None:
        if name == FLASH3:
            with flash_attention_3():
                call()
        else:
            order = [ATTENTION[name], SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
            with sdpa_kernel(list(dict.fromkeys(order)), set_priority=True):
                call()

    return chosen


@contextmanager
def flash_attention_3() -> Iterator[None]:
    """Context in which attention without a mask in half precision is FlashAttention 3's."""
    from flash_attn_interface import flash_attn_func

    plain = functional.scaled_dot_product_attention

    def attend(query: Any, key: Any, value: Any, attn_mask: Any = None, **options: Any) -> Any:
        if attn_mask is not None or query.dtype == torch.float32 or query.shape[-1] > MOST_WIDE:
            return plain(query, key, value, attn_mask=attn_mask, **options)
        heads_second = (tensor.transpose(1, 2) for tensor in (query, key, value))
        scale, causal = options.get("scale"), options.get("is_causal", False)
        found = flash_attn_func(*heads_second, softmax_scale=scale, causal=causal)
        return (found[0] if isinstance(found, tuple) else found).transpose(1, 2)

    functional.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = plain


def eager(make: Candidates) -> list[Variant]:
    """Variants without compilation, the most important first."""
    size, batch = make.size, BATCH[make.size]

    def theirs(size: int, windows: int, seconds: float) -> Variant:
        name = ONE if size == 1 else f"diffusers, batches of {size}"
        return Variant(name, lambda: make.diffusers(size), windows, seconds, size)

    batches = sorted(OTHERS[size], key=lambda other: other != batch)
    found = [theirs(1, 5, 20), make.variant(EAGER, 5, 20, batch), theirs(batches[0], 3, 10)]
    found += [make.variant(FAST, 3, 10, batch, fast=True)]
    found += [theirs(other, 2, 15) for other in batches[1:]]
    if make.device == "cuda":
        flash3 = [FLASH3] if importlib.util.find_spec("flash_attn_interface") else []
        found += [
            make.variant(f"{EAGER}, {name} attention", 2, 10, batch, attention=name)
            for name in [*ATTENTION, *flash3]
        ]
        found += [make.variant(f"{EAGER}, batches of 64", 2, 20, 64)]
        found += [Variant(ONE_FLOAT32, lambda: make.diffusers(1, float32=True), 1, 20, 1)]
    return found


def compiled(make: Candidates) -> list[Variant]:
    """Compiled variants, and between them two of the eager ones, to compare with in the same process."""
    batch = BATCH[make.size]
    return [
        make.variant(COMPILED, 5, 40, batch, compiled=True),
        Variant(ONE, lambda: make.diffusers(1), 3, 20, 1),
        make.variant(EAGER, 2, 15, batch),
        make.variant(COMPILED_FAST, 3, 60, batch, compiled=True, fast=True),
    ]


def measure(session: Session) -> None:
    """Measure the eager or the compiled variants, whichever the stage's name says."""
    is_compiled = session.stage != "generation"
    if is_compiled and not session.compiled:
        for name in (COMPILED, COMPILED_FAST):
            session.skip_compiled(name)
        return
    session.ceiling(session.dtype)
    make = Candidates(session)
    session.run(compiled(make) if is_compiled else eager(make))
