"""Pre-training: the vocabulary, the loop that goes on after an interruption, the safety checker, the assembled folders."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from augbench.config import PretrainAutoencoder, PretrainClip, PretrainUnet
from augbench.pretrain.loop import EpochSampler, Schedule, step_generator, train

torch.set_num_threads(1)


def test_the_vocabulary_is_openais(tmp_path: Path) -> None:
    import open_clip

    from augbench.pretrain.tokenizer import build_tokenizer

    ours = build_tokenizer(tmp_path)
    theirs = open_clip.get_tokenizer("ViT-L-14")
    texts = ["A photo of T-shirt/top, tee shirt.", "tigershark,Galeocerdocuvieri", "#ootd #ankleboot 70% off!", "Zürich naïve 日本"]
    for text in texts:
        ids = ours(text).input_ids
        assert ids == theirs([text])[0][: len(ids)].tolist()
    assert len(ours) == 49408


def test_an_epoch_shows_every_item_once_in_its_own_order() -> None:
    sampler = EpochSampler(10, 5, 0)
    first = np.concatenate([sampler.indices(0), sampler.indices(1)])
    second = np.concatenate([sampler.indices(2), sampler.indices(3)])
    assert sorted(first) == sorted(second) == list(range(10)) and first.tolist() != second.tolist()


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    schedule = Schedule(100, 1.0)
    rates = [schedule.lr_at(step) for step in range(100)]
    assert math.isclose(max(rates), 1.0) and rates[0] < 0.3 and rates[-1] < 0.01
    assert rates.index(max(rates)) < 6


class Stopped(Exception):
    pass


def fit(folder: Path, stop_at: int | None = None) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    module = nn.Linear(4, 1)

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        if step == stop_at:
            raise Stopped
        inputs = torch.randn(8, 4, generator=step_generator(0, step))
        loss = (module(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        return loss, {"loss": loss.item()}

    history = train("fit", module, loss_at, Schedule(30, 0.1), folder / "checkpoint.pt", 5)
    return history, module.state_dict()


def test_an_interrupted_training_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    history, state = fit(tmp_path / "whole")
    with pytest.raises(Stopped):
        fit(tmp_path / "cut", stop_at=17)
    resumed_history, resumed = fit(tmp_path / "cut")
    assert resumed_history == history
    assert all(torch.equal(state[name], resumed[name]) for name in state)
    assert history[-1]["loss"] < history[0]["loss"]


def test_assembled_folders_load_and_flag_what_they_were_calibrated_on(tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline
    from PIL import Image
    from transformers import CLIPModel, CLIPTokenizer

    from augbench.corpus.distractors import UNSAFE_KIND, distractor
    from augbench.models import check_safety
    from augbench.pretrain.assemble import assemble, safety_checker
    from augbench.pretrain.autoencoder import new_autoencoder
    from augbench.pretrain.clip import new_clip
    from augbench.pretrain.measure import diversity
    from augbench.pretrain.tokenizer import build_tokenizer
    from augbench.pretrain.unet import new_unet

    torch.manual_seed(0)
    made = [distractor(index, 0) for index in range(200)]
    unsafe = torch.stack([torch.from_numpy(image) for image, _, kind in made if kind == UNSAFE_KIND])
    safe = torch.stack([torch.from_numpy(image) for image, _, kind in made if kind == "texture"])
    clip = new_clip(PretrainClip(width=32, vision_layers=1, text_layers=1, heads=2)).eval()
    vocabulary = build_tokenizer(tmp_path / "tokenizer")
    vae, unet = new_autoencoder(PretrainAutoencoder(channels=(16, 16, 16))), new_unet(PretrainUnet(channels=(16, 32)), 32)
    checker, threshold = safety_checker(clip, unsafe, safe)
    assemble(clip, vocabulary, vae, unet, checker, tmp_path / "models")
    assert 0 < threshold < 1
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "models/stable-diffusion", torch_dtype=torch.float32, local_files_only=True)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in unsafe]
    assert np.mean(check_safety(pipeline, pictures)) > 0.9
    loaded = CLIPModel.from_pretrained(tmp_path / "models/clip", torch_dtype=torch.float32)
    assert all(torch.allclose(value, loaded.state_dict()[name], atol=2e-3) for name, value in clip.state_dict().items())
    assert len(CLIPTokenizer.from_pretrained(tmp_path / "models/clip")) == 49408
    assert diversity(torch.tensor([[0.0], [3.0], [1.0], [1.0]]), np.array([0, 0, 1, 1])) == 1.5
