"""Compare memory and speed of crops cut from scaled images with those cut from whole files.

Input: random images of 500 x 375 pixels, ImageNet's most common size, and none of larger ones. Output: a
Markdown table, and JSON with ``--json``: bytes per decoded image and crops per second for each
``classifier.decoded_size``, with the images in memory. Only reading and cutting is measured, not training; on
a CPU in processor seconds, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from augbench.classifier.compute import Compute
from augbench.classifier.crops import draw_crops
from augbench.classifier.images import ImagePool
from augbench.classifier.model import build
from augbench.classifier.sizes import training_side
from augbench.classifier.step import Gradients
from augbench.classifier.train import _Training
from augbench.config.classifier import Classifier
from benchmarks.record import publish, surroundings, surroundings_line

SIZES: tuple[Any, ...] = (None, 375, "file")
SHAPE = (375, 500, 3)


def pictures(count: int) -> Iterator[Image.Image]:
    """Yield random images."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield Image.fromarray(rng.integers(0, 256, SHAPE, dtype=np.uint8))


def measure(decoded_size: Any, count: int, batches: int, device: torch.device) -> dict[str, float]:
    """Bytes per image, and crops per second over batches of the size that the classifier has."""
    config = Classifier(decoded_size=decoded_size)
    pool = ImagePool(pictures(count), count, training_side(config), Compute(device), "images")
    compute = Compute(device)
    gradients = Gradients(build(config, 2, 0), config, compute)
    run = _Training(gradients, [pool], np.zeros(count, dtype=np.int64), 0, config, compute)
    rng = np.random.default_rng(0)
    crops = draw_crops(rng, pool.sizes, config.min_crop_area)
    chosen = [rng.integers(0, count, config.batch_size) for _ in range(batches + 1)]
    clock = time.monotonic if device.type == "cuda" else time.process_time
    last = clock()
    seconds = []
    for images in run._cut(crops, chosen):
        images.sum().item()  # wait for the device
        now = clock()
        seconds.append(now - last)
        last = now
    pixels = 3 * float(pool.sizes.prod(axis=1).mean())
    return {"bytes": pixels, "crops_per_second": config.batch_size / float(np.median(seconds[1:]))}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batches", type=int, default=5, help="of 256 crops, after one that is not counted")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    found = {str(size): measure(size, options.images, options.batches, device) for size in SIZES}
    report = {**surroundings("benchmarks/crops.py", sys.argv[1:], options.device), "sizes": found}
    rows = [
        f"| {size} | {one['bytes'] / 1e6:.2f} MB | {one['crops_per_second']:.0f} |"
        for size, one in found.items()
    ]
    head = ["| decoded_size | per image | crops/s |", "|---|---|---|"]
    publish(report, "\n".join([*head, *rows, "", surroundings_line(report)]), options.json)


if __name__ == "__main__":
    main()
