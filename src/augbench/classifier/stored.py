"""A trained run in the store: its weights, history and timing."""

from __future__ import annotations

import platform
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from augbench.artifacts.store import Recipe, Store
from augbench.classifier.compute import Compute
from augbench.classifier.state import RunResult
from augbench.config.classifier import Classifier
from augbench.files import read_json, sha256_file, write_json
from augbench.runtime.precision import resolve


def commit_run(store: Store, recipe: Recipe, result: RunResult, config: Classifier, compute: Compute) -> None:
    """Commit a run's weights, timing and history to the store.

    The history comes last and has the weights' hash, so a partly committed run is trained again.
    """
    model = store.commit("classifiers", recipe, ".safetensors", lambda path: save_file(result.state, path))
    on_gpu = compute.device.type == "cuda"
    unit = "epoch" if result.stopped != "steps" else "validation"
    timing = {
        "device": torch.cuda.get_device_name(compute.device) if on_gpu else platform.machine(),
        "processes": compute.group.size,
        "gpus": compute.group.size if on_gpu else 0,
        "threads": torch.get_num_threads(),
        "dtype": str(resolve(config.dtype, compute.device)).removeprefix("torch."),
        f"seconds_per_{unit}": [round(seconds, 4) for seconds in result.seconds],
    }
    store.commit("classifier_timings", recipe, ".json", lambda path: write_json(path, timing))
    history = {
        "best_epoch": result.best_epoch,
        "val_top1": result.val_top1,
        "model_sha256": sha256_file(model),
        f"{unit}s": [asdict(validation) for validation in result.history],
        "steps": result.steps,
        "stopped": result.stopped,
        "kept_step": result.kept_step,
    }
    store.commit("classifiers", recipe, ".json", lambda path: write_json(path, history))


def is_trained(store: Store, recipe: Recipe) -> bool:
    """Whether the store has a run's weights, history and timing, and the weights match the history."""
    if not store.has("classifiers", recipe, ".json", _is_json) or not store.has(
        "classifier_timings", recipe, ".json", _is_json
    ):
        return False
    expected = read_json(store.path("classifiers", recipe, ".json"))["model_sha256"]
    return store.has("classifiers", recipe, ".safetensors", lambda path: sha256_file(path) == expected)


def _is_json(path: Path) -> bool:
    try:
        return bool(read_json(path))
    except ValueError:
        return False
