"""Low-rank adapters of the miniature: what trains, what plain diffusers loads, resuming, images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import PeftAdapterMixin
from safetensors.numpy import load_file
from test_generate import PROMPTS, SCOPES, loaded, pixels, seeds_of
from test_personalise import NAMES, Inputs, Interrupted, inputs, row_of

from augbench.artifacts.adapters import (
    FILE,
    adapter_id,
    adapter_of,
    adapter_problems,
    check_targets,
    linear_layers,
    read_adapter,
    write_adapter,
)
from augbench.artifacts.store import Store
from augbench.commands.check.models import model_problems
from augbench.config.methods import ATTENTION_PROJECTIONS, Lora
from augbench.config.models import Diffusion
from augbench.config.problems import ConfigError
from augbench.config.study import Study
from augbench.errors import UserError
from augbench.files import write_json
from augbench.generate.adapters import MergedAdapter
from augbench.generate.sampler import Sampler
from augbench.generate.stage import LearnedFiles
from augbench.personalise import fine_tune as parts
from augbench.personalise import train
from augbench.personalise.stage import choose_lr, finetune_classes, read_metadata
from augbench.personalise.tasks import learning_rates
from augbench.personalise.train import Trainer
from augbench.personalise.weights import Adapter
from augbench.plan.needs import learned_bytes
from augbench.plan.paths import Plan
from augbench.plan.recipes import finetune_recipe
from augbench.runtime.job import Job

__all__ = ["inputs"]  # a fixture
LORA = {"learn": "lora", "lr": 0.003, "candidates": ["val_loss", 1]}
ROWS = {"by_class": LORA, "of_study": {**LORA, "scope": "study", "rank": 2, "alpha": 4.0}}
SHAPE = Lora(rank=4, alpha=4.0, targets=ATTENTION_PROJECTIONS, scope="class")


def study_of(inputs: Inputs, finetune: Mapping[str, Any] | None = None, **others: Any) -> Study:
    return inputs.study(
        {"max_epochs": 2, "patience": 2, "batch_size": 4, **(finetune or {})}, **ROWS, **others
    )


def learn(
    inputs: Inputs,
    study: Study,
    method: str,
    folder: Path,
    class_ids: Sequence[str] = NAMES[:2],
    model: Path | None = None,
) -> tuple[Job, list[str], dict[str, str]]:
    """Run the stage; returns the job, the classes' files and the folders of what they share."""
    job, place, row = Job(study, Store(folder / ".store"), 1), folder / method, row_of(study, method)
    vectors = [str(place / f"vectors/{class_id}.safetensors") for class_id in class_ids]
    shared = {name: str(place / "adapter" / name) for name in row.candidate_names if row.shares_weights}
    finetune_classes(
        job,
        method,
        1.0,
        inputs.path("train.parquet"),
        inputs.path("val.parquet"),
        inputs.path("classes.parquet"),
        model or inputs.path("diffusion.json"),
        None,
        vectors,
        shared,
    )
    return job, vectors, shared


def learned_adapters(
    inputs: Inputs,
    study: Study,
    method: str,
    folder: Path,
    class_ids: Sequence[str] = NAMES[:2],
    model: Path | None = None,
) -> tuple[Path, list[str]]:
    """Folder of the adapters of epoch 1 at the chosen learning rate, and the classes' files."""
    _, vectors, shared = learn(inputs, study, method, folder, class_ids, model)
    row, made = row_of(study, method), folder / method
    adapters = {name: str(made / name / "adapters") for name in row.candidate_names}
    records = folder / "lr.json", folder / "history.parquet"
    choose_lr(row, {1.0: vectors}, {1.0: shared}, *records, {}, {}, adapters)
    return Path(adapters["epoch1"]), vectors


def moved(path: Path, seed: int = 0) -> Path:
    """An adapter of the miniature with random values in A and B."""
    unet = UNet2DConditionModel.from_pretrained(parts_folder(), subfolder="unet")
    adapter = Adapter(unet, SHAPE)
    adapter.start(seed)
    generator = torch.Generator().manual_seed(seed)
    for values in adapter.parameters():
        values.data.add_(torch.randn(values.shape, generator=generator) * 0.2)
    adapter.save(path)
    return path / FILE


def parts_folder() -> str:
    return str(Path(__file__).resolve().parents[1] / "resources/mini/stable-diffusion")


# --- what trains -----------------------------------------------------------------------------------


