"""Models other than Stable Diffusion 1.x and 2.x: what a config may ask of them, and their images.

The models are tiny, with random weights (``tests/tiny_pipelines.py``).
"""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import LEAST_STUDY, PROJECT, SMALL_STUDY, Workspace, noise

from augbench.artifacts.pool import build_index, load_images, read_index
from augbench.artifacts.store import Store
from augbench.commands.check.models import model_problems, models_to_fetch
from augbench.config.pipelines import STABLE_DIFFUSION, pipelines
from augbench.config.study import Study, load_study, parse_study
from augbench.data.classes import load_class_table
from augbench.errors import UserError
from augbench.files import write_json
from augbench.generate.pipelines import PipelineSampler, pipeline_sampler
from augbench.generate.stage import generate
from augbench.models.fetch import needed_files
from augbench.models.folders import fingerprint, own_side
from augbench.models.pipelines import Checker, load_pipeline
from augbench.plan.paths import Plan
from augbench.plan.recipes import generate_recipe, method_sampling
from augbench.prompts.stage import write_prompts
from augbench.runtime.fit import BatchLimit
from augbench.runtime.job import Job

FAMILIES = {
    "sdxl": {"guidance_scale": 3.0},
    "turbo": {"guidance_scale": 0.0},
    "sd3": {},
    "flux": {"guidance_scale": 0.0},
    "pixart": {},
}
CLASSES = load_class_table("fashion_mnist")[:2]
PER_CLASS = 4
MINI = PROJECT / "resources/mini/stable-diffusion"
TOLERANCE = 2  # grey levels between batch sizes


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny models, each of which is saved when it is first asked for."""
    return tmp_path_factory.mktemp("models")


def tiny(models: Path, name: str) -> str:
    import tiny_pipelines

    folder = models / name
    return str(folder if folder.is_dir() else tiny_pipelines.save(name, folder))


def study_of(model: str, row: Mapping[str, Any] | None = None, batch_size: int = 4, **keys: Any) -> Study:
    """Study with one row of one model, at 32 pixels with 2 steps."""
    own = {"safety_checker": None, "steps": 2, "resolution": 32, "dtype": "float32"}
    config = {
        **SMALL_STUDY,
        "generators": {"other": {"model": model, **own, **keys}},
        "methods": {"row": {"mechanism": "sample", "generator": "other", **(row or {})}},
        "augmentation": {"images_per_class": PER_CLASS},
        "execution": {"batch_size": batch_size, "device": "cpu"},
    }
    return parse_study(config)


def made(study: Study, folder: Path) -> np.ndarray:
    """Images of a study's only row, made by the stage: ``(N, H, W, 3)``."""
    job = Job(study, Store(folder / ".store"), 1)
    model = study.generator_of("row")
    write_json(folder / "other.json", fingerprint(model.folder, model.safety_checker_folder))
    prompts = folder / "prompts.parquet"
    write_prompts(study, "row", CLASSES, {info.class_id: ["x"] for info in CLASSES}, prompts)
    shards = [folder / f"shards/row/selected/{info.class_id}/0.parquet" for info in CLASSES]
    generate(job, "row", str(prompts), str(folder / "other.json"), "", {"": [str(path) for path in shards]})
    build_index(shards, folder, folder / "index.parquet")
    images = load_images(read_index(folder / "index.parquet"), folder)
    return np.stack([np.asarray(image, dtype=int) for image in images])


# --- the table of pipelines -----------------------------------------------------------------------


@pytest.mark.full
def test_the_table_of_pipelines_is_diffusers_own() -> None:
    from diffusers.pipelines import auto_pipeline

    twins = auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING
    found = {}
    for kind, pipeline in auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING.items():
        takes = inspect.signature(pipeline.__call__).parameters
        twin = inspect.signature(twins[kind].__call__).parameters if kind in twins else {}
        found[pipeline.__name__] = {
            "steps": getattr(takes.get("num_inference_steps"), "default", None),
            "guidance_scale": getattr(takes.get("guidance_scale"), "default", None),
            "negative_prompt": "negative_prompt" in takes and "true_cfg_scale" not in takes,
            "starts": "strength" in twin and "image" in twin,
            "safety_checker": "safety_checker" in inspect.signature(pipeline.__init__).parameters,
        }
    table = {name: vars(pipeline) for name, pipeline in pipelines().items()}
    assert table == {name: found[name] for name in table}
    assert STABLE_DIFFUSION in found and STABLE_DIFFUSION not in table


