"""Distractors of the miniature corpus: printed words and numbers, textures, photographs, warning signs.

Warning signs stand in for the unsafe images of the real web: the miniature's safety checker is calibrated
to flag them, and their ``NSFW`` and ``punsafe`` columns mark them as unsafe.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from augbench.seeds import derive_seed

SIDE = 32
KINDS = ("text", "number", "texture", "photograph", "warning_sign")
UNSAFE_KIND = "warning_sign"
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_WORDS = ("SALE", "NEW", "50%", "OK", "HOT", "BUY", "TOP", "FREE", "WEB", "LOGO")


@cache
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSerif.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf" / name), size)


@cache
def _photographs() -> tuple[Image.Image, ...]:
    from sklearn.datasets import load_sample_images

    return tuple(map(Image.fromarray, load_sample_images().images))


def _colour(rng: np.random.Generator, low: int = 0, high: int = 256) -> tuple[int, int, int]:
    red, green, blue = rng.integers(low, high, size=3).tolist()
    return red, green, blue


def _printed(text: str, size: int, rng: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), _colour(rng, 160))
    draw = ImageDraw.Draw(image)
    centre = (SIDE / 2 + rng.uniform(-3, 3), SIDE / 2 + rng.uniform(-3, 3))
    draw.text(
        centre, text, fill=_colour(rng, 0, 110), font=_font(size, bool(rng.random() < 0.5)), anchor="mm"
    )
    return image


def _texture(rng: np.random.Generator) -> Image.Image:
    cells = int(rng.integers(3, 9))
    grid = rng.integers(0, 256, size=(cells, cells, 3)).astype(np.uint8)
    how = Image.Resampling.NEAREST if rng.random() < 0.4 else Image.Resampling.BICUBIC
    return Image.fromarray(grid).resize((SIDE, SIDE), how)


def _photograph(rng: np.random.Generator) -> tuple[Image.Image, str]:
    which = int(rng.integers(2))
    photograph = _photographs()[which]
    side = int(rng.integers(96, min(photograph.size)))
    top, left = (int(rng.integers(extent - side + 1)) for extent in (photograph.height, photograph.width))
    image = photograph.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BOX)
    return image, ("temple and trees, travel photo", "flower in the garden, close-up")[which]


def _warning_sign(rng: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), _colour(rng, 120))
    draw = ImageDraw.Draw(image)
    x, y, r = SIDE / 2 + rng.uniform(-3, 3), SIDE / 2 + 2 + rng.uniform(-2, 2), rng.uniform(11, 14)
    yellow = (255, int(rng.integers(190, 225)), int(rng.integers(0, 40)))
    draw.polygon(
        [(x, y - r), (x - r, y + 0.8 * r), (x + r, y + 0.8 * r)], fill=yellow, outline=(0, 0, 0), width=2
    )
    draw.text((x, y + 1), "!", fill=(0, 0, 0), font=_font(16, True), anchor="mm")
    return image


def distractor(index: int, seed: int) -> tuple[np.ndarray, str, str]:
    """Draw distractor number ``index``: image ``uint8 (3, 32, 32)``, caption, kind (one of :data:`KINDS`)."""
    rng = np.random.default_rng(derive_seed(seed, "distractor", index))
    kind = KINDS[index % len(KINDS)]
    if kind == "text":
        word = _WORDS[int(rng.integers(len(_WORDS)))]
        image, caption = _printed(word, 11, rng), f"the word {word.lower()}, printed text"
    elif kind == "number":
        digit = int(rng.integers(10))
        image, caption = _printed(str(digit), 24, rng), f"the number {_NUMBERS[digit]}, a printed digit"
    elif kind == "texture":
        image, caption = _texture(rng), "abstract colourful background texture"
    elif kind == "photograph":
        image, caption = _photograph(rng)
    else:
        image, caption = _warning_sign(rng), "warning sign, danger"
    return np.asarray(image).transpose(2, 0, 1).copy(), caption, kind
