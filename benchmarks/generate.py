"""Compare the speed of our image generation with diffusers' own pipeline.

Input: a device, and Stable Diffusion v1.4's architecture with random weights (``--size full``) or the
shipped miniature. Output: a Markdown table, and JSON with ``--json``: images per second, from prompts to
pictures (with the safety checker, without encoding), of

- diffusers' pipeline, one prompt at a time;
- the same at its fastest batch size;
- ours at its fastest batch size: as it is, compiled (exact mode), and compiled in fast mode
  (``config/overlays/fast.yaml``: fewer steps, some without guidance; the images differ);

and the share of the rate of bare matrix products in the same precision. Before anything is timed, images in
half precision, in batches and compiled are compared with those of the pipeline in float32 with the same
weights and noise. The candidates take turns in one process. ``--compiling`` instead measures the time of
compilation in a process with an empty kernel cache and in one with a filled cache, and counts graphs, graph
breaks and recompilations.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.machine import product_rate
from benchmarks.networks import MINIATURE, PROJECT, RESOLUTION, random_pipeline
from benchmarks.paired import Candidate, run_paired
from benchmarks.record import publish, surroundings, surroundings_line
from benchmarks.throughput import write_figures

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from augbench.generate.sampler import Sampler

Result = dict[str, Any]
COMPARED = 4  # images whose error is measured
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
FALLEN = 0.9  # below this share of the best rate, larger batches are not tried


@dataclass(frozen=True)
class Setting:
    """Settings of a measurement: model size, device, precision and number of steps."""

    size: str
    device: str
    dtype: str
    steps: int

    @property
    def resolution(self) -> int:
        """Side of an image in pixels."""
        return RESOLUTION[self.size]

    @property
    def guidance_scale(self) -> float:
        """Guidance scale of the studies."""
        return 7.5 if self.size == "full" else 3.0


def load(setting: Setting) -> StableDiffusionPipeline:
    """Load the pipeline with its defaults: PNDM, safety checker on."""
    import torch
    from diffusers import StableDiffusionPipeline

    dtype = getattr(torch, setting.dtype)
    if setting.size == "mini":
        pipeline = StableDiffusionPipeline.from_pretrained(
            MINIATURE, dtype=dtype, local_files_only=True, low_cpu_mem_usage=False
        )
    else:
        pipeline = random_pipeline("full", setting.device).to(dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(setting.device)


def prompts() -> Iterator[str]:
    """Return an endless iterator of distinct prompts."""
    from augbench.data.classes import load_class_table

    names = [info.name for info in load_class_table("imagenet")]
    return (f"a photo of a {names[number % len(names)]}, number {number}" for number in count())


# --- candidates -----------------------------------------------------------------------------------


def plain(
    pipeline: StableDiffusionPipeline, setting: Setting, batch_size: int, source: Iterator[str]
) -> Candidate:
    """Return the candidate that runs diffusers' pipeline on ``batch_size`` prompts at a time."""

    def call() -> None:
        pipeline(list(islice(source, batch_size)), **asked(setting))

    return Candidate(call, batch_size)


def asked(setting: Setting) -> dict[str, Any]:
    """Return the settings as the pipeline's arguments."""
    return {
        "num_inference_steps": setting.steps,
        "guidance_scale": setting.guidance_scale,
        "height": setting.resolution,
        "width": setting.resolution,
    }


def our_sampler(
    pipeline: StableDiffusionPipeline,
    setting: Setting,
    batch_size: int,
    compiled: bool = False,
    fast: bool = False,
) -> Sampler:
    """Return our sampler over the same weights.

    Fast mode has its own scheduler, fraction of the steps and guidance interval.
    """
    import torch
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    from augbench.config.study import load_study
    from augbench.generate.sampler import Sampler
    from augbench.runtime.compiling import compile_pipeline

    mode = load_study([PROJECT / "config/imagenet10.yaml", PROJECT / "config/overlays/fast.yaml"]).diffusion
    scheduler = (
        DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config) if fast else pipeline.scheduler
    )
    own = StableDiffusionPipeline(**{**pipeline.components, "scheduler": scheduler})
    if setting.device == "cuda":
        for network in (own.unet, own.vae):
            network.to(memory_format=torch.channels_last)
    if compiled:
        compile_pipeline(own)
    steps = round(setting.steps * mode.steps / 50) if fast else setting.steps
    interval = mode.guidance_interval if fast else None
    return Sampler(
        pipeline=own,
        steps=steps,
        guidance_scale=setting.guidance_scale,
        resolution=setting.resolution,
        batch_size=batch_size,
        guidance_interval=interval,
        compiled=compiled,
    )


