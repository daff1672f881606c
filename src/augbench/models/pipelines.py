"""Load any text-to-image pipeline of diffusers from its folder, with its own scheduler.

Stable Diffusion 1.x and 2.x have a loader of their own (:func:`augbench.models.folders.load_pipeline`). This
module is imported only by jobs that sample another model.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from augbench.errors import UserError

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

logger = logging.getLogger(__name__)
ROOM = 0.85  # share of a GPU's free memory that weights may fill; sampling needs the rest


def load_pipeline(folder: str | Path, device: torch.device, dtype: torch.dtype) -> DiffusionPipeline:
    """Load a text-to-image pipeline, whose class the folder's ``model_index.json`` names.

    If the weights would fill a GPU's memory, they stay in main memory, and diffusers moves each network to
    the GPU while it is used (model CPU offload).

    Raises
    ------
    UserError
        There is no such folder, or it holds no text-to-image pipeline.
    """
    from diffusers import AutoPipelineForText2Image

    if not (Path(folder) / "model_index.json").is_file():
        raise UserError(
            str(folder),
            "no pipeline there",
            "put the model back, or fetch it again by deleting the study's folder models/",
        )
    try:
        pipeline: Any = AutoPipelineForText2Image.from_pretrained(
            str(folder), dtype=dtype, local_files_only=True
        )
    except ValueError as error:
        raise UserError(
            str(folder), " ".join(str(error).split()), "a text-to-image pipeline of diffusers is needed"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    if getattr(pipeline, "vae", None) is not None and hasattr(pipeline.vae, "enable_slicing"):
        pipeline.vae.enable_slicing()  # the decoder needs more memory per image than the denoiser
    return place(pipeline, device)


def place(pipeline: Any, device: torch.device) -> DiffusionPipeline:
    """Put a pipeline's networks on the device, or have diffusers move each one there when it is used."""
    import torch

    if device.type == "cuda":
        needed, free = weight_bytes(pipeline), torch.cuda.mem_get_info()[0]
        if needed > ROOM * free:
            logger.warning(
                "%s: %.1f GiB of weights for %.1f GiB of free GPU memory: each network is on the GPU only while"
                " it is used, which is slower; the images stay the same",
                type(pipeline).__name__,
                needed / 2**30,
                free / 2**30,
            )
            pipeline.enable_model_cpu_offload(device=device)
            return pipeline
    return pipeline.to(device)


def weight_bytes(pipeline: Any) -> int:
    """Bytes of the weights and buffers of all networks of a pipeline."""
    import torch

    networks = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    return sum(
        values.numel() * values.element_size()
        for network in networks
        for values in (*network.parameters(), *network.buffers())
    )
