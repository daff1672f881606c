"""Adapters of models other than Stable Diffusion 1.x and 2.x: tiny ones with random weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import SMALL_STUDY
from diffusers import FlowMatchEulerDiscreteScheduler
from test_lora import learned_adapters
from test_personalise import NAMES, Inputs, inputs
from test_pipelines import models, tiny

from augbench.artifacts.adapters import FILE, adapter_id, adapter_of, read_adapter
from augbench.artifacts.store import Store
from augbench.config.problems import ConfigError
from augbench.config.study import Study, parse_study
from augbench.data.classes import read_class_table
from augbench.files import write_json
from augbench.generate.adapters import MergedAdapter
from augbench.generate.pipelines import pipeline_sampler
from augbench.generate.stage import LearnedFiles, generate
from augbench.models.folders import fingerprint
from augbench.personalise.objectives import FlowMatching
from augbench.personalise.stage import read_metadata
from augbench.plan.recipes import method_sampling
from augbench.prompts.stage import write_prompts
from augbench.runtime.job import Job

__all__ = ["inputs", "models"]  # fixtures


def study_of(inputs: Inputs, model: str, **row: Any) -> Study:
    """Study of the digits with one row that learns adapters of ``model``, at 32 pixels with 2 steps."""
    own = {"safety_checker": None, "steps": 2, "resolution": 32, "dtype": "float32", "guidance_scale": 3.0}
    lora = {"mechanism": "personalise", "learn": "lora", "lr": 0.01, "candidates": [1], "rank": 2}
    return parse_study(
        {
            **SMALL_STUDY,
            "study": "digits",
            "dataset": inputs.dataset,
            "generators": {"other": {"model": model, **own}},
            "methods": {"row": {**lora, "generator": "other", **row}},
            "augmentation": {"images_per_class": 2},
            "finetune": {"max_epochs": 1, "batch_size": 4},
            "execution": {"batch_size": 4, "device": "cpu"},
        }
    )


@pytest.mark.parametrize(
    ("name", "part"),
    [pytest.param("sdxl", "unet", marks=pytest.mark.full), ("sd3", "transformer")],
)
def test_adapters_of_another_model_are_learned_and_plain_diffusers_makes_the_same_images(
    inputs: Inputs, models: Path, tmp_path: Path, name: str, part: str
) -> None:
    study = study_of(inputs, tiny(models, name))
    model = study.generator_of("row")
    write_json(tmp_path / "other.json", fingerprint(model.folder, None))
    folder, vectors = learned_adapters(inputs, study, "row", tmp_path, NAMES[:2], tmp_path / "other.json")
    for path in vectors:
        first, second = read_metadata(path)["history"]
        assert math.isfinite(second["train_loss"]) and second["val_loss"] != first["val_loss"]
    tensors, _ = read_adapter(adapter_of(folder, "one"))
    assert all(layer.startswith(f"{part}.") for layer in tensors)
    assert all(values.any() for layer, values in tensors.items() if ".lora_A." in layer)
    assert any(values.any() for layer, values in tensors.items() if ".lora_B." in layer)
    assert adapter_id(adapter_of(folder, "one")) != adapter_id(adapter_of(folder, "zero"))

    sampler = pipeline_sampler(model, method_sampling(study, "row"), torch.device("cpu"), 2, 1)

    def images() -> np.ndarray:
        samples = sampler.sample(["A photo of one."] * 2, [("one", 0), ("one", 1)], 0)
        return np.stack([np.asarray(sample.image, dtype=int) for sample in samples])

    plain, merged = images(), MergedAdapter(sampler.network)
    merged.put(adapter_of(folder, "one"))
    ours = images()
    merged.put(None)
    sampler.pipeline.load_lora_weights(str(folder / "one"), weight_name=FILE, local_files_only=True)
    theirs = images()
    sampler.pipeline.unload_lora_weights()
    assert np.abs(ours - theirs).max() <= 2 and np.abs(ours - plain).max() > 2

    # the stage: each class with its adapter, which its shard names
    job, classes = Job(study, Store(tmp_path / ".store"), 1), read_class_table(inputs.path("classes.parquet"))
    chosen = [info for info in classes if info.class_id in NAMES[:2]]
    prompts = tmp_path / "prompts.parquet"
    write_prompts(study, "row", chosen, {info.class_id: ["x"] for info in chosen}, prompts)
    shards = [str(tmp_path / f"shards/row/1/{class_id}/0.parquet") for class_id in NAMES[:2]]
    files = {"": LearnedFiles(adapters=str(folder))}
    generate(job, "row", str(prompts), str(tmp_path / "other.json"), "", {"": shards}, files)
    own = fingerprint(model.folder, None)["id"]
    for class_id, shard in zip(NAMES[:2], shards, strict=True):
        rows = pq.read_table(shard, columns=["model", "prompt"])
        assert set(rows["model"].to_pylist()) == {f"{own}+{adapter_id(adapter_of(folder, class_id))}"}
        assert set(rows["prompt"].to_pylist()) == {f"A photo of {class_id}."}


def test_a_rectified_flow_learns_the_velocity_at_logit_normal_shares_of_noise() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    flow = FlowMatching(scheduler)
    assert flow.timesteps == 1000
    # the median of the distribution, and its quantile of 1 deviation: the logistic function of 0 and of 1
    wanted = {500: 500, 841: 731}
    latents, noise = torch.full((2, 1, 1, 1), 2.0), torch.full((2, 1, 1, 1), -1.0)
    noisy, times, target = flow.pose(latents, noise, torch.tensor(list(wanted)))
    for number, place in enumerate(wanted.values()):
        assert abs(float(times[number]) - float(scheduler.timesteps[place])) < 3
        share = float(times[number]) / 1000
        assert float(noisy[number]) == pytest.approx(2 * (1 - share) - share, abs=1e-5)
    assert target.flatten().tolist() == [-3.0, -3.0]


def test_a_pipeline_whose_objective_is_not_known_is_named(inputs: Inputs, models: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"methods.row.learn.*lora is allowed with.*StableDiffusion3Pipeline"
    ):
        study_of(inputs, tiny(models, "pixart"))
