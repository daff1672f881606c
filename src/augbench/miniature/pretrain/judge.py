"""What a judge's folder says of itself: the network and the classes that it tells apart, without its weights.

Flows in: a folder with ``config.json`` and ``model.safetensors``, as :func:`augbench.miniature.pretrain.reference.save_judge` writes it. Flows
out: a :class:`JudgeConfig`, or an error if the judge can't judge a study's images. Light, so that early checks can use it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from augbench.config.study import Classifier
from augbench.errors import UserError
from augbench.files import read_json

KEY = "report.judge"
KIND = "augbench_judge"
REMEDY = "allowed: a folder with config.json and model.safetensors of a reference classifier, or null"
NETWORK = ("arch", "layers", "base_width", "stem", "resolution")  # keys of Classifier that make the network


@dataclass(frozen=True)
class JudgeConfig:
    """A judge's network, as keys of :class:`~augbench.config.study.Classifier`, and its classes in the order of its outputs."""

    network: Classifier
    class_ids: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """What ``config.json`` holds."""
        return {"model_type": KIND, "network": self.network.model_dump(mode="json", include=set(NETWORK)), "class_ids": list(self.class_ids)}


def read_judge_config(folder: str | Path) -> JudgeConfig:
    """Read a judge's ``config.json``.

    Raises
    ------
    UserError
        No such folder, no weights, or no judge's ``config.json``.
    """
    folder = Path(folder)
    if missing := [name for name in ("config.json", "model.safetensors") if not (folder / name).is_file()]:
        raise UserError(KEY, f"{str(folder)!r} has no {' and no '.join(missing)}" if folder.is_dir() else f"{str(folder)!r}, no such folder", REMEDY)
    try:
        value = read_json(folder / "config.json")
        if value["model_type"] != KIND:
            raise UserError(KEY, f"{str(folder)!r} is a model of type {value['model_type']!r}", f"allowed: {KIND!r}")
        return JudgeConfig(Classifier.model_validate_json(json.dumps(value["network"]), strict=True), tuple(map(str, value["class_ids"])))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(str(folder / "config.json"), f"not a judge's ({type(error).__name__})", REMEDY) from None


def check_judge(folder: str | Path, class_ids: Sequence[str]) -> JudgeConfig:
    """Whether the judge in ``folder`` knows all ``class_ids``; returns what it is.

    Raises
    ------
    UserError
        As :func:`read_judge_config`, or a class that the judge doesn't know.
    """
    config = read_judge_config(folder)
    if unknown := [class_id for class_id in class_ids if class_id not in config.class_ids]:
        shown = ", ".join(map(repr, unknown[:3])) + (f" and {len(unknown) - 3} more" if len(unknown) > 3 else "")
        raise UserError(KEY, f"{str(folder)!r} does not know class {shown}", "allowed: a judge of the study's classes, or null")
    return config
