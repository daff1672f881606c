"""Compare our training speed (pseudo-words, conditioning vectors, U-Nets) with diffusers' examples.

Input: Stable Diffusion v1.4's architecture with random weights (``--size full``) or the shipped miniature,
and random images. Output: a Markdown table, and JSON with ``--json``: training images per second of

- diffusers' textual-inversion example for one class: images are prepared and encoded at every step, and the
  optimiser holds the whole embedding table;
- ours for many classes in one process: pseudo-words and conditioning vectors with cached latents, and
  pseudo-words with latents encoded at every step;
- diffusers' text-to-image example, which trains the U-Net, and ours (Imagic: conditioning and U-Net), at
  the same batch size;
- with ``--compile`` also ours with conditioning vectors and with the U-Net, compiled
  (``execution.compile``). Compilation takes minutes before anything is timed.

The baselines are the steps of those examples with their defaults. They are copied here so that they do not
change. In all candidates, weights are float32 on the CPU and of half precision on a GPU (bfloat16, or float16
where the GPU lacks it); a trained U-Net has float32 weights and computes in half precision on a GPU.
``tests/test_personalise.py`` tests that many classes trained together learn what each learns alone.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from augbench.data.classes import ClassInfo
from augbench.personalise.data import encode_moments
from augbench.personalise.embedding import ConditioningRows, PseudowordRows, Rows, token_ids, word_embedding
from augbench.personalise.fine_tune import load_part
from augbench.personalise.groups import Settings
from augbench.personalise.tasks import ClassTask, ImageSet
from augbench.personalise.train import Trainer
from augbench.runtime.fit import BatchLimit
from augbench.runtime.precision import resolve
from benchmarks.machine import product_rate
from benchmarks.networks import MINIATURE, RESOLUTION, random_text_encoder, random_unet, random_vae
from benchmarks.networks import tokenizer as new_tokenizer
from benchmarks.paired import Candidate, run_paired
from benchmarks.record import publish, surroundings, surroundings_line
from benchmarks.throughput import write_rates

Result = dict[str, Any]
PROMPT = "a photo of a {}"
WORD = "<new>"
ACCUMULATED = 4  # steps of one image each, as in the command of the example's documentation
ONE_CLASS, UNET_LOOP = "diffusers' textual inversion, one class", "diffusers' text-to-image training"
PSEUDOWORDS, UNCACHED, CONDITIONING, UNET = (
    "ours, pseudo-words",
    "ours, pseudo-words, latents not cached",
    "ours, conditioning vectors",
    "ours, conditioning and U-Net",
)
ACCUMULATING = f"{UNET}, two micro-batches a step"
COMPILED = {name: f"{name}, compiled" for name in (CONDITIONING, UNET)}


@dataclass(frozen=True)
class Parts:
    """The parts of Stable Diffusion that training uses, on the device; frozen ones in ``dtype``."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: DDPMScheduler
    dtype: torch.dtype
    device: torch.device
    resolution: int


def make_parts(
    size: str, device: torch.device, dtype: torch.dtype, unet_dtype: torch.dtype, trained: bool = True
) -> Parts:
    """Make models of the given size with random weights; the miniature has its own if ``trained``."""
    torch.manual_seed(0)
    if size == "mini" and trained:
        unet, vae, text = (
            load_part(kind, str(MINIATURE), name, kind_dtype, device)
            for kind, name, kind_dtype in (
                (UNet2DConditionModel, "unet", unet_dtype),
                (AutoencoderKL, "vae", dtype),
                (CLIPTextModel, "text_encoder", dtype),
            )
        )
    else:
        with device:
            unet, vae, text = random_unet(size), random_vae(size), random_text_encoder(size)
        unet, vae, text = (
            module.eval().requires_grad_(False).to(kind)
            for module, kind in ((unet, unet_dtype), (vae, dtype), (text, dtype))
        )
    scheduler = DDPMScheduler.from_config(
        DDPMScheduler.load_config(MINIATURE, subfolder="scheduler", local_files_only=True)
    )
    return Parts(
        unet=unet,
        vae=vae,
        text_encoder=text,
        tokenizer=new_tokenizer(),
        scheduler=scheduler,
        dtype=dtype,
        device=device,
        resolution=RESOLUTION[size],
    )


def random_images(count: int, side: int) -> list[Image.Image]:
    """Make noise images, a quarter larger than the model's resolution."""
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, (side * 5 // 4, side * 5 // 4, 3), dtype=np.uint8))
        for _ in range(count)
    ]


