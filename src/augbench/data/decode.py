"""Decoding: an image file of any common kind to what the eye sees, as 8-bit RGB.

Flows in: a path. Flows out: an RGB ``PIL.Image``, turned as its EXIF block says, transparency laid on white, 16-bit
values scaled; or one clear error that names the file. Several files are decoded at once where that helps.
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
# what Pillow raises for files that are broken, foreign or far too large
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
    """Any Pillow mode as 8-bit RGB: transparency on white, 16-bit grey scaled by 1/257, CMYK and palettes converted.

    Raises
    ------
    ValueError
        A mode without a known range of values (floating point).
    """
    if image.mode in SIXTEEN_BIT:
        values = np.asarray(image).astype(np.float64) / 257
        return Image.fromarray(values.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels; 8 or 16 bits per channel are needed")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        # through RGBA, which knows the kinds of transparency; premultiplied modes have one way only
        layered = image.convert("LA") if image.mode == "La" else image
        layered = layered.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")
    return image.convert("RGB")


def square(image: Image.Image, side: int) -> Image.Image:
    """``image`` with its shorter side at ``side`` pixels, cropped to the centre, as diffusion models are trained."""
    from torchvision.transforms import v2

    return v2.functional.center_crop(
        v2.functional.resize(image, [side], v2.InterpolationMode.BICUBIC), [side, side]
    )


def _turn_upright(image: Image.Image, path: Path) -> None:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except BROKEN as error:  # the pixels are fine, and ImageNet has such files
        logger.warning("%s: its EXIF block is broken (%s)", path, error)


def _damaged(path: Path, error: BaseException) -> UserError:
    reason = " ".join(str(error).replace(str(path), "").replace("''", "").split()) or type(error).__name__
    return UserError(str(path), f"not readable as an image ({reason})", "replace or remove the file")


def open_rgb(path: str | Path) -> Image.Image:
    """Decode a file; animations give their first frame.

    Raises
    ------
    UserError
        The file is missing, truncated, or no image that Pillow knows.
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
    """What is wrong with a file, as far as Pillow's ``verify`` sees without decoding it; None if nothing is."""
    try:
        with Image.open(path) as image:
            image.verify()
    except BROKEN as error:
        return _damaged(Path(path), error)
    return None


def in_order(function: Callable[[T], R], items: Iterable[T], threads: int | None = None) -> Iterator[R]:
    """``map`` over a thread pool: results in order, a few ahead of their use, however many items there are.

    Threads default to the cores that this process may use, at most 8; Pillow decodes outside Python's lock.
    """
    threads = threads or min(
        8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
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
