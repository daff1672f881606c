"""Quality of the miniature's models: CLIP's zero-shot accuracy, generated images, the safety checker."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from augbench.config.methods import Prompting
from augbench.config.models import Diffusion
from augbench.data.classes import ClassInfo
from augbench.files import atomic_path
from augbench.generate.sampler import Sampler
from augbench.measures.clip import class_embeddings
from augbench.measures.distances import diversity
from augbench.miniature.corpus.attributes import ATTRIBUTES
from augbench.miniature.corpus.style import web_style
from augbench.miniature.pretrain.clip import embed_images
from augbench.miniature.pretrain.reference import judge
from augbench.miniature.pretrain.told import prompts_stating, told
from augbench.models.folders import check_safety, load_pipeline
from augbench.models.transformers_clip import embed_texts
from augbench.progress import Progress

REAL_IMAGES = 4  # per class and attribute
PROMPT_FAMILIES = {
    "simple": Prompting(templates="simple", class_name="lemmas"),
    "simple_no_ws": Prompting(templates="simple", class_name="no_whitespace"),
    "clip": Prompting(templates="clip", class_name="no_whitespace"),
    "textual_inversion": Prompting(templates="textual_inversion", class_name="no_whitespace"),
}


def zero_shot(
    clip: Any, tokenizer: Any, classes: list[ClassInfo], images: torch.Tensor, labels: np.ndarray
) -> dict[str, float]:
    """Return the top-1 accuracy of zero-shot classification per prompt family.

    A class is represented by the mean of its templates' text embeddings.
    """
    embedded, embed = embed_images(clip, images), partial(embed_texts, clip, tokenizer)
    accuracy = {}
    for name, family in PROMPT_FAMILIES.items():
        predicted = (embedded @ class_embeddings(embed, classes, family).T).argmax(1).numpy()
        accuracy[name] = float((predicted == labels).mean())
    return accuracy


def generate_images(
    diffusion: Diffusion, prompts: list[tuple[str, int, str]], seed: int, batch_size: int
) -> torch.Tensor:
    """Generate an image per prompt ``(class_id, index, text)``: ``uint8 (N, 3, H, W)``."""
    pipeline = load_pipeline(diffusion, torch.device("cpu"))
    sampler = Sampler(pipeline, diffusion.steps, diffusion.guidance_scale, diffusion.side, batch_size)
    progress = Progress("images to measure", len(prompts), "image")
    scopes = [(class_id, index) for class_id, index, _ in prompts]
    samples = sampler.sample([text for _, _, text in prompts], scopes, seed, progress)
    pixels = np.stack([np.asarray(sample.image).transpose(2, 0, 1) for sample in samples])
    return torch.from_numpy(pixels)


def attribute_prompts(classes: list[ClassInfo]) -> list[tuple[str, int, str]]:
    """One prompt per class and attribute, class by class: class id, number of the attribute, text."""
    return [
        (info.class_id, number, prompts_stating(info, name)[0])
        for info in classes
        for number, name in enumerate(ATTRIBUTES)
    ]


def told_attributes(
    clip: Any,
    tokenizer: Any,
    classes: list[ClassInfo],
    garments: np.ndarray,
    labels: np.ndarray,
    generated: torch.Tensor,
    level: str,
    seed: int,
) -> dict[str, Any]:
    """Measure whether CLIP tells the attributes of real garments, and those that prompts asked for.

    Parameters
    ----------
    garments : ndarray, uint8 (N, 28, 28)
        Garments that no model was trained on, with their ``labels``; the first few of each class are used.
    generated : Tensor, uint8 (M, 3, 32, 32)
        The images generated from :func:`attribute_prompts`.
    level : str
        The corpus's web style, in which real garments are shown.
    """
    names = list(ATTRIBUTES)
    chosen = np.concatenate(
        [
            np.resize(np.flatnonzero(labels == label)[:REAL_IMAGES], REAL_IMAGES * len(names))
            for label in range(len(classes))
        ]
    )
    shown = np.repeat(names, REAL_IMAGES).tolist() * len(classes)
    real = web_style(garments[chosen], np.arange(len(chosen)), level, seed, shown)
    asked = np.repeat(np.arange(len(classes)), len(names))
    return {
        "real": told(clip, tokenizer, classes, real, labels[chosen], shown),
        "generated": told(clip, tokenizer, classes, generated, asked, names * len(classes)),
    }


def judged(reference: nn.Module, images: torch.Tensor, labels: np.ndarray) -> dict[str, float]:
    """Measure the images' agreement with their labels and their diversity with a reference classifier."""
    predicted, features = judge(reference, images)
    return {
        "agreement": float((predicted.numpy() == labels).mean()),
        "diversity": diversity(features, labels),
    }


def safety_rates(diffusion: Diffusion, unsafe: torch.Tensor, safe: torch.Tensor) -> dict[str, float]:
    """Measure the shares of unsafe and of safe images that the pipeline's checker flags."""
    pipeline = load_pipeline(diffusion, torch.device("cpu"))

    def share(images: torch.Tensor) -> float:
        pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        flags = [
            flag
            for start in range(0, len(pictures), 256)
            for flag in check_safety(pipeline, pictures[start : start + 256])
        ]
        return float(np.mean(flags))

    return {"unsafe_flagged": share(unsafe), "safe_flagged": share(safe)}


def picture(rows: list[torch.Tensor], path: Path, columns: int = 20, zoom: int = 2) -> None:
    """Draw a grid in which each tensor ``uint8 (N, 3, 32, 32)`` fills rows of ``columns`` images."""
    images = torch.cat([row[: len(row) // columns * columns] for row in rows])
    lines = images.reshape(-1, columns, 3, 32, 32).permute(0, 3, 1, 4, 2).reshape(-1, columns * 32, 3)
    image = Image.fromarray(lines.numpy())
    with atomic_path(path) as temporary:
        image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST).save(temporary)