def as_example(image: Image.Image, side: int) -> torch.Tensor:
    """Resize an image and flip it at random, as the example: float32 ``(3, side, side)`` from -1 to 1."""
    resized = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    if torch.rand(()) < 0.5:
        resized = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy((np.array(resized) / 127.5 - 1.0).astype(np.float32)).permute(2, 0, 1)


def example_loss(
    parts: Parts, unet: Callable[..., Any], states: torch.Tensor, images: Sequence[Image.Image]
) -> torch.Tensor:
    """Loss of a batch as in the examples: the VAE encodes it at every step."""
    pixels = torch.stack([as_example(image, parts.resolution) for image in images]).to(
        parts.device, parts.dtype
    )
    latents = parts.vae.encode(pixels).latent_dist.sample().detach() * parts.vae.config.scaling_factor
    noise = torch.randn_like(latents)
    timesteps = torch.randint(
        0, parts.scheduler.config.num_train_timesteps, (len(latents),), device=parts.device
    ).long()
    noisy = parts.scheduler.add_noise(latents, noise, timesteps)
    predicted = unet(noisy, timesteps, states).sample
    return F.mse_loss(predicted.float(), noise.float(), reduction="mean")


def textual_inversion(parts: Parts, images: Sequence[Image.Image]) -> Callable[[], None]:
    """Step of diffusers' ``textual_inversion.py`` for one class: :data:`ACCUMULATED` batches of one image."""
    unet = deepcopy(parts.unet)  # our trainer changes its memory format
    with parts.device:
        encoder = CLIPTextModel(parts.text_encoder.config)  # float32: the example trains in float32
    encoder.load_state_dict(parts.text_encoder.state_dict())
    encoder.requires_grad_(False)
    tokenizer = new_tokenizer()
    tokenizer.add_tokens([WORD])
    encoder.resize_token_embeddings(len(tokenizer))
    embeddings = encoder.get_input_embeddings()
    embeddings.weight.requires_grad_(True)
    original = embeddings.weight.data.clone()
    optimizer = torch.optim.AdamW(
        embeddings.parameters(), lr=5e-4, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8
    )
    ids = token_ids(tokenizer, [PROMPT.format(WORD)]).to(parts.device)
    fixed = torch.ones(len(tokenizer), dtype=torch.bool)
    fixed[-1] = False
    endless = cycle(images)

    def step() -> None:
        for number in range(ACCUMULATED):
            with torch.autocast(parts.device.type, parts.dtype, enabled=parts.device.type == "cuda"):
                states = encoder(ids)[0].to(parts.dtype)
                loss = example_loss(parts, unet, states, [next(endless)])
            (loss / ACCUMULATED).backward()
            if number == ACCUMULATED - 1:
                optimizer.step()
                optimizer.zero_grad()
            with torch.no_grad():
                embeddings.weight[fixed] = original[fixed]
            loss.item()  # for its progress bar

    return step


def text_to_image(
    parts: Parts, unet: UNet2DConditionModel, images: Sequence[Image.Image], batch: int
) -> Callable[[], None]:
    """Step of diffusers' ``train_text_to_image.py``: float32 weights, half precision on a GPU."""
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-5, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
    ids = token_ids(parts.tokenizer, [PROMPT.format("thing")] * batch).to(parts.device)
    endless = cycle(images)

    def step() -> None:
        with torch.no_grad():
            states = parts.text_encoder(ids)[0]
        with torch.autocast(parts.device.type, parts.dtype, enabled=parts.device.type == "cuda"):
            loss = example_loss(parts, unet, states, [next(endless) for _ in range(batch)])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def make_trainer(
    parts: Parts,
    unet: UNet2DConditionModel,
    rows: Rows,
    classes: int,
    per_class: int,
    micro_batch: int,
    folder: Path,
    compiled: bool = False,
    accumulated: int = 1,
) -> Trainer:
    """Make our trainer over cached random latents; the U-Net trains unless it is frozen.

    A step of a U-Net that trains is made of ``accumulated`` micro-batches.
    """
    trains = next(unet.parameters()).requires_grad
    latent = parts.resolution // 2 ** (len(parts.vae.config.block_out_channels) - 1)
    moments = torch.randn(classes * per_class, 2, 2, parts.vae.config.latent_channels, latent, latent)
    tasks = []
    for number in range(classes):
        names = [f"{number}/{image}" for image in range(per_class)]
        images = ImageSet(names, names, [0] * per_class)
        tasks.append(ClassTask(ClassInfo(f"class{number}", ("thing",)), images, images))
    settings = Settings(
        seed=0,
        lr=5e-3,
        unet_lr=1e-5,
        clusters=1,
        train_unet=trains,
        candidates=("val_loss",),
        batch_size=accumulated * micro_batch if trains else 4,
        max_epochs=1,
        patience=1,
        flip=0.5,
        validation_draws=1,
        weight_decay=0.0,
        micro_batch=micro_batch,
        autocast=parts.dtype if trains and parts.device.type == "cuda" else None,
        compiled=compiled,
    )
    return Trainer(
        tasks=tasks,
        rows=rows,
        unet=unet,
        scheduler=parts.scheduler,
        moments=moments.split(per_class),
        validation_moments=moments[:, :1].split(per_class),
        settings=settings,
        folder=folder,
    )


