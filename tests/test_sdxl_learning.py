"""Conditionings and pseudo-words of SDXL: what learns, files, images; tiny, with random weights."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import LEAST_STUDY, SMALL_STUDY
from diffusers import DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.numpy import load_file
from test_personalise import CPU, NAMES, Inputs, Interrupted, inputs, row_of
from test_pipelines import described, models, tiny
from tiny_pipelines import clip_text, clip_tokenizer

from augbench.artifacts.adapters import learning_problems
from augbench.artifacts.pool import build_index, load_images, read_index
from augbench.artifacts.store import Store
from augbench.config.study import Study, parse_study
from augbench.data.classes import read_class_table
from augbench.errors import UserError
from augbench.files import read_json, write_json
from augbench.generate.pipelines import PipelineSampler
from augbench.generate.stage import LearnedFiles, generate
from augbench.models.folders import fingerprint
from augbench.models.pipelines import Checker
from augbench.models.words import learn_words
from augbench.personalise import fine_tune as parts
from augbench.personalise import train
from augbench.personalise.embedding import token_ids
from augbench.personalise.families import family_of
from augbench.personalise.groups import ClassGroup
from augbench.personalise.stage import UNET_FILES, choose_lr, finetune_classes, read_metadata
from augbench.personalise.train import Trainer
from augbench.plan.needs import learned_bytes
from augbench.plan.paths import Plan
from augbench.prompts.stage import write_prompts
from augbench.runtime.fit import BatchLimit
from augbench.runtime.job import Job
from augbench.seeds import derive_seed

__all__ = ["inputs", "models"]  # fixtures
WIDTH, TOKENS = 32, 77  # of each text encoder
ROWS: dict[str, dict[str, Any]] = {
    "word": {"learn": "pseudoword"},
    "word_unet": {"learn": "pseudoword", "clusters": 2, "train_unet": True, "unet_lr": 1e-3},
    "states": {"learn": "conditioning"},
    "states_unet": {"learn": "conditioning", "clusters": 2, "train_unet": True, "unet_lr": 1e-3},
}
TOLERANCE = 2  # grey levels


def study_of(inputs: Inputs, models: Path, batch_size: int = 4, max_epochs: int = 1) -> Study:
    """Study of the digits with rows that learn of a tiny Stable Diffusion XL, at 32 pixels with 2 steps."""
    sampled = {
        "safety_checker": None,
        "steps": 2,
        "resolution": 32,
        "dtype": "float32",
        "guidance_scale": 3.0,
    }
    common = {"mechanism": "personalise", "generator": "xl", "lr": 0.05, "candidates": ["val_loss", 1]}
    return parse_study(
        {
            **SMALL_STUDY,
            "study": "digits",
            "dataset": inputs.dataset,
            "generators": {"xl": {"model": tiny(models, "sdxl"), **sampled}},
            "methods": {name: {**common, **row} for name, row in ROWS.items()},
            "augmentation": {"images_per_class": 4},
            "finetune": {"max_epochs": max_epochs, "batch_size": 4},
            "execution": {"batch_size": batch_size, "device": "cpu"},
        }
    )


def trainer_of(inputs: Inputs, models: Path, method: str, folder: Path) -> Trainer:
    """A trainer of two classes."""
    study = study_of(inputs, models)
    study = study.model_copy(update={"diffusion": study.generator_of(method)})
    row, tasks = row_of(study, method), inputs.tasks(study, method, NAMES[:2])
    family = family_of(study.diffusion)
    assert family is not None
    unet = parts.load_part(UNet2DConditionModel, study.diffusion.folder, "unet", torch.float32, CPU)
    scheduler = DDPMScheduler.from_config(
        DDPMScheduler.load_config(study.diffusion.folder, subfolder="scheduler")
    )
    return Trainer(
        tasks,
        parts.new_rows(study, row, tasks, CPU),
        unet,
        scheduler,
        *inputs.latents(study, tasks, Store(folder / ".store")),
        parts.settings_of(study, row, 1.0, len(tasks)),
        folder,
        predict=family.predict(unet, 32),
    )


def learn(inputs: Inputs, study: Study, method: str, folder: Path) -> tuple[list[str], dict[str, str]]:
    """Run the stage on two classes; returns their files, and the folders of the U-Nets."""
    job, place, row = Job(study, Store(folder / ".store"), 1), folder / method, row_of(study, method)
    write_json(folder / "xl.json", fingerprint(study.generator_of(method).folder, None))
    vectors = [str(place / f"vectors/{class_id}.safetensors") for class_id in NAMES[:2]]
    unets = {name: str(place / "unet" / name) for name in row.candidate_names if row.train_unet}
    tables = (inputs.path(f"{name}.parquet") for name in ("train", "val", "classes"))
    clusters = inputs.path("k2.parquet") if row.clusters > 1 else None
    finetune_classes(job, method, 1.0, *tables, folder / "xl.json", clusters, vectors, unets)
    return vectors, unets


def chosen(inputs: Inputs, study: Study, method: str, folder: Path) -> LearnedFiles:
    """Files of the candidate of epoch 1 at the only learning rate."""
    vectors, unets = learn(inputs, study, method, folder)
    row, made = row_of(study, method), folder / method
    files = {name: str(made / name / "embeddings.safetensors") for name in row.candidate_names}
    folders = {name: str(made / name / "unet") for name in unets}
    choose_lr(row, {1.0: vectors}, {1.0: unets}, made / "lr.json", made / "history.parquet", files, folders)
    entries = LearnedFiles.of(Plan(study, NAMES), method, "epoch1").entries
    return LearnedFiles(files["epoch1"], folders.get("epoch1"), entries=entries)


def stage_images(
    inputs: Inputs, study: Study, method: str, learned: LearnedFiles, folder: Path
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Images ``(8, H, W, 3)`` of two classes, made by the stage, and the rows of their shards."""
    job, classes = Job(study, Store(folder / ".store"), 1), read_class_table(inputs.path("classes.parquet"))
    wanted = [info for info in classes if info.class_id in NAMES[:2]]
    wanted.sort(key=lambda info: NAMES.index(info.class_id))
    write_json(folder / "xl.json", fingerprint(study.generator_of(method).folder, None))
    prompts = folder / "prompts.parquet"
    write_prompts(study, method, wanted, {info.class_id: ["x"] * 4 for info in wanted}, prompts)
    shards = [folder / f"shards/{method}/1/{class_id}/0.parquet" for class_id in NAMES[:2]]
    generate(
        job, method, str(prompts), str(folder / "xl.json"), "", {"": list(map(str, shards))}, {"": learned}
    )
    build_index(shards, folder, folder / "index.parquet")
    images = load_images(read_index(folder / "index.parquet"), folder)
    rows = [row for shard in shards for row in pq.read_table(shard).drop(["image"]).to_pylist()]
    return np.stack([np.asarray(image, dtype=int) for image in images]), rows