def ours(sampler: Sampler, source: Iterator[str]) -> Candidate:
    """Return our sampler as a candidate: two batches; the first is post-processed during the second."""
    seeds, images = count(), 2 * sampler.batches.sampled.size

    def call() -> None:
        sampler.sample(
            list(islice(source, images)), [("benchmark", number) for number in islice(seeds, images)], 0
        )

    return Candidate(call, images)


def fastest(
    make: Callable[[int], Candidate], device: str, largest: int, said: Callable[[str], object]
) -> int:
    """Find the fastest batch size: try :data:`BATCHES` until memory runs out or the rate falls."""
    import torch

    # processor time on a CPU, which other processes share
    clock = time.perf_counter if device == "cuda" else time.process_time
    rates: dict[int, float] = {}
    for size in (size for size in BATCHES if size <= largest):
        candidate = make(size)
        try:
            candidate.call()
            start = clock()
            candidate.call()
        except torch.OutOfMemoryError:
            break
        rates[size] = candidate.work / (clock() - start)
        said(f"batches of {size}: {rates[size]:.3g} images per second")
        if rates[size] < FALLEN * max(rates.values()):
            break
    return max(rates, key=lambda size: rates[size])


# --- exactness ------------------------------------------------------------------------------------


def errors(setting: Setting, half: str, compiled: bool) -> Result:
    """Relative errors of half-precision images against diffusers' float32 images, one prompt at a time.

    Measured are diffusers' pipeline, ours in one batch, and ours compiled. All have the same noise, drawn
    in half precision, and the same weights, rounded to half precision. The error of an image is the norm of
    the difference of its pixels divided by the norm of the pixels, which range from -1 to 1.
    """
    import torch

    rounded = Setting(setting.size, setting.device, half, setting.steps)
    texts, seeds = list(islice(prompts(), COMPARED)), range(COMPARED)
    reference = one_at_a_time(
        load(rounded).to(dtype=torch.float32), setting, texts, seeds, getattr(torch, half)
    )
    pipeline = load(rounded)
    kinds = {"diffusers, one at a time": lambda: one_at_a_time(pipeline, setting, texts, seeds)}
    kinds |= {
        f"ours, one batch{', compiled' * choice}": lambda choice=choice: our_pixels(
            our_sampler(pipeline, setting, COMPARED, choice), texts, seeds
        )
        for choice in (False, True)[: 1 + compiled]
    }
    found = {name: kind() for name, kind in kinds.items()}
    return {
        name: [
            float((image - base).norm() / base.norm()) for image, base in zip(images, reference, strict=True)
        ]
        for name, images in found.items()
    }


def one_at_a_time(
    pipeline: StableDiffusionPipeline,
    setting: Setting,
    texts: Sequence[str],
    seeds: Sequence[int],
    noise: Any = None,
) -> Any:
    """Pixels by diffusers' pipeline, ``float32 (N, 3, H, W)`` from -1 to 1.

    ``noise`` is the data type in which noise is drawn, by default the network's.
    """
    import torch

    latents = []
    side = setting.resolution // pipeline.vae_scale_factor
    for text, seed in zip(texts, seeds, strict=True):
        drawn = torch.randn(
            (1, 4, side, side),
            generator=torch.Generator().manual_seed(seed),
            dtype=noise or pipeline.unet.dtype,
        )
        start = drawn.to(setting.device, pipeline.unet.dtype)
        latents.append(pipeline([text], latents=start, output_type="latent", **asked(setting)).images)
    with torch.inference_mode():
        pixels = [
            pipeline.vae.decode(latent / pipeline.vae.config.scaling_factor, return_dict=False)[0]
            for latent in latents
        ]
    return torch.cat(pixels).float().cpu()


def our_pixels(sampler: Sampler, texts: Sequence[str], seeds: Sequence[int]) -> Any:
    """Pixels by our sampler in one batch, ``float32 (N, 3, H, W)`` from -1 to 1."""
    return sampler.pixels(texts, seeds, None).float().cpu()


# --- work -----------------------------------------------------------------------------------------