def endless_steps(trainer: Trainer) -> Iterator[Any]:
    """Yield the samples of each step, epoch after epoch, without end."""
    epoch = 0
    while True:
        epoch += 1
        yield from trainer.epoch_steps(trainer.groups, epoch)


def ours(trainer: Trainer, images_at_once: int) -> Callable[[], None]:
    """Return a function that trains until it has used ``images_at_once`` images or more."""
    steps = endless_steps(trainer)

    def call() -> None:
        done = 0
        while done < images_at_once:
            samples = next(steps)
            trainer.step(samples)
            done += len(samples)

    return call


def new_unet(frozen: UNet2DConditionModel) -> UNet2DConditionModel:
    """Return a trainable copy of the U-Net in float32."""
    with frozen.device:
        unet = UNet2DConditionModel.from_config(frozen.config)
    unet.load_state_dict(frozen.state_dict())
    return unet


def start_states(parts: Parts) -> torch.Tensor:
    """Text states from which conditioning vectors start, float32 ``(1, tokens, width)``."""
    with torch.no_grad():
        ids = token_ids(parts.tokenizer, [PROMPT.format("thing")]).to(parts.device)
        return parts.text_encoder(ids)[0].float()


def conditioning_call(
    parts: Parts,
    unet: UNet2DConditionModel,
    states: torch.Tensor,
    classes: int,
    micro_batch: int,
    folder: Path,
    compiled: bool = False,
    accumulated: int = 1,
) -> tuple[Callable[[], None], int]:
    """Our training of conditioning vectors, and of the U-Net unless it is frozen; with images per call."""
    rows = ConditioningRows(states.expand(classes, -1, -1))
    trainer = make_trainer(parts, unet, rows, classes, 4, micro_batch, folder, compiled, accumulated)
    at_once = accumulated * micro_batch if trainer.settings.train_unet else classes * 4
    return ours(trainer, at_once), at_once


def pseudoword_call(
    parts: Parts, classes: int, micro_batch: int, folder: Path
) -> tuple[Callable[[], None], int]:
    """Our training of pseudo-words, and its images per call; it changes the encoder and the tokenizer."""
    words = [f"<class{number}>" for number in range(classes)]
    start = word_embedding(parts.text_encoder, parts.tokenizer, "thing")
    rows = PseudowordRows(
        parts.text_encoder,
        parts.tokenizer,
        words,
        start.expand(classes, -1),
        lambda row, _: PROMPT.format(words[row]),
    )
    trainer = make_trainer(parts, parts.unet, rows, classes, 4, micro_batch, folder)
    return ours(trainer, classes * 4), classes * 4


def encoding_first(
    parts: Parts, images: Sequence[Image.Image], batch: int, call: Callable[[], None]
) -> Callable[[], None]:
    """Return ``call`` preceded by encoding all ``images``: latents that are not cached."""

    def uncached() -> None:
        for _ in encode_moments(
            parts.vae,
            images=images,
            resolution=parts.resolution,
            mirror=False,
            limit=BatchLimit(batch, "--batch"),
            dtype=parts.dtype,
        ):
            pass
        call()

    return uncached


