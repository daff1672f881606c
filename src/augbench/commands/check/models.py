"""Checks of the model folders: their files and their configs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from augbench.artifacts.adapters import learning_problems
from augbench.config.hub import HUB_ID, HubModel, known_model
from augbench.config.models import NO_SAFETY_CHECKER, Clip, Diffusion
from augbench.config.pipelines import PIPELINES_HERE, STABLE_DIFFUSION, pipelines
from augbench.config.study import Study
from augbench.errors import UserError
from augbench.models.fetch import WITHOUT_WEIGHTS
from augbench.models.folders import own_side
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
GATED = "; it is gated: accept its licence on its page and log in with `hf auth login` first"
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


def pointer_problem(path: Path) -> UserError | None:
    """Problem of a file of weights: empty, or only the pointer that git leaves without git-lfs."""
    with path.open("rb") as stream:
        start = stream.read(24)
    if not start:
        return UserError(str(path), "an empty file", "the weights are needed; download the model again")
    if start.startswith(b"version https://git-lfs"):
        return UserError(str(path), "a git-lfs pointer", "the weights themselves are needed: git lfs pull")
    return None


def _weights(folder: Path) -> Iterator[UserError]:
    """Yield problems of the weights: missing, empty, or only the pointers that git leaves without git-lfs."""
    files = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin")]
    if not files:
        yield UserError(
            str(folder), "no weights", "allowed: a .safetensors or .bin file; download the model again"
        )
    yield from filter(None, map(pointer_problem, files))


def model_problems(study: Study) -> Iterator[UserError]:
    """Yield the problems of the folders of CLIP, of all diffusion models, and of their safety checkers."""
    text: dict[str, Any] = {}
    for key, model in diffusion_models(study).items():
        try:
            if _is_here(model.hub):
                found, problems = _diffusion(key, model) if model.other is None else ({}, _other(key, model))
                text = found if model is study.diffusion else text
                yield from problems
        except UserError as error:
            yield error
        try:
            if _is_here(model.safety_checker_hub):
                yield from _safety_checker(key, model)
        except UserError as error:
            yield error
    for name, row in study.personalised.items():
        model = study.generator_of(name)
        if _is_here(model.hub):
            yield from learning_problems(f"methods.{name}", row, model)
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
    models: dict[str, HubModel | None] = {}
    for key, model in diffusion_models(study).items():
        models[f"{key}.model"], models[f"{key}.safety_checker"] = model.hub, model.safety_checker_hub
    named: set[str] = set()
    for key, hub in {
        **models,
        "clip.model": study.clip.hub,
        "classifier.pretrained": study.classifier_hub,
    }.items():
        if hub is not None and not _is_here(hub) and hub.folder not in named:
            named.add(hub.folder)
            gated = known_model(hub.repository).get("gated", False)
            where = f"will be fetched to {hub.folder} by the first run"
            yield f"{key}: {hub.repository} at {hub.revision} {where}{GATED if gated else ''}"


def diffusion_models(study: Study) -> dict[str, Diffusion]:
    """All diffusion models of a study, by the key of their section."""
    others = {f"generators.{name}": model for name, model in study.used_generators.items()}
    return {"diffusion": study.diffusion, **others}


def _clip(study: Study, text: dict[str, Any]) -> Iterator[UserError]:
    """Yield the problems of CLIP. ``text``: config of the diffusion model's text encoder, or empty."""
    folder = Path(study.clip.folder)
    if study.clip.named.library == "open_clip":
        description = describe(study.clip.named, folder)
        if (problem := pointer_problem(folder / description["weights"])) is not None:
            yield problem
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


def _index(key: str, model: Diffusion) -> dict[str, Any]:
    """Return a pipeline's ``model_index.json``.

    Raises
    ------
    UserError
        The folder holds another pipeline than the config says, or lacks the safety checker that it asks for.
    """
    folder = Path(model.folder)
    layout = "diffusers' Stable Diffusion" if model.other is None else "diffusers'"
    index = _model_folder(f"{key}.model", folder, layout, "model_index.json")
    found = index.get("_class_name")
    if found not in (STABLE_DIFFUSION, *pipelines()):
        raise UserError(f"{key}.model", f"{str(folder)!r} is a {found}", PIPELINES_HERE)
    if found != model.pipeline_class:
        allowed = f"set {key}.pipeline: {found}, for its defaults"
        raise UserError(
            f"{key}.model", f"{str(folder)!r} is a {found}, not a {model.pipeline_class}", allowed
        )
    absent = [] if model.other is None else [None]
    if model.safety_checker == "model" and None in index.get("safety_checker", absent):
        raise UserError(f"{key}.safety_checker", f"{str(folder)!r} has none of its own", NO_SAFETY_CHECKER)
    return index


def _other(key: str, model: Diffusion) -> Iterator[UserError]:
    """Yield the problems of a model that isn't Stable Diffusion 1.x or 2.x."""
    folder, index = Path(model.folder), _index(key, model)
    parts = [name for name, kind in index.items() if isinstance(kind, list) and None not in kind]
    for name in parts:
        if not (folder / name).is_dir():
            yield UserError(
                f"{key}.model",
                f"{str(folder)!r} has no folder {name}",
                "a whole pipeline folder is needed; download the model again",
            )
        elif not name.startswith(WITHOUT_WEIGHTS):
            yield from _weights(folder / name)


def _diffusion(section: str, model: Diffusion) -> tuple[dict[str, Any], list[UserError]]:
    """Return the config of the text encoder, and the problems of the rest of Stable Diffusion 1.x or 2.x."""
    key, folder = f"{section}.model", Path(model.folder)
    _index(section, model)
    own_checker = model.safety_checker == "model"
    needed = (*PIPELINE_FILES, *(SAFETY_FILES if own_checker else ()))
    if missing := [name for name in needed if not (folder / name).is_file()]:
        raise UserError(
            key,
            f"{str(folder)!r} has no {', '.join(missing)}",
            "a whole pipeline folder is needed; download the model again",
        )
    problems = [problem for part in ("unet", "vae") for problem in _weights(folder / part)]
    unet, _, text = (_json(folder / part / "config.json") for part in ("unet", "vae", "text_encoder"))
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
    with suppress(UserError):  # the configs may not say
        if model.resolution != (side := own_side(folder)):
            problems.append(
                UserError(f"{section}.resolution", model.resolution, f"allowed: {side}, the model's own")
            )
    return text, problems


def _safety_checker(section: str, model: Diffusion) -> Iterator[UserError]:
    """Yield the problems of a safety checker that is not the model's own."""
    checker = model.safety_checker_folder
    if checker in (None, "model"):
        return
    key, folder = f"{section}.safety_checker", Path(str(checker))
    _model_folder(key, folder, "transformers' safety checker", "config.json")
    if not (folder / "preprocessor_config.json").is_file():
        raise UserError(
            key,
            f"{str(folder)!r} has no preprocessor_config.json",
            "allowed: a folder with a safety checker and its feature extractor",
        )
    yield from _weights(folder)
