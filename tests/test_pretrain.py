"""Pre-training: the vocabulary, the loop that resumes, the safety checker, the assembled folders."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from augbench.config.pretrain import PretrainAutoencoder, PretrainClip, PretrainReference, PretrainUnet
from augbench.errors import UserError
from augbench.files import read_json, write_json
from augbench.measures.judge import check_judge
from augbench.miniature.pretrain.loop import EpochSampler, Schedule, step_generator, train

torch.set_num_threads(1)
MINI = Path(__file__).resolve().parents[1] / "resources/mini"


def test_the_vocabulary_is_openais(tmp_path: Path) -> None:
    import open_clip

    from augbench.miniature.pretrain.tokenizer import build_tokenizer

    ours = build_tokenizer(tmp_path)
    theirs = open_clip.get_tokenizer("ViT-L-14")
    texts = [
        "A photo of T-shirt/top, tee shirt.",
        "tigershark,Galeocerdocuvieri",
        "#ootd #ankleboot 70% off!",
        "Zürich naïve 日本",
        "it\u2019s a \u201ccafe\u0301\u201d \u2013 \ufb01sh &amp; chips\u2026",
        "\u039f\u0394\u039f\u03a3  \tSTRASSE \u00bd",
    ]
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


def test_a_restarted_learning_rate_is_two_schedules_one_after_the_other() -> None:
    first, second, both = Schedule(40, 1.0), Schedule(60, 1.0), Schedule(100, 1.0, restart_at=40)
    parts = [*(first.lr_at(step) for step in range(40)), *(second.lr_at(step) for step in range(60))]
    assert [both.lr_at(step) for step in range(100)] == parts


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

    from augbench.measures.distances import diversity
    from augbench.miniature.corpus.distractors import UNSAFE_KIND, distractor
    from augbench.miniature.pretrain.assemble import assemble, safety_checker
    from augbench.miniature.pretrain.autoencoder import new_autoencoder
    from augbench.miniature.pretrain.clip import embed_images, new_clip
    from augbench.miniature.pretrain.tokenizer import build_tokenizer
    from augbench.miniature.pretrain.unet import new_unet
    from augbench.models.folders import check_safety

    torch.manual_seed(0)
    made = [distractor(index, 0) for index in range(200)]
    unsafe = torch.stack([torch.from_numpy(image) for image, _, kind in made if kind == UNSAFE_KIND])
    safe = torch.stack([torch.from_numpy(image) for image, _, kind in made if kind == "texture"])
    clip = new_clip(PretrainClip(width=32, vision_layers=1, text_layers=1, heads=2)).eval()
    build_tokenizer(tmp_path / "tokenizer")
    vae, unet = (
        new_autoencoder(PretrainAutoencoder(channels=(16, 16, 16))),
        new_unet(PretrainUnet(channels=(16, 32)), 32),
    )
    checker, threshold = safety_checker(clip, unsafe, safe)
    # random networks separate little: what counts is that the loaded checker keeps the threshold
    above = embed_images(clip, unsafe) @ checker.concept_embeds[0] > threshold
    assemble(
        clip, CLIPTokenizer.from_pretrained(tmp_path / "tokenizer"), vae, unet, checker, tmp_path / "models"
    )
    assert 0 < threshold < 1
    pipeline = StableDiffusionPipeline.from_pretrained(
        tmp_path / "models/stable-diffusion", dtype=torch.float32, local_files_only=True
    )
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in unsafe]
    assert np.mean(check_safety(pipeline, pictures) == above.numpy()) > 0.9
    loaded = CLIPModel.from_pretrained(tmp_path / "models/clip", dtype=torch.float32)
    assert all(
        torch.allclose(value, loaded.state_dict()[name], atol=2e-3)
        for name, value in clip.state_dict().items()
    )
    assert len(CLIPTokenizer.from_pretrained(tmp_path / "models/clip")) == 49408
    assert diversity(torch.tensor([[0.0], [3.0], [1.0], [1.0]]), np.array([0, 0, 1, 1])) == 1.5


# --- judges ---------------------------------------------------------------------------------------


@pytest.fixture
def judge_folder(tmp_path: Path) -> Path:
    """An untrained reference classifier of three classes, saved as a judge."""
    from augbench.measures.judge import save_judge
    from augbench.miniature.pretrain.reference import network, new_reference

    config = PretrainReference(base_width=8)
    save_judge(new_reference(config, 3, seed=1).eval(), ["a", "b", "c"], network(config), tmp_path / "judge")
    return tmp_path / "judge"


def test_a_judge_is_the_classifier_that_was_saved(judge_folder: Path) -> None:
    from augbench.measures.judge import load_judge, prepare
    from augbench.miniature.pretrain.reference import new_reference

    images = torch.randint(
        0, 256, (16, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    judge = load_judge(judge_folder, ["a", "b", "c"], torch.device("cpu"))
    original = new_reference(PretrainReference(base_width=8), 3, seed=1).eval()
    with torch.inference_mode():
        expected, found = original(prepare(images)), judge.model(prepare(images))
    assert torch.allclose(expected, found, atol=2e-2 * float(expected.abs().max()))
    assert torch.equal(judge.labels(images), found.argmax(1))


def test_a_judge_speaks_of_the_studys_classes_only_and_in_their_order(judge_folder: Path) -> None:
    from augbench.measures.judge import load_judge, prepare

    images = torch.randint(
        0, 256, (64, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    judge = load_judge(judge_folder, ["c", "a"], torch.device("cpu"))
    with torch.inference_mode():
        # "b" would win, but the study does not have it
        judge.model.fc.bias[:] = torch.tensor([0.0, 100.0, 0.0])
        logits = judge.model(prepare(images))
    assert logits.argmax(1).tolist() == [1] * 64
    assert judge.labels(images).tolist() == (logits[:, 2] < logits[:, 0]).long().tolist()


def test_a_judge_sees_the_central_square(judge_folder: Path) -> None:
    from PIL import Image

    from augbench.measures.judge import load_judge

    judge = load_judge(judge_folder, ["a", "b"], torch.device("cpu"))
    wide = np.zeros((64, 128, 3), dtype=np.uint8)
    wide[:, 32:96] = 200
    assert judge.pixels(Image.fromarray(wide)).unique().tolist() == [200]
    small = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert np.array_equal(judge.pixels(Image.fromarray(small)).permute(1, 2, 0).numpy(), small)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda folder: (folder / "model.safetensors").unlink(),
            r"report.judge: .* has no model.safetensors; allowed: a folder with",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), r"config.json: not the config of a judge"),
        (
            lambda folder: write_json(folder / "config.json", {"model_type": "clip"}),
            r"report.judge: .* is a model of type 'clip'; allowed: 'augbench_judge'",
        ),
        (
            lambda folder: write_json(
                folder / "config.json", {"model_type": "augbench_judge", "network": {}}
            ),
            r"config.json: not the config of a judge",
        ),
        (
            lambda folder: write_json(
                folder / "config.json", {**read_json(folder / "config.json"), "class_ids": ["a"]}
            ),
            r"report.judge: .* does not know class 'b'; allowed: a judge of the study's classes, or null",
        ),
    ],
)
def test_a_judge_that_cannot_judge_is_refused_early(
    judge_folder: Path, spoil: Callable[[Path], object], message: str
) -> None:
    assert check_judge(judge_folder, ["a", "b"]).class_ids == ("a", "b", "c")
    spoil(judge_folder)
    with pytest.raises(UserError, match=message):
        check_judge(judge_folder, ["a", "b"])


def test_a_judge_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"report.judge: .*no such folder"):
        check_judge(tmp_path / "none", ["a"])


def test_weights_of_another_network_are_refused(judge_folder: Path) -> None:
    from augbench.measures.judge import load_judge

    value = read_json(judge_folder / "config.json")
    write_json(judge_folder / "config.json", {**value, "network": {**value["network"], "base_width": 16}})
    with pytest.raises(UserError, match=r"model.safetensors: not the weights of its config.json"):
        load_judge(judge_folder, ["a"], torch.device("cpu"))


def test_captions_are_embedded_alone_as_in_a_batch() -> None:
    from augbench.miniature.pretrain.clip import _embed_captions, new_clip

    torch.manual_seed(0)
    clip = new_clip(PretrainClip(width=32, vision_layers=1, text_layers=1, heads=2)).eval()
    tokens = [[49406, *range(7, 7 + length), 49407] for length in (9, 1, 4, 12, 1, 3, 30, 2)]
    with torch.inference_mode():
        together = _embed_captions(clip, tokens, 49407)
        alone = torch.cat([_embed_captions(clip, [ids], 49407) for ids in tokens])
    assert torch.allclose(together, alone, atol=1e-5) and together.shape == (8, 32)


def test_the_card_says_which_attributes_are_told(tmp_path: Path) -> None:
    from augbench.miniature.pretrain.card import render_card

    record, quality = read_json(MINI / "training_record.json"), read_json(MINI / "quality.json")
    plain = render_card(record, {name: value for name, value in quality.items() if name != "attributes"}, {})
    real = {"told": 0.875, "held_out": 0.75, "of": {"dark": 1.0, "drawing": 0.5}}
    generated = {"told": 0.625, "held_out": 0.5, "of": {"dark": 0.25, "drawing": 0.125}}
    card = render_card(record, {**quality, "attributes": {"real": real, "generated": generated}}, {})
    assert "chance: 50.0%" in card and "| drawing | 50.0% | 12.5% |" in card
    assert "| generated, the prompt names it | 62.5% | 50.0% |" in card
    assert "chance" not in plain


def test_the_robust_judge_is_shipped(tmp_path: Path, judge_folder: Path) -> None:
    from augbench.miniature.pretrain.card import ship

    trained, target = tmp_path / "pretrain", tmp_path / "mini"
    for name in ("clip", "stable-diffusion"):
        shutil.copytree(MINI / name, trained / "models" / name)
    record = read_json(MINI / "training_record.json")
    # trained in two stages
    record["histories"]["clip"] = [{"step": 5, "loss": 2.5}, {"image_step": 7, "image_loss": 1.5}]
    write_json(trained / "models/training_record.json", record)
    for name in ("quality.json", "generated.png"):
        shutil.copyfile(MINI / name, trained / name)
    shutil.copytree(judge_folder, trained / "reference/robust")
    ship(trained, target)
    assert check_judge(target / "judge", ["a"]).class_ids == ("a", "b", "c")
    card = (target / "README.md").read_text(encoding="utf-8")
    tables = (
        "| clip: step | loss |\n|---:|---:|\n| 5 | 2.5 |\n\n"
        "| clip: image step | image_loss |\n|---:|---:|\n| 7 | 1.5 |\n"
    )
    assert "| judge | 0." in card and tables in card
    ship(trained, target)  # over an older one


def test_training_leaves_both_reference_classifiers_as_judges(tmp_path: Path, garment_files: Path) -> None:
    from augbench.artifacts.store import Store
    from augbench.config.study import parse_study
    from augbench.data.classes import load_class_table
    from augbench.measures.judge import load_judge, prepare
    from augbench.miniature.pretrain import stage
    from augbench.runtime.job import Job

    study = parse_study(
        {
            "study": "tiny",
            "dataset": {"kind": "fashion_mnist", "downloads": str(garment_files)},
            "corpus": {"kind": "miniature", "downloads": str(garment_files), "images": 200},
            "diffusion": {"model": "none", "resolution": 32},
            "clip": {"model": "none"},
            "methods": {"none": {"mechanism": "real"}},
            "augmentation": {"images_per_class": 1},
            "pretrain": {"reference": {"base_width": 8, "epochs": 1, "batch_size": 50}},
        }
    )
    stage.pretrain_reference(
        Job(study, Store(tmp_path / ".store"), 1), str(garment_files), str(tmp_path / "reference")
    )
    ids = [info.class_id for info in load_class_table("fashion_mnist")]
    images = torch.randint(
        0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    for what in ("clean", "robust"):
        trained = load_judge(tmp_path / "reference" / what, ids, torch.device("cpu"))
        state = torch.load(tmp_path / "reference" / f"{what}.pt", weights_only=True)
        assert all(
            torch.allclose(value.float(), state[name].float(), atol=2e-3)
            for name, value in trained.model.state_dict().items()
        )
        with torch.inference_mode():
            assert trained.model(prepare(images)).shape == (8, 10)