# --- config ---------------------------------------------------------------------------------------


def described(folder: Path, kind: str = "StableDiffusionXLPipeline") -> str:
    """A model's folder with nothing but the name of its pipeline."""
    write_json(folder / "model_index.json", {"_class_name": kind})
    return str(folder)


def config_of(model: str, row: Mapping[str, Any] | None = None, **keys: Any) -> Study:
    """Study with one row of one model that sets no more than it is given."""
    generators = {"other": {"model": model, "safety_checker": None, **keys}}
    methods = {"row": {"mechanism": "sample", "generator": "other", **(row or {})}}
    return parse_study({**LEAST_STUDY, "generators": generators, "methods": methods})


def test_defaults_are_the_pipelines_own_those_of_a_model_card_or_stable_diffusions(tmp_path: Path) -> None:
    def settings(model: str) -> tuple[Any, ...]:
        own = config_of(model).generators["other"]
        return own.steps, own.guidance_scale, own.resolution, own.scheduler, own.dtype

    assert settings(described(tmp_path / "xl")) == (50, 5.0, None, None, "bfloat16")
    assert settings(described(tmp_path / "sigma", "PixArtSigmaPipeline")) == (20, 4.5, None, None, "bfloat16")
    assert settings("stabilityai/sdxl-turbo") == (1, 0.0, 512, None, "bfloat16")
    assert settings("black-forest-labs/FLUX.1-schnell")[:2] == (4, 0.0)
    assert settings("CompVis/stable-diffusion-v1-4") == (50, 7.5, 512, "pndm", "float16")


def test_a_recipe_says_what_is_sampled_and_not_what_the_model_is_called(tmp_path: Path) -> None:
    study = config_of(described(tmp_path / "xl"), {"negative_prompt": "a drawing"}, steps=7)
    assert generate_recipe(study, "row")["diffusion"] == {
        "resolution": None,
        "scheduler": None,
        "steps": 7,
        "guidance_scale": 5.0,
        "dtype": "bfloat16",
        "negative_prompt": "a drawing",
    }


def test_the_config_with_its_defaults_is_the_same_study(tmp_path: Path) -> None:
    study = config_of(described(tmp_path / "xl"))
    again = parse_study(json.loads(study.model_dump_json()))
    assert again == study and again.generator_of("row").pipeline_class == "StableDiffusionXLPipeline"


REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "no such generator": (
        "StableDiffusionXLPipeline",
        {"generator": "else"},
        {},
        "methods.row.generator: 'else'; allowed: a name in generators: other",
    ),
    "sampler of Stable Diffusion": (
        "StableDiffusionXLPipeline",
        {"scheduler": "ddim"},
        {},
        "methods.row.scheduler: 'ddim'; goes with Stable Diffusion 1.x and 2.x; allowed with a "
        "StableDiffusionXLPipeline: null",
    ),
    "start without an image-to-image pipeline": (
        "PixArtSigmaPipeline",
        {"start": "training_images"},
        {},
        "methods.row.start: 'training_images'; allowed with a PixArtSigmaPipeline, which can't start from "
        "images: noise",
    ),
    "start of less than one step": (
        "StableDiffusionXLPipeline",
        {"start": "training_images", "steps": 4},
        {},
        "methods.row.start: 'training_images'; 0.2 of 4 steps is less than one step",
    ),
    "start of FLUX without a size": (
        "FluxPipeline",
        {"start": "training_images"},
        {},
        "methods.row.start: 'training_images'; allowed with a FluxPipeline, whose files do not say the size "
        "of "
        "its images: noise, or a resolution of the model",
    ),
    "negative prompt of FLUX": (
        "FluxPipeline",
        {"negative_prompt": "a drawing"},
        {},
        "methods.row.negative_prompt: 'a drawing'; allowed with a FluxPipeline, which takes none: null",
    ),
    "negative prompt without guidance": (
        "StableDiffusionXLPipeline",
        {"negative_prompt": "a drawing", "guidance_scale": 0.0},
        {},
        "methods.row.negative_prompt: 'a drawing'; has no effect with guidance_scale 0",
    ),
    "safety checker of its own": (
        "StableDiffusion3Pipeline",
        {},
        {"safety_checker": "model"},
        "generators.other.safety_checker: 'model'; a StableDiffusion3Pipeline has none of its own; allowed:",
    ),
    "unknown pipeline": (
        "StableDiffusionXLPipeline",
        {},
        {"pipeline": "XL"},
        "generators.other.pipeline: 'XL'; allowed: StableDiffusionPipeline, StableDiffusionXLPipeline",
    ),
}


