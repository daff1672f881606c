"""Each stage of a study at full size, for a GPU that is not there (``fake_cuda``).

Networks have the published sizes of ``benchmarks.networks`` (Stable Diffusion v1.4, its safety checker, CLIP
ViT-L/14) and meta tensors instead of weights. Tokenizers, schedulers and processors are the miniature's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, Literal
from unittest import mock

import numpy as np
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTextModel

from augbench.artifacts.store import Store
from augbench.classifier.compute import Compute, Storage
from augbench.classifier.images import LabelledImages
from augbench.classifier.state import RunResult
from augbench.classifier.train import train_run
from augbench.config.classifier import Classifier
from augbench.config.study import Study, parse_study
from augbench.config.use import CONCATENATED, Use
from augbench.data.classes import ClassInfo
from augbench.generate.stage import _Maker
from augbench.models.clip import load_clip
from augbench.personalise.fine_tune import fine_tune
from augbench.personalise.groups import Learned
from augbench.personalise.tasks import ClassTask, ImageSet
from augbench.personalise.train import Trainer
from augbench.retrieval.comparison import ROWS_PER_TILE, Comparison
from augbench.runtime.job import Job
from benchmarks import networks


def _safety_checker(size: str) -> StableDiffusionSafetyChecker:
    return StableDiffusionSafetyChecker(CLIPConfig.from_dict(networks.config(size, "safety_checker")))


CUDA = torch.device("cuda")
CLIP = networks.PROJECT / "resources/mini/clip"
METHODS: dict[str, dict[str, Any]] = {
    "clip_prompts": {"mechanism": "sample", "prompt": {"templates": "clip"}},
    "boomerang": {
        "mechanism": "sample",
        "start": "training_images",
        "steps": 2,
        "noise": 0.5,
        "guidance_scale": 1.0,
        "prompt": {"templates": "empty"},
    },
    "conditioning": {"mechanism": "personalise", "learn": "conditioning"},
    "clusters": {"mechanism": "personalise", "learn": "conditioning", "clusters": 2},
    "imagic": {"mechanism": "personalise", "learn": "conditioning", "train_unet": True},
    "pseudoword": {"mechanism": "personalise", "learn": "pseudoword"},
    "pseudoword_dm": {"mechanism": "personalise", "learn": "pseudoword", "train_unet": True},
}
MAKERS: dict[type[Any], Callable[[str], torch.nn.Module]] = {
    UNet2DConditionModel: networks.random_unet,
    AutoencoderKL: networks.random_vae,
    CLIPTextModel: networks.random_text_encoder,
    CLIPModel: networks.random_clip,
    StableDiffusionSafetyChecker: _safety_checker,
}


@cache
def _made(kind: type[Any]) -> torch.nn.Module:
    with torch.device("meta"):
        return MAKERS[kind]("full").eval()


def without_weights(kind: type[Any], dtype: torch.dtype = torch.float32) -> Any:
    """Network of the published size on the meta device, in evaluation mode."""
    return deepcopy(_made(kind)).to(dtype)


def _pipeline(_: Any, tokenizer: Any, dtype: torch.dtype, **__: Any) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=without_weights(AutoencoderKL, dtype),
        unet=without_weights(UNet2DConditionModel, dtype),
        text_encoder=without_weights(CLIPTextModel, dtype),
        safety_checker=without_weights(StableDiffusionSafetyChecker, dtype),
        tokenizer=tokenizer,
        scheduler=PNDMScheduler.from_pretrained(networks.MINIATURE / "scheduler"),
        feature_extractor=CLIPImageProcessorPil(),
    )


@contextmanager
def published_sizes() -> Iterator[None]:
    """Context in which ``from_pretrained`` gives networks of the published sizes without weights."""

    def loader(kind: type[Any]) -> Callable[..., Any]:
        return lambda *_, dtype=torch.float32, **__: without_weights(kind, dtype)

    loaders: dict[type[Any], Callable[..., Any]] = {kind: loader(kind) for kind in MAKERS}
    loaders[StableDiffusionPipeline] = _pipeline
    loaders[CLIPImageProcessorPil] = lambda *_, **__: CLIPImageProcessorPil()
    with ExitStack() as stack:
        for kind, load in loaders.items():
            stack.enter_context(mock.patch.object(kind, "from_pretrained", load))
        yield


def study_of(method: str, batch_size: int = 8, finetune: Mapping[str, Any] = MappingProxyType({})) -> Study:
    """Study of one method at full size on the GPU, with float16 for sampling."""
    row = METHODS[method]
    return parse_study(
        {
            "study": "full_size",
            "dataset": {"kind": "fashion_mnist"},
            "corpus": {"kind": "miniature", "images": 3000, "distractors": 300},
            "diffusion": {
                "model": str(networks.MINIATURE),
                "resolution": 512,
                "steps": 2,
                "guidance_scale": 7.5,
                "scheduler": "ddim",
                "dtype": "float16",
            },
            "clip": {"model": str(CLIP)},
            "methods": {method: row | ({"candidates": ["val_loss"]} if "learn" in row else {})},
            "augmentation": {"images_per_class": 10},
            "finetune": {"max_epochs": 1, "patience": 1, "validation_draws": 1, **finetune},
            "execution": {"batch_size": batch_size, "device": "cuda"},
        }
    )


def maker(study: Study, folder: Path) -> _Maker:
    """What makes the images of a study's method."""
    return _Maker(Job(study, Store(folder), 1), next(iter(study.methods)), "")


