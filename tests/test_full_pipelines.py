"""Models other than Stable Diffusion 1.x at their published sizes, on a GPU that is not there."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from fake_cuda import fake_gpu
from full_pipelines import published_size

from augbench.config.hub import known_model
from augbench.generate.pipelines import PipelineSampler
from augbench.models.pipelines import Checker, load_pipeline
from augbench.runtime.fit import BatchLimit

GIB = 2**30
SAMPLING = {"steps": 2, "guidance_scale": 5.0, "resolution": 1024, "dtype": "bfloat16"}
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
    print(name, weights, peaks)
    assert weights == pytest.approx(cost["weights_gib"], rel=0.05)
    assert weights < peaks[1] <= peaks[2] < weights + 6


@pytest.mark.full
def test_weights_that_fill_the_card_are_there_one_network_at_a_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with fake_gpu(memory=8) as gpu, published_size("pixart"), caplog.at_level(logging.WARNING):
        (tmp_path / "model_index.json").write_text("{}")
        pipeline = load_pipeline(tmp_path, torch.device("cuda"), torch.bfloat16)
        assert gpu.live == 0 and pipeline._execution_device.type == "cuda"
    assert "10.2 GiB of weights for 8.0 GiB of free GPU memory" in caplog.text
