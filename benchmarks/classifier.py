"""Compare the speed of our classifier training with torchvision's reference script.

Input: random photograph-like JPEG files in class folders, and ResNet-50 at 224 pixels (``--size full``) or
the demo's network at 32 pixels. Output: a Markdown table, and JSON with ``--json``: training images per
second of

- the loop of torchvision's ``references/classification/train.py``: ImageFolder, PIL, worker processes, its
  default transforms; in float32, and on a GPU also with mixed precision;
- ours: images are decoded once, kept on the device and augmented there; with ``--compile`` also compiled;
- the step alone: our network, precision and optimiser on one batch that is ready; and the same with
  torchvision's settings. Our loop is slower than our step alone by the time for images and augmentation.

Candidates take turns, an epoch or more at a time. ``tests/test_classifier.py`` tests that our crops have the
distribution of ``RandomResizedCrop`` and that our pixels equal torchvision's.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from augbench.classifier.compute import Compute
from augbench.classifier.crops import MEAN, STD
from augbench.classifier.images import LabelledImages
from augbench.classifier.model import build
from augbench.classifier.step import autocast
from augbench.classifier.train import train_run
from augbench.config.classifier import Classifier
from augbench.data.decode import in_order, open_rgb
from benchmarks.machine import default_type, product_rate
from benchmarks.paired import Candidate, run_paired
from benchmarks.pictures import make_pictures
from benchmarks.record import publish, surroundings, surroundings_line
from benchmarks.throughput import write_rates

Result = dict[str, Any]
CLASSES = 10
CONFIGS = {
    "full": Classifier(arch="resnet50", batch_size=256),
    "mini": Classifier(
        arch="resnet18",
        layers=(1, 1, 1, 1),
        base_width=16,
        resolution=32,
        evaluation_resize=32,
        min_crop_area=0.7,
        batch_size=128,
    ),
}
REFERENCE, REFERENCE_AMP = "torchvision's reference", "torchvision's reference, mixed precision"
OURS, COMPILED = "ours", "ours, compiled"
READY, READY_PLAIN = "our step, batch ready", "plain mixed-precision step, batch ready"


def reference_epoch(
    folder: Path, config: Classifier, device: torch.device, workers: int, mixed: bool
) -> Callable[[], None]:
    """Return an epoch of torchvision's script with its defaults, except batch size and number of workers."""
    transforms = v2.Compose(
        [
            v2.RandomResizedCrop(
                config.resolution,
                scale=(config.min_crop_area, 1.0),
                interpolation=v2.InterpolationMode.BILINEAR,
                antialias=True,
            ),
            v2.RandomHorizontalFlip(0.5),
            v2.PILToTensor(),
            v2.ToDtype(torch.float, scale=True),
            v2.Normalize(mean=MEAN, std=STD),
        ]
    )
    images = ImageFolder(str(folder), transforms)
    loader = torch.utils.data.DataLoader(
        images,
        batch_size=config.batch_size,
        shuffle=True,
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )
    model = build(config, CLASSES, 0).to(device)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    criterion, scaler = nn.CrossEntropyLoss(), torch.amp.GradScaler(device.type, enabled=mixed)
    model.train()

    def epoch() -> None:
        for image, target in loader:
            image, target = image.to(device), target.to(device)
            with torch.amp.autocast(device.type, torch.float16 if mixed else None, enabled=mixed):
                output = model(image)
                loss = criterion(output, target)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            with torch.inference_mode():  # the script computes accuracies of every batch
                hits = output.topk(5, 1)[1].t() == target[None]
                (hits[:1].sum() * (100.0 / len(target))).item(), (hits.sum() * (100.0 / len(target))).item()
            loss.item()

    return epoch


def our_epochs(
    images: LabelledImages, config: Classifier, compute: Compute, epochs: int
) -> Callable[[], None]:
    """Return ``epochs`` epochs of our training from new weights; one image is evaluated after each."""
    held_out = LabelledImages(images.ids[:1], images.labels[:1], images.load, "one image")
    some = config.model_copy(update={"max_epochs": epochs})
    return lambda: train_run(
        some,
        classes=CLASSES,
        real=images,
        added=None,
        validation=held_out,
        run=0,
        study_seed=0,
        compute=compute,
    )