def work_per_image(setting: Setting, sampler: Sampler) -> float:
    """Multiplications and additions per image, counted by torch in a real call of each network.

    The count assumes that no step reuses results of an earlier one.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    pipeline, guided = sampler.pipeline, [step.guided for step in sampler.schedule()]
    side, dtype = setting.resolution // pipeline.vae_scale_factor, pipeline.unet.dtype
    with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
        latents = torch.randn(1, 4, side, side).to(setting.device, dtype)
        states = torch.randn(1, 77, pipeline.unet.config.cross_attention_dim).to(setting.device, dtype)
        with FlopCounterMode(display=False) as unet:
            pipeline.unet(latents, torch.tensor(1, device=setting.device), encoder_hidden_states=states)
        with FlopCounterMode(display=False) as decoder:
            pipeline.vae.decode(latents)
    return (len(guided) + sum(guided)) * unet.get_total_flops() + decoder.get_total_flops()


def measure(setting: Setting, options: argparse.Namespace) -> Result:
    """Measure everything except the time of compilation."""
    half = "float16" if options.device == "cuda" else "bfloat16"
    report: Result = {"half": half, "errors": errors(setting, half, options.compile)}
    # our samplers get their own pipeline: they switch it to channels last
    pipeline, separate, source = load(setting), load(setting), prompts()

    def said(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    searched = {
        "plain": fastest(
            lambda size: plain(pipeline, setting, size, source), options.device, options.largest_batch, said
        ),
        "ours": fastest(
            lambda size: ours(our_sampler(separate, setting, size), source),
            options.device,
            options.largest_batch,
            said,
        ),
    }
    exact = our_sampler(separate, setting, searched["ours"])
    samplers = {f"ours, batches of {searched['ours']}": exact}
    if options.compile:
        compiled = load(setting)
        samplers["ours, compiled"] = our_sampler(compiled, setting, searched["ours"], compiled=True)
        samplers["ours, compiled, fast mode"] = our_sampler(
            compiled, setting, searched["ours"], compiled=True, fast=True
        )
    else:
        samplers["ours, fast mode"] = our_sampler(separate, setting, searched["ours"], fast=True)
    candidates = {
        "diffusers, one at a time": plain(pipeline, setting, 1, source),
        f"diffusers, batches of {searched['plain']}": plain(pipeline, setting, searched["plain"], source),
        **{name: ours(sampler, source) for name, sampler in samplers.items()},
    }
    paired = run_paired(candidates, options.device, options.repeats, options.seconds, said=said)
    work = {name: work_per_image(setting, samplers.get(name, exact)) for name in candidates}
    ceiling = product_rate(options.device, setting.dtype)
    report |= {
        "candidates": paired.summary(),
        "work_per_image": work,
        "ceiling": ceiling,
        "table": paired.markdown("image"),
    }
    report["share_of_ceiling"] = {name: paired.rate(name) * work[name] / ceiling for name in candidates}
    report["ratio_to_best_batch"] = {
        name: ratio_of(paired.ratios(name, list(candidates)[1])) for name in candidates
    }
    return report


def ratio_of(ratios: Sequence[float]) -> Result:
    """Median and range of the ratios."""
    return {"median": float(np.median(ratios)), "least": min(ratios), "most": max(ratios)}


# --- compilation ----------------------------------------------------------------------------------


def compile_once(options: argparse.Namespace) -> Result:
    """Measure in this process the seconds to compile, and count what sampling compiles afterwards."""
    from torch._dynamo.utils import counters

    setting = Setting(options.size, options.device, options.dtype, options.steps)
    pipeline = load(setting)
    sampler = our_sampler(pipeline, setting, options.largest_batch, compiled=True)
    start = time.perf_counter()
    sampler.warm_up()
    found: Result = {"seconds": time.perf_counter() - start, "graphs": counters["stats"]["unique_graphs"]}
    # a full batch, one that is padded, one that is not compiled
    sizes = (options.largest_batch, options.largest_batch - 1, 1)
    for size in sizes:
        sampler.sample(list(islice(prompts(), size)), [("compiled", number) for number in range(size)], 0)
    found |= {
        "graphs_after_sampling": counters["stats"]["unique_graphs"],
        "graph_breaks": sum(counters["graph_break"].values()),
    }
    return found | {
        "kernels_from_cache": counters["inductor"]["fxgraph_cache_hit"],
        "kernels_compiled": counters["inductor"]["fxgraph_cache_miss"],
    }


def compile_twice(arguments: Sequence[str]) -> Result:
    """Run :func:`compile_once` in two processes; the second finds the first one's kernels in the cache."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder}
        command = [sys.executable, __file__, *arguments, "--one-process"]
        runs = [
            subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True).stdout
            for _ in ("cold", "warm")
        ]
    return dict(zip(("cold", "warm"), map(json.loads, runs), strict=True))


