"""Write scikit-learn's handwritten digits as an image folder: ``python write_digits.py FOLDER``."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def main(folder: Path) -> None:
    """One folder per digit, 8 x 8 grey images as PNG at 32 x 32."""
    digits = load_digits()
    for index, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        target = folder / NAMES[label] / f"{index:04d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray((image * 255 / 16).round().astype(np.uint8))
        grey.resize((32, 32), Image.Resampling.BICUBIC).convert("RGB").save(target)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
