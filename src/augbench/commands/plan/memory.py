"""GPU memory that each stage needs, from ``resources/gpu_memory.yaml``: estimates, not measured on a GPU.

The table has figures for Stable Diffusion 1.x, ResNet-50 and ConvNeXt-T. Other networks get none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import linear_regression
from typing import Any

from augbench.config.hub import known_model
from augbench.config.models import Diffusion
from augbench.config.study import Study, read_yaml
from augbench.files import RESOURCES, read_json

TABLE = RESOURCES / "gpu_memory.yaml"
DIFFUSION_SIDE, CLASSIFIER_SIDE, CLASSIFIER_WIDTH = 512, 224, 64  # of the networks in the tables
# networks with figures, and their stage in the table
CLASSIFIERS = {"resnet50": "classify", "timm:convnext_tiny": "classify_convnext_tiny"}
# GiB of decoding an image of 1024 pixels in half precision, inferred; other models decode one at a time
DECODER_GIB = 3.0
SD1_WIDTHS = [320, 640, 1280, 1280]


@dataclass(frozen=True)
class Need:
    """Memory that a stage needs on each GPU.

    Attributes
    ----------
    stage : str
        As in ``resources/gpu_memory.yaml``.
    key : str
        Key of the config that sets the batch.
    batch : int
        Images in a batch of one GPU.
    fixed, per_image, floor : float
        GiB that do not depend on the batch, GiB of each image in it, and the least GiB; margin included.
    parts : int
        Equal parts of a batch that can run one after another, to the same result.
    offloaded : float, optional
        ``fixed`` if the weights of one network at a time are on the GPU; None if all must be there.
    """

    stage: str
    key: str
    batch: int
    fixed: float
    per_image: float
    floor: float
    parts: int = 1
    offloaded: float | None = None

    @property
    def gib(self) -> float:
        return max(self.floor, self.fixed + self.batch * self.per_image)

    def largest_batch(self, gib: float) -> int:
        """Largest batch that fits into ``gib`` GiB; 0 if none does."""
        return max(0, math.floor((gib - self.fixed) / self.per_image)) if self.floor <= gib else 0

    def parts_at_once(self, gib: float) -> int:
        """Parts of a batch that run at once in ``gib`` GiB, halved until they fit; 0 if none does."""
        most, at_once = self.largest_batch(gib) * self.parts, self.parts
        while at_once > 1 and at_once * self.batch > most:
            at_once = (at_once + 1) // 2
        return at_once if at_once * self.batch <= most else 0


def is_stable_diffusion_1(model: Diffusion) -> bool:
    """Whether a model's U-Net has the size of Stable Diffusion 1.x, as in the tables of figures."""
    if model.other is not None:
        return False
    config = Path(model.folder) / "unet/config.json"
    if not config.is_file():
        return model.hub is not None
    try:
        return bool(read_json(config)["block_out_channels"] == SD1_WIDTHS)
    except (ValueError, KeyError, TypeError):  # `augbench check` names a damaged model
        return False


def needs_of(study: Study) -> Iterator[Need]:
    """Yield the needs of the study's stages for which there are figures."""
    classifier, batch = study.classifier, study.execution.batch_size
    used = {row.generator_name: study.generator_of(name) for name, row in study.generated.items()}
    for name, model in used.items():
        if model.other is not None:
            yield from _need_of_other(f"generate {name or model.pipeline_class}", batch, model)
        elif is_stable_diffusion_1(model):
            area = (model.side / DIFFUSION_SIDE) ** 2
            stage = "generate" if name is None else f"generate {name}"
            yield replace(_need("generate", batch, area, model.dtype), stage=stage)
    if is_stable_diffusion_1(study.diffusion):
        area = (study.diffusion.side / DIFFUSION_SIDE) ** 2
        micro_batch = study.finetune.micro_batch or batch
        trained = {row.train_unet for row in study.personalised.values() if row.generator is None}
        if False in trained:
            yield _need("finetune_vectors", micro_batch, area, study.finetune.dtype)
        if True in trained:
            yield _need("finetune_unet", micro_batch, area, study.finetune.dtype)
    table = CLASSIFIERS.get(without_tag(classifier.arch))
    if table is not None and classifier.train == "all":
        area = (classifier.resolution / CLASSIFIER_SIDE) ** 2 * classifier.base_width / CLASSIFIER_WIDTH
        processes = study.execution.processes or 1
        need = _need(table, -(-classifier.batch_size // processes), area, classifier.dtype)
        yield replace(need, parts=max(1, classifier.batch_norm_groups // processes))


def without_tag(arch: str) -> str:
    """Name of a network without the tag of its weights."""
    return arch.partition(".")[0]


def _need_of_other(stage: str, batch: int, model: Diffusion) -> Iterator[Need]:
    """Yield the need of sampling another model than Stable Diffusion, if ``resources/models`` has figures."""
    cost, margin = known_model(model.model).get("cost"), _table()["margin"]
    if cost is None:
        return
    scale = (2.0 if model.dtype == "float32" else 1.0) * (1 + margin["share"])
    side = model.resolution or cost["side"]
    area, decoder = (side / cost["side"]) ** 2, (side / 1024) ** 2 * DECODER_GIB
    yield Need(
        stage,
        "execution.batch_size",
        batch,
        fixed=margin["gib"] + scale * (cost["weights_gib"] + decoder),
        per_image=scale * area * cost["gib_per_image"],
        floor=0.0,
        offloaded=margin["gib"] + scale * (cost["largest_gib"] + decoder),
    )


def _need(stage: str, batch: int, area: float, dtype: str) -> Need:
    """Need of a stage whose images are ``area`` times as large as in the table."""
    table = _table()
    margin, stage_of = table["margin"], table["stages"][stage]
    single = dtype == "float32"
    peaks = stage_of["float32"] if single and "float32" in stage_of else stage_of["peaks"]
    times = table["float32"]["times"] if single and "float32" not in stage_of else 1.0
    per_image, fixed = linear_regression(list(peaks), list(peaks.values()))
    scale = times * (1 + margin["share"])
    return Need(
        stage,
        stage_of["key"],
        batch,
        fixed=margin["gib"] + scale * fixed,
        per_image=scale * area * per_image,
        floor=margin["gib"] + scale * stage_of.get("floor", 0.0),
    )


@cache
def _table() -> dict[str, Any]:
    return read_yaml(TABLE)


def shortages(study: Study, name: str, gib: float) -> Iterator[str]:
    """Yield a line for each stage that does not fit into a GPU with ``gib`` GiB, with what does."""
    for need in needs_of(study):
        if need.gib <= gib:
            continue
        if need.offloaded is not None and need.offloaded + need.per_image <= gib:
            yield (
                f"{need.stage}: about {need.gib:.1f} GiB with {need.key}: {need.batch}, but {name} has"
                f" {gib:.1f}; networks will be on the GPU one at a time, or batches halved, which is slower"
            )
            continue
        most, at_once = need.largest_batch(gib), need.parts_at_once(gib)
        helps = f"set {need.key} to at most {most}" if most else "a GPU with more memory is needed"
        if at_once:
            helps = (
                f"{at_once} of its {need.parts} parts (classifier.batch_norm_groups) will run at once, "
                "to the same result"
            )
        elif most and need.stage in CLASSIFIERS.values():
            helps += ", which changes results, or train on several GPUs (execution.processes)"
        yield (
            f"{need.stage}: about {need.gib:.1f} GiB with {need.key}: {need.batch}, but {name} has"
            f" {gib:.1f}; {helps}"
        )