def fine_tuned(study: Study, folder: Path, images: int = 4) -> Learned:
    """What one class learns in a single step with a number of images; no file is written."""
    ((name, row),) = study.personalised.items()
    sets = [
        ImageSet([f"{part}{i}" for i in range(count)], [""] * count, [i % row.clusters for i in range(count)])
        for part, count in (("train", images), ("validation", 1))
    ]
    source: Any = SimpleNamespace(
        load_unchanged=lambda places, _: (Image.new("RGB", (600, 500)) for _ in places)
    )
    with (
        mock.patch.object(Trainer, "_keep_weights", lambda _: None),
        mock.patch.object(Trainer, "_save", lambda *_: None),
    ):
        task = ClassTask(ClassInfo("bag", ("shoulder bag",)), *sets)
        return fine_tune(study, name, 1.0, [task], source, Store(folder), "vae", folder, name)["bag"]


def classified(
    batch_size: int,
    folder: Path,
    dtype: Literal["bfloat16", "float16"] = "bfloat16",
    use: Use = CONCATENATED,
    arch: str = "resnet50",
) -> RunResult:
    """Result of training a network for two steps with images in the GPU's memory."""

    def images(count: int, what: str) -> LabelledImages:
        picture = Image.new("RGB", (256, 256))
        labels = np.arange(count) % 100
        return LabelledImages([f"{what}{i}" for i in range(count)], labels, lambda _: [picture] * count, what)

    return train_run(
        Classifier(
            arch=arch,
            optimiser="sgd" if arch == "resnet50" else "adamw",
            resolution=224,
            batch_size=batch_size,
            schedule="steps",
            decay="cosine",
            steps=2,
            dtype=dtype,
        ),
        classes=1000,
        real=images(batch_size, "real"),
        added=images(batch_size, "added"),
        validation=images(64, "validation"),
        run=0,
        study_seed=0,
        compute=Compute(CUDA, storage=Storage("device", folder)),
        use=use,
    )


def embedded(images: int) -> torch.Tensor:
    """Embeddings of some images by CLIP's image tower in float16."""
    tower = load_clip({"folder": CLIP}, CUDA).image_tower(half=True)
    return tower.embed(torch.zeros(images, 3, 224, 224, dtype=torch.uint8))


def searched(queries: int, k: int) -> None:
    """Compare a tile of vectors with some queries, of which each wants the ``k`` nearest."""
    vectors = np.random.default_rng(0).standard_normal((ROWS_PER_TILE, 768), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    comparison = Comparison(vectors[:queries], k, "cuda", None)
    nearest = comparison.begin(np.full(queries, -np.inf, np.float32))
    with comparison.workers() as compare:
        compare(vectors.astype(np.float16), np.arange(len(vectors)), nearest)
        compare.finish()
    nearest.result()
