"""Decode image files of any common kind to 8-bit RGB, as a viewer shows them.

Images are rotated as their EXIF block says, transparency is laid on white, and values of more than 8 bits are
scaled. A file that can't be decoded gives an error that names it. Several files can be decoded at once.

Memory is bounded. A JPEG of more than :data:`MOST_PIXELS` is decoded at a half, quarter or eighth of its
size, which the format allows without decoding it whole. Other files of that size fail. An image that is more
than :data:`LONGEST` times as long as wide is cut to its middle before it is resized (:func:`middle`).
"""

from __future__ import annotations

import logging
import math
import os
import struct
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageFile, ImageOps, PngImagePlugin
from PIL.JpegImagePlugin import JpegImageFile

from augbench.data.walk import printable
from augbench.errors import UserError

logger = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")

MOST_PIXELS = 8192 * 8192  # an eighth of the largest JPEG's sides, so that every JPEG fits
LONGEST = 32  # length by width; panoramas and screenshots have up to 25
DEEP_GREY = {"I", "I;16", "I;16L", "I;16B", "I;16N"}
DEPTHS = (8, 10, 12, 14, 16)  # bits of a value that cameras, scanners and microscopes store in 16 bits
GUESSED_BITS = "guessed_bits"  # key of an image's info
# Pillow warns of broken tags, on top of its error if there is one, and of images above its own limit
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# generators of images write megabytes of text into them; all texts of an image together stay bounded
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
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


