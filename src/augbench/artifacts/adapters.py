"""Files of low-rank adapters in the layout that diffusers writes and loads (``load_lora_weights``).

A folder of adapters holds either one file, which all classes share, or one folder with such a file per class.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from augbench.config.methods import Lora, PersonaliseMethod
from augbench.config.pipelines import learned_entries
from augbench.errors import UserError
from augbench.files import atomic_path, canonical_hash, read_json

if TYPE_CHECKING:
    import numpy as np

    from augbench.config.models import Diffusion

FILE = "pytorch_lora_weights.safetensors"  # name that diffusers expects
FLOW = "FlowMatchEulerDiscreteScheduler"
SETTINGS = "lora_adapter_metadata"  # key of the metadata that diffusers reads rank and alpha from


def write_adapter(tensors: Mapping[str, np.ndarray], lora: Lora, path: Path) -> None:
    """Write an adapter.

    Parameters
    ----------
    tensors : mapping
        Float32 by name: ``{part}.{layer}.lora_A.weight`` ``(rank, inputs)`` and ``...lora_B.weight``
        ``(outputs, rank)``, where ``part`` is the part of the pipeline (``unet``, ``transformer``).
    """
    from safetensors.numpy import save_file

    layers = sorted(
        name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")
    )
    part, targets = layers[0].partition(".")[0], [layer.partition(".")[2] for layer in layers]
    settings = {"r": lora.rank, "lora_alpha": lora.alpha, "target_modules": targets}
    said = json.dumps({f"{part}.{name}": value for name, value in settings.items()}, sort_keys=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        save_file(dict(tensors), temporary, {"format": "pt", SETTINGS: said})


def read_adapter(path: str | Path) -> tuple[dict[str, np.ndarray], float]:
    """Read an adapter's tensors by name, and alpha / rank."""
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        settings = {
            name.rpartition(".")[2]: value for name, value in json.loads(file.metadata()[SETTINGS]).items()
        }
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors, settings["lora_alpha"] / settings["r"]


def adapter_of(folder: str | Path, class_id: str) -> Path:
    """File of a class's adapter in a folder of adapters."""
    shared = Path(folder) / FILE
    return shared if shared.is_file() else Path(folder) / class_id / FILE


def adapter_id(path: str | Path) -> str:
    """Content hash of an adapter: of its tensors, and of alpha / rank."""
    tensors, scale = read_adapter(path)
    hashes = {name: hashlib.sha256(values.tobytes()).hexdigest() for name, values in tensors.items()}
    return canonical_hash([hashes, scale])


def learning_problems(row: str, method: PersonaliseMethod, model: Diffusion) -> Iterator[UserError]:
    """Yield why a row can't learn what it is to learn of a model, as far as the model's files tell."""
    if method.lora is not None:
        yield from adapter_problems(row, method.lora, model)
    elif model.other is not None:
        parts = _settings(Path(model.folder) / "model_index.json")
        wanted = learned_entries(model.pipeline_class, "pseudoword") if method.learns_words else ()
        for part in wanted:
            if parts and None in parts.get(part, [None]):
                found = f"'pseudoword', but {model.folder!r} has no {part}"
                yield UserError(f"{row}.learn", found, f"allowed: a model with {' and '.join(wanted)}")
        yield from _training_problems(f"{row}.learn", method.learn, model)


def adapter_problems(row: str, lora: Lora, model: Diffusion) -> Iterator[UserError]:
    """Yield why a row can't learn adapters of a model; its targets may not be there."""
    networks = [Path(model.folder) / part for part in ("unet", "transformer")]
    if layers := [layer for network in networks for layer in linear_layers(network)]:
        yield from check_targets(f"{row}.targets", lora.targets, layers)
    yield from _training_problems(f"{row}.learn", "lora", model)


def _training_problems(key: str, learn: str, model: Diffusion) -> Iterator[UserError]:
    """Yield why a model can't be trained with.

    Training adds noise by betas (or along a straight line, for Stable Diffusion 3) and scales latents by one
    factor, so other schedules (EDM) and latents with means of their own are refused.
    """
    folder = Path(model.folder)
    scheduler = _settings(folder / "scheduler/scheduler_config.json")
    kind, flow = scheduler.get("_class_name"), model.pipeline_class == "StableDiffusion3Pipeline"
    if scheduler and not (kind == FLOW if flow else "beta_start" in scheduler and kind != FLOW):
        allowed = f"allowed: a model with {f'a {FLOW}' if flow else 'a schedule of betas, such as DDPM'}"
        yield UserError(key, f"{learn!r}, but {str(folder)!r} has a {kind}", allowed)
    if _settings(folder / "vae/config.json").get("latents_mean") is not None:
        found = f"{learn!r}, but the VAE of {str(folder)!r} has latents_mean"
        yield UserError(key, found, "allowed: a model without")


def _settings(path: Path) -> dict[str, Any]:
    """A file of settings; empty if it can't be read, of which others tell."""
    try:
        return dict(read_json(path))
    except (OSError, ValueError, TypeError):
        return {}


def check_targets(key: str, targets: Iterable[str], layers: Iterable[str]) -> list[UserError]:
    """Problems with the layers that get an adapter: names that none of the network's linear layers has.

    Parameters
    ----------
    key : str
        The config key of ``targets``.
    layers : iterable of str
        Full names of the network's linear layers.
    """
    layers = list(layers)
    unknown = [
        target
        for target in targets
        if not any(layer == target or layer.endswith(f".{target}") for layer in layers)
    ]
    if not unknown:
        return []
    known = sorted({_ending(layer) for layer in layers})
    return [
        UserError(
            key, repr(unknown[0]), f"no linear layer of the model has this name; allowed: {', '.join(known)}"
        )
    ]


def _ending(layer: str) -> str:
    """End of a layer's name that tells what it does, such as ``to_q`` or ``to_out.0``."""
    parts = layer.split(".")
    first = len(parts) - 1
    while first and parts[first].isdigit():
        first -= 1
    return ".".join(parts[first:])


def linear_layers(folder: Path) -> list[str]:
    """Names of the linear layers of a network, from the safetensors files in its folder; none without any."""
    from safetensors import safe_open

    layers = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "np") as file:
            names = [name for name in file.keys() if name.endswith(".weight")]  # noqa: SIM118
            layers |= {
                name.removesuffix(".weight") for name in names if len(file.get_slice(name).get_shape()) == 2
            }
    return sorted(layers)