def test_a_generator_whose_folder_is_missing_needs_its_class(tmp_path: Path) -> None:
    missing = str(tmp_path / "absent")
    with pytest.raises(UserError, match=r"^generators.other.model: .*folder not found; set generators.other"):
        config_of(missing)
    found = config_of(missing, pipeline="PixArtSigmaPipeline").generators["other"]
    assert found.pipeline_class == "PixArtSigmaPipeline"


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_pipeline_cannot_do_is_one_line_with_row_key_and_pipeline(name: str, tmp_path: Path) -> None:
    kind, row, keys, said = REFUSED[name]
    with pytest.raises(UserError) as caught:
        config_of(described(tmp_path / "model", kind), row, **keys)
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


def test_rows_with_a_generator_depend_on_its_fingerprint_and_models_are_fetched_once() -> None:
    study = load_study([PROJECT / "config/generators.yaml"])
    plan = Plan(study, ())
    assert plan.sampled_model("turbo") == "results/generators/models/generators/turbo.json"
    assert plan.sampled_model("sd15") == plan.diffusion
    checkers = [wanted for wanted in plan.hub_models.values() if wanted.layout == "safety_checker"]
    assert len(checkers) == 1 and len(plan.hub_models) == 8
    gated = [line for line in models_to_fetch(study) if "gated" in line]
    assert [line.split(":")[0] for line in gated] == ["generators.sd35.model", "generators.schnell.model"]


# --- files ----------------------------------------------------------------------------------------


def test_the_files_of_any_pipeline_are_fetched_one_format_of_weights_for_each_network() -> None:
    index = {
        "_class_name": "FluxPipeline",
        "_diffusers_version": "0.30",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer_2": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "image_encoder": [None, None],
    }
    shards = [f"transformer/diffusion_pytorch_model-0000{part}-of-00002.safetensors" for part in (1, 2)]
    wanted = [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder_2/config.json",
        "text_encoder_2/model.safetensors",
        "tokenizer_2/chat_template.jinja",
        "tokenizer_2/spiece.model",
        "tokenizer_2/tokenizer.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors.index.json",
        *shards,
    ]
    others = ["flux1-schnell.safetensors", "text_encoder_2/model.fp16.safetensors", "README.md"]
    assert needed_files("diffusion", [*wanted, *others], index) == sorted(wanted)
    with pytest.raises(UserError, match="text_encoder_2: no weights"):
        needed_files("diffusion", [name for name in wanted if "encoder" not in name], index)


def test_check_names_missing_parts_and_another_pipeline_than_the_config_says(models: Path) -> None:
    folder = Path(tiny(models, "pixart"))
    study = study_of(str(folder))
    assert [problem for problem in model_problems(study) if "generators" in problem.where] == []
    hidden = folder.parent / "hidden"
    (folder / "transformer").rename(hidden)
    try:
        (problem,) = [problem for problem in model_problems(study) if "generators" in problem.where]
    finally:
        hidden.rename(folder / "transformer")
    assert str(problem).startswith(f"generators.other.model: {str(folder)!r} has no folder transformer; ")
    other = study_of(str(folder), pipeline="AuraFlowPipeline")
    (problem,) = [problem for problem in model_problems(other) if "generators" in problem.where]
    assert str(problem) == (
        f"generators.other.model: {str(folder)!r} is a PixArtSigmaPipeline, not a AuraFlowPipeline; "
        "set generators.other.pipeline: PixArtSigmaPipeline, for its defaults"
    )


