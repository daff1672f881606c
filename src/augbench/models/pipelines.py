"""Load any text-to-image pipeline of diffusers from its folder, with its own scheduler.

Stable Diffusion 1.x and 2.x have a loader of their own (:func:`augbench.models.folders.load_pipeline`). This
module is imported only by jobs that sample another model.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from augbench.config.models import Diffusion
from augbench.errors import UserError
from augbench.models.folders import load_processor, safety_components
from augbench.runtime.precision import resolve

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)
ROOM = 0.85  # share of a GPU's free memory that weights may fill; sampling needs the rest


@dataclass(frozen=True)
class Checker:
    """A safety checker and its image processor; both None if images are not checked."""

    safety_checker: Any
    feature_extractor: Any


def load_pipeline(
    folder: str | Path, device: torch.device, dtype: torch.dtype, from_images: bool = False
) -> Any:
    """Load a text-to-image pipeline, whose class the folder's ``model_index.json`` names.

    If the weights would fill a GPU's memory, they stay in main memory, and diffusers moves each network to
    the GPU while it is used (model CPU offload).

    Parameters
    ----------
    from_images : bool
        Return the pipeline's image-to-image twin, with the same networks.

    Raises
    ------
    UserError
        There is no such folder, or it holds no such pipeline.
    """
    from diffusers import DiffusionPipeline

    if not (Path(folder) / "model_index.json").is_file():
        raise UserError(
            str(folder),
            "no pipeline there",
            "put the model back, or fetch it again by deleting the study's folder models/",
        )
    try:
        pipeline: Any = DiffusionPipeline.from_pretrained(str(folder), dtype=dtype, local_files_only=True)
        if from_images:
            from diffusers import AutoPipelineForImage2Image  # loads all pipelines' code, in many seconds

            pipeline = AutoPipelineForImage2Image.from_pipe(pipeline)
    except ValueError as error:
        raise UserError(
            str(folder), " ".join(str(error).split()), "a text-to-image pipeline of diffusers is needed"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    if getattr(pipeline, "watermark", None) is not None:
        pipeline.watermark = None  # SDXL adds one if a package is installed; images must not depend on that
    if getattr(pipeline, "vae", None) is not None and hasattr(pipeline.vae, "enable_slicing"):
        pipeline.vae.enable_slicing()  # the decoder needs more memory per image than the denoiser
    return place(pipeline, device)


def place(pipeline: Any, device: torch.device) -> Any:
    """Put a pipeline's networks on the device, or have diffusers move each one there when it is used."""
    import torch

    if device.type == "cuda":
        needed, free = weight_bytes(pipeline), torch.cuda.mem_get_info()[0]
        if needed > ROOM * free:
            logger.warning(
                "%s: %.1f GiB of weights for %.1f GiB of free GPU memory: each network is on the GPU only"
                " while it is used, which is slower; the images stay the same",
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


def load_checker(model: Diffusion, device: torch.device) -> Checker:
    """Load a model's safety checker alone: its own, that of a folder, or none, as the config says."""
    dtype = resolve(model.dtype, device)
    if model.safety_checker_folder == "model":
        from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker

        checker = StableDiffusionSafetyChecker.from_pretrained(
            model.folder, subfolder="safety_checker", dtype=dtype, local_files_only=True
        )
        return Checker(checker.to(device), load_processor(Path(model.folder) / "feature_extractor"))
    parts = safety_components(model.safety_checker_folder, dtype)
    checker = parts["safety_checker"]
    return Checker(None if checker is None else checker.to(device), parts["feature_extractor"])
