"""GPU memory that each stage needs, from ``resources/gpu_memory.yaml``: estimates, not measured on a GPU.

The table has figures for Stable Diffusion 1.x and ResNet-50. Other networks get none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import linear_regression
from typing import Any

from augbench.config.study import Study, read_yaml
from augbench.files import RESOURCES, read_json

TABLE = RESOURCES / "gpu_memory.yaml"
DIFFUSION_SIDE, CLASSIFIER_SIDE, CLASSIFIER_WIDTH = 512, 224, 64  # of the networks in the tables
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
    """

    stage: str
    key: str
    batch: int
    fixed: float
    per_image: float
    floor: float
    parts: int = 1

    @property
    def gib(self) -> float:
        return max(self.floor, self.fixed + self.batch * self.per_image)

    def largest_batch(self, gib: float) -> int:
        """Largest batch that fits into ``gib`` GiB; 0 if none does."""
        return max(0, math.floor((gib - self.fixed) / self.per_image)) if self.floor <= gib else 0

    def parts_at_once(self, gib: float) -> int:
        """Parts of a batch that run at once in ``gib`` GiB: their number is halved until it fits; 0 if none does."""
        most, at_once = self.largest_batch(gib) * self.parts, self.parts
        while at_once > 1 and at_once * self.batch > most:
            at_once = (at_once + 1) // 2
        return at_once if at_once * self.batch <= most else 0


def is_stable_diffusion_1(study: Study) -> bool:
    """Whether the study's U-Net has the size of Stable Diffusion 1.x, as in the tables of figures."""
    config = Path(study.diffusion.folder) / "unet/config.json"
    if not config.is_file():
        return study.diffusion.hub is not None
    try:
        return bool(read_json(config)["block_out_channels"] == SD1_WIDTHS)
    except (ValueError, KeyError, TypeError):  # `augbench check` names a damaged model
        return False


def needs_of(study: Study) -> Iterator[Need]:
    """Yield the needs of the study's stages for which there are figures."""
    classifier, batch = study.classifier, study.execution.batch_size
    if is_stable_diffusion_1(study):
        area = (study.diffusion.side / DIFFUSION_SIDE) ** 2
        if study.generated:
            yield _need("generate", batch, area, study.diffusion.dtype)
        micro_batch = study.finetune.micro_batch or batch
        trained = {row.train_unet for row in study.personalised.values() if row.generator is None}
        if False in trained:
            yield _need("finetune_vectors", micro_batch, area, study.finetune.dtype)
        if True in trained:
            yield _need("finetune_unet", micro_batch, area, study.finetune.dtype)
    if classifier.arch == "resnet50":
        area = (classifier.resolution / CLASSIFIER_SIDE) ** 2 * classifier.base_width / CLASSIFIER_WIDTH
        processes = study.execution.processes or 1
        need = _need("classify", -(-classifier.batch_size // processes), area, classifier.dtype)
        yield replace(need, parts=max(1, classifier.batch_norm_groups // processes))


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
        most, at_once = need.largest_batch(gib), need.parts_at_once(gib)
        helps = f"set {need.key} to at most {most}" if most else "a GPU with more memory is needed"
        if at_once:
            helps = (
                f"{at_once} of its {need.parts} parts (classifier.batch_norm_groups) will run at once, "
                "to the same result"
            )
        elif most and need.stage == "classify":
            helps += ", which changes results, or train on several GPUs (execution.processes)"
        yield (
            f"{need.stage}: about {need.gib:.1f} GiB with {need.key}: {need.batch}, but {name} has"
            f" {gib:.1f}; {helps}"
        )
