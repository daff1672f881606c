"""Decode image files of any common kind to 8-bit RGB, as a viewer shows them.

Images are rotated as their EXIF block says, transparency is laid on white, and 16-bit values are scaled.
A file that can't be decoded gives an error that names it. Several files can be decoded at once.
"""

from __future__ import annotations

import logging
import os
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

from augbench.errors import UserError

logger = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")

SIXTEEN_BIT = {"I", "I;16", "I;16L", "I;16B", "I;16N"}
# exceptions that Pillow raises for files that are broken, of a foreign kind or far too large
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any Pillow mode to 8-bit RGB.

    Transparency is laid on white, 16-bit grey is scaled by 1/257, CMYK and palettes are converted.

    Raises
    ------
    ValueError
        The mode has no known range of values (floating point).
    """
    if image.mode in SIXTEEN_BIT:
        values = np.asarray(image).astype(np.float64) / 257
        return Image.fromarray(values.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels; 8 or 16 bits per channel are needed")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        # RGBA handles every kind of transparency; Pillow converts the premultiplied mode La only to LA
        layered = image.convert("LA") if image.mode == "La" else image
        layered = layered.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")
    return image.convert("RGB")


def square(image: Image.Image, side: int) -> Image.Image:
    """Resize the shorter side to ``side`` pixels and crop the centre, as diffusion models are trained."""
    from torchvision.transforms import v2

    resized = v2.functional.resize(image, [side], v2.InterpolationMode.BICUBIC)
    return v2.functional.center_crop(resized, [side, side])


def _turn_upright(image: Image.Image, path: Path) -> None:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except BROKEN as error:  # the pixels are fine, and ImageNet has such files
        logger.warning("%s: its EXIF block is broken (%s)", path, error)


def _damaged(path: Path, error: BaseException) -> UserError:
    reason = " ".join(str(error).replace(str(path), "").replace("''", "").split()) or type(error).__name__
    return UserError(str(path), f"not readable as an image ({reason})", "replace or remove the file")


def open_rgb(path: str | Path) -> Image.Image:
    """Decode a file; of an animation, the first frame.

    Raises
    ------
    UserError
        The file is missing, truncated, or not an image that Pillow knows.
    """
    path = Path(path)
    try:
        with Image.open(path) as image:
            image.load()
            _turn_upright(image, path)
            return to_rgb(image)
    except FileNotFoundError:
        raise UserError(str(path), "missing", "put it back, or delete the splits and run again") from None
    except BROKEN as error:
        raise _damaged(path, error) from None


def find_damage(path: str | Path) -> UserError | None:
    """Damage that Pillow's ``verify`` finds in a file without decoding it; None if it finds none."""
    try:
        with Image.open(path) as image:
            image.verify()
    except BROKEN as error:
        return _damaged(Path(path), error)
    return None


def in_order(function: Callable[[T], R], items: Iterable[T], threads: int | None = None) -> Iterator[R]:
    """Yield ``function`` of each item in order, computed in threads, only a few items ahead of their use.

    ``threads`` defaults to the number of cores that this process may use, at most 8. Pillow decodes
    outside Python's global lock.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = threads or min(8, cores)
    waiting: deque[Future[R]] = deque()
    remaining = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        try:
            waiting.extend(pool.submit(function, item) for item in islice(remaining, 4 * threads))
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(function, item) for item in islice(remaining, 1))
                yield result
        finally:
            for future in waiting:
                future.cancel()
