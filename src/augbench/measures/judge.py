"""Save, check, load and use a judge: a reference classifier that labels a study's images.

A judge is a folder with ``config.json`` (its network and classes) and ``model.safetensors``. This module is
light to import, so that early checks can read the config without loading the weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from augbench.config.classifier import Classifier
from augbench.errors import UserError
from augbench.files import atomic_path, read_json, write_json

if TYPE_CHECKING:
    import torch
    from torch import nn

KEY = "report.judge"
KIND = "augbench_judge"
REMEDY = "allowed: a folder with config.json and model.safetensors of a reference classifier, or null"
NETWORK = ("arch", "layers", "base_width", "stem", "resolution")  # keys of Classifier that make the network


@dataclass(frozen=True)
class JudgeConfig:
    """Content of a judge's ``config.json``.

    Attributes
    ----------
    network : Classifier
        The network; of its keys, only those in :data:`NETWORK` are saved.
    class_ids : tuple of str
        Its classes, in the order of its outputs.
    """

    network: Classifier
    class_ids: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the value that ``config.json`` holds."""
        return {
            "model_type": KIND,
            "network": self.network.model_dump(mode="json", include=set(NETWORK)),
            "class_ids": list(self.class_ids),
        }


def read_judge_config(folder: str | Path) -> JudgeConfig:
    """Read a judge's ``config.json``.

    Raises
    ------
    UserError
        The folder is missing or has no weights, or its ``config.json`` is missing or not that of a judge.
    """
    folder = Path(folder)
    if missing := [name for name in ("config.json", "model.safetensors") if not (folder / name).is_file()]:
        problem = f" has no {' and no '.join(missing)}" if folder.is_dir() else ", no such folder"
        raise UserError(KEY, f"{str(folder)!r}{problem}", REMEDY)
    try:
        value = read_json(folder / "config.json")
        if value["model_type"] != KIND:
            raise UserError(
                KEY, f"{str(folder)!r} is a model of type {value['model_type']!r}", f"allowed: {KIND!r}"
            )
        return JudgeConfig(
            Classifier.model_validate_json(json.dumps(value["network"]), strict=True),
            tuple(map(str, value["class_ids"])),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            str(folder / "config.json"), f"not the config of a judge ({type(error).__name__})", REMEDY
        ) from None


def check_judge(folder: str | Path, class_ids: Sequence[str]) -> JudgeConfig:
    """Check that the judge in ``folder`` knows all ``class_ids``; return its config.

    Raises
    ------
    UserError
        As :func:`read_judge_config`, or the judge does not know a class.
    """
    config = read_judge_config(folder)
    if unknown := [class_id for class_id in class_ids if class_id not in config.class_ids]:
        shown = ", ".join(map(repr, unknown[:3])) + (
            f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        )
        raise UserError(
            KEY,
            f"{str(folder)!r} does not know class {shown}",
            "allowed: a judge of the study's classes, or null",
        )
    return config


def prepare(images: torch.Tensor) -> torch.Tensor:
    """Scale pixels, ``uint8 (N, 3, H, W)``, to the judge's input, floats in [-1, 1]."""
    return images.float() / 127.5 - 1


@dataclass(frozen=True)
class Judge:
    """A reference classifier that judges images of a study.

    Attributes
    ----------
    model : Module
        In evaluation mode, float32; its outputs are the judge's own classes.
    outputs : Tensor, int64 (C,)
        Index of the output of each of the study's C classes, in label order.
    resolution : int
        Side of its square input, in pixels.
    """

    model: nn.Module
    outputs: torch.Tensor
    resolution: int

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """Crop the central square and resize it: ``uint8 (3, resolution, resolution)``."""
        import torch

        side = min(image.size)
        left, top = ((length - side) // 2 for length in image.size)
        cropped = image.convert("RGB").crop((left, top, left + side, top + side))
        square = cropped.resize((self.resolution, self.resolution), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(square)).permute(2, 0, 1)

    def labels(self, images: torch.Tensor) -> torch.Tensor:
        """Predict the study's label, int64 (N,), of ``images``, uint8 (N, 3, resolution, resolution)."""
        import torch

        with torch.inference_mode():
            return self.model(prepare(images.to(self.outputs.device)))[:, self.outputs].argmax(1).cpu()


def save_judge(model: nn.Module, class_ids: Sequence[str], network: Classifier, folder: str | Path) -> None:
    """Write ``model`` as a judge: ``model.safetensors`` (half precision) and ``config.json``.

    Parameters
    ----------
    class_ids : sequence of str
        The classes in the order of the model's outputs.
    network : Classifier
        The config from which :func:`augbench.classifier.model.build` made the model.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    state = {
        name: value.half() if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    with atomic_path(folder / "model.safetensors") as temporary:
        save_file(state, temporary)
    write_json(folder / "config.json", JudgeConfig(network, tuple(class_ids)).as_json())


def load_judge(folder: str | Path, class_ids: Sequence[str], device: torch.device) -> Judge:
    """Load the judge in ``folder``, for a study whose classes are ``class_ids`` in label order.

    The judge chooses among these classes alone, as zero-shot classification does, even if it knows more.

    Raises
    ------
    UserError
        As :func:`check_judge`, or the weights do not fit the network.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from augbench.classifier.model import build

    config = check_judge(folder, class_ids)
    model = build(config.network, len(config.class_ids), 0)
    weights = Path(folder) / "model.safetensors"
    try:
        model.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError) as error:
        raise UserError(
            str(weights), f"not the weights of its config.json ({str(error).splitlines()[0]})", REMEDY
        ) from None
    outputs = torch.tensor([config.class_ids.index(class_id) for class_id in class_ids], device=device)
    return Judge(model.eval().to(device), outputs, config.network.resolution)
