"""Sampling with the shipped miniature model: seeds, batches, safety."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from augbench.config.models import Diffusion
from augbench.data.classes import load_class_table
from augbench.data.decode import square
from augbench.errors import UserError
from augbench.generate.sampler import Batches, Sampler
from augbench.runtime.fit import BatchLimit
from augbench.seeds import derive_seed

SCHEDULERS = ("pndm", "ddim", "dpmsolver++")
MINI = Path(__file__).resolve().parents[1] / "resources/mini"
PROMPTS = [f"A photo of {info.name}." for info in load_class_table("fashion_mnist")] * 2
SCOPES = [("class", index) for index in range(len(PROMPTS))]
# Largest difference in grey levels (of 255) between batch sizes, due to the order of float32 sums.
TOLERANCE = 2


@cache
def loaded(scheduler: Any = "pndm") -> Any:
    """Load the miniature's pipeline."""
    import torch

    from augbench.models.folders import load_pipeline

    torch.set_num_threads(1)
    diffusion = Diffusion(
        model=str(MINI / "stable-diffusion"), resolution=32, dtype="float32", scheduler=scheduler
    )
    return load_pipeline(diffusion, torch.device("cpu"))


@pytest.fixture
def pipeline() -> Any:
    return loaded()


def sampled(pipeline: Any, batch_size: int, chosen: slice = slice(None)) -> np.ndarray:
    sampler = Sampler(pipeline, 6, 3.0, 32, batch_size)
    return np.stack(
        [np.asarray(sample.image, dtype=int) for sample in sampler.sample(PROMPTS[chosen], SCOPES[chosen], 0)]
    )


def test_image_i_is_the_same_for_batch_size_1_and_16_and_any_company(pipeline: Any) -> None:
    together = sampled(pipeline, 16)
    alone = sampled(pipeline, 1)
    some = sampled(pipeline, 16, slice(3, 9))
    assert np.abs(together - alone).max() <= TOLERANCE
    assert np.abs(together[3:9] - some).max() <= TOLERANCE


def test_another_index_is_another_image(pipeline: Any) -> None:
    images = sampled(pipeline, 16)
    assert np.abs(images[0] - images[10]).mean() > 3  # the same prompt, another seed


def seeds_of(count: int) -> list[int]:
    return [derive_seed(0, "image", *SCOPES[i], 0) for i in range(count)]