def diffusers_images(
    study: Study, method: str, learned: LearnedFiles, rows: Sequence[Mapping[str, Any]]
) -> np.ndarray:
    """The same images by plain diffusers, which gets the text states of the prompts one by one."""
    model, vectors = study.generator_of(method), load_file(str(learned.embeddings))
    pipeline = StableDiffusionXLPipeline.from_pretrained(model.folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    if learned.unet is not None:
        pipeline.unet = UNet2DConditionModel.from_pretrained(learned.unet)
    if row_of(study, method).learns_words:
        for ending in ("", "_2"):
            own = {
                name: values for name, values in vectors.items() if name.endswith(f".text_encoder{ending}")
            }
            pipeline.load_textual_inversion(
                [{name.rpartition(".")[0]: torch.from_numpy(values)} for name, values in own.items()],
                text_encoder=getattr(pipeline, f"text_encoder{ending}"),
                tokenizer=getattr(pipeline, f"tokenizer{ending}"),
            )
    images = []
    for row in rows:
        if row_of(study, method).learns_words:
            states, _, pooled, _ = pipeline.encode_prompt(row["prompt"], do_classifier_free_guidance=False)
        else:
            entries = (
                vectors[f"{row['prompt']}.{name}"] for name in ("prompt_embeds", "pooled_prompt_embeds")
            )
            states, pooled = (torch.from_numpy(values)[None] for values in entries)
        seed = derive_seed(study.seed_of(method), "image", row["class_id"], row["index"], 0)
        image = pipeline(
            prompt_embeds=states,
            pooled_prompt_embeds=pooled,
            num_inference_steps=2,
            guidance_scale=3.0,
            height=32,
            width=32,
            generator=torch.Generator().manual_seed(seed),
        ).images[0]
        images.append(np.asarray(image, dtype=int))
    return np.stack(images)


def hashes(modules: Mapping[str, torch.nn.Module], but: torch.Tensor) -> dict[str, str]:
    """Hash of every weight except ``but``, by module and name."""
    return {
        f"{part}.{name}": hashlib.sha256(values.detach().numpy().tobytes()).hexdigest()
        for part, module in modules.items()
        for name, values in module.state_dict(keep_vars=True).items()
        if values is not but
    }


# --- what learns ------------------------------------------------------------------------------------


def test_a_word_learns_its_row_in_both_text_encoders_and_nothing_else_changes(
    inputs: Inputs, models: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(inputs, models, "word", tmp_path)
    rows: Any = trainer.rows
    modules = {"unet": trainer.unet, **{str(i): one for i, (one, _) in enumerate(rows._encoders)}}
    before, values = hashes(modules, rows.values), rows.values.detach().clone()
    assert values.shape == (2, 2 * WIDTH) and len(before) > 100
    for batch in trainer.epoch_steps(trainer.groups, 1):
        trainer.step(batch)
    moved = (rows.values - values).detach().abs()
    assert (moved > 0).all() and moved.max() < 1
    assert hashes(modules, rows.values) == before
    assert set(trainer.rows.entries(values)) == {".text_encoder", ".text_encoder_2"}


@pytest.mark.parametrize("method", ["word", "states"])
def test_the_loss_of_one_image_falls_and_its_gradient_reaches_the_pooled_states(
    inputs: Inputs, models: Path, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(inputs, models, method, tmp_path)
    sample = replace(trainer.validation_sample(0, 0, 0), weight=1.0)
    batch = trainer.prepare([sample], trainer.validation_moments)
    given: list[torch.Tensor] = []
    states = trainer.rows.states

    def kept(*arguments: Any) -> Any:
        given[:] = states(*arguments)
        for values in given:
            values.retain_grad()
        return tuple(given)

    monkeypatch.setattr(trainer.rows, "states", kept)
    first = trainer.losses(batch)
    first.sum().backward()
    assert [values.shape for values in given] == [(1, TOKENS, 2 * WIDTH), (1, WIDTH)]
    assert all(values.grad is not None and values.grad.abs().max() > 0 for values in given)
    monkeypatch.undo()
    for _ in range(10):
        trainer.step(batch)
    with torch.no_grad():
        assert 0 < trainer.losses(batch).item() < first.item()


def test_the_pooled_states_depend_on_the_second_embedding_alone(
    inputs: Inputs, models: Path, tmp_path: Path
) -> None:
    rows = trainer_of(inputs, models, "word", tmp_path).rows
    states, pooled = rows.states([1], [0])
    (gradient,) = torch.autograd.grad(pooled.square().sum(), rows.values, retain_graph=True)
    assert not gradient[:, :WIDTH].any() and gradient[1, WIDTH:].all() and not gradient[0].any()
    (gradient,) = torch.autograd.grad(states.square().sum(), rows.values)
    assert gradient[1].all() and not gradient[0].any()


def test_states_of_a_word_are_those_of_diffusers_pipeline(
    inputs: Inputs, models: Path, tmp_path: Path
) -> None:
    rows: Any = trainer_of(inputs, models, "word", tmp_path).rows
    prompts = [rows.prompt(row, draw) for row, draw in ((0, 0), (1, 1), (0, 0))]
    ours = rows.states([0, 1, 0], [0, 1, 0])
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny(models, "sdxl"), vae=None, unet=None)
    for ending, values in rows.entries(rows.values.detach()).items():
        text_encoder = getattr(pipeline, ending[1:])
        tokenizer = getattr(pipeline, ending[1:].replace("text_encoder", "tokenizer"))
        words = [{f"<{name}>": own} for name, own in zip(NAMES[:2], values, strict=True)]
        pipeline.load_textual_inversion(words, text_encoder=text_encoder, tokenizer=tokenizer)
    states, _, pooled, _ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False)
    torch.testing.assert_close(ours, (states, pooled))


def test_a_new_word_does_not_move_the_place_of_the_pooled_state() -> None:
    """SDXL's config of its second encoder has ``eos_token_id`` 2: pooling at the greatest id."""
    torch.manual_seed(0)
    right, old, tokenizer = (
        clip_text(projected=True).eval(),
        clip_text(projected=True).eval(),
        clip_tokenizer(),
    )
    old.load_state_dict(right.state_dict())
    old.text_model.eos_token_id = 2
    tokens = [clip_tokenizer(), clip_tokenizer()]
    plain = token_ids(tokenizer, ["a cat"])
    torch.testing.assert_close(old(plain).text_embeds, right(plain).text_embeds)
    values = torch.nn.Parameter(torch.randn(1, WIDTH))
    for encoder, own in zip((right, old), tokens, strict=True):
        learn_words(encoder, own, ["<cat>"], values)
    ids = token_ids(tokens[0], ["a <cat> here"])
    torch.testing.assert_close(old(ids).text_embeds, right(ids).text_embeds)
    old.text_model.eos_token_id = 2
    assert (old(ids).text_embeds - right(ids).text_embeds).abs().max() > 0.01


# --- files and images ---------------------------------------------------------------------------------


SHAPES = {
    "pseudoword": {"text_encoder": (1, WIDTH), "text_encoder_2": (1, WIDTH)},
    "conditioning": {"prompt_embeds": (TOKENS, 2 * WIDTH), "pooled_prompt_embeds": (WIDTH,)},
}


@pytest.mark.parametrize(
    "method",
    [
        "word",
        "states",
        pytest.param("word_unet", marks=pytest.mark.full),
        pytest.param("states_unet", marks=pytest.mark.full),
    ],
)
def test_what_is_learned_gives_the_images_of_plain_diffusers_in_any_batch(
    inputs: Inputs, models: Path, tmp_path: Path, method: str
) -> None:
    study = study_of(inputs, models)
    learned, row = chosen(inputs, study, method, tmp_path), row_of(study, method)
    names = [
        f"<{class_id}>" if row.clusters == 1 else f"<{class_id}:{cluster}>"
        for class_id in NAMES[:2]
        for cluster in range(row.clusters)
    ]
    vectors = load_file(str(learned.embeddings))
    assert {name: values.shape for name, values in vectors.items()} == {
        f"{name}.{entry}": shape for name in names for entry, shape in SHAPES[row.learn].items()
    }
    if row.clusters > 1:
        entry = learned.entries[0]
        assert not np.array_equal(vectors[f"<one:0>.{entry}"], vectors[f"<one:1>.{entry}"])
    ours, rows = stage_images(inputs, study, method, learned, tmp_path)
    (tmp_path / "single").mkdir()
    alone, _ = stage_images(
        inputs, study_of(inputs, models, batch_size=1), method, learned, tmp_path / "single"
    )
    theirs = diffusers_images(study, method, learned, rows)
    assert np.abs(ours - theirs).max() <= TOLERANCE and np.abs(ours - alone).max() <= TOLERANCE
    assert np.abs(ours[:4] - ours[4:]).max() > TOLERANCE  # of two classes
    own = read_json(tmp_path / "xl.json")["id"]
    unet = learned.unet_id()
    assert {row["model"] for row in rows} == {own if unet is None else f"{own}+{unet}"}


def test_the_words_of_one_group_of_classes_replace_those_of_the_group_before(models: Path) -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny(models, "sdxl"), vae=None)
    sampler = PipelineSampler(pipeline, {}, Checker(None, None), BatchLimit(1, "batch"), 1)
    first, second = torch.randn((2, 1, WIDTH), generator=torch.Generator().manual_seed(0))

    def encoded(**words: torch.Tensor) -> tuple[torch.Tensor, ...]:
        entries = {f"<{name}>": values for name, values in words.items()}
        sampler.set_words({"text_encoder": entries, "text_encoder_2": entries})
        states, _, pooled, _ = pipeline.encode_prompt("a <zero> here", do_classifier_free_guidance=False)
        return states, pooled

    before = encoded(zero=first)
    for values, others in zip(before, encoded(one=first, zero=second), strict=True):
        assert (values - others).abs().max() > 0.001
    torch.testing.assert_close(encoded(zero=first), before, rtol=0, atol=0)
    assert "<one>" not in pipeline.tokenizer.get_vocab() and "<zero>" in pipeline.tokenizer_2.get_vocab()


