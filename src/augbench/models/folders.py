"""Load models from folders, and hash their content.

Input: a folder in diffusers' or transformers' layout. Output: a fingerprint for recipes and provenance, or
the loaded model, in evaluation mode, on the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from augbench.config.hub import MARKER
from augbench.config.models import NO_SAFETY_CHECKER, Diffusion
from augbench.errors import UserError
from augbench.files import canonical_hash, read_json, sha256_file
from augbench.runtime.fit import BatchLimit
from augbench.runtime.precision import resolve

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline
    from PIL import Image
    from transformers import CLIPImageProcessorPil

    from augbench.models.pipelines import Checker

MODEL_SUFFIXES = {".json", ".safetensors", ".bin", ".txt", ".model", ".jinja"}
SAFETY_FOLDERS = ("safety_checker/", "feature_extractor/")


def model_files(folder: str | Path) -> list[Path]:
    """List the files of a model (configuration, vocabulary, weights), sorted."""
    return sorted(
        path
        for path in Path(folder).rglob("*")
        if path.suffix in MODEL_SUFFIXES and path.name != MARKER and path.is_file()
    )


def fingerprint(folder: str | Path, safety_checker: str | None = "model") -> dict[str, Any]:
    """Hash a model's files, and return the hashes with one ``id`` over them all.

    ``folder`` may also be a single file of weights. The fingerprint of a fetched model also names its
    repository and revision.

    Parameters
    ----------
    safety_checker : str, optional
        ``model``, a folder, or None, as in ``diffusion.safety_checker``. With a folder, its files replace
        those of the model's own safety checker; with None, the model's own are left out.

    Raises
    ------
    UserError
        The folder has no model, or a fetched model that has changed since.
    """
    folder = Path(folder)
    if folder.is_file():
        files = {folder.name: sha256_file(folder)}
        return {"id": canonical_hash(files)[:16], "folder": str(folder), "files": files}
    files = {path.relative_to(folder).as_posix(): sha256_file(path) for path in model_files(folder)}
    if not any(name.endswith((".safetensors", ".bin")) for name in files):
        raise UserError(
            str(folder), "no weights there", "a folder in diffusers' or transformers' layout is needed"
        )
    origin = pinned(folder, files)
    if safety_checker != "model":
        files = {name: digest for name, digest in files.items() if not name.startswith(SAFETY_FOLDERS)}
        if safety_checker is not None:
            apart = fingerprint(safety_checker)["files"]
            files |= {f"safety_checker/{name}": digest for name, digest in apart.items()}
    return {"id": canonical_hash(files)[:16], "folder": str(folder), "files": files, **origin}


def pinned(folder: str | Path, files: Mapping[str, str]) -> dict[str, str]:
    """Return repository and revision of a fetched model; nothing for any other folder.

    Parameters
    ----------
    files : mapping
        SHA-256 of the model's files, by name.

    Raises
    ------
    UserError
        A file differs from what was fetched.
    """
    marker = Path(folder) / MARKER
    fetched = read_json(marker) if marker.is_file() else {"files": {}}
    for name, file in fetched["files"].items():
        if files.get(name) != file["sha256"]:
            raise UserError(
                str(Path(folder) / name),
                f"SHA-256 {files.get(name)}, fetched with {file['sha256']}",
                f"delete {marker} and run again",
            )
    return {key: fetched[key] for key in ("repository", "revision") if key in fetched}


def pick_device(wanted: str) -> torch.device:
    """Return ``auto``, ``cpu`` or ``cuda`` as a torch device.

    Raises
    ------
    UserError
        ``cuda`` without a GPU, or a GPU that torch can't use.
    """
    import torch

    from augbench.runtime.gpus import require_usable

    if wanted != "cpu":
        require_usable(wanted)
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("execution.device", "'cuda', but no GPU is available here", "allowed here: auto, cpu")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def own_side(folder: str | Path) -> int:
    """Side in pixels of the images that a diffusion model was trained for, by its networks' configs.

    Raises
    ------
    UserError
        They do not say.
    """
    part = "unet" if Path(folder, "unet").is_dir() else "transformer"
    try:
        latent = int(read_json(Path(folder, part, "config.json"))["sample_size"])
        return latent * 2 ** (len(read_json(Path(folder, "vae/config.json"))["block_out_channels"]) - 1)
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            str(folder), "its configs do not say the size of its images", "set the model's resolution"
        ) from None


def to_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy values from main memory to ``device``; the copy to a GPU is asynchronous."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def require_folder(folder: str | Path) -> None:
    """Raise :class:`UserError` if a model's folder is missing."""
    if not Path(folder).is_dir():
        raise UserError(
            str(folder),
            "no such folder",
            "put the model back, or fetch it again by deleting the study's folder models/",
        )