def test_before_the_first_step_the_network_is_the_model_bit_for_bit() -> None:
    plain = UNet2DConditionModel.from_pretrained(parts_folder(), subfolder="unet")
    adapted = UNet2DConditionModel.from_pretrained(parts_folder(), subfolder="unet")
    adapter = Adapter(adapted, SHAPE)
    adapter.start(1, "zero")
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn((2, plain.config.in_channels, 8, 8), generator=generator)
    states = torch.randn((2, 77, plain.config.cross_attention_dim), generator=generator)
    with torch.no_grad():
        outputs = [unet(latents, torch.tensor([3, 700]), states).sample for unet in (plain, adapted)]
    assert torch.equal(*outputs)
    values = adapter.state_dict()
    assert all(values[name].count_nonzero() == 0 for name in values if ".lora_B." in name)
    first = {name: value.clone() for name, value in values.items() if ".lora_A." in name}
    assert np.std(np.concatenate([value.numpy().ravel() for value in first.values()])) == pytest.approx(
        1 / 4, rel=0.05
    )
    adapter.start(1, "one")
    assert all(not torch.equal(first[name], adapter.state_dict()[name]) for name in first)
    adapter.start(1, "zero")
    assert all(torch.equal(first[name], adapter.state_dict()[name]) for name in first)