def files_of(vectors: Sequence[str]) -> list[Any]:
    return [(read_metadata(path), {n: v.tobytes() for n, v in load_file(path).items()}) for path in vectors]


@pytest.mark.parametrize("method", ["word", pytest.param("states_unet", marks=pytest.mark.full)])
def test_interrupted_and_resumed_equals_uninterrupted(
    inputs: Inputs, models: Path, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of(inputs, models, max_epochs=2)
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    expected, unets = learn(inputs, study, method, tmp_path / "whole")
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", 0)
    validate: Callable[..., Any] = Trainer.validate

    def killed(self: Trainer, active: Sequence[ClassGroup]) -> Any:
        if self.epoch == 2:
            raise Interrupted
        return validate(self, active)

    monkeypatch.setattr(Trainer, "validate", killed)
    with pytest.raises(Interrupted):
        learn(inputs, study, method, tmp_path / "cut")
    seen: list[int] = []
    monkeypatch.setattr(
        Trainer, "validate", lambda self, active: seen.append(self.epoch) or validate(self, active)
    )
    resumed, resumed_unets = learn(inputs, study, method, tmp_path / "cut")
    assert seen == [2] and files_of(resumed) == files_of(expected)
    for name, folder in unets.items():
        whole, again = (Path(place, UNET_FILES[1]) for place in (folder, resumed_unets[name]))
        assert whole.read_bytes() == again.read_bytes()
    # nothing is learned again that the store has
    monkeypatch.setattr(Trainer, "run", lambda self: pytest.fail("learned again"))
    assert files_of(learn(inputs, study, method, tmp_path / "cut")[0]) == files_of(expected)
    history = read_metadata(expected[0])["history"]
    assert len(history) == 3 and all(math.isfinite(entry["val_loss"]) for entry in history)


def test_a_class_that_is_left_out_keeps_its_start(inputs: Inputs, models: Path, tmp_path: Path) -> None:
    for method in ("word", "states"):
        (tmp_path / method).mkdir()
        trainer = trainer_of(inputs, models, method, tmp_path / method)
        start = trainer.rows.entries(trainer.rows.values.detach().clone()[:1])
        learned = trainer.run()["zero"]
        study = study_of(inputs, models)
        study = study.model_copy(update={"diffusion": study.generator_of(method)})
        kept = parts.unlearned(study, row_of(study, method), trainer.tasks, learned)["zero"].vectors
        assert set(kept) == set(learned.vectors) and len(kept) == 4
        for ending, values in start.items():
            assert torch.equal(kept[f"epoch1{ending}"], values)
            assert not torch.equal(learned.vectors[f"epoch1{ending}"], values)


# --- config, check, plan ------------------------------------------------------------------------------


@pytest.mark.parametrize("learn", ["conditioning", "pseudoword"])
@pytest.mark.parametrize("kind", ["StableDiffusion3Pipeline", "FluxPipeline", "PixArtSigmaPipeline"])
def test_other_families_learn_neither_words_nor_conditionings(kind: str, learn: str, tmp_path: Path) -> None:
    diffusion = {"model": described(tmp_path / "other", kind), "safety_checker": None}
    methods = {"taught": {"mechanism": "personalise", "learn": learn}}
    with pytest.raises(UserError) as caught:
        parse_study({**LEAST_STUDY, "diffusion": diffusion, "methods": methods})
    assert str(caught.value).startswith(
        f"methods.taught.learn: '{learn}'; {learn} is allowed with StableDiffusionPipeline, "
        "StableDiffusionXLPipeline, and "
    )
    assert str(caught.value).endswith(f"is a {kind}") and "\n" not in str(caught.value)


def test_a_model_that_cannot_be_trained_with_is_one_line_with_row_and_key(tmp_path: Path) -> None:
    model = described(tmp_path / "xl")
    diffusion = {"model": model, "safety_checker": None}
    methods = {name: {"mechanism": "personalise", **row} for name, row in ROWS.items()}
    study = parse_study({**LEAST_STUDY, "diffusion": diffusion, "methods": methods})

    def lines(name: str) -> list[str]:
        return list(map(str, learning_problems(f"methods.{name}", row_of(study, name), study.diffusion)))

    index = {"_class_name": "StableDiffusionXLPipeline", "text_encoder": [None, None]}
    write_json(Path(model, "model_index.json"), {**index, "text_encoder_2": ["transformers", "CLIP"]})
    assert lines("states") == []
    assert lines("word") == [
        f"methods.word.learn: 'pseudoword', but {model!r} has no text_encoder; allowed: a model with "
        "text_encoder and text_encoder_2"
    ]
    write_json(Path(model, "scheduler/scheduler_config.json"), {"_class_name": "EDMEulerScheduler"})
    write_json(Path(model, "vae/config.json"), {"latents_mean": [0.0]})
    schedule, means = lines("states")
    assert schedule.startswith(f"methods.states.learn: 'conditioning', but {model!r} has a EDMEulerScheduler")
    assert means.startswith(
        f"methods.states.learn: 'conditioning', but the VAE of {model!r} has latents_mean"
    )


def test_vectors_have_the_sizes_of_both_text_encoders(inputs: Inputs, models: Path) -> None:
    study = study_of(inputs, models)
    rows, model = study.personalised, study.generator_of("word")
    assert learned_bytes(rows["word"], 10, model) == 10 * (768 + 1280) * 4
    assert learned_bytes(rows["states_unet"], 10, model) == 10 * 2 * (77 * 2048 + 1280) * 4
    assert learned_bytes(rows["word"], 10, study.diffusion) == 10 * 768 * 4
