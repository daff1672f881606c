"""Make JPEG files that decode like photographs, for benchmarks that read images.

The images are random and never blank. Files are hard links to 64 different ones, so that they take little
disk space.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

DIFFERENT = 64
SIDES = {"full": (256, 512), "mini": (40, 80)}  # smallest and largest side, pixels


def make_pictures(folder: Path, count: int, size: str) -> list[Path]:
    """Write ``count`` JPEG files of random shapes into a new folder: smooth, with a little noise."""
    from PIL import Image

    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    paths = [folder / f"{number:06d}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        if number >= DIFFERENT:
            os.link(paths[number % DIFFERENT], path)
            continue
        width, height = (int(side) for side in rng.integers(SIDES[size][0], SIDES[size][1] + 1, 2))
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        pixels = np.asarray(coarse) + rng.normal(0, 6, (height, width, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return paths