def pixels(images: Sequence[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


@pytest.mark.parametrize("guidance_scale", [3.0, 1.0])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_images_are_those_of_diffusers_own_pipeline_bit_for_bit(
    scheduler: str, guidance_scale: float
) -> None:
    import torch

    ours = Sampler(loaded(scheduler), 5, guidance_scale, 32, 4).sample(PROMPTS[:4], SCOPES[:4], 0)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds_of(4)]
    theirs = loaded(scheduler)(
        PROMPTS[:4],
        num_inference_steps=5,
        guidance_scale=guidance_scale,
        height=32,
        width=32,
        generator=generators,
    )
    assert np.array_equal(pixels([sample.image for sample in ours]), pixels(theirs.images))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_images_from_images_are_those_of_diffusers_own_pipeline_bit_for_bit(scheduler: str) -> None:
    import torch
    from diffusers import StableDiffusionImg2ImgPipeline

    ours = Sampler(loaded(scheduler), 20, 1.0, 32, 3, noise=0.25).sample(
        [""] * 3, SCOPES[:3], 0, starts=garments(3)
    )
    theirs = StableDiffusionImg2ImgPipeline(**loaded(scheduler).components)
    with torch.inference_mode():
        start = theirs.image_processor.preprocess([square(image, 32) for image in garments(3)])
        latents = theirs.vae.encode(start).latent_dist.mode() * theirs.vae.config.scaling_factor
        generators = [torch.Generator().manual_seed(seed) for seed in seeds_of(3)]
        expected = theirs(
            [""] * 3, latents, strength=0.25, num_inference_steps=20, guidance_scale=1.0, generator=generators
        )
    assert np.array_equal(pixels([sample.image for sample in ours]), pixels(expected.images))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_no_step_of_the_loop_reads_a_value_back(scheduler: str) -> None:
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Reads(TorchDispatchMode):
        """Counts operations that would wait for a GPU."""

        count = 0

        def __torch_dispatch__(
            self, function: Any, types: Any, arguments: Any = (), named: Any = None
        ) -> Any:
            waiting = {
                torch.ops.aten._local_scalar_dense,
                torch.ops.aten.nonzero,
                torch.ops.aten.equal,
                torch.ops.aten.is_nonzero,
            }
            self.count += function.overloadpacket in waiting
            return function(*arguments, **(named or {}))

    def reads(function: Any) -> int:
        with Reads() as found:
            function()
        return found.count

    sampler = Sampler(loaded(scheduler), 7, 3.0, 32, 2, guidance_interval=(0.28, 5.42))
    with torch.inference_mode():
        states, empty = sampler._text_states(PROMPTS[:2]), sampler._text_states(["", ""])
        steps = sampler.schedule()
        latents = sampler._first_latents([0, 1], None, steps[0])
        assert reads(lambda: sampler._denoise(latents, steps, states, empty)) == 0
    theirs = loaded(scheduler)
    assert (
        scheduler == "dpmsolver++"
        or reads(
            lambda: theirs(PROMPTS[:2], num_inference_steps=7, height=32, width=32, output_type="latent")
        )
        >= 7
    )


def test_keys_and_values_of_the_text_are_made_once_per_batch() -> None:
    """The empty prompt included, and once more for steps without guidance; then the U-Net is restored."""
    calls: Counter[int] = Counter()
    sampler = Sampler(loaded("ddim"), 7, 3.0, 32, 2, guidance_interval=(0.28, 5.42))
    unet = sampler.pipeline.unet
    layers = [module.to_k for name, module in unet.named_modules() if name.endswith("attn2")]
    for number, layer in enumerate(layers):
        layer.forward = lambda states, number=number, forward=layer.forward: (
            calls.update({number: len(states)}) or forward(states)
        )
    before = [layer.forward for layer in layers]
    sampler.sample(PROMPTS[:3], SCOPES[:3], 0)
    assert len(layers) == 4 and calls == Counter(dict.fromkeys(range(4), 3 * 3))
    assert [layer.forward for layer in layers] == before


def unet_batches(sampler: Sampler, count: int) -> tuple[list[int], np.ndarray]:
    """Number of rows in each call of the U-Net, and the images."""
    sizes: list[int] = []
    hook = sampler.pipeline.unet.register_forward_hook(
        lambda module, inputs, output: sizes.append(len(inputs[0]))
    )
    try:
        images = sampler.sample(PROMPTS[:count], SCOPES[:count], 0)
    finally:
        hook.remove()
    return sizes, pixels([sample.image for sample in images])


def test_only_steps_inside_the_guidance_interval_are_guided() -> None:
    sizes, _ = unet_batches(Sampler(loaded("ddim"), 10, 3.0, 32, 2, guidance_interval=(0.28, 5.42)), 2)
    # timesteps 901, 801, ..., 1 of Stable Diffusion's schedule have these noise levels:
    # 8.4, 5.1, 3.4, 2.3, 1.6, 1.2, 0.84, 0.57, 0.35, 0.04
    assert sizes == [2, 4, 4, 4, 4, 4, 4, 4, 4, 2]


def test_pndm_calls_the_unet_once_more_than_it_has_steps() -> None:
    sizes, _ = unet_batches(Sampler(loaded("pndm"), 5, 3.0, 32, 2), 2)
    assert sizes == [4] * 6


def test_an_interval_of_everything_is_full_guidance_and_one_of_nothing_none(ddim_pipeline: Any) -> None:
    def images(scale: float, interval: tuple[float, float] | None) -> np.ndarray:
        return unet_batches(Sampler(ddim_pipeline, 6, scale, 32, 2, guidance_interval=interval), 2)[1]

    assert np.array_equal(images(3.0, (0.0, 1e6)), images(3.0, None))
    assert np.array_equal(images(3.0, (1e5, 1e6)), images(1.0, None))
    assert not np.array_equal(images(3.0, (0.28, 5.42)), images(3.0, None))


def test_images_begun_together_end_as_they_do_alone(pipeline: Any) -> None:
    sampler = Sampler(pipeline, 3, 3.0, 32, 2)
    first, second = sampler.begin(PROMPTS[:3], SCOPES[:3], 0), sampler.begin(PROMPTS[3:6], SCOPES[3:6], 0)
    together = [*sampler.end(first).made.values(), *sampler.end(second).made.values()]
    alone = [*sampler.sample(PROMPTS[:3], SCOPES[:3], 0), *sampler.sample(PROMPTS[3:6], SCOPES[3:6], 0)]
    assert np.array_equal(pixels([s.image for s in together]), pixels([s.image for s in alone]))
    assert [s.seed for s in together] == [s.seed for s in alone]


def scarce(monkeypatch: pytest.MonkeyPatch, network: Any, most: int) -> None:
    """Let a network run out of memory if it is called with more than ``most`` items."""
    import torch

    forward = network.forward

    def limited(items: Any, *others: Any, **named: Any) -> Any:
        if len(items) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(items, *others, **named)

    monkeypatch.setattr(network, "forward", limited)


def sizes_and_images(
    batch_size: int | Batches, count: int = 8, **options: Any
) -> tuple[list[int], list[int], Any]:
    """Batches of the U-Net and of the decoder, and the images."""
    sampler = Sampler(loaded(), 1, 1.0, 32, batch_size, **options)
    decoded: list[int] = []
    hook = loaded().vae.decoder.register_forward_hook(
        lambda module, inputs, output: decoded.append(len(inputs[0]))
    )
    try:
        unet, images = unet_batches(sampler, count)
    finally:
        hook.remove()
    return unet, decoded, images


def test_a_batch_that_does_not_fit_is_halved_and_the_images_are_those_of_the_half(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    *_, expected = sizes_and_images(4)
    scarce(monkeypatch, loaded().unet, 4)
    unet, decoded, images = sizes_and_images(8)
    assert (set(unet), decoded) == ({4}, [4, 4]) and np.array_equal(images, expected)
    assert caplog.text.count("do not fit") == 1
    assert "execution.batch_size: 8 images do not fit into the GPU's memory; going on with 4" in caplog.text


def test_the_decoder_halves_its_own_slices_and_the_unet_keeps_its_batch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, _, expected = sizes_and_images(8)
    scarce(monkeypatch, loaded().vae.decoder, 2)
    unet, decoded, images = sizes_and_images(8)
    assert (set(unet), decoded) == ({8}, [2] * 4) and np.array_equal(images, expected)
    assert caplog.text.count("decoding: ") == 2 and "decoding: 4 images do not fit" in caplog.text


def test_on_a_gpu_the_decoder_has_smaller_batches_of_equal_size_from_the_start() -> None:
    import torch

    gpu = torch.device("cuda")
    assert [Batches(size, gpu).decoded.size for size in (1, 8, 26, 32)] == [1, 8, 7, 8]
    assert Batches(32, torch.device("cpu")).decoded.size == 32
    _, whole, expected = sizes_and_images(10, 10)
    _, decoded, images = sizes_and_images(Batches(10, gpu), 10)
    assert (whole, decoded) == ([10], [5, 5]) and np.array_equal(images, expected)


def test_what_did_not_fit_is_not_tried_again_by_the_next_sampler_of_a_job(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    batches = Batches(8, loaded().device)
    scarce(monkeypatch, loaded().unet, 4)
    for _ in range(2):
        Sampler(loaded(), 1, 1.0, 32, batches).sample(PROMPTS[:8], SCOPES[:8], 0)
    assert caplog.text.count("do not fit") == 1


@pytest.mark.parametrize(("part", "key"), [("unet", "execution.batch_size"), ("decoder", "decoding")])
def test_where_not_even_one_image_fits_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, part: str, key: str
) -> None:
    scarce(monkeypatch, loaded().unet if part == "unet" else loaded().vae.decoder, 0)
    with pytest.raises(UserError, match=rf"^{key}: not even one image fits into the GPU's memory; a GPU"):
        sizes_and_images(2, 2)


def test_a_warm_up_that_does_not_fit_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    scarce(monkeypatch, loaded().unet, 4)
    sampler = Sampler(loaded(), 2, 1.0, 32, 8)
    sampler.warm_up()
    assert (sampler.batches.sampled.size, sampler.compiled_for()["batch"]) == (4, [4, 4, 32])


def test_compiled_networks_are_filled_up_to_the_halved_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    *_, expected = sizes_and_images(4, 7)
    scarce(monkeypatch, loaded().unet, 4)
    unet, decoded, images = sizes_and_images(8, 7, compiled=True)
    assert (unet, decoded) == ([4, 4], [4, 4])
    assert np.abs(images.astype(int) - expected.astype(int)).max() <= TOLERANCE


def test_the_safety_checker_halves_its_batch_and_flags_the_same(
    pipeline: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from augbench.models.folders import check_safety

    images = garments(6)
    expected = check_safety(pipeline, images)
    limit = BatchLimit(6, "safety checker")
    scarce(monkeypatch, pipeline.safety_checker.vision_model, 2)
    seen: list[int] = []
    checker = pipeline.safety_checker.forward
    monkeypatch.setattr(
        pipeline.safety_checker,
        "forward",
        lambda clip_input, images: seen.append(len(images)) or checker(clip_input, images),
    )
    assert check_safety(pipeline, images, limit) == expected
    assert (seen, limit.size) == ([6, 3, 2, 2, 2], 2)
    assert "safety checker: 6 images do not fit into the GPU's memory; going on with 3" in caplog.text


def overflowing(monkeypatch: pytest.MonkeyPatch, bad: set[int]) -> Any:
    """A pipeline in float16 whose decoder gives values that are not finite for some calls' first images."""
    import copy

    pipeline = copy.copy(loaded())
    vae = copy.deepcopy(loaded().vae).half()
    calls: list[int] = []
    forward = type(vae.decoder).forward

    def decoder(self: Any, latents: Any, *others: Any) -> Any:
        found = forward(self, latents, *others)
        if latents.dtype != vae.dtype:
            return found
        calls.append(len(latents))
        if len(calls) - 1 in bad:
            found[0, 0, 0, 0] = float("inf")
        return found

    monkeypatch.setattr(type(vae.decoder), "forward", decoder)
    pipeline.vae = vae
    return pipeline


def test_only_images_whose_decoding_overflows_are_decoded_in_float32_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import torch

    torch.manual_seed(0)
    latents = torch.randn(4, 4, 8, 8).half()
    sampler = Sampler(overflowing(monkeypatch, {1, 2}), 1, 1.0, 32, 4)
    fine, bad = sampler.decode(latents), sampler.decode(latents)
    assert fine.isfinite().all() and not bad.isfinite().all()
    with torch.inference_mode():
        mended = sampler._finite(bad.clone(), latents)
        vae = sampler._wide_vae
        expected = vae.decode(latents[:1].float() / vae.config.scaling_factor, return_dict=False)[0]
        sampler._finite(sampler.decode(latents), latents)
    assert torch.equal(mended[1:], fine[1:]) and torch.equal(mended[:1], expected.half())
    assert caplog.text.count("decoder overflows") == 1
    assert "diffusion.dtype float16: the VAE's decoder overflows" in caplog.text


def test_images_that_are_not_finite_in_float32_either_end_in_one_line_and_not_in_black() -> None:
    import torch

    sampler = Sampler(loaded(), 1, 1.0, 32, 2)
    latents = torch.full((2, 4, 8, 8), float("nan"))
    with (
        torch.inference_mode(),
        pytest.raises(UserError, match=r"^diffusion\.dtype: float32: sampling gives"),
    ):
        sampler._finite(sampler.decode(latents), latents)


def test_auto_is_float32_on_a_cpu_and_the_hardwares_type_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from augbench.models import folders

    diffusion = Diffusion(model=str(MINI / "stable-diffusion"), resolution=32, dtype="auto")
    assert folders.load_pipeline(diffusion, torch.device("cpu")).unet.dtype == torch.float32
    monkeypatch.setattr(folders, "resolve", lambda wanted, device: {"auto": torch.float16}[wanted])
    loaded_in_half = folders.load_pipeline(diffusion, torch.device("cpu"))
    assert loaded_in_half.unet.dtype == loaded_in_half.safety_checker.dtype == torch.float16


class Flagging:
    """A pipeline whose safety checker also flags the first image of the first ``times`` batches."""

    def __init__(self, pipeline: Any, times: int) -> None:
        self.pipeline, self.times, self.calls, self.safety_checker = pipeline, times, 0, self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pipeline.safety_checker if name in ("device", "dtype") else self.pipeline, name)

    def __call__(self, **arguments: Any) -> Any:
        images, flags = self.pipeline.safety_checker(**arguments)
        self.calls += 1
        return images, [self.calls <= self.times, *flags[1:]]


def test_a_flagged_image_is_replaced_by_the_next_seed_and_counted(pipeline: Any) -> None:
    plain = Sampler(pipeline, 2, 3.0, 32, 4).sample(PROMPTS[:4], SCOPES[:4], 0)
    flagging = Sampler(Flagging(pipeline, 2), 2, 3.0, 32, 4)  # type: ignore[arg-type]
    replaced = flagging.sample(PROMPTS[:4], SCOPES[:4], 0)
    assert [sample.safety_flags for sample in replaced] == [2, 0, 0, 0]
    assert replaced[0].seed != plain[0].seed and [s.seed for s in replaced[1:]] == [s.seed for s in plain[1:]]


class Scripted(Sampler):
    """A sampler that computes no images; those of the given attempts at the given images are flagged."""

    def __init__(self, pipeline: Any, flagged: set[tuple[int, int]], batch_size: int, attempts: int) -> None:
        super().__init__(pipeline, 1, 1.0, 32, batch_size, attempts_per_image=attempts)
        self.flagged, self.sampled = flagged, 0

    def latents(self, prompts: Sequence[str], seeds: Sequence[int], starts: Any) -> Any:
        import torch

        self.sampled += len(seeds)
        return torch.tensor(seeds)

    def decode(self, latents: Any) -> Any:
        return latents

    def _finish(
        self, pixels: Any, latents: Any, made: Any, progress: Any
    ) -> tuple[list[Image.Image], list[bool]]:
        flagged = {derive_seed(0, "image", *SCOPES[i], attempt) for attempt, i in self.flagged}
        return [Image.new("RGB", (1, 1))] * len(pixels), [seed in flagged for seed in pixels.tolist()]


def single_rounds(flagged: set[tuple[int, int]], images: int, attempts: int) -> tuple[Any, Any]:
    """Attempt of each finished image, and flags of each that is given up, one sample after another."""
    left, made, refused = attempts * images, {}, dict.fromkeys(range(images), 0)
    while refused and left:
        for i in [*refused][:left]:
            left -= 1
            refused[i] += 1
            if (refused[i] - 1, i) not in flagged:
                made[i] = refused.pop(i) - 1
    return made, refused


@pytest.mark.parametrize("attempts", [1, 2, 5, 20])
@pytest.mark.parametrize("batch_size", [1, 4, 16, 100])
def test_images_share_their_attempts_and_batches_do_not_matter(
    pipeline: Any, batch_size: int, attempts: int
) -> None:
    rng = np.random.default_rng(0)
    flagged = {(attempt, i) for attempt in range(200) for i in range(8) if rng.random() < (0.3, 0.95)[i % 2]}
    sampler = Scripted(pipeline, flagged, batch_size, attempts)
    samples = sampler.end(sampler.begin(PROMPTS[:8], SCOPES[:8], 0))
    made, refused = single_rounds(flagged, 8, attempts)
    assert {i: sample.safety_flags for i, sample in samples.made.items()} == made
    assert samples.flagged == refused and list(samples.made) == sorted(made)
    seeds = {i: derive_seed(0, "image", *SCOPES[i], attempt) for i, attempt in made.items()}
    assert {i: sample.seed for i, sample in samples.made.items()} == seeds
    assert sampler.sampled <= 8 * attempts + batch_size


def test_one_image_may_take_more_samples_than_the_mean(pipeline: Any) -> None:
    sampler = Scripted(pipeline, {(attempt, 2) for attempt in range(70)}, 16, 20)
    samples = sampler.end(sampler.begin(PROMPTS[:4], SCOPES[:4], 0))
    assert samples.made[2].safety_flags == 70 and not samples.flagged


def test_an_image_that_is_always_flagged_is_given_up_after_the_attempts_of_all(pipeline: Any) -> None:
    sampler = Scripted(pipeline, {(attempt, 1) for attempt in range(100)}, 2, 3)
    samples = sampler.end(sampler.begin(PROMPTS[:4], SCOPES[:4], 0))
    assert list(samples.made) == [0, 2, 3] and samples.flagged == {1: 3 * 4 - 3}
    with pytest.raises(UserError, match=r"safety checker: all samples of 1 of 4 images flagged, 9 of the"):
        sampler.sample(PROMPTS[:4], SCOPES[:4], 0)


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


@pytest.fixture
def ddim_pipeline() -> Any:
    return loaded("ddim")


def test_a_boomerang_comes_back_nearer_to_its_image_the_less_noise_it_got(ddim_pipeline: Any) -> None:
    originals = np.stack([np.asarray(square(image, 32), dtype=float) for image in garments(4)])
    distances = [np.abs(boomerangs(ddim_pipeline, noise) - originals).mean() for noise in (0.05, 0.3, 0.9)]
    assert distances[0] < distances[1] < distances[2]


def test_a_boomerang_walks_its_share_of_the_steps_without_guidance(ddim_pipeline: Any) -> None:
    sizes: list[int] = []
    hook = ddim_pipeline.unet.register_forward_hook(
        lambda module, inputs, output: sizes.append(len(inputs[0]))
    )
    try:
        boomerangs(ddim_pipeline, 0.2)
    finally:
        hook.remove()
    assert sizes == [4] * 20  # 100 steps x 0.2; one sample per image, not two


def test_a_boomerang_is_the_same_in_any_batch(ddim_pipeline: Any) -> None:
    assert (
        np.abs(boomerangs(ddim_pipeline, 0.1) - boomerangs(ddim_pipeline, 0.1, batch_size=1)).max()
        <= TOLERANCE
    )


def test_learned_conditioning_stands_for_its_prompt(pipeline: Any) -> None:
    states, _ = pipeline.encode_prompt(["A photo of bag."], pipeline.device, 1, False)
    plain = Sampler(pipeline, 2, 3.0, 32, 2).sample(["A photo of bag."], SCOPES[:1], 0)
    learned = Sampler(pipeline, 2, 3.0, 32, 2, conditioning={"<bag>": states[0]}).sample(
        ["<bag>"], SCOPES[:1], 0
    )
    other = Sampler(pipeline, 2, 3.0, 32, 2, conditioning={"<bag>": -states[0]}).sample(
        ["<bag>"], SCOPES[:1], 0
    )
    assert np.array_equal(np.asarray(plain[0].image), np.asarray(learned[0].image))
    assert not np.array_equal(np.asarray(plain[0].image), np.asarray(other[0].image))
