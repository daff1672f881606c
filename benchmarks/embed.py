"""Compare the speed of our CLIP embedding of an image folder with other tools.

Input: random photograph-like JPEG files, and CLIP with random weights (``--size full``: ViT-L/14) or the
shipped miniature. Output: a Markdown table, and JSON with ``--json``: images per second of

- ``clip-retrieval inference`` on the folder, with as many workers as there are cores;
- the loop in transformers' documentation, file by file, in float32;
- ours, from files to files, and from pixels that are in memory.

The candidates take turns in one process. clip-retrieval starts processes at each call and ours loads the
model. Therefore both are also called with one batch, and the speed of the images beyond it is reported too.
All embeddings are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.machine import product_rate
from benchmarks.networks import random_clip
from benchmarks.paired import Candidate, Paired, run_paired
from benchmarks.pictures import make_pictures
from benchmarks.record import publish, surroundings, surroundings_line
from benchmarks.throughput import write_rates

if TYPE_CHECKING:
    import torch
    from transformers import CLIPModel

Result = dict[str, Any]
MINIATURE = Path(__file__).resolve().parents[1] / "resources" / "mini" / "clip"
BATCH = {"cpu": 32, "cuda": 256}
THEIRS, ONE_BATCH = "clip-retrieval inference", ", one batch"


def make_model(folder: Path, device: str) -> None:
    """Write CLIP ViT-L/14 with random weights, and the miniature's tokenizer (the same vocabulary)."""
    import torch
    from transformers import CLIPImageProcessor, CLIPTokenizer

    torch.manual_seed(0)
    with torch.device(device):
        model = random_clip("full")
    model.cpu().save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)
    CLIPTokenizer.from_pretrained(MINIATURE).save_pretrained(folder)


def transformers_loop(model: CLIPModel, processor: Any, paths: Sequence[Path], batch: int) -> torch.Tensor:
    """Embed as transformers' documentation shows, batch by batch; return unit vectors on the CPU."""
    import torch
    from PIL import Image

    parts = []
    for first in range(0, len(paths), batch):
        images = [Image.open(path).convert("RGB") for path in paths[first : first + batch]]
        inputs = processor(images=images, return_tensors="pt").to(model.device)
        with torch.no_grad():
            features = model.get_image_features(**inputs).pooler_output
        parts.append((features / features.norm(dim=-1, keepdim=True)).cpu())
    return torch.cat(parts)


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Redirect standard output of this process and its children to standard error, where progress goes."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def clip_retrieval(images: Path, model: Path, out: Path, batch: int, workers: int) -> np.ndarray:
    """Return unit vectors by ``clip-retrieval inference``: its defaults except model, batch and workers."""
    from all_clip.hf_clip import HFClipWrapper
    from clip_retrieval import clip_inference

    shutil.rmtree(out, ignore_errors=True)
    encode = HFClipWrapper.encode_image  # expects what transformers 4 returned
    with (
        stdout_to_stderr(),
        patch.object(
            HFClipWrapper, "encode_image", lambda model, images: encode(model, images).pooler_output
        ),
    ):
        clip_inference(
            str(images),
            str(out),
            batch_size=batch,
            num_prepro_workers=workers,
            enable_text=False,
            clip_model=f"hf_clip:{model}",
        )
    return np.concatenate([np.load(path) for path in sorted((out / "img_emb").glob("*.npy"))])


def ours(images: Path, model: Path, folder: Path, device: str, threads: int) -> np.ndarray:
    """Return unit vectors by the workflow's job for a folder of images, with an empty store."""
    from augbench.artifacts.store import Store
    from augbench.config.study import parse_study
    from augbench.files import write_json
    from augbench.models.folders import fingerprint
    from augbench.retrieval.embed import embed, list_folder
    from augbench.runtime.job import Job

    shutil.rmtree(folder, ignore_errors=True)
    study = {
        "study": "benchmark",
        "dataset": {"kind": "fashion_mnist"},
        "diffusion": {"model": str(MINIATURE)},
        "clip": {"model": str(model)},
        "methods": {"none": {"mechanism": "real"}},
        "augmentation": {"images_per_class": 1},
        "execution": {"device": device},
    }
    if not (identity := folder.parent / "clip.json").exists():
        write_json(identity, fingerprint(model))
    job = Job(parse_study(study), Store(folder / "store"), threads)
    embed(job, list_folder(images), identity, folder / "out")
    return np.concatenate([np.load(path) for path in sorted((folder / "out" / "img_emb").glob("*.npy"))])