def ready_step(
    config: Classifier,
    device: torch.device,
    ours: bool,
    deterministic: bool | None = None,
    compiled: bool = False,
) -> Callable[[], None]:
    """Return a training step on a random batch that is already on the device.

    The settings are ours (deterministic cuDNN, ``foreach`` optimiser) or PyTorch's defaults;
    ``deterministic`` sets cuDNN's apart from the others.
    """
    if deterministic is None:
        deterministic = ours
    model = build(config, CLASSES, 0).to(device, memory_format=torch.channels_last)
    if compiled:
        model.compile(options={"deterministic": deterministic})
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        foreach=ours or None,
    )
    images = torch.randn(
        config.batch_size, 3, config.resolution, config.resolution, device=device
    ).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (config.batch_size,), device=device)

    def step() -> None:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=deterministic):
            with autocast(config, device):
                loss = F.cross_entropy(model(images).float(), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    return step


def measure(options: argparse.Namespace, folder: Path) -> Result:
    """Write the image files, decode them for our loop, time all candidates in turn."""
    torch.set_num_threads(options.threads)
    device, config = torch.device(options.device), CONFIGS[options.size]
    per_class = options.images // CLASSES
    paths = [
        path
        for number in range(CLASSES)
        for path in make_pictures(folder / f"class{number}", per_class, options.size)
    ]
    images = LabelledImages(
        [path.parent.name + path.name for path in paths],
        np.repeat(np.arange(CLASSES), per_class),
        lambda rows: in_order(open_rgb, paths[rows]),
        "images",
    )
    compute = Compute(device)
    begun = time.perf_counter()
    images.pool(config.evaluation_resize or round(config.resolution * 256 / 224), compute)
    decoding = time.perf_counter() - begun
    step = ready_step(config, device, True)
    with FlopCounterMode(display=False) as counter:
        step()
    flops = counter.get_total_flops() / config.batch_size
    count, batch = len(paths), config.batch_size
    candidates = {
        REFERENCE: Candidate(reference_epoch(folder, config, device, options.workers, False), count)
    }
    if options.device == "cuda":
        candidates[REFERENCE_AMP] = Candidate(
            reference_epoch(folder, config, device, options.workers, True), count
        )
    candidates[OURS] = Candidate(our_epochs(images, config, compute, options.epochs), count * options.epochs)
    if options.compile:
        candidates[COMPILED] = Candidate(
            our_epochs(images, config, replace(compute, compiled=True), options.epochs),
            count * options.epochs,
        )
    candidates[READY] = Candidate(step, batch)
    if options.device == "cuda":
        candidates[READY_PLAIN] = Candidate(ready_step(config, device, False), batch)
    paired = run_paired(
        candidates,
        options.device,
        options.repeats,
        options.seconds,
        said=lambda line: print(line, file=sys.stderr),
    )
    ceiling = product_rate(options.device, default_type(options.device))
    waiting = sorted(1 - ratio for ratio in paired.ratios(OURS, READY))
    return {
        "images": count,
        "decoding_seconds": decoding,
        "flops_per_image": flops,
        "product_rate": ceiling,
        "share_of_ceiling": {name: paired.rate(name) * flops / ceiling for name in candidates},
        "input_share": {"median": float(np.median(waiting)), "least": waiting[0], "most": waiting[-1]},
        "results": paired.summary(),
        "table": paired.markdown("image"),
    }


def markdown(report: Result) -> str:
    """Return the table, the time for images besides the step, and the shares of the ceiling."""
    shares = ", ".join(f"{name} {share:.1%}" for name, share in report["share_of_ceiling"].items())
    waiting = "{median:.1%} ({least:.1%} to {most:.1%})".format(**report["input_share"])
    return "\n".join(
        [
            report["table"],
            "",
            f"{report['images']:,} images. Ours decodes them once in {report['decoding_seconds']:.1f} s; "
            f"its rate does not include this. Images and augmentation take {waiting} of its time. "
            f"{report['flops_per_image'] / 1e9:.3g} GFLOP per image; share of bare matrix products "
            f"({report['product_rate'] / 1e12:.3g} TFLOP/s): {shares}.",
            "",
            surroundings_line(report),
        ]
    )


def main(arguments: Sequence[str]) -> None:
    """Make the images, compare, print the result, remove the images."""
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--size",
        choices=["full", "mini"],
        default="full",
        help="ResNet-50 at 224 pixels, or the demo's network at 32",
    )
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=3, help="epochs of ours per call")
    parser.add_argument("--compile", action="store_true", help="also time ours compiled (execution.compile)")
    parser.add_argument("--threads", type=int, default=cores)
    parser.add_argument("--workers", type=int, default=cores, help="worker processes of torchvision's script")
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
            "benchmarks/classifier.py", arguments, options.device
        )
    publish(report, markdown(report), options.json)
    write_rates(options, report, {"classify": OURS})


if __name__ == "__main__":
    main(sys.argv[1:])
