"""The ``classifier`` section: network, images, and the schedule of training."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from augbench.config.base import Fraction, Place, Positive, Section, key
from augbench.config.hub import COMMIT, HUB_ID

PLATEAU_KEYS = frozenset({"plateau_patience", "stop_patience", "max_epochs"})
STEPS_KEYS = frozenset({"steps", "decay", "lower_at", "validate_every", "keep", "warmup_steps"})
RESNET_KEYS = frozenset({"layers", "base_width", "stem"})
ORIGIN_KEYS = frozenset({"pretrained", "pretrained_revision", "pretrained_on"})  # weights enter through files
LOWER_AT = (0.5, 0.75)
RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
TIMM = "timm:"
IMAGENET_TAG = re.compile(r"(?<![a-z0-9])in(?:1k|12k|21k|22k)(?![a-z0-9])")  # in timm's names of weights


def _known_arch(arch: str) -> str:
    if arch in (*RESNETS, "clip") or re.fullmatch(TIMM + r"[a-z0-9][\w.]*", arch):
        return arch
    raise ValueError(
        f"allowed: {', '.join(RESNETS)}; timm:NAME, a network of timm such as timm:convnext_tiny; clip"
    )


Arch = Annotated[str, AfterValidator(_known_arch)]


class Classifier(Section):
    """The classifier that measures an augmentation's benefit: by default torchvision's ResNet."""

    arch: Arch = key(
        "resnet50",
        "Network: resnet18, resnet34, resnet50, resnet101 or resnet152 are torchvision's; timm:NAME is"
        " timm's network of that name, such as timm:vit_base_patch16_224; clip is the image tower of the"
        " study's CLIP, whose last layer begins with the embeddings of the class names (a CLIP in"
        " transformers' layout; not one of open_clip).",
        source="paper, section 3",
    )
    pretrained: Place | None = key(
        None,
        "Weights that a timm network begins with, except for its last layer: a file (.safetensors, .pth,"
        " .bin), a folder with model.safetensors, pytorch_model.bin or a single other .safetensors file, or"
        " an id on the Hub (owner/name), from which they are fetched once. Mirrors and folder of downloads"
        " are those of the section clip. Default: random weights.",
        new=True,
    )
    pretrained_revision: str | None = key(
        None, "Commit of the weights on the Hub: 40 hexadecimal digits; required with an id.", new=True
    )
    pretrained_on: str | None = key(
        None,
        "Labels that the pretrained weights have seen, in words, for check and the footers. Default: what"
        " the tag in their name says (in1k, in12k, in21k, in22k), else unknown.",
        new=True,
    )
    train: Literal["all", "head", "probe"] = key(
        "all",
        "What is trained: all weights; head, the last layer on top of the frozen network; probe, the last"
        " layer on features that the frozen network computes once per image, without random crops. head and"
        " probe need pretrained, or clip.",
        new=True,
    )
    layers: tuple[Positive, Positive, Positive, Positive] | None = key(
        None,
        "Blocks per stage. Default: those of the architecture.",
    )
    base_width: int = key(
        64,
        "Channels of the first stage (64 in torchvision); each later stage has twice as many as the one "
        "before.",
        "channels",
        ge=4,
    )
    stem: Literal["imagenet", "small"] = key(
        "imagenet",
        "First layer: imagenet is 7x7 with stride 2 and max-pooling; small is 3x3 with stride 1, for images "
        "of about 32 pixels.",
    )
    resolution: int = key(
        224,
        "Side of the crops that the classifier sees.",
        "pixels",
        "torchvision's reference",
        ge=16,
    )
    evaluation_resize: int | None = key(
        None,
        "Shorter side of an image before the centre crop in evaluation. Default: resolution x 256 / 224.",
        "pixels",
        "torchvision's reference",
        ge=16,
    )
    decoded_size: Literal["file"] | Positive | None = key(
        None,
        "Shorter side that larger training images are scaled down to before crops are cut from them: a"
        " number of at least resolution, or file to cut from the image as it is. Default: evaluation_resize,"
        " which needs the least memory.",
        "pixels",
        "file: torchvision's reference",
        new=True,
    )
    min_crop_area: float = key(
        0.08,
        description="Smallest area of the random resized crop in training.",
        unit="share of the image",
        source="torchvision's default",
        gt=0,
        le=1,
    )
    batch_size: Positive = key(
        256, "Images per training step, over all processes.", "images", "paper, section 3"
    )
    batch_norm_groups: Positive = key(
        1,
        "Parts of a batch that batch normalisation treats separately, as the GPUs of plain distributed"
        " training do, for any number of processes that divides it. Running statistics are those of the"
        " first part. 1: the whole batch.",
        "parts",
        "paper, section 3 (8 GPUs; DDP without synchronised statistics is torch's default)",
        new=True,
    )
    lr: float = key(0.1, "Initial learning rate.", source="paper, section 3", gt=0)
    optimiser: Literal["sgd", "adamw"] = key(
        "sgd",
        "Optimiser. adamw has betas of 0.9 and 0.999, and does not decay biases, norms and what timm "
        "excludes.",
        source="paper, section 3 (sgd); Loshchilov and Hutter, 2019",
        new=True,
    )
    momentum: Fraction = key(0.9, "SGD momentum.", source="torchvision's reference")
    weight_decay: float = key(
        1e-4,
        "Weight decay: of all weights by sgd, decoupled by adamw.",
        source="torchvision's reference",
        ge=0,
    )
    layer_decay: float = key(
        1.0,
        "Factor of the learning rate from each layer to the one before it; the last layer has lr. For timm's "
        "networks and clip.",
        source="Bao et al., 2022 (BEiT)",
        new=True,
        gt=0,
        le=1,
    )
    warmup_steps: int = key(
        0,
        "First steps, in which the learning rate rises linearly to lr under `schedule: steps`. A cosine"
        " begins after them.",
        "steps",
        "Goyal et al., 2017",
        new=True,
        ge=0,
    )
    plateau_patience: Positive = key(
        10,
        "lr is divided by 10 after this many epochs without a better validation accuracy.",
        "epochs",
        "paper, section 3",
    )
    stop_patience: Positive = key(
        20,
        "Training stops after this many epochs without a better validation accuracy.",
        "epochs",
        "paper, section 3",
    )
    max_epochs: Positive = key(270, "Maximum number of epochs.", "epochs", "paper, section 3")
    schedule: Literal["plateau", "steps"] = key(
        "plateau",
        "plateau: validate after each epoch, lower lr and then stop when validation accuracy no longer "
        "improves (plateau_patience, stop_patience, max_epochs). steps: a fixed number of steps, the same "
        "for every row (steps, decay, lower_at, validate_every, keep). Keys of the other schedule are an "
        "error.",
        source="paper, section 3 (plateau)",
    )
    steps: Positive | None = key(
        None,
        "Optimiser steps of every classifier. Required by `schedule: steps`.",
        "steps",
    )
    decay: Literal["step", "cosine"] = key(
        "step",
        "Decay of lr under `schedule: steps`: step divides it by 10 at each fraction of lower_at; cosine "
        "follows half a cosine to 0.",
        source="cosine: Loshchilov and Hutter, 2017",
    )
    lower_at: tuple[Annotated[float, Field(gt=0, lt=1)], ...] | None = key(
        None,
        "Fractions of the steps, rising, at which lr is divided by 10; [] never lowers it. Allowed only with "
        "`schedule: steps` and `decay: step`. Default there: [0.5, 0.75].",
        "share of the steps",
    )
    validate_every: Positive | None = key(
        None,
        "Steps between validations under `schedule: steps`; the last step is always validated. Default: a "
        "fortieth of the steps, rounded up.",
        "steps",
    )
    keep: Literal["best", "last"] = key(
        "best",
        "Weights that are scored under `schedule: steps`: those with the best validation accuracy, or the "
        "last ones. `schedule: plateau` keeps the best.",
        source="paper, section 3 (best)",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = key(
        "auto",
        "Floating-point type of matrix products; weights are float32. auto: float32 on the CPU; on a GPU,"
        " bfloat16 from compute capability 8 on, float16 below (V100, T4, RTX 20). float16 trains with a"
        " scaled loss; a step whose gradients overflow is left out.",
    )
    deterministic: bool = key(
        True,
        "Use only cuDNN's deterministic kernels, and attention without fused kernels on a GPU: a run then"
        " gives the same weights each time, interrupted or not, unless a timm network has other operations"
        " that are not deterministic on a GPU. false takes the fastest kernels; runs then differ by"
        " rounding.",
        new=True,
    )

    @model_validator(mode="after")
    def _keys_of_the_network(self) -> Classifier:
        """Refuse values that the network or its origin would not use."""
        for name in () if self.arch in RESNETS else sorted(RESNET_KEYS):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name}: goes with torchvision's networks ({', '.join(RESNETS)}) only")
        if self.pretrained is not None and not self.arch.startswith(TIMM):
            raise ValueError("pretrained: goes with arch: timm:NAME; clip has the weights of clip.model")
        if self.pretrained is None and self.timm_name is not None and "." in self.timm_name:
            raise ValueError(
                "arch: its tag names weights, but classifier.pretrained is not set; set it, or leave out the"
                f" tag to train from random weights: {self.arch.partition('.')[0]}"
            )
        if self.pretrained is None:
            for name in sorted(ORIGIN_KEYS):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name}: goes with classifier.pretrained, which is not set")
        if self.pretrained_revision is not None and not re.fullmatch(COMMIT, self.pretrained_revision):
            raise ValueError(
                "pretrained_revision: allowed: a commit, 40 hexadecimal digits; a branch or tag may move"
            )
        if self.pretrained_revision is not None and not re.fullmatch(HUB_ID, self.pretrained or ""):
            raise ValueError("pretrained_revision: goes with an id on the Hub (owner/name) only")
        if self.train != "all" and not self.begins_trained:
            raise ValueError(
                f"train: {self.train} goes with classifier.pretrained or arch: clip; the weights of"
                f" {self.arch} would stay random"
            )
        if self.layer_decay != 1 and (self.arch in RESNETS or self.train != "all"):
            raise ValueError("layer_decay: goes with train: all of arch: timm:NAME or clip")
        return self

    @model_validator(mode="after")
    def _keys_of_the_optimiser(self) -> Classifier:
        if self.optimiser == "adamw" and self.momentum != type(self).model_fields["momentum"].default:
            raise ValueError("momentum: goes with optimiser: sgd; adamw has betas of 0.9 and 0.999")
        if self.steps is not None and self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps: allowed: fewer than steps ({self.steps})")
        return self

    @model_validator(mode="after")
    def _crop_fits(self) -> Classifier:
        if self.evaluation_resize is not None and self.evaluation_resize < self.resolution:
            raise ValueError(
                f"evaluation_resize: allowed: at least classifier.resolution ({self.resolution})"
            )
        if isinstance(self.decoded_size, int) and self.decoded_size < self.resolution:
            raise ValueError(
                f"decoded_size: allowed: file, or at least classifier.resolution ({self.resolution})"
            )
        return self

    @model_validator(mode="after")
    def _groups_fit(self) -> Classifier:
        if self.batch_norm_groups > 1 and self.batch_size < 2 * self.batch_norm_groups:
            raise ValueError(
                f"batch_norm_groups: allowed: at most {max(1, self.batch_size // 2)}, so that a part of a"
                f" batch of {self.batch_size} has two images"
            )
        return self

    @model_validator(mode="after")
    def _keys_of_the_schedule(self) -> Classifier:
        """Refuse values that the chosen schedule would not use."""
        used = PLATEAU_KEYS if self.schedule == "plateau" else STEPS_KEYS
        for name in (PLATEAU_KEYS | STEPS_KEYS) - used:
            if getattr(self, name) != type(self).model_fields[name].default:
                other = "steps" if self.schedule == "plateau" else "plateau"
                raise ValueError(
                    f"{name}: goes with schedule: {other}; allowed with schedule: {self.schedule}: "
                    f"{', '.join(sorted(used))}"
                )
        if self.schedule == "steps" and self.steps is None:
            raise ValueError("schedule: steps needs classifier.steps, the number of steps")
        if self.decay == "cosine" and self.lower_at is not None:
            raise ValueError("lower_at: goes with decay: step; cosine lowers lr in every step")
        if self.schedule == "steps" and self.decay == "step":
            at = self.lower_at_steps
            if [*at] != sorted(set(at)) or not all(0 < step < self.total_steps for step in at):
                raise ValueError(
                    "lower_at: allowed: rising fractions that fall on different steps, after the first and "
                    f"before the last of {self.total_steps}"
                )
        if self.validate_every is not None and self.validate_every > (self.steps or 0):
            raise ValueError(f"validate_every: allowed: at most steps ({self.steps})")
        return self

    @property
    def begins_trained(self) -> bool:
        """Whether the network begins with weights that are not random."""
        return self.pretrained is not None or self.arch == "clip"

    @property
    def timm_name(self) -> str | None:
        """timm's name of the network, with the tag of its weights if it has one; None for another network."""
        return self.arch.removeprefix(TIMM) if self.arch.startswith(TIMM) else None

    @property
    def labels_seen(self) -> str | None:
        """Labels that the first weights have seen, in words; None if they are random."""
        if not self.begins_trained:
            return None
        if self.arch == "clip":
            return "image-text pairs"
        if self.pretrained_on is not None:
            return self.pretrained_on
        tags = dict.fromkeys(IMAGENET_TAG.findall(f"{self.arch} {self.pretrained}"))
        return f"ImageNet's ({', '.join(tags)})" if tags else "unknown (classifier.pretrained_on)"

    @property
    def has_seen_imagenet(self) -> bool:
        """Whether the first weights have seen ImageNet's labels, as far as their names or the config say."""
        return self.arch != "clip" and "imagenet" in (self.labels_seen or "").lower()

    @property
    def total_steps(self) -> int:
        """Number of steps under ``schedule: steps``."""
        assert self.steps is not None
        return self.steps

    @property
    def validation_interval(self) -> int:
        """Steps between validations under ``schedule: steps``: ``validate_every``, or its default."""
        return self.validate_every or -(-self.total_steps // 40)

    @property
    def lower_at_steps(self) -> tuple[int, ...]:
        """Steps (0-based) from which on lr is lower under ``schedule: steps`` with ``decay: step``."""
        fractions = LOWER_AT if self.lower_at is None else self.lower_at
        return tuple(round(fraction * self.total_steps) for fraction in fractions)