def flops_per_image(model: CLIPModel, side: int) -> int:
    """Multiplications and additions of transformers' forward pass per image, all tokens in all layers."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.get_image_features(pixel_values=torch.randn(1, 3, side, side, device=model.device))
    return int(counter.get_total_flops())


def further_seconds(paired: Paired, name: str, images: int, batch: int) -> list[float]:
    """Seconds for the images beyond the first batch, window by window."""
    pairs = zip(paired.windows[name], paired.windows[name + ONE_BATCH], strict=True)
    return [images / whole.rate - batch / one.rate for whole, one in pairs]


def compare_further(paired: Paired, images: int, batch: int) -> Result | None:
    """Images per second beyond the first batch, and their ratio; None if start-up takes too long to tell."""
    theirs, ours = (further_seconds(paired, name, images, batch) for name in (THEIRS, "ours"))
    if min(*theirs, *ours) <= 0:
        return None
    ratios = sorted(one / other for one, other in zip(theirs, ours, strict=True))
    rates = {
        name: (images - batch) / statistics.median(seconds)
        for name, seconds in ((THEIRS, theirs), ("ours", ours))
    }
    return {
        "rates": rates,
        "ratio": {"median": statistics.median(ratios), "least": ratios[0], "most": ratios[-1]},
    }


def measure(options: argparse.Namespace, folder: Path) -> Result:
    """Make images and a model, compare the embeddings, then the speeds."""
    import torch

    from augbench.data.decode import open_rgb
    from augbench.models.folders import load_processor
    from augbench.models.transformers_clip import TransformersClip

    torch.set_num_threads(options.threads)
    device, images, model_folder = torch.device(options.device), folder / "images", MINIATURE
    if options.size == "full":
        model_folder = folder / "model"
        make_model(model_folder, options.device)
    paths = make_pictures(images, options.images, options.size)
    batch = BATCH[options.device]
    plain, processor = TransformersClip(model_folder, device).model, load_processor(model_folder)
    flops = flops_per_image(plain, plain.config.vision_config.image_size)
    tower = TransformersClip(model_folder, device).image_tower(half=options.device == "cuda")
    pixels = tower.prepare([open_rgb(path) for path in paths[:batch]])
    small = folder / "one_batch"
    small.mkdir()
    for path in paths[:batch]:
        os.link(path, small / path.name)

    def from_pixels() -> None:
        for _ in range(options.images // batch):
            tower.embed(pixels)

    def call_clip_retrieval(where: Path) -> np.ndarray:
        return clip_retrieval(where, model_folder, folder / "clip_retrieval", batch, options.threads)

    def call_ours(where: Path) -> np.ndarray:
        return ours(where, model_folder, folder / "ours", options.device, options.threads)

    reference = transformers_loop(plain, processor, paths, batch).numpy()
    errors = {
        name: float(np.abs(call(images) - reference).max())
        for name, call in ((THEIRS, call_clip_retrieval), ("ours", call_ours))
    }
    candidates = {
        THEIRS: Candidate(lambda: call_clip_retrieval(images), options.images),
        THEIRS + ONE_BATCH: Candidate(lambda: call_clip_retrieval(small), batch),
        "transformers' loop": Candidate(
            lambda: transformers_loop(plain, processor, paths, batch), options.images
        ),
        "ours": Candidate(lambda: call_ours(images), options.images),
        "ours" + ONE_BATCH: Candidate(lambda: call_ours(small), batch),
        "ours, from pixels in memory": Candidate(from_pixels, options.images // batch * batch),
    }
    paired = run_paired(
        candidates,
        options.device,
        options.repeats,
        options.seconds,
        said=lambda line: print(line, file=sys.stderr),
    )
    ceiling = product_rate(options.device, "float16" if options.device == "cuda" else "float32")
    return {
        "images": options.images,
        "flops_per_image": flops,
        "product_rate": ceiling,
        "results": paired.summary(),
        "largest_differences": errors,
        "ours_share_of_ceiling": {
            name: paired.rate(name) * flops / ceiling for name in ("ours", "ours, from pixels in memory")
        },
        "beyond_the_first_batch": compare_further(paired, options.images, batch),
        "table": paired.markdown("image"),
    }


def markdown(report: Result) -> str:
    """Return the table, the shares of the ceiling, and the largest differences of embeddings."""
    shares = ", ".join(f"{name} {share:.0%}" for name, share in report["ours_share_of_ceiling"].items())
    further = "too few to tell"
    if found := report["beyond_the_first_batch"]:
        rates = ", ".join(f"{name} {rate:.4g}" for name, rate in found["rates"].items())
        further = rates + "; ours / theirs {median:.3g} ({least:.3g} to {most:.3g})".format(**found["ratio"])
    errors = ", ".join(f"{name} {error:.1e}" for name, error in report["largest_differences"].items())
    return "\n".join(
        [
            report["table"],
            "",
            f"{report['images']:,} images, {report['flops_per_image'] / 1e9:.3g} GFLOP each; "
            f"share of bare matrix products ({report['product_rate'] / 1e12:.3g} TFLOP/s): {shares}. "
            f"Images per second beyond the first batch: {further}. "
            f"Largest difference of a unit vector's component from transformers' float32: {errors}.",
            "",
            surroundings_line(report),
        ]
    )


def main(arguments: Sequence[str]) -> None:
    """Make the data, compare, print the result, remove the data."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--size",
        choices=["full", "mini"],
        default="full",
        help="CLIP ViT-L/14 with random weights, or the shipped miniature",
    )
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument(
        "--threads",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="threads for decoding and for work on the CPU",
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="minimum length of a window")
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument(
        "--throughput-out",
        type=Path,
        help="table for `augbench plan` (results/throughput.yaml); written only with --size full on a GPU",
    )
    options = parser.parse_args(arguments)
    os.environ.update(
        {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": str(options.threads)}
    )
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # clip-retrieval uses a GPU wherever there is one
    with tempfile.TemporaryDirectory() as place:
        report = measure(options, Path(place)) | surroundings(
            "benchmarks/embed.py", arguments, options.device
        )
    publish(report, markdown(report), options.json)
    write_rates(options, report, {"embed": "ours"})


if __name__ == "__main__":
    main(sys.argv[1:])
