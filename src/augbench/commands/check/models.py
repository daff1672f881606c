"""Checks of the model folders: their files and their configs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from augbench.config.hub import HUB_ID, HubModel
from augbench.config.models import Clip
from augbench.config.study import Study
from augbench.errors import UserError
from augbench.models.folders import NO_SAFETY_CHECKER
from augbench.models.open_clip_files import describe, networks_config

# defaults of transformers and diffusers for keys that a config.json omits
TEXT_WIDTH, CROSS_ATTENTION_WIDTH = 512, 1280
PIPELINE_FILES = (
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer_config.json",
)
HUB_HINT = ", or a model's id on the Hub with its revision"
SAFETY_FILES = ("safety_checker/config.json", "feature_extractor/preprocessor_config.json")


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            str(path), f"not readable as JSON ({' '.join(str(error).split())})", "download the model again"
        ) from None
    if not isinstance(data, dict):
        raise UserError(
            str(path), f"holds a {type(data).__name__}", "a JSON object is needed; download the model again"
        )
    return data


def _model_folder(key: str, folder: Path, layout: str, first_file: str) -> dict[str, Any]:
    if not folder.is_dir():
        raise UserError(
            key,
            f"{str(folder)!r}, no such folder",
            f"allowed: a folder in {layout} layout{HUB_HINT if re.fullmatch(HUB_ID, str(folder)) else ''}",
        )
    if not (folder / first_file).is_file():
        raise UserError(key, f"{str(folder)!r} has no {first_file}", f"allowed: a folder in {layout} layout")
    return _json(folder / first_file)


def _weights(folder: Path) -> Iterator[UserError]:
    """Yield problems of the weights: missing, empty, or only the pointers that git leaves without git-lfs."""
    files = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin")]
    if not files:
        yield UserError(
            str(folder), "no weights", "allowed: a .safetensors or .bin file; download the model again"
        )
    for path in files:
        yield from _usable(path)


def _usable(path: Path) -> Iterator[UserError]:
    """Yield the problem of a file of weights: it is empty, or only a pointer."""
    with path.open("rb") as stream:
        start = stream.read(24)
    if not start:
        yield UserError(str(path), "an empty file", "the weights are needed; download the model again")
    elif start.startswith(b"version https://git-lfs"):
        yield UserError(str(path), "a git-lfs pointer", "the weights themselves are needed: git lfs pull")


def model_problems(study: Study) -> Iterator[UserError]:
    """Yield the problems of CLIP's folder, the diffusion model's, and its safety checker's."""
    text: dict[str, Any] = {}
    try:
        if _is_here(study.diffusion.hub):
            text, problems = _diffusion(study)
            yield from problems
    except UserError as error:
        yield error
    try:
        if _is_here(study.diffusion.safety_checker_hub):
            yield from _safety_checker(study)
    except UserError as error:
        yield error
    try:
        if _is_here(study.clip.hub):
            yield from _clip(study, text)
    except UserError as error:
        yield error


def projection_width(clip: Clip) -> int | None:
    """Length of a CLIP model's vectors; None if the model isn't here or its config doesn't say."""
    if clip.named.library == "open_clip":
        config = networks_config(clip.named, clip.folder)
        return None if config is None else int(config["embed_dim"])
    path = Path(clip.folder) / "config.json"
    width = _json(path).get("projection_dim") if path.is_file() else None
    return width if isinstance(width, int) else None


def _is_here(hub: HubModel | None) -> bool:
    """Whether a model can be checked. A model that a job will fetch may still be missing."""
    return hub is None or Path(hub.marker).is_file()


def models_to_fetch(study: Study) -> Iterator[str]:
    """Yield a line for each model that the study will fetch."""
    models = {
        "diffusion.model": study.diffusion.hub,
        "diffusion.safety_checker": study.diffusion.safety_checker_hub,
        "clip.model": study.clip.hub,
    }
    for key, hub in models.items():
        if hub is not None and not _is_here(hub):
            yield f"{key}: {hub.repository} at {hub.revision} is fetched to {hub.folder}"