def _deep_grey_to_rgb(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    if values.min() < 0 or values.max() >= 2**16:
        raise ValueError("32-bit pixels, whose range is unknown; 8 or 16 bits per channel are needed")
    depth = next(bits for bits in DEPTHS if values.max() < 2**bits)
    scaled = values * (255 / (2**depth - 1))
    image = Image.fromarray(scaled.round().astype(np.uint8)).convert("RGB")
    image.info[GUESSED_BITS] = depth
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any Pillow mode to 8-bit RGB.

    Transparency is laid on white, CMYK and palettes are converted. Grey of 16 bits is scaled to 8. If no
    value needs more than 8, 10, 12 or 14 bits, the image is taken to have that depth, which is then in the
    result's ``info`` under :data:`GUESSED_BITS`.

    Raises
    ------
    ValueError
        The mode has no known range of values (floating point, 32 bits).
    """
    if image.mode in DEEP_GREY:
        return _deep_grey_to_rgb(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels; 8 or 16 bits per channel are needed")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        # RGBA handles every kind of transparency; Pillow converts the premultiplied mode La only to LA
        layered = image.convert("LA") if image.mode == "La" else image
        layered = layered.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")
    return image.convert("RGB")


def middle(image: Image.Image) -> Image.Image:
    """Cut an image that is more than :data:`LONGEST` times as long as wide to its middle.

    Whoever scales the shorter side and takes the middle square gets the same pixels, in bounded memory.
    """
    short, long = sorted(image.size)
    cut = (long - LONGEST * short) // 2
    if cut <= 0:
        return image
    width, height = image.size
    box = (cut, 0, width - cut, height) if width > height else (0, cut, width, height - cut)
    return image.crop(box)


def square(image: Image.Image, side: int) -> Image.Image:
    """Resize the shorter side to ``side`` pixels and crop the centre, as diffusion models are trained."""
    from torchvision.transforms import v2

    resized = v2.functional.resize(middle(image), [side], v2.InterpolationMode.BICUBIC)
    return v2.functional.center_crop(resized, [side, side])


def _damaged(path: Path, error: BaseException) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(printable(str(path)), "missing", "put it back, or delete the splits and run again")
    if isinstance(error, PermissionError):
        return UserError(printable(str(path)), "you may not read it", "a file that you may read is needed")
    reason = " ".join(str(error).replace(str(path), "").replace("''", "").split()) or type(error).__name__
    found = f"not readable as an image ({printable(reason)})"
    return UserError(printable(str(path)), found, "replace or remove the file")


def _open(file: Path | BytesIO) -> ImageFile.ImageFile:
    """Open a file of any size; Pillow's own limit would refuse large JPEGs before their scale is chosen."""
    try:
        return Image.open(file)
    except Image.DecompressionBombError:
        if isinstance(file, BytesIO):
            file.seek(0)
        try:
            return JpegImageFile(file)
        except SyntaxError:
            raise ValueError(f"more than {MOST_PIXELS:,} pixels; only a JPEG may have so many") from None


def stored_size(file: Path | BytesIO) -> tuple[int, int] | None:
    """Width and height in a file's header, before any rotation; None if Pillow can't read it."""
    try:
        with _open(file) as image:
            return image.size
    except BROKEN:
        return None


def _bound(image: Image.Image, most_pixels: int) -> None:
    """Choose the scale at which a JPEG has at most ``most_pixels``, if there is one.

    Raises
    ------
    ValueError
        The image has more than :data:`MOST_PIXELS` and can only be decoded whole.
    """
    width, height = image.size
    in_parts = isinstance(image, JpegImageFile) and "progressive" not in image.info
    if width * height > MOST_PIXELS and not in_parts:
        allowed = f"at most {MOST_PIXELS:,} are allowed, except in a JPEG that is not progressive"
        raise ValueError(f"{width} x {height} pixels; {allowed}")
    if isinstance(image, JpegImageFile) and width * height > most_pixels:
        scale = next((s for s in (2, 4, 8) if math.ceil(width / s) * math.ceil(height / s) <= most_pixels), 8)
        image.draft(None, (max(1, width // scale), max(1, height // scale)))


def _refuse_lost_bits(image: Image.Image) -> None:
    """Refuse colours of 10, 12 or 14 bits in 16, of which Pillow keeps only the upper 8 bits."""
    colours = [band for name, band in zip(image.getbands(), image.split(), strict=True) if name != "A"]
    brightest = max(int(np.asarray(band).max()) for band in colours)
    if 0 < brightest < 2 ** (14 - 8):
        raise ValueError("colours of less than 16 bits, stored in 16; save it with 8 bits per channel")


def upright_rgb(image: ImageFile.ImageFile) -> Image.Image:
    """Decode an open image to 8-bit RGB, rotated as its EXIF block says; a broken EXIF block is ignored.

    Raises
    ------
    One of :data:`BROKEN`
        The image is truncated, corrupt, or of a kind that :func:`to_rgb` refuses.
    """
    sixteen_bit = any(";16" in str(tile.args) for tile in image.tile[:1])
    image.load()
    if sixteen_bit and image.mode not in DEEP_GREY:
        _refuse_lost_bits(image)
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except BROKEN as error:  # the pixels are fine, and ImageNet has such files
        level = logging.WARNING if image.filename else logging.DEBUG  # the web has many
        logger.log(level, "%s: its EXIF block is broken (%s)", image.filename, error)
    return to_rgb(image)


@dataclass(frozen=True)
class Decoded:
    """A decoded file: the image, upright and RGB, and the width and height of the whole, in pixels."""

    image: Image.Image
    width: int
    height: int


def decode(path: str | Path, most_pixels: int = MOST_PIXELS, content: bytes | None = None) -> Decoded:
    """Decode a file; of an animation, the first frame.

    Parameters
    ----------
    path : path
        The file, or the name in errors of one whose ``content`` is given.
    most_pixels : int
        A JPEG with more is decoded at the scale of a half, a quarter or an eighth that comes below, or at an
        eighth.

    Raises
    ------
    UserError
        The file is missing, truncated, or not an image that Pillow knows; or it has too many pixels.
    """
    path = Path(path)
    try:
        with _open(path if content is None else BytesIO(content)) as image:
            width, height = image.size
            _bound(image, most_pixels)
            stored, upright = image.size, upright_rgb(image)
            if upright.size != stored:
                width, height = height, width
            return Decoded(upright, width, height)
    except BROKEN as error:
        raise _damaged(path, error) from None


def open_rgb(path: str | Path) -> Image.Image:
    """Decode a file to its image (:func:`decode`)."""
    return decode(path).image


def try_decode(
    path: str | Path, most_pixels: int = MOST_PIXELS, content: bytes | None = None
) -> Decoded | UserError:
    """Decode a file (:func:`decode`), or return the error."""
    try:
        return decode(path, most_pixels, content)
    except UserError as error:
        return error


def in_order(
    function: Callable[[T], R], items: Iterable[T], threads: int | None = None, ahead: int | None = None
) -> Iterator[R]:
    """Yield ``function`` of each item in order, computed in threads, at most ``ahead`` items before its use.

    ``threads`` defaults to the number of cores that this process may use, at most 8, and ``ahead`` to four
    times as many. Pillow decodes outside Python's global lock.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = threads or min(8, cores)
    ahead = ahead or 4 * threads
    waiting: deque[Future[R]] = deque()
    remaining = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        try:
            waiting.extend(pool.submit(function, item) for item in islice(remaining, ahead))
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(function, item) for item in islice(remaining, 1))
                yield result
        finally:
            for future in waiting:
                future.cancel()