@pytest.mark.parametrize("method", ["by_class", pytest.param("of_study", marks=pytest.mark.full)])
def test_only_adapters_change_and_the_validation_loss_falls(
    inputs: Inputs, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live: dict[str, Any] = {}
    load_part = parts.load_part

    def load(kind: Any, folder: str, part: str, *rest: Any) -> Any:
        module = load_part(kind, folder, part, *rest)
        live[part] = module, [values.detach().clone() for values in module.state_dict().values()]
        return module

    monkeypatch.setattr(parts, "load_part", load)
    study = study_of(inputs, {"max_epochs": 3, "patience": 3, "validation_draws": 2})
    learned = inputs.fine_tune(study, method, tmp_path, NAMES[: 1 if method == "by_class" else 2])
    for module, before in live.values():
        own = [values for name, values in module.state_dict().items() if ".lora_" not in name]
        assert len(own) == len(before) and all(map(torch.equal, own, before))
    trained = [name for name, values in live["unet"][0].named_parameters() if values.requires_grad]
    assert trained and all(".lora_A.default" in name or ".lora_B.default" in name for name in trained)
    first = np.mean([result.history[0]["val_loss"] for result in learned.values()])
    best = np.mean([result.history[result.best_epoch]["val_loss"] for result in learned.values()])
    assert best < 0.995 * first


def test_an_adapter_of_a_class_is_the_same_whichever_classes_are_learned_beside(
    inputs: Inputs, tmp_path: Path
) -> None:
    study = study_of(inputs, {"max_epochs": 1})
    _, both, _ = learn(inputs, study, "by_class", tmp_path / "both")
    _, alone, _ = learn(inputs, study, "by_class", tmp_path / "alone", NAMES[1:2])
    ours, theirs = load_file(both[1]), load_file(alone[0])
    assert set(ours) == set(theirs) and all(np.array_equal(ours[name], theirs[name]) for name in ours)
    other = load_file(both[0])
    assert any(not np.array_equal(ours[name], other[name]) for name in ours)


@pytest.mark.full
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_adapters_train_in_float32_beside_half_precision(inputs: Inputs, dtype: str, tmp_path: Path) -> None:
    half = inputs.fine_tune(study_of(inputs, {"dtype": dtype}), "of_study", tmp_path / "half", NAMES[:2])
    full = inputs.fine_tune(study_of(inputs), "of_study", tmp_path / "full", NAMES[:2])
    for class_id, result in half.items():
        losses = [found.history[1]["val_loss"] for found in (result, full[class_id])]
        assert losses[0] == pytest.approx(losses[1], rel=0.05)
    (path, *_) = (tmp_path / "half").glob("adapter_epoch*")
    assert all(values.dtype == np.float32 for values in load_file(path / FILE).values())


@pytest.mark.full
def test_the_micro_batch_changes_nothing_but_rounding(inputs: Inputs, tmp_path: Path) -> None:
    finetune = {"max_epochs": 1, "batch_size": 4}
    results = []
    for micro_batch in (1, 4):
        study = study_of(inputs, {**finetune, "micro_batch": micro_batch})
        learned = inputs.fine_tune(study, "by_class", tmp_path / str(micro_batch), NAMES[:1])
        results.append(learned["zero"].vectors)
    for name, values in results[0].items():
        torch.testing.assert_close(values, results[1][name], rtol=1e-2, atol=1e-4)


# --- files, resuming -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["of_study", pytest.param("by_class", marks=pytest.mark.full)])
def test_killed_within_an_epoch_and_resumed_equals_uninterrupted(
    inputs: Inputs, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of(inputs)
    steps: list[int] = []
    step, killed_after = Trainer.step, -1

    def counted(self: Trainer, batch: train.Batch) -> torch.Tensor:
        if len(steps) == killed_after:
            raise Interrupted
        steps.append(self.epoch)
        return step(self, batch)

    monkeypatch.setattr(Trainer, "step", counted)
    _, expected, expected_shared = learn(inputs, study, method, tmp_path / "whole")
    whole = len(steps)
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(train, "CHECKPOINT_SHARE", float("inf"))
    steps.clear()
    killed_after = whole * 3 // 4  # of the second class, or in the second epoch
    with pytest.raises(Interrupted):
        learn(inputs, study, method, tmp_path / "cut")
    killed_after = -1
    _, vectors, shared = learn(inputs, study, method, tmp_path / "cut")
    assert len(steps) == whole, "no step is taken twice"
    files = zip([*vectors, *with_file(shared)], [*expected, *with_file(expected_shared)], strict=True)
    for ours, theirs in files:
        mine, other = load_file(ours), load_file(theirs)
        assert set(mine) == set(other) and all(np.array_equal(mine[name], other[name]) for name in mine)
    assert read_metadata(vectors[0]) == read_metadata(expected[0])
    job, _, _ = learn(inputs, study, method, tmp_path / "cut")
    assert job.store.tally.made == 0 and not list((tmp_path / "cut/.work").rglob("*.*"))


def with_file(folders: Mapping[str, str]) -> list[Path]:
    return [Path(folder) / FILE for folder in folders.values()]


def test_the_recipe_names_rank_alpha_targets_and_scope_and_not_the_row(inputs: Inputs) -> None:
    study = study_of(inputs, other={**LORA, "rank": 8}, renamed={**LORA, "label": "Another"})
    recipes = {name: finetune_recipe(study, name, 1.0) for name in ("by_class", "other", "renamed")}
    shape = {"rank": 4, "alpha": 4.0, "targets": ATTENTION_PROJECTIONS, "scope": "class"}
    assert recipes["by_class"]["learned"]["lora"] == shape
    assert recipes["renamed"] == recipes["by_class"] != recipes["other"]
    assert "lora" not in finetune_recipe(study, "pseudoword", 1.0)["learned"]


# --- images ----------------------------------------------------------------------------------------


def images_of(pipeline: Any, prompts: Sequence[str] = PROMPTS[:2]) -> np.ndarray:
    samples = Sampler(pipeline, 4, 3.0, 32, 2).sample(prompts, SCOPES[: len(prompts)], 0)
    return pixels([sample.image for sample in samples])


def diffusers_images(pipeline: Any, prompts: Sequence[str] = PROMPTS[:2]) -> np.ndarray:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds_of(len(prompts))]
    made = pipeline(
        list(prompts), num_inference_steps=4, guidance_scale=3.0, height=32, width=32, generator=generators
    )
    return pixels(made.images)


@pytest.mark.parametrize("method", ["by_class", pytest.param("of_study", marks=pytest.mark.full)])
def test_images_are_those_of_plain_diffusers_with_the_adapter(
    inputs: Inputs, method: str, tmp_path: Path
) -> None:
    folder, _ = learned_adapters(inputs, study_of(inputs, {"max_epochs": 1}), method, tmp_path)
    path = adapter_of(folder, "one")
    assert path == (folder / "one" / FILE if method == "by_class" else folder / FILE)
    pipeline = loaded()
    plain = images_of(pipeline)
    merged = MergedAdapter(pipeline.unet)
    merged.put(path)
    try:
        ours = images_of(pipeline)
    finally:
        merged.put(None)
    assert np.array_equal(images_of(pipeline), plain), "without an adapter, the model is as it was"
    pipeline.load_lora_weights(str(path.parent), weight_name=FILE, local_files_only=True)
    try:
        theirs = diffusers_images(pipeline)
    finally:
        pipeline.unload_lora_weights()
    assert np.abs(ours.astype(int) - theirs).max() <= 2
    assert np.abs(ours.astype(int) - plain).max() > 5


def test_an_adapter_replaces_the_one_before_to_the_last_bit(tmp_path: Path) -> None:
    first, second = moved(tmp_path / "a", 0), moved(tmp_path / "b", 1)
    assert adapter_id(first) != adapter_id(second) == adapter_id(moved(tmp_path / "c", 1))
    unet = UNet2DConditionModel.from_pretrained(parts_folder(), subfolder="unet")
    own = {name: values.clone() for name, values in unet.state_dict().items()}
    merged = MergedAdapter(unet)
    merged.put(second)
    alone = {name: values.clone() for name, values in unet.state_dict().items()}
    merged.put(first)
    merged.put(second)
    assert all(torch.equal(values, alone[name]) for name, values in unet.state_dict().items())
    changed = {name for name, values in alone.items() if not torch.equal(values, own[name])}
    assert changed and all(name.endswith((*(f"{end}.weight" for end in SHAPE.targets),)) for name in changed)
    name = min(changed)
    layer = f"unet.{name.removesuffix('.weight')}"
    tensors, scale = read_adapter(second)
    product = tensors[f"{layer}.lora_B.weight"] @ tensors[f"{layer}.lora_A.weight"]
    np.testing.assert_allclose(alone[name], own[name].numpy() + scale * product, rtol=1e-5, atol=1e-6)


def test_alpha_scales_an_adapter_here_and_in_plain_diffusers(tmp_path: Path) -> None:
    tensors, _ = read_adapter(moved(tmp_path / "a"))
    double = Lora(rank=4, alpha=8.0, targets=ATTENTION_PROJECTIONS, scope="class")
    write_adapter(tensors, double, tmp_path / "b" / FILE)
    assert read_adapter(tmp_path / "b" / FILE)[1] == 2.0
    assert adapter_id(tmp_path / "b" / FILE) != adapter_id(tmp_path / "a" / FILE)
    pipeline = loaded()
    pipeline.load_lora_weights(str(tmp_path / "b"), weight_name=FILE, local_files_only=True)
    try:
        scales = {
            module.scaling[name]
            for module in pipeline.unet.modules()
            if hasattr(module, "scaling")
            for name in module.scaling
        }
    finally:
        pipeline.unload_lora_weights()
    assert scales == {2.0}


def test_a_class_finds_its_own_adapter_or_the_one_of_all(tmp_path: Path) -> None:
    files = LearnedFiles(adapters=str(tmp_path))
    assert files.adapter("one") == tmp_path / "one" / FILE
    moved(tmp_path)
    assert files.adapter("one") == tmp_path / FILE
    assert LearnedFiles("embeddings.safetensors").adapter("one") is None


# --- config ----------------------------------------------------------------------------------------


def test_learning_rates_of_adapters_count_the_whole_batch(inputs: Inputs) -> None:
    study = inputs.study({"batch_size": 4, "lr_counts": "own"}, plain={"learn": "lora"}, **ROWS)
    assert learning_rates(study, row_of(study, "plain"), 1.0, 10)[0] == pytest.approx(2e-4)
    assert learning_rates(study, row_of(study, "of_study"), 0.5, 10)[0] == pytest.approx(0.003)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"rank": 0}, "rank"),
        ({"targets": []}, "targets"),
        ({"targets": ["to_q", "to_q"]}, "targets: .*an entry occurs twice"),
        ({"clusters": 2}, "clusters: .*allowed with learn: lora: 1"),
        ({"train_unet": True}, "train_unet: .*allowed with learn: lora: false"),
        ({"unet_lr": 1e-6}, "unet_lr: .*allowed without learn: lora"),
        ({"learn": "pseudoword", "rank": 4}, "rank: .*allowed only with learn: lora"),
        ({"alpha": 0}, "alpha"),
    ],
)
def test_bad_rows_are_named(inputs: Inputs, row: Mapping[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        inputs.study(row={"learn": "lora", **row})


def test_a_target_that_matches_no_layer_is_named_with_those_that_there_are() -> None:
    layers = ["mid.attn1.to_q", "mid.attn1.to_out.0", "mid.ff.net.2"]
    assert check_targets("methods.row.targets", ["to_q", "to_out.0"], layers) == []
    (problem,) = check_targets("methods.row.targets", ["to_q", "q_proj"], layers)
    assert str(problem) == (
        "methods.row.targets: 'q_proj'; no linear layer of the model has this name; allowed: net.2, "
        "to_out.0, to_q"
    )
    assert check_targets("t", ["o_q"], layers), "only whole names match"
    unet = UNet2DConditionModel.from_pretrained(parts_folder(), subfolder="unet")
    with pytest.raises(UserError, match=r"'q_proj'.*to_q"):
        Adapter(unet, Lora(4, 4.0, ("q_proj",), "class"))
    linear = [name for name, module in unet.named_modules() if isinstance(module, torch.nn.Linear)]
    assert linear_layers(Path(parts_folder()) / "unet") == sorted(linear)


def test_check_names_the_row_whose_target_the_model_lacks(inputs: Inputs) -> None:
    study = inputs.study(row={"learn": "lora", "targets": ["to_q", "q_proj"]}, **ROWS)
    (problem,) = [problem for problem in model_problems(study) if "targets" in str(problem)]
    assert str(problem).startswith(
        "methods.row.targets: 'q_proj'; no linear layer of the model has this name"
    )
    assert "to_out.0, to_q" in str(problem)


@pytest.mark.parametrize(
    ("scheduler", "vae", "said"),
    [
        ({"_class_name": "EulerDiscreteScheduler", "beta_start": 0.001}, {"latents_mean": None}, None),
        ({"_class_name": "EDMEulerScheduler", "sigma_min": 0.002}, {}, "has a EDMEulerScheduler"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, {}, "has a FlowMatchEulerDiscreteScheduler"),
        ({"_class_name": "DDIMScheduler", "beta_start": 0.001}, {"latents_mean": [0.5]}, "latents_mean"),
    ],
)
def test_adapters_are_not_learned_with_another_noise_or_scaled_latents(
    scheduler: dict[str, Any], vae: dict[str, Any], said: str | None, tmp_path: Path
) -> None:
    write_json(tmp_path / "scheduler/scheduler_config.json", scheduler)
    write_json(tmp_path / "vae/config.json", vae)
    problems = list(adapter_problems("methods.row", SHAPE, Diffusion(model=str(tmp_path))))
    assert [str(problem).startswith("methods.row.learn: 'lora', but ") for problem in problems] == (
        [] if said is None else [True]
    )
    assert said is None or said in str(problems[0])


def test_a_wrong_target_ends_the_stage_before_latents_are_made(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "latents_of", lambda *_: pytest.fail("no latents are needed"))
    study = inputs.study(row={"learn": "lora", "targets": ["q_proj"]})
    with pytest.raises(UserError, match=r"^methods\.row\.targets: 'q_proj'"):
        learn(inputs, study, "row", tmp_path)


def test_a_batch_that_was_halved_for_a_class_stays_halved_for_the_next(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, run = [], Trainer.run

    def halved(trainer: Trainer) -> Any:
        sizes.append(trainer.limit.size)
        trainer.limit.size //= 2
        return run(trainer)

    monkeypatch.setattr(Trainer, "run", halved)
    study = study_of(inputs, {"max_epochs": 1, "micro_batch": 4})
    inputs.fine_tune(study, "by_class", tmp_path, NAMES[:2])
    assert sizes == [4, 2]


def test_only_the_linear_layers_of_a_name_get_an_adapter() -> None:
    class Network(PeftAdapterMixin, torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = torch.nn.Linear(2, 2)
            self.inner = torch.nn.ModuleDict({"proj": torch.nn.Conv2d(2, 2, 1)})

    adapter = Adapter(Network(), Lora(1, 1.0, ("proj",), "class"))
    assert sorted(adapter.state_dict()) == ["proj.lora_A.weight", "proj.lora_B.weight"]


def test_a_row_has_adapters_in_place_of_vectors_and_one_job_if_all_classes_share_one(inputs: Inputs) -> None:
    plan = Plan(inputs.study(**ROWS), NAMES)
    assert (
        plan.embeddings("by_class") == plan.unets("by_class") == plan.trained_adapters("by_class", 1.0) == {}
    )
    folder = "results/digits/finetune/of_study"
    assert plan.adapters("of_study") == {name: f"{folder}/{name}/adapters" for name in ("val_loss", "epoch1")}
    assert plan.trained_adapters("of_study", 1.0)["epoch1"] == f"{folder}/lr1/adapter/epoch1"
    assert len(plan.finetune_blocks("of_study")) == 1
    assert plan.learned_files("of_study") == list(plan.adapters("of_study").values())
    # of rank 4, on Stable Diffusion 1.x: 797,184 values for each class; of rank 2, once for all
    rows, model = plan.study.personalised, plan.study.diffusion
    assert learned_bytes(rows["by_class"], 10, model) == 10 * 797_184 * 4
    assert learned_bytes(rows["of_study"], 10, model) == 797_184 * 2


def test_a_file_of_an_adapter_says_its_rank_and_alpha(tmp_path: Path) -> None:
    from safetensors import safe_open

    with safe_open(moved(tmp_path), "np") as file:
        said = json.loads(file.metadata()["lora_adapter_metadata"])
    assert said["unet.r"] == 4 and said["unet.lora_alpha"] == 4.0
    assert all(name.endswith(ATTENTION_PROJECTIONS) for name in said["unet.target_modules"])