def _clip(study: Study, text: dict[str, Any]) -> Iterator[UserError]:
    """Yield the problems of CLIP. ``text``: config of the diffusion model's text encoder, or empty."""
    folder = Path(study.clip.folder)
    if study.clip.named.library == "open_clip":
        description = describe(study.clip.named, folder)
        yield from _usable(folder / description["weights"])
        return
    config = _model_folder("clip.model", folder, "transformers' CLIP", "config.json")
    if config.get("model_type") != "clip":
        yield UserError(
            "clip.model",
            f"{str(folder)!r} is a model of type {config.get('model_type')!r}",
            "allowed: 'clip'",
        )
        return
    yield from _weights(folder)
    width = (config.get("text_config") or {}).get("hidden_size", TEXT_WIDTH)
    wanted = text.get("hidden_size", TEXT_WIDTH)
    # Stable Diffusion 2.x has OpenCLIP's text encoder (plain GELU); there, the user chooses the CLIP for
    # retrieval
    if text and text.get("hidden_act", "quick_gelu") == "quick_gelu" and width != wanted:
        yield UserError(
            "clip.model",
            f"{str(folder)!r} has text states of width {width}",
            f"allowed: {wanted}, the width of diffusion.model's text encoder",
        )


def _diffusion(study: Study) -> tuple[dict[str, Any], list[UserError]]:
    """Return the config of the text encoder, and the problems of the rest of the diffusion model."""
    key, folder = "diffusion.model", Path(study.diffusion.folder)
    index = _model_folder(key, folder, "diffusers' Stable Diffusion", "model_index.json")
    if index.get("_class_name") != "StableDiffusionPipeline":
        raise UserError(
            key, f"{str(folder)!r} is a {index.get('_class_name')}", "allowed: a StableDiffusionPipeline"
        )
    own_checker = study.diffusion.safety_checker == "model"
    if own_checker and None in index.get("safety_checker", []):
        raise UserError("diffusion.safety_checker", f"{str(folder)!r} has none of its own", NO_SAFETY_CHECKER)
    needed = (*PIPELINE_FILES, *(SAFETY_FILES if own_checker else ()))
    if missing := [name for name in needed if not (folder / name).is_file()]:
        raise UserError(
            key,
            f"{str(folder)!r} has no {', '.join(missing)}",
            "a whole pipeline folder is needed; download the model again",
        )
    problems = [problem for part in ("unet", "vae") for problem in _weights(folder / part)]
    unet, vae, text = (_json(folder / part / "config.json") for part in ("unet", "vae", "text_encoder"))
    width = text.get("hidden_size", TEXT_WIDTH)
    crossed = unet.get("cross_attention_dim", CROSS_ATTENTION_WIDTH)
    if isinstance(crossed, int) and crossed != width:
        problems.append(
            UserError(
                str(folder / "unet/config.json"),
                f"cross_attention_dim {crossed}",
                f"allowed: {width}, the text encoder's width",
            )
        )
    latent, channels = unet.get("sample_size"), vae.get("block_out_channels")
    if isinstance(latent, int) and isinstance(channels, list):
        side = latent * 2 ** (len(channels) - 1)
        if study.diffusion.resolution != side:
            problems.append(
                UserError(
                    "diffusion.resolution", study.diffusion.resolution, f"allowed: {side}, the model's own"
                )
            )
    return text, problems


def _safety_checker(study: Study) -> Iterator[UserError]:
    """Yield the problems of a safety checker that is not the model's own."""
    checker = study.diffusion.safety_checker_folder
    if checker in (None, "model"):
        return
    key, folder = "diffusion.safety_checker", Path(str(checker))
    _model_folder(key, folder, "transformers' safety checker", "config.json")
    if not (folder / "preprocessor_config.json").is_file():
        raise UserError(
            key,
            f"{str(folder)!r} has no preprocessor_config.json",
            "allowed: a folder with a safety checker and its feature extractor",
        )
    yield from _weights(folder)
