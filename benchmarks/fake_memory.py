"""Count the peak memory of each stage on a GPU, at full size and by batch, on any machine and without a GPU.

Output: a Markdown table in GiB, and JSON with ``--json``. Tensors on the GPU are fake: they have sizes and no
values (``tests/fake_cuda.py``). So the figures are sums of live tensors. Workspaces of cuDNN and cuBLAS, the
CUDA context (together about 1 GiB) and fragmentation come on top.
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from fake_cuda import FakeGpu, fake_gpu
from full_size import classified, embedded, fine_tuned, maker, published_sizes, searched, study_of

from augbench.personalise.train import Trainer
from benchmarks.record import publish, surroundings, surroundings_line

# by stage
CLASSIFIERS = {
    "classify": "resnet50",
    "classify_convnext_tiny": "timm:convnext_tiny",
    "classify_vit_base": "timm:vit_base_patch16_224",
}
STAGES = ("generate", "finetune_vectors", "finetune_unet", *CLASSIFIERS, "embed", "search")
# method, precision, images in a micro-batch
FINE_TUNING = {
    "finetune_vectors": [
        ("conditioning", "bfloat16", (1, 2, 4, 8, 16, 26, 64)),
        ("conditioning", "float16", (4, 26)),
        ("conditioning", "float32", (1, 2, 4, 8, 16, 26)),
        ("pseudoword", "bfloat16", (4, 26)),
    ],
    "finetune_unet": [
        ("imagic", "bfloat16", (1, 2, 4, 8, 16, 26, 64)),
        ("imagic", "float16", (4, 26)),
        ("imagic", "float32", (1, 4, 8, 16, 26)),
        ("pseudoword_dm", "bfloat16", (4, 26)),
    ],
}


@dataclass(frozen=True)
class Peak:
    """Peak of a part of a stage with some images at once, in GiB."""

    stage: str
    part: str
    dtype: str
    batch: int
    gib: float


@contextmanager
def peaks_inside(gpu: FakeGpu, owner: Any, name: str) -> Iterator[list[float]]:
    """List that gets the peak of each call of a function, in GiB, with all that is live before it."""
    peaks: list[float] = []
    function = getattr(owner, name)

    def watched(*arguments: Any, **named: Any) -> Any:
        gpu.reset_peak()
        result = function(*arguments, **named)
        peaks.append(gpu.peak / 2**30)
        return result

    with mock.patch.object(owner, name, watched):
        yield peaks


def generation(gpu: FakeGpu, folder: Path) -> Iterator[Peak]:
    """Peaks of a guided U-Net and of the decoder, with all networks in memory."""
    for batch in (8, 16, 26, 32, 64):
        made = maker(study_of("clip_prompts", batch), folder)
        with (
            peaks_inside(gpu, made.pipeline.unet, "forward") as unet,
            peaks_inside(gpu, made.pipeline.vae, "decode") as decoder,
        ):
            made.ready().pixels(["a photo of a bag."] * batch, range(batch), None)
        yield Peak("generate", "U-Net", "float16", batch, max(unet))
        yield Peak("generate", "decoder", "float16", batch, max(decoder))


def fine_tuning(gpu: FakeGpu, folder: Path, stage: str) -> Iterator[Peak]:
    """Peaks of the second of two steps of one micro-batch; Adam has its moments from then on."""
    for method, dtype, batches in FINE_TUNING[stage]:
        for batch in batches:
            study = study_of(method, batch, finetune={"dtype": dtype, "batch_size": batch})
            with peaks_inside(gpu, Trainer, "step") as steps:
                fine_tuned(study, folder, images=2 * batch)
            yield Peak(stage, method, dtype, batch, steps[1])
            gc.collect()


def peaks_of(stage: str, gpu: FakeGpu, folder: Path) -> Iterator[Peak]:
    """Peaks of all parts and batches of a stage."""
    if stage == "generate":
        yield from generation(gpu, folder)
    elif stage in FINE_TUNING:
        yield from fine_tuning(gpu, folder, stage)
    else:
        cases: dict[str, tuple[str, tuple[int, ...], Callable[[int], Any]]] = {
            **{
                name: ("bfloat16", (64, 128, 256), partial(classified, folder=folder, arch=arch))
                for name, arch in CLASSIFIERS.items()
            },
            "embed": ("float16", (64, 256), embedded),
            "search": ("float16", (1000, 4000, 16000), lambda queries: searched(queries, 182)),
        }
        dtype, batches, run = cases[stage]
        for batch in batches:
            gpu.reset_peak()
            run(batch)
            yield Peak(stage, "", dtype, batch, gpu.peak / 2**30)
            gc.collect()


def table(peaks: Iterable[Peak]) -> str:
    """Markdown: a row for each part and precision, with the peak of each batch."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for peak in peaks:
        rows.setdefault((peak.stage, peak.part, peak.dtype), []).append(f"{peak.batch}: {peak.gib:.1f}")
    lines = [
        f"| {stage} | {part} | {dtype} | {', '.join(found)} |" for (stage, part, dtype), found in rows.items()
    ]
    return "\n".join(["| stage | part | precision | GiB by batch |", "|---|---|---|---|", *lines])


def main() -> None:
    """Count, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--json", type=Path, help="write all figures there")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    peaks = []
    with tempfile.TemporaryDirectory() as folder, fake_gpu() as gpu, published_sizes():
        gpu.selected = 100_000
        for stage in options.stages:
            for peak in peaks_of(stage, gpu, Path(folder)):
                print(peak, file=sys.stderr, flush=True)
                peaks.append(peak)
    report = surroundings("benchmarks/fake_memory.py", sys.argv[1:])
    report["peaks"] = [vars(peak) for peak in peaks]
    publish(report, f"{table(peaks)}\n\n{surroundings_line(report)}", options.json)


if __name__ == "__main__":
    main()