def measure(options: argparse.Namespace, folder: Path) -> Result:
    """Build all candidates and time them in turn."""
    from torch.utils.flop_counter import FlopCounterMode

    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    dtype = resolve("auto", device)
    parts = make_parts(options.size, device, dtype, dtype)
    images = random_images(options.classes * 4, parts.resolution)
    calls: dict[str, tuple[Callable[[], Any], int]] = {}
    calls[ONE_CLASS] = (textual_inversion(parts, images), ACCUMULATED)
    states = start_states(parts)
    calls[UNET_LOOP] = (
        text_to_image(parts, new_unet(parts.unet), images, options.unet_batch),
        options.unet_batch,
    )
    for compiled in (False, True)[: 1 + options.compile]:
        for name, new, batch in (
            (CONDITIONING, deepcopy, options.batch),
            (UNET, new_unet, options.unet_batch),
        ):
            calls[COMPILED[name] if compiled else name] = conditioning_call(
                parts, new(parts.unet), states, options.classes, batch, folder, compiled
            )
    calls[PSEUDOWORDS] = pseudoword_call(parts, options.classes, options.batch, folder)
    word_call, work = calls[PSEUDOWORDS]
    calls[UNCACHED] = encoding_first(parts, images, options.batch, word_call), work
    flops = {}
    for name in (PSEUDOWORDS, CONDITIONING, UNET):
        call, work = calls[name]
        with FlopCounterMode(display=False) as counter:
            call()
        flops[name] = counter.get_total_flops() / work
    flops |= {name: flops[own] for own, name in COMPILED.items() if name in calls}
    order = (
        ONE_CLASS,
        PSEUDOWORDS,
        UNCACHED,
        CONDITIONING,
        COMPILED[CONDITIONING],
        UNET_LOOP,
        UNET,
        COMPILED[UNET],
    )
    candidates = {name: Candidate(*calls[name]) for name in order if name in calls}
    paired = run_paired(
        candidates,
        options.device,
        options.repeats,
        options.seconds,
        said=lambda line: print(line, file=sys.stderr),
    )
    ceiling = product_rate(options.device, str(dtype).removeprefix("torch."))
    compared = {
        PSEUDOWORDS: UNCACHED,
        UNET: UNET_LOOP,
        **({name: own for own, name in COMPILED.items()} if options.compile else {}),
    }
    ratios = {name: sorted(paired.ratios(name, base)) for name, base in compared.items()}
    return {
        "classes": options.classes,
        "batch": options.batch,
        "unet_batch": options.unet_batch,
        "flops_per_image": flops,
        "product_rate": ceiling,
        "share_of_ceiling": {name: paired.rate(name) * work / ceiling for name, work in flops.items()},
        "further_ratios": {
            name: {"median": float(np.median(values)), "least": values[0], "most": values[-1]}
            for name, values in ratios.items()
        },
        "results": paired.summary(),
        "table": paired.markdown("image"),
    }


def markdown(report: Result) -> str:
    """Return the table, and below it the ratios that are not to its first row."""
    shares = "; ".join(
        f"{name}: {report['flops_per_image'][name] / 1e12:.3g} TFLOP per image, {share:.0%}"
        for name, share in report["share_of_ceiling"].items()
    )
    spread = {
        name: "{median:.3g} ({least:.3g} to {most:.3g})".format(**ratio)
        for name, ratio in report["further_ratios"].items()
    }
    compiled = "".join(
        f" Compiled / not, {own.removeprefix('ours, ')}: {spread[name]}."
        for own, name in COMPILED.items()
        if name in spread
    )
    return "\n".join(
        [
            report["table"],
            "",
            f"{report['classes']} classes in one process, {report['batch']} images at once, "
            f"{report['unet_batch']} where the U-Net trains. "
            f"Cached latents / latents encoded at every step: {spread[PSEUDOWORDS]}. "
            f"Training the U-Net, ours / diffusers': {spread[UNET]}.{compiled} "
            f"Share of bare matrix products ({report['product_rate'] / 1e12:.3g} TFLOP/s): {shares}.",
            "",
            surroundings_line(report),
        ]
    )


def main(arguments: Sequence[str]) -> None:
    """Measure and print the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--size",
        choices=["full", "mini"],
        default="full",
        help="Stable Diffusion v1.4 with random weights, or the shipped miniature",
    )
    parser.add_argument("--classes", type=int, default=64, help="classes that ours learns in one process")
    parser.add_argument("--batch", type=int, default=64, help="images per pass of a frozen U-Net")
    parser.add_argument(
        "--unet-batch",
        type=int,
        default=16,
        help="images per step where the U-Net trains, for ours and diffusers",
    )
    parser.add_argument(
        "--compile", action="store_true", help="also time our compiled candidates; needs a C compiler"
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="minimum length of a window")
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument(
        "--throughput-out",
        type=Path,
        help="table for `augbench plan` (results/throughput.yaml); written only with --size full on a GPU",
    )
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        report = measure(options, Path(place)) | surroundings(
            "benchmarks/personalise.py", arguments, options.device
        )
    publish(report, markdown(report), options.json)
    write_rates(
        options,
        report,
        {"finetune_vectors": PSEUDOWORDS, "finetune_unet": COMPILED[UNET] if options.compile else UNET},
    )


if __name__ == "__main__":
    main(sys.argv[1:])
