"""Corruptions of test images, with the severities of ImageNet-C (Hendrycks and Dietterich, 2019)."""

from __future__ import annotations

import numpy as np
from PIL import Image

from augbench.data.decode import middle

SEVERITIES = {
    "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),  # standard deviation, of values from 0 to 1
    "gaussian_blur": (1.0, 2.0, 3.0, 4.0, 6.0),  # standard deviation, in pixels of BLURRED_SIDE
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),  # factor of the difference from the image's mean
}
BLURRED_SIDE = 224  # pixels: side of ImageNet-C's images, which the width of the blur is given for
LARGEST_SIDE = 256  # pixels: an image with a longer shorter side is scaled to it, as for ImageNet-C


def corrupt(image: Image.Image, corruption: str, severity: int, seed: int) -> Image.Image:
    """Corrupt an RGB image.

    Parameters
    ----------
    corruption : str
        A key of :data:`SEVERITIES`.
    severity : int
        From 1 to 5.
    seed : int
        Seed of the noise.
    """
    strength = SEVERITIES[corruption][severity - 1]
    values: np.ndarray = np.asarray(_scaled(image), dtype=np.float64) / 255  # (H, W, 3)
    if corruption == "gaussian_noise":
        values = values + np.random.default_rng(seed).normal(scale=strength, size=values.shape)
    elif corruption == "contrast":
        mean = values.mean(axis=(0, 1))
        values = (values - mean) * strength + mean
    else:
        import cv2

        sigma = strength * min(values.shape[:2]) / BLURRED_SIDE
        values = cv2.GaussianBlur(values, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    return Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8))


def _scaled(image: Image.Image) -> Image.Image:
    image = middle(image)
    shorter = min(image.size)
    if shorter <= LARGEST_SIDE:
        return image
    width, height = (round(LARGEST_SIDE * length / shorter) for length in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)