# --- images ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_a_row_samples_its_generator_and_an_image_does_not_depend_on_its_batch(
    name: str, models: Path, tmp_path: Path
) -> None:
    model, own, row = tiny(models, name), FAMILIES[name], {"prompt": {"templates": "clip"}}  # of many lengths
    together = made(study_of(model, row, **own), tmp_path / "together")
    alone = made(study_of(model, row, batch_size=1, **own), tmp_path / "alone")
    assert together.shape == (2 * PER_CLASS, 32, 32, 3)
    assert np.abs(together - alone).max() <= TOLERANCE
    assert np.abs(together[0] - together[1]).mean() > 1  # another seed
    shard = tmp_path / f"alone/shards/row/selected/{CLASSES[0].class_id}/0.parquet"
    rows = pq.read_table(shard, columns=["model", "seed", "prompt"])
    assert len({len(prompt) for prompt in rows["prompt"].to_pylist()}) > 1
    assert set(rows["model"].to_pylist()) == {fingerprint(model, None)["id"]}
    assert len(set(rows["seed"].to_pylist())) == PER_CLASS


class StubPipeline:
    """A pipeline that gives ``pixels``, or raises them."""

    def __init__(self, pixels: Any) -> None:
        self.pixels, self.freed = pixels, 0

    def __call__(self, **_: Any) -> Any:
        if isinstance(self.pixels, Exception):
            raise self.pixels
        return SimpleNamespace(images=self.pixels)

    def maybe_free_model_hooks(self) -> None:
        self.freed += 1


def stub_sampler(pixels: Any) -> PipelineSampler:
    sampling = {"steps": 1, "guidance_scale": 0.0, "resolution": None, "dtype": "float32"}
    limit = BatchLimit(1, "execution.batch_size")
    return PipelineSampler(StubPipeline(pixels), sampling, Checker(None, None), limit, 1)


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_a_models_own_side_is_that_of_its_latents_times_its_decoders_factor(name: str, models: Path) -> None:
    assert own_side(tiny(models, name)) == 32
    with pytest.raises(UserError, match="do not say the size of its images; set the model's resolution"):
        own_side(tiny(models, "flux"))


def test_pixels_outside_the_range_are_an_error_that_names_the_pipeline() -> None:
    import torch

    inside = torch.tensor([[0.0, 1.001]])  # half precision may round
    assert stub_sampler(inside)._batch(["a"], [0], None) is not None
    with pytest.raises(UserError, match=r"^StubPipeline: pixels from -1 to 0\.5; allowed: 0 to 1"):
        stub_sampler(torch.tensor([[-1.0, 0.5]]))._batch(["a"], [0], None)


def test_after_a_batch_that_did_not_fit_offloaded_networks_leave_the_gpu() -> None:
    import torch

    sampler = stub_sampler(torch.OutOfMemoryError("full"))
    with pytest.raises(torch.OutOfMemoryError):
        sampler._batch(["a"], [0], None)
    assert sampler.pipeline.freed == 1


