"""Models other than Stable Diffusion 1.x at their published sizes, on a GPU that is not there."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from unittest import mock

import pytest
import torch
from conftest import LEAST_STUDY
from diffusers import DiffusionPipeline
from fake_cuda import fake_gpu
from full_pipelines import published_parts, published_size
from full_size import fine_tuned
from test_fake_cuda import waits_inside
from test_pipelines import models, tiny

from augbench.config.hub import known_model
from augbench.config.study import parse_study
from augbench.generate.pipelines import PipelineSampler
from augbench.models.pipelines import Checker, load_pipeline
from augbench.personalise.train import Trainer
from augbench.runtime.fit import BatchLimit

__all__ = ["models"]  # a fixture
GIB = 2**30
SAMPLING = {"steps": 1, "guidance_scale": 5.0, "resolution": 1024, "dtype": "bfloat16"}
MODELS = {
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "pixart": "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
}


def sampler(folder: Path, batch: int) -> PipelineSampler:
    (folder / "model_index.json").write_text("{}")
    pipeline = load_pipeline(folder, torch.device("cuda"), torch.bfloat16)
    return PipelineSampler(pipeline, SAMPLING, Checker(None, None), BatchLimit(batch, "batch"), 20)


@pytest.mark.full
@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_full_size_samples_on_the_gpu_within_the_memory_that_the_plan_says(
    name: str, tmp_path: Path
) -> None:
    cost, peaks = known_model(MODELS[name])["cost"], {}
    with fake_gpu() as gpu, published_size(name):
        made = sampler(tmp_path, 2)
        weights = gpu.live / GIB
        for batch in (1, 2):
            gpu.reset_peak()
            samples = made.sample(["a cat"] * batch, [("cat", i) for i in range(batch)], 0)
            assert [sample.image.size for sample in samples] == [(1024, 1024)] * batch
            peaks[batch] = gpu.peak / GIB
    assert weights == pytest.approx(cost["weights_gib"], rel=0.05)
    assert weights < peaks[1] <= peaks[2] < weights + 6


@pytest.mark.full
def test_weights_that_fill_the_card_are_there_one_network_at_a_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    offload = mock.patch.object(
        DiffusionPipeline, "enable_model_cpu_offload"
    )  # it moves weights, of which none are here
    with fake_gpu(memory=8) as gpu, published_size("pixart"), offload as offloaded:
        with caplog.at_level(logging.WARNING):
            load_pipeline(tmp_path, torch.device("cuda"), torch.bfloat16)
        assert gpu.live == 0
    offloaded.assert_called_once_with(device=torch.device("cuda"))
    assert "GiB of weights for 8.0 GiB of free GPU memory" in caplog.text


@pytest.mark.full
def test_a_step_of_learning_a_word_of_sdxl_of_full_size_does_not_wait(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = parse_study(
        {
            **LEAST_STUDY,
            "diffusion": {"model": tiny(models, "sdxl"), "safety_checker": None, "resolution": 1024},
            "methods": {"row": {"mechanism": "personalise", "learn": "pseudoword", "candidates": [1]}},
            "finetune": {"max_epochs": 1, "patience": 1, "validation_draws": 1, "dtype": "bfloat16"},
            "execution": {"batch_size": 1, "device": "cuda"},
        }
    )
    with fake_gpu() as gpu, published_parts("sdxl"):
        steps = waits_inside(gpu, monkeypatch, Trainer, "step")
        run = Trainer.run
        monkeypatch.setattr(Trainer, "run", lambda self: gpu.reset_peak() or run(self))
        learned = fine_tuned(study, tmp_path, images=1)
    assert steps == [Counter()]
    shapes = {name: tuple(values.shape) for name, values in learned.vectors.items()}
    assert shapes == {"epoch1.text_encoder": (1, 768), "epoch1.text_encoder_2": (1, 1280)}
    weights = known_model(MODELS["sdxl"])["cost"]["weights_gib"]  # the VAE's, 0.2, aren't there
    assert weights - 0.3 < gpu.peak / GIB < weights + 6