def load_pipeline(diffusion: Diffusion, device: torch.device) -> StableDiffusionPipeline:
    """Load Stable Diffusion with the study's sampler, precision and safety checker.

    The pipeline has no safety checker only if the study says so.

    Raises
    ------
    UserError
        The model's folder is missing, or the model has no safety checker and the study names no other.
    """
    import torch
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, PNDMScheduler, StableDiffusionPipeline

    from augbench.models.tokenizer import CleaningTokenizer

    require_folder(diffusion.folder)
    assert diffusion.scheduler is not None
    dtype = resolve(diffusion.dtype, device)
    checker = safety_components(diffusion.safety_checker_folder, dtype)
    tokenizer = CleaningTokenizer.from_pretrained(
        diffusion.folder, subfolder="tokenizer", local_files_only=True
    )
    pipeline = StableDiffusionPipeline.from_pretrained(
        diffusion.folder,
        tokenizer=tokenizer,
        dtype=dtype,
        local_files_only=True,
        low_cpu_mem_usage=False,
        **checker,
    )
    if not checker and pipeline.feature_extractor is not None:
        pipeline.feature_extractor = load_processor(Path(diffusion.folder) / "feature_extractor")
    schedulers = {"pndm": PNDMScheduler, "ddim": DDIMScheduler, "dpmsolver++": DPMSolverMultistepScheduler}
    pipeline.scheduler = schedulers[diffusion.scheduler].from_config(pipeline.scheduler.config)
    if pipeline.safety_checker is None and diffusion.safety_checker is not None:
        raise UserError(
            "diffusion.safety_checker", f"{diffusion.model} has none of its own", NO_SAFETY_CHECKER
        )
    pipeline.set_progress_bar_config(disable=True)
    # a GPU's half-precision units work on channels last; other layouts would be copied for each convolution
    if device.type == "cuda":
        for network in (pipeline.unet, pipeline.vae):
            network.to(memory_format=torch.channels_last)
    return pipeline.to(device)


def load_unet(pipeline: Any, folder: str | Path) -> None:
    """Load the weights in ``folder`` into the pipeline's U-Net; a compiled network stays compiled."""
    from diffusers import UNet2DConditionModel

    require_folder(folder)
    unet = UNet2DConditionModel.from_pretrained(folder, dtype=pipeline.unet.dtype, local_files_only=True)
    pipeline.unet.load_state_dict(unet.state_dict())


def safety_components(folder: str | None, dtype: torch.dtype) -> dict[str, Any]:
    """Return the pipeline's arguments for its safety checker.

    ``model``: none, so the pipeline keeps its own. None: a pipeline without one. A folder: the checker in it.
    """
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker

    if folder == "model":
        return {}
    if folder is None:
        return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    require_folder(folder)
    return {
        "safety_checker": StableDiffusionSafetyChecker.from_pretrained(
            folder, dtype=dtype, local_files_only=True
        ),
        "feature_extractor": load_processor(folder),
        "requires_safety_checker": True,
    }


def load_processor(folder: str | Path) -> CLIPImageProcessorPil:
    """Load CLIP's image processor; it resizes with Pillow, as OpenAI's code and open_clip do.

    transformers' default resizes with torchvision, which gives other pixels.
    """
    from transformers import CLIPImageProcessorPil

    return CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)


def check_safety(
    pipeline: StableDiffusionPipeline | Checker,
    images: Sequence[Image.Image],
    limit: BatchLimit | None = None,
) -> list[bool]:
    """Whether the pipeline's safety checker flags each of the images; without a checker, none is.

    By default, it looks at as many of them at once as fit into memory.
    """
    import numpy as np
    import torch

    from augbench.data.decode import middle

    if pipeline.safety_checker is None:
        return [False] * len(images)
    device, dtype = pipeline.safety_checker.device, pipeline.safety_checker.dtype

    def flagged(batch: Sequence[Image.Image]) -> Sequence[bool]:
        cut = [middle(image) for image in batch]
        pixels = pipeline.feature_extractor(cut, return_tensors="pt").pixel_values.to(device, dtype)
        blank = [np.zeros((1, 1, 3), dtype=np.float32) for _ in batch]
        with torch.inference_mode():
            return pipeline.safety_checker(images=blank, clip_input=pixels)[1]

    limit = limit or BatchLimit(len(images), "safety checker")
    return [bool(flag) for flags in limit.run(flagged, images) for flag in flags]
