"""Files of an open_clip model: what they say of its networks, and what is missing or does not fit.

Input: the name of a model and its folder. Output: a description from which
:mod:`augbench.models.open_clip_model` builds it, and a fingerprint. open_clip is not imported here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from augbench.config.clips import QUICK_GELU, ClipName, architecture_config, published
from augbench.config.hub import MARKER
from augbench.errors import UserError
from augbench.files import canonical_hash, sha256_file
from augbench.models.folders import model_files, pinned

CONFIG = "open_clip_config.json"
KEY = "clip.model"
TOKENIZER = (
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
    "tokenizer.model",
    "vocab.txt",
)
PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")
LAYOUT = f"allowed: a folder with {CONFIG} and the weights beside it, or open_clip:ARCHITECTURE/WEIGHTS"


def describe(name: ClipName, folder: str | Path) -> dict[str, Any]:
    """Describe a model by the configs of its networks and preprocessing, and the name of its file of weights.

    An architecture of open_clip's brings its config, a tag its preprocessing, as in open_clip. A folder
    brings both in ``open_clip_config.json``.

    Raises
    ------
    UserError
        A file is missing or not readable, the text tower needs files of another repository, or the
        activation or preprocessing is not known to be that of the weights.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(KEY, f"{str(folder)!r}, no such folder", LAYOUT)
    given = _read(folder / CONFIG) if (folder / CONFIG).is_file() else None
    if name.architecture is not None:
        model_cfg, preprocess_cfg = architecture_config(name.architecture), _preprocessing(name)
        if name.tag is not None and given is not None:
            _require_same_activation(name, model_cfg, given["model_cfg"], folder)
    elif given is None:
        raise UserError(KEY, f"{str(folder)!r} has no {CONFIG}", LAYOUT)
    else:
        model_cfg, preprocess_cfg = given["model_cfg"], given.get("preprocess_cfg", {})
    text = model_cfg["text_cfg"]
    if other := text.get("hf_model_name"):
        raise UserError(
            KEY,
            f"its text tower is {other}, whose config open_clip takes from another repository",
            "allowed: models whose text tower is open_clip's own, such as CLIP, DFN and SigLIP",
        )
    if text.get("hf_tokenizer_name") and not (folder / TOKENIZER[0]).is_file():
        raise UserError(
            KEY,
            f"{str(folder)!r} has no {TOKENIZER[0]}",
            f"put the files of the tokenizer {text['hf_tokenizer_name']} there",
        )
    weights = next((file for file in name.weights if (folder / file).is_file()), None)
    if weights is None:
        raise UserError(KEY, f"{str(folder)!r} has no {' or '.join(name.weights)}", "the weights are needed")
    return {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg, "weights": weights}


def networks_config(name: ClipName, folder: str | Path) -> dict[str, Any] | None:
    """Config of a model's networks; None if only its folder could tell, and does not."""
    if name.architecture is not None:
        return architecture_config(name.architecture)
    try:
        found: dict[str, Any] = describe(name, folder)["model_cfg"]
    except UserError:  # `augbench check` names it
        return None
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        complete = {"embed_dim", "vision_cfg", "text_cfg"} <= found["model_cfg"].keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        complete = False
    if not complete:
        raise UserError(str(path), "no config of an open_clip model", LAYOUT)
    return found


def _preprocessing(name: ClipName) -> dict[str, Any]:
    """Preprocessing of an open_clip architecture's weights, where it is not OpenAI's."""
    tags = published().get(name.architecture or "", {})
    ways = [{key: tags[tag][key] for key in PREPROCESSING if key in tags[tag]} for tag in tags]
    if name.tag is not None:
        return ways[list(tags).index(name.tag)]
    if ways and all(ways):
        raise UserError(
            KEY,
            f"{name.weights[0]!r} does not say how images are preprocessed, and {name.architecture} is "
            "published with another preprocessing than OpenAI's",
            LAYOUT,
        )
    return {}


def _require_same_activation(
    name: ClipName, model_cfg: dict[str, Any], given: dict[str, Any], folder: Path
) -> None:
    if bool(model_cfg.get("quick_gelu")) != bool(given.get("quick_gelu")):
        named = str(name.architecture)
        other = named.removesuffix(QUICK_GELU) if named.endswith(QUICK_GELU) else named + QUICK_GELU
        raise UserError(
            KEY,
            f"{named} {'has' if model_cfg.get('quick_gelu') else 'lacks'} QuickGELU, unlike the weights in "
            f"{str(folder)!r}, whose features would be wrong",
            f"allowed: open_clip:{other}/{name.tag}",
        )


def files_of(name: ClipName, folder: str | Path) -> list[str]:
    """Files of a model that is not fetched, for the plan; its weights are among them even if missing."""
    places = [Path(folder) / file for file in (*name.weights, CONFIG, *TOKENIZER)]
    found = [str(path) for path in places if path.is_file()]
    weights = {str(path) for path in places[: len(name.weights)]}
    return found if weights & {*found} else [str(places[0]), *found]


def used_files(description: dict[str, Any], folder: str | Path) -> list[Path]:
    """Files that the model is made of: weights, and the tokenizer's if it has one of its own."""
    names = [description["weights"]]
    if description["model_cfg"]["text_cfg"].get("hf_tokenizer_name"):
        names += TOKENIZER
    return [path for path in (Path(folder) / file for file in names) if path.is_file()]


def fingerprint_open_clip(name: ClipName, folder: str | Path) -> dict[str, Any]:
    """Return an open_clip model's fingerprint: hashes of its files, and its description.

    Raises
    ------
    UserError
        As :func:`describe`, or a fetched file has changed since.
    """
    description = describe(name, folder)
    files, fetched = _hashed(used_files(description, folder)), (Path(folder) / MARKER).is_file()
    return {
        "id": canonical_hash({"files": files, "open_clip": description})[:16],
        "folder": str(folder),
        "files": files,
        "open_clip": description,
        **(pinned(folder, {**files, **_hashed(model_files(folder))}) if fetched else {}),
    }


def _hashed(paths: Iterable[Path]) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in paths}
