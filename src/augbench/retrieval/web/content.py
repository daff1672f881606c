"""Content: decide whether a fetched file is an image that may be kept.

An image's format and size are read from its header before its pixels are decoded. Decoding has no time
limit of its own; ``max_pixels`` bounds its time. JPEG, PNG, WebP, GIF (first frame) and BMP are accepted,
because web pages show them. TIFF is not accepted, because of its decoder's history of security bugs. AVIF is
not accepted, because Pillow may be built without it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from io import BytesIO

from PIL import Image, UnidentifiedImageError

from augbench.data.decode import BROKEN, upright_rgb
from augbench.retrieval.web.fates import (
    FETCHED,
    NOT_AN_IMAGE,
    TOO_MANY_PIXELS,
    TOO_SMALL,
    UNDECODABLE,
    Limits,
)

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
# BMP is not listed: its signature is two letters, with which many texts begin
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a")


def _begins_as_image(content: bytes) -> bool:
    return content.startswith(_BEGINNINGS) or (content[:4] == b"RIFF" and content[8:12] == b"WEBP")


@dataclass(frozen=True)
class Verdict:
    """The fate of a file.

    Width and height are in pixels if the header was read, upright once decoded. ``sha256`` is hexadecimal,
    and only given if the file may be kept.
    """

    fate: str
    width: int | None = None
    height: int | None = None
    sha256: str | None = None


def judge(content: bytes, limits: Limits) -> Verdict:
    """Decode a file within limits; a problem with the file becomes its fate and raises no exception."""
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            fate = fate_of_size(width, height, limits)
            if fate != FETCHED:
                return Verdict(fate, width, height)
            width, height = upright_rgb(image).size
    except Image.DecompressionBombError:
        return Verdict(TOO_MANY_PIXELS)
    except UnidentifiedImageError:
        return Verdict(UNDECODABLE if _begins_as_image(content) else NOT_AN_IMAGE)
    except BROKEN:
        return Verdict(UNDECODABLE)
    return Verdict(FETCHED, width, height, hashlib.sha256(content).hexdigest())


def fate_of_size(width: int, height: int, limits: Limits) -> str:
    """Return ``TOO_MANY_PIXELS``, ``TOO_SMALL`` or ``FETCHED`` for a size in pixels."""
    if width * height > limits.max_pixels:
        return TOO_MANY_PIXELS
    return TOO_SMALL if min(width, height) < limits.min_side else FETCHED