def test_images_have_no_watermark_whatever_is_installed(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from diffusers.pipelines.stable_diffusion_xl import pipeline_stable_diffusion_xl

    monkeypatch.setattr(pipeline_stable_diffusion_xl, "is_invisible_watermark_available", lambda: True)
    monkeypatch.setattr(
        pipeline_stable_diffusion_xl, "StableDiffusionXLWatermarker", lambda: "a watermark", raising=False
    )
    folder = tiny(models, "sdxl")
    assert pipeline_stable_diffusion_xl.StableDiffusionXLPipeline.from_pretrained(folder).watermark
    assert load_pipeline(folder, torch.device("cpu"), torch.float32).watermark is None


@pytest.mark.full
@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux"])
def test_sampling_starts_from_images_the_same_in_any_batch(name: str, models: Path) -> None:
    import torch

    study = study_of(tiny(models, name), {"start": "training_images", "noise": 0.5, "steps": 4})
    starts = [noise(seed, 40) for seed in range(3)]

    def sampled(size: int, share: float) -> np.ndarray:
        sampling = {**method_sampling(study, "row"), "noise": share}
        sampler = pipeline_sampler(study.generator_of("row"), sampling, torch.device("cpu"), size, 1)
        samples = sampler.sample(["a cat"] * 3, [("cat", i) for i in range(3)], 0, starts=starts)
        return np.stack([np.asarray(sample.image, dtype=int) for sample in samples])

    together, alone, noisier = sampled(3, 0.5), sampled(1, 0.5), sampled(3, 1.0)
    assert together.shape == (3, 32, 32, 3) and np.abs(together - alone).max() <= TOLERANCE
    assert np.abs(together - noisier).mean() > 1


@pytest.mark.full
def test_guidance_leads_away_from_a_negative_prompt(models: Path, tmp_path: Path) -> None:
    row = {"guidance_scale": 8.0}
    plain = made(study_of(tiny(models, "sdxl"), row), tmp_path / "plain")
    led = made(study_of(tiny(models, "sdxl"), {**row, "negative_prompt": "no bag"}), tmp_path / "led")
    assert np.abs(plain - led).max() > 0


@pytest.mark.full
def test_an_image_that_the_checker_flags_is_sampled_again(models: Path, tmp_path: Path) -> None:
    """The checker is the miniature's, with a concept that is the first image itself."""
    import torch

    folder = shutil.copytree(MINI / "safety_checker", tmp_path / "checker")
    shutil.copy(MINI / "feature_extractor/preprocessor_config.json", folder)
    study = study_of(tiny(models, "turbo"), {"guidance_scale": 0.0}, safety_checker=str(folder))
    model, sampling = study.generator_of("row"), method_sampling(study, "row")
    sampler = pipeline_sampler(model, sampling, torch.device("cpu"), 3, 5)
    checker, scopes = sampler.checker.safety_checker, [("cat", i) for i in range(3)]
    checker.concept_embeds_weights.data.fill_(2.0)  # no cosine is above it
    checker.special_care_embeds_weights.data.fill_(2.0)
    first = sampler.sample(["a cat"] * 3, scopes, 0)
    assert [sample.safety_flags for sample in first] == [0, 0, 0]
    pixels = sampler.checker.feature_extractor([first[0].image], return_tensors="pt").pixel_values
    with torch.inference_mode():
        vector = checker.visual_projection(checker.vision_model(pixels)[1])
    checker.concept_embeds.data.copy_(vector.expand_as(checker.concept_embeds))
    checker.concept_embeds_weights.data.fill_(0.9985)  # the checker rounds to 0.001
    again = sampler.sample(["a cat"] * 3, scopes, 0)
    assert again[0].safety_flags >= 1 and again[0].seed != first[0].seed


# --- a whole study --------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.long
def test_a_study_of_several_generators_runs_from_yaml_alone(workspace: Workspace, models: Path) -> None:
    own = {"safety_checker": None, "resolution": 32, "steps": 2, "dtype": "float32"}
    guidance = {name: {"guidance_scale": 0.0} if name in ("turbo", "flux") else {} for name in FAMILIES}
    rows = {name: {"mechanism": "sample", "generator": name} for name in FAMILIES}
    learning = {"mechanism": "personalise", "generator": "sdxl", "candidates": [1]}
    rows["words"] = {**learning, "learn": "pseudoword"}
    rows["states"] = {**learning, "learn": "conditioning", "train_unet": True}
    study = {
        **workspace.study,
        "generators": {name: {"model": tiny(models, name), **own, **guidance[name]} for name in FAMILIES},
        "methods": {"none": {"mechanism": "real"}, "plain": {"mechanism": "sample"}, **rows},
    }
    workspace.write_study(study)
    said = workspace.augbench("check", "--configfile", "study.yaml")
    assert said.returncode == 0, said.stdout + said.stderr
    workspace.run()
    assert not workspace.plan()
    table = (workspace.results / "tables/table1.csv").read_text()
    provenance = json.loads((workspace.results / "provenance.json").read_text())
    assert all(f"\n{name}," in table for name in rows)
    assert set(FAMILIES) <= set(provenance["models"])
