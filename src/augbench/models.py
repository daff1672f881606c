"""Models from folders: what they are (content hashes) and how they are loaded.

Flows in: a folder in diffusers' or transformers' layout. Flows out: a fingerprint for recipes and provenance, or the loaded
pipeline, in evaluation mode, on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from augbench.config import Diffusion
from augbench.errors import UserError
from augbench.files import canonical_hash, sha256_file

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPModel, CLIPTokenizer

MODEL_SUFFIXES = {".json", ".safetensors", ".bin", ".txt", ".model"}


def model_files(folder: str | Path) -> list[Path]:
    """The files that make a model: configuration, vocabulary, weights; sorted."""
    return sorted(path for path in Path(folder).rglob("*") if path.suffix in MODEL_SUFFIXES and path.is_file())


def fingerprint(folder: str | Path) -> dict[str, Any]:
    """Hashes of a model's files, and one ``id`` over them all.

    Raises
    ------
    UserError
        The folder holds no model.
    """
    folder = Path(folder)
    files = {path.relative_to(folder).as_posix(): sha256_file(path) for path in model_files(folder)}
    if not any(name.endswith((".safetensors", ".bin")) for name in files):
        raise UserError(str(folder), "no weights there", "a folder in diffusers' or transformers' layout is needed")
    return {"id": canonical_hash(files)[:16], "folder": str(folder), "files": files}


def pick_device(wanted: str) -> torch.device:
    """``auto``, ``cpu`` or ``cuda`` as a torch device."""
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("execution.device", "'cuda', and there is none here", "allowed here: auto, cpu")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def load_pipeline(diffusion: Diffusion, device: torch.device) -> StableDiffusionPipeline:
    """Stable Diffusion with the study's sampler and precision; the safety checker stays on."""
    import torch
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, PNDMScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(
        diffusion.model, torch_dtype=getattr(torch, diffusion.dtype), local_files_only=True, low_cpu_mem_usage=False
    )
    schedulers = {"pndm": PNDMScheduler, "ddim": DDIMScheduler, "dpmsolver++": DPMSolverMultistepScheduler}
    pipeline.scheduler = schedulers[diffusion.scheduler].from_config(pipeline.scheduler.config)
    if pipeline.safety_checker is None:
        raise UserError("diffusion.model", f"{diffusion.model} has no safety checker", "a pipeline folder with safety_checker is needed")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def load_clip(folder: str | Path, device: torch.device) -> tuple[CLIPModel, CLIPTokenizer]:
    """CLIP and its tokenizer, in single precision."""
    import torch
    from transformers import CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
    return model.eval().to(device), CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def check_safety(pipeline: StableDiffusionPipeline, images: Sequence[Any]) -> list[bool]:
    """Whether the pipeline's safety checker flags each of the PIL ``images``."""
    import numpy as np
    import torch

    device, dtype = pipeline.safety_checker.device, pipeline.safety_checker.dtype
    pixels = pipeline.feature_extractor(list(images), return_tensors="pt").pixel_values.to(device, dtype)
    blank = [np.zeros((1, 1, 3), dtype=np.float32) for _ in images]
    with torch.inference_mode():
        _, flags = pipeline.safety_checker(images=blank, clip_input=pixels)
    return [bool(flag) for flag in flags]
