"""Outputs of a network for images as evaluation sees them: the centre crop, without gradients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from augbench.classifier.crops import cut_centre
from augbench.classifier.images import ImagePool, stream
from augbench.classifier.sizes import evaluation_resize
from augbench.classifier.step import autocast, layout
from augbench.config.classifier import Classifier
from augbench.runtime.fit import BatchLimit


def in_equal_batches(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Split ``order`` into batches of nearly equal size, at most ``batch_size``, so that none is tiny."""
    return np.array_split(order, -(-len(order) // batch_size))


@torch.inference_mode()
def predict(
    model: nn.Module, pool: ImagePool, config: Classifier, device: torch.device, rows: slice | None = None
) -> torch.Tensor:
    """Compute outputs, float32 (N, D) on the CPU, for all images or those in ``rows``.

    Images are cropped as in evaluation. The outputs of a classifier are logits.
    """
    model.eval()
    # On CUDA about 16 million pixels: they keep a device busy and need less than 16 GB with a ResNet-50.
    size = max(1, min(1024, 2**24 // config.resolution**2)) if device.type == "cuda" else 250
    resize = evaluation_resize(config)
    logits: list[torch.Tensor] = []
    limit = BatchLimit(size, "classifying images")
    batches = in_equal_batches(np.arange(len(pool))[rows or slice(None)], size)
    for images, sizes in stream([pool], batches, device):

        def scored(
            part: Sequence[int], images: torch.Tensor = images, sizes: np.ndarray = sizes
        ) -> torch.Tensor:
            chosen = slice(part[0], part[-1] + 1)
            crops = layout(cut_centre(images[chosen], sizes[chosen], resize, config.resolution))
            with autocast(config, device):
                return model(crops).float()

        logits += limit.run(scored, range(len(images)))
    return torch.cat(logits).cpu()