# --- report ---------------------------------------------------------------------------------------


def markdown(report: Result) -> str:
    """Return the tables, with the settings and the machine below them."""
    lines = []
    if "compiling" in report:
        lines += [
            "| cache | seconds to compile | graphs | graphs after sampling "
            "| graph breaks | kernels found | kernels made |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        columns = (
            "graphs",
            "graphs_after_sampling",
            "graph_breaks",
            "kernels_from_cache",
            "kernels_compiled",
        )
        lines += [
            f"| {name} | {run['seconds']:.1f} | {' | '.join(str(run[column]) for column in columns)} |"
            for name, run in report["compiling"].items()
        ]
    else:
        best = list(report["candidates"])[1]
        lines += [
            report["table"],
            "",
            f"| | times {best} | TFLOP per image "
            f"| share of matrix products' {report['ceiling'] / 1e12:.3g} TFLOP/s |",
            "|---|---:|---:|---:|",
        ]
        for name, ratio in report["ratio_to_best_batch"].items():
            spread = f"{ratio['median']:.3g} ({ratio['least']:.3g} to {ratio['most']:.3g})"
            work = f"{report['work_per_image'][name] / 1e12:.4g}"
            lines.append(f"| {name} | {spread} | {work} | {report['share_of_ceiling'][name]:.1%} |")
        lines += [
            "",
            f"| images in {report['half']} | relative error against float32, mean of {COMPARED} "
            "| least to most |",
            "|---|---:|---:|",
        ]
        lines += [
            f"| {name} | {np.mean(found):.3g} | {min(found):.3g} to {max(found):.3g} |"
            for name, found in report["errors"].items()
        ]
    setting = report["setting"]
    said = (
        f"{setting['size']} model, {setting['resolution']} pixels, {setting['steps']} PNDM steps, "
        f"guidance {setting['guidance_scale']:g}, {setting['dtype']}"
    )
    return "\n".join([*lines, "", f"{said}; {surroundings_line(report)}"])


def main(arguments: Sequence[str]) -> None:
    """Measure and print the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--size", choices=("full", "mini"), default="full")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="default: float16 on a GPU, float32 on a CPU",
    )
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument(
        "--largest-batch",
        type=int,
        default=64,
        help="largest batch size to try; with --compiling, the batch size to compile",
    )
    parser.add_argument(
        "--no-compile", dest="compile", action="store_false", help="leave out the compiled candidates"
    )
    parser.add_argument("--repeats", type=int, default=5, help="windows per candidate")
    parser.add_argument("--seconds", type=float, default=10, help="minimum length of a window")
    parser.add_argument(
        "--compiling", action="store_true", help="measure compilation itself, in two processes"
    )
    parser.add_argument("--one-process", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument(
        "--throughput-out",
        type=Path,
        help="table for `augbench plan` (results/throughput.yaml); only with --size full and 50 steps",
    )
    options = parser.parse_args(arguments)
    options.dtype = options.dtype or ("float16" if options.device == "cuda" else "float32")
    if options.one_process:
        print(json.dumps(compile_once(options)))
        return
    setting = Setting(options.size, options.device, options.dtype, options.steps)
    report = {"compiling": compile_twice(arguments)} if options.compiling else measure(setting, options)
    report["setting"] = {
        **vars(setting),
        "resolution": setting.resolution,
        "guidance_scale": setting.guidance_scale,
    }
    report |= surroundings("benchmarks/generate.py", arguments, options.device)
    publish(report, markdown(report), options.json)
    if options.throughput_out and options.size == "full" and options.steps == 50 and not options.compiling:
        rates = {
            name: found["rate"]["median"]
            for name, found in report["candidates"].items()
            if name.startswith("ours") and "fast mode" not in name
        }
        machine = report["machine"]
        write_figures(
            options.throughput_out,
            machine.get("gpu", machine["processor"]),
            {"generate": max(rates.values())},
            surroundings_line(report),
        )


if __name__ == "__main__":
    main(sys.argv[1:])
