"""The floating-point type that a GPU computes fast and safely.

bfloat16 has float32's range. GPUs below compute capability 8 (V100, T4, RTX 20) only emulate it; float16 is
their fast type, and training in it needs a gradient scaler.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)
BFLOAT16_SINCE = 8
"""Compute capability (major number) from which tensor cores multiply bfloat16."""


@cache
def resolve(wanted: str, device: torch.device) -> torch.dtype:
    """Floating-point type for a config's ``dtype``.

    Parameters
    ----------
    wanted : str
        ``float32``, ``bfloat16``, ``float16``, or ``auto``: float32 on the CPU; on a GPU, bfloat16 where it
        is in the hardware, otherwise float16.
    """
    import torch

    if wanted != "auto":
        return getattr(torch, wanted)
    if device.type != "cuda":
        return torch.float32
    major, minor = torch.cuda.get_device_capability(device)
    chosen = torch.bfloat16 if major >= BFLOAT16_SINCE else torch.float16
    logger.info("dtype auto: %s on compute capability %d.%d", str(chosen).partition(".")[2], major, minor)
    return chosen
