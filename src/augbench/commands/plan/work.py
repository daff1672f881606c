"""Amount of work in a study: images made and trained on, and their GPU-hours and bytes on a device."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from augbench.classifier.schedule import steps_per_epoch
from augbench.commands.plan.memory import (
    CLASSIFIER_SIDE,
    CLASSIFIER_WIDTH,
    DIFFUSION_SIDE,
    is_stable_diffusion_1,
    without_tag,
)
from augbench.commands.plan.sizes import sizes_of
from augbench.commands.plan.throughput import Throughput, guided_share
from augbench.config.corpus import EmbeddingCorpus
from augbench.config.hub import known_model
from augbench.models.clip_size import image_operations, parameters
from augbench.models.open_clip_files import networks_config
from augbench.plan.paths import Plan
from augbench.plan.recipes import method_sampling
from augbench.resample import needed_by_class
from augbench.retrieval.hunt import wanted_images

# U-Net calls per image at the table's rate: PNDM, 50 steps, guidance
REFERENCE_CALLS = 51 * 2
REFERENCE_TFLOP = 84.5  # of these, with decoding and safety checker, as in resources/throughput.yaml
# multiplications and weights at 224 pixels, relative to ResNet-50: 4.1e9 and 25.6 million
# (torchvision's and timm's model tables)
NETWORKS = {
    "resnet18": (0.44, 0.46),
    "resnet34": (0.89, 0.85),
    "resnet50": (1.0, 1.0),
    "resnet101": (1.9, 1.74),
    "resnet152": (2.8, 2.35),
    "timm:convnext_tiny": (1.09, 1.12),
    "timm:convnext_small": (2.1, 1.96),
    "timm:convnext_base": (3.75, 3.46),
    "timm:swin_tiny_patch4_window7_224": (1.1, 1.1),
    "timm:vit_tiny_patch16_224": (0.31, 0.22),
    "timm:vit_small_patch16_224": (1.12, 0.86),
    "timm:vit_base_patch16_224": (4.3, 3.38),
    "timm:vit_large_patch16_224": (15.0, 11.9),
}
# work of encoding an image, relative to training on it with a frozen U-Net (benchmarks/personalise.py)
ENCODING_SHARE = 1117 / 1669
CLIP_OPERATIONS = 1.62e11  # of the table's CLIP ViT-L/14, for an image of 224 pixels
LATENT_BYTES = 2 * 4 * 64 * 64 * 2  # mean and deviation of an image of DIFFUSION_SIDE, in float16
FORWARD_SHARE = 1 / 3  # work of evaluating an image, relative to training on it
VECTOR_NUMBERS, NUMBER_BYTES = 768, 2  # of a vector of CLIP ViT-L/14, in float16
EMBEDDING_FLOP = 162e9  # per image at the table's rate `embed`
VECTOR_FILES = ("img_emb/*.npy", "*.npz", "*.parquet")  # of the layouts of embeddings


class Work:
    """Amounts of work in a study.

    Parameters
    ----------
    plan : Plan
        Plan of the study, with its class ids.
    throughput : Throughput
        Figures of the device that the study runs on.
    """

    def __init__(self, plan: Plan, throughput: Throughput) -> None:
        self.plan, self.study, self.throughput = plan, plan.study, throughput
        self.sizes = sizes_of(plan)

    def rate(self, name: str) -> float:
        return self.throughput.rates[name].value

    def assume(self, name: str) -> float:
        return self.throughput.assumed[name].value

    @cached_property
    def knows_diffusion(self) -> bool:
        """Whether the table's figures fit the study's model: a U-Net of the size of Stable Diffusion 1.x."""
        return is_stable_diffusion_1(self.study.diffusion)

    @cached_property
    def clip_config(self) -> dict[str, Any] | None:
        """Config of an open_clip CLIP's networks; None for others, for which the table's figures count."""
        clip = self.study.clip
        return networks_config(clip.named, clip.folder) if clip.named.library == "open_clip" else None

    def embed_hours(self, images: float) -> float | None:
        """GPU-hours of embedding images with CLIP; None if the size of its image tower is not known."""
        work = 1.0
        if self.clip_config is not None:
            if (operations := image_operations(self.clip_config)) is None:
                return None
            work = operations / CLIP_OPERATIONS
        return images * work / self.rate("embed") / 3600

    @cached_property
    def clip_bytes(self) -> float:
        """Size of CLIP's weights in float32."""
        known = None if self.clip_config is None else parameters(self.clip_config)
        return self.assume("clip_bytes") if known is None else 4 * known

    @cached_property
    def area(self) -> float:
        """Pixels of a generated image, relative to the table's."""
        return (self.study.diffusion.side / DIFFUSION_SIDE) ** 2

    @cached_property
    def image_bytes(self) -> float:
        return self.assume(f"{self.study.augmentation.image_format}_bytes") * self.area

    def unet_calls(self, method: str) -> float:
        """Number of U-Net calls per image of a method.

        A guided step counts twice. PNDM makes one call more than it has steps.
        """
        sampling = method_sampling(self.study, method)
        steps = sampling["steps"] * sampling.get("noise", 1.0) + (sampling["scheduler"] == "pndm")
        guided = 0.0
        if sampling["guidance_scale"] > 1:
            guided = guided_share(sampling.get("guidance_interval", (0.0, math.inf)))
        return float(steps * (1 + guided))

    @cached_property
    def vector_numbers(self) -> int:
        """Length of CLIP's vectors, as of the corpus's; that of ViT-L/14 for any but open_clip's."""
        return VECTOR_NUMBERS if self.clip_config is None else int(self.clip_config["embed_dim"])

    @cached_property
    def corpus_bytes(self) -> float:
        """Bytes of the published embeddings that a search reads; 0 if neither files nor config tell."""
        corpus = self.study.corpus
        if not isinstance(corpus, EmbeddingCorpus):
            return 0.0
        if corpus.vectors is not None:
            return float(corpus.vectors * self.vector_numbers * NUMBER_BYTES)
        files = {path for pattern in VECTOR_FILES for path in Path(corpus.folder).glob(pattern)}
        missing = sum(not Path(path).is_file() for path in corpus.fetched)
        return sum(path.stat().st_size for path in files) + missing * self.assume("corpus_file_bytes")

    def search_hours(self, method: str) -> float:
        """GPU-hours of a row's search, of all its jobs together.

        A job compares while it reads, so the slower of the two decides.
        """
        row, classes = self.study.retrieved[method], len(self.class_sizes)
        queries = {"each": self.sizes.train, "clusters": classes * (row.query.clusters or 1)}
        asked = queries.get(row.query.pool, classes) if row.asks_with_images else classes
        products = 2 * asked * self.corpus_bytes / NUMBER_BYTES
        compared = products / (self.rate("embed") * EMBEDDING_FLOP)
        return max(self.corpus_bytes / self.assume("read_bytes"), compared) / 3600

    def generate_hours(self, method: str, images: float) -> float | None:
        model = self.study.generator_of(method)
        if model.other is not None:
            return self._hours_of_other(method, images)
        if not is_stable_diffusion_1(model):
            return None
        area = (model.side / DIFFUSION_SIDE) ** 2
        return images * self.unet_calls(method) / REFERENCE_CALLS * area / self.rate("generate") / 3600

    def _hours_of_other(self, method: str, images: float) -> float | None:
        """GPU-hours with another model than Stable Diffusion, by its operations; None if not known."""
        model = self.study.generator_of(method)
        cost, sampling = known_model(model.model).get("cost"), method_sampling(self.study, method)
        if cost is None or model.other is None:
            return None
        steps = sampling["steps"] * sampling.get("noise", 1.0)
        guided = sampling["guidance_scale"] > 1 and model.other.negative_prompt
        operations = steps * (1 + guided) * cost["tflop_per_call"] + cost["tflop_of_decoding"]
        area = ((model.resolution or cost["side"]) / cost["side"]) ** 2
        return images * operations * area / (REFERENCE_TFLOP * self.rate("generate")) / 3600

    def unet_bytes(self, method: str) -> float:
        """Bytes of a U-Net that a row trains, in float32; 0 if its size is not known."""
        model = self.study.generator_of(method)
        if model.other is None:
            return self.assume("unet_bytes") if is_stable_diffusion_1(model) else 0.0
        half = known_model(model.model).get("cost", {}).get("largest_gib", 0.0)  # it is the largest network
        return float(2 * half * 2**30)

    def made_bytes(self, method: str) -> float:
        """Bytes of an image that a row generates."""
        model = self.study.generator_of(method)
        side = model.resolution or known_model(model.model).get("cost", {}).get("side", model.side)
        per_image = self.assume(f"{self.study.augmentation.image_format}_bytes")
        return per_image * float(side / DIFFUSION_SIDE) ** 2

    def learned_images(self, method: str) -> int:
        """Number of images that a fine-tuned method learns from."""
        row = self.study.personalised[method]
        own = self.sizes.train if row.learns_from_training_images else 0
        return own + sum(map(self.set_images, row.built_on))

    def latents(self, method: str) -> int:
        """Number of images and mirror images that are encoded for a fine-tuned method.

        Methods that learn from the same images share them, so only the first one of a draw needs any. All
        share those of validation images.
        """
        rows, draw = self.study.personalised, self.plan.draw_of(method)
        if not self.knows_diffusion or rows[method].generator is not None:
            return 0
        rows = {name: row for name, row in rows.items() if row.generator is None}
        alike = [
            name
            for name, row in rows.items()
            if self.plan.draw_of(name) == draw and row.learn_from == rows[method].learn_from
        ]
        views = 2 if self.study.finetune.flip > 0 else 1
        learned = views * self.learned_images(method) if method == alike[0] else 0
        return learned + (self.sizes.validation if method == next(iter(rows)) else 0)

    def encode_hours(self, latents: int) -> float:
        return latents * self.area * ENCODING_SHARE / self.rate("finetune_vectors") / 3600

    def latents_bytes(self, latents: int) -> float:
        width = 2 if self.study.finetune.dtype == "float32" else 1
        return latents * self.area * LATENT_BYTES * width

    def training_steps(self, images: float) -> int:
        """Optimiser steps of a classifier with ``images`` images in a pass; assumed under ``plateau``."""
        classifier = self.study.classifier
        if classifier.schedule == "steps":
            return classifier.total_steps
        epochs = min(classifier.max_epochs, self.assume("classifier_epochs"))
        return round(epochs * steps_per_epoch(round(images), classifier.batch_size))

    def classify_hours(self, images: float, classifiers: int) -> float | None:
        """GPU-hours of training classifiers with ``images`` images in a pass, and of their validations.

        None for a network without figures.
        """
        classifier = self.study.classifier
        if classifier.schedule == "steps":
            steps = classifier.total_steps
            passes = steps / steps_per_epoch(round(images), classifier.batch_size)
            validations = -(-steps // classifier.validation_interval)
        else:
            passes = min(classifier.max_epochs, self.assume("classifier_epochs"))
            validations = round(passes)
        if (work := self.classifier_work) is None:
            return None
        if classifier.train == "probe":  # features are computed once for all runs
            seen = FORWARD_SHARE * (images + self.sizes.validation)
        else:
            share = FORWARD_SHARE if classifier.train == "head" else 1.0
            seen = classifiers * (
                passes * share * images + validations * FORWARD_SHARE * self.sizes.validation
            )
        return seen * work / self.rate("classify") / 3600

    @property
    def _network(self) -> tuple[float, float] | None:
        """Multiplications and weights, relative to ResNet-50 at 224 pixels; None if there are no figures."""
        return NETWORKS.get(without_tag(self.study.classifier.arch))

    @property
    def classifier_work(self) -> float | None:
        """Work of training on an image, relative to the table's ResNet-50; None if there are no figures."""
        classifier = self.study.classifier
        side, width = classifier.resolution / CLASSIFIER_SIDE, classifier.base_width / CLASSIFIER_WIDTH
        return None if self._network is None else self._network[0] * side**2 * width**2

    def score_hours(self, images: float) -> float | None:
        """GPU-hours of classifying images with trained classifiers; None for a network without figures."""
        if self.classifier_work is None:
            return None
        return FORWARD_SHARE * images * self.classifier_work / self.rate("classify") / 3600

    def further_images(self, test: str) -> int:
        """Number of images of a further test set: its manifest's; as many as of the ordinary test before."""
        manifest = Path(self.plan.further_split(test))
        if self.plan.has_own_images(test) and manifest.is_file():
            import pyarrow.parquet as pq

            return int(pq.read_metadata(manifest).num_rows)
        return self.sizes.test

    @property
    def classifier_bytes(self) -> float:
        """Size of a classifier's weights; ResNet-50's for a network without figures."""
        width = self.study.classifier.base_width / CLASSIFIER_WIDTH
        share = 1.0 if self._network is None else self._network[1]
        return self.assume("resnet50_bytes") * share * width**2

    @cached_property
    def class_sizes(self) -> Mapping[str, int]:
        """Training images by class id: their mean, unless the study depends on how classes differ."""
        fills = any(row.fill_to is not None for row in self.study.augmented.values())
        if fills or self.study.dataset.imbalance is not None:
            return self.sizes.by_class
        return dict.fromkeys(self.sizes.by_class, round(self.sizes.per_class))

    def pool_images(self, method: str, parts: Sequence[str]) -> int:
        """Number of images of all classes in some parts of a generated pool."""
        part_range = self.study.augmentation.part_range
        return sum(len(part_range(int(part), size)) for size in self.class_sizes.values() for part in parts)

    def pool_size(self, method: str) -> int:
        """Number of images of all classes that the training sets of a method are drawn from."""
        study, images, keep = self.study, 0, self.study.filters.get(method)
        for pool in study.pools_of(method):
            if pool in study.retrieved:
                found = sum(wanted_images(study.retrieved[pool], self.class_sizes).values())
            else:
                found = self.pool_images(pool, [str(part) for part in range(study.parts_drawn(method, pool))])
            images += found if keep is None else keep.kept(found)
        return images

    def pass_images(self, method: str) -> int:
        """Number of images in one pass over a training set of a method, repetitions included."""
        return self.study.methods[method].real_repeats * self.real_images(method) + self.added_images(method)

    def set_images(self, method: str) -> int:
        """Number of images in one set that is drawn for a row that adds images."""
        row = self.study.augmented[method]
        return sum(needed_by_class(self.class_sizes, row.added_per_training_image, row.fill_to).values())

    def added_images(self, method: str) -> int:
        """Number of images that classifiers of a method are trained on, besides the real ones."""
        row = self.study.augmented.get(method)
        if row is None:
            return 0
        if row.use.replace:
            return sum(needed_by_class(self.class_sizes, row.use.replace).values())
        return self.set_images(method)

    def real_images(self, method: str) -> int:
        """Number of real images that a method's classifiers are trained on."""
        split, use = self.study.methods[method].real_split, self.study.methods[method].use
        if use.replace:
            return self.sizes.train - self.added_images(method)
        share, train = self.study.dataset.train_fraction, self.sizes.train
        if split == "full" and (share is None or self.study.dataset.imbalance is not None):
            return self.sizes.full or train
        everything = train / (share or 1) - self.sizes.validation
        return round({"train": train, "train2x": 2 * train, "full": everything}[split])
