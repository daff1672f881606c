"""The section ``use`` of a row: how its classifiers are trained on its real and added images.

The default is the paper's: all images are one training set, each with the same weight, unmixed. A ``draw``
row with a ``use`` of its own shares pool and training sets with the row that it draws from.
"""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from augbench.config.base import Fraction, Section, key

REAL_KEYS = ("mixup", "cutmix", "label_smoothing")  # those that need no added images


class Use(Section):
    """How a row's classifiers are trained on its images. The default concatenates real and added ones."""

    replace: Fraction = key(
        0.0,
        "Share of each class's real images, rounded up, that added ones replace, so that the training set is "
        "as large as the real one. Both are drawn anew for each run; at most added_per_training_image.",
        "share of the real images",
        new=True,
    )
    weight: float = key(
        1.0,
        "Weight of an added image's loss. The loss of a batch is the weighted mean: the sum of weight x"
        " loss, divided by the sum of the weights of the batch.",
        "times that of a real image",
        new=True,
        gt=0,
    )
    mixup: float = key(
        0.0,
        "MixUp: alpha of the Beta distribution, from which each step draws the share of an image; the rest"
        " is its partner's. With cutmix as well, each step takes one of the two at random. 0 switches it"
        " off.",
        "alpha",
        "Zhang et al., 2018",
        new=True,
        ge=0,
    )
    cutmix: float = key(
        0.0,
        "CutMix: alpha of the Beta distribution, from which each step draws the area that stays of an image; "
        "the same box of all images shows their partners instead. 0 switches it off.",
        "alpha",
        "Yun et al., 2019",
        new=True,
        ge=0,
    )
    pairs: Literal["within", "across"] = key(
        "within",
        "Partners of mixup and cutmix: within the batch, whatever they are, or across: an added image for a "
        "real one and the other way round.",
        source="within: Zhang et al., 2018; Yun et al., 2019",
        new=True,
    )
    label_smoothing: float = key(
        0.0,
        "Share of the target that all classes have in equal parts.",
        source="Szegedy et al., 2016",
        new=True,
        ge=0,
        lt=1,
    )
    real_at_end: float = key(
        0.0,
        "Share of the steps, the last ones, that see real images only. Needs `classifier.schedule: steps`.",
        "share of the steps",
        "Liu et al., 2025 (SWAT, second stage)",
        new=True,
        ge=0,
        lt=1,
    )
    head_only: bool = key(
        False,
        "In the steps of real_at_end, train the last layer only (classifier re-training). The others and the "
        "statistics of batch normalisation stay as they are.",
        source="Kang et al., 2020; Liu et al., 2025",
        new=True,
    )

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with partners."""
        return self.mixup > 0 or self.cutmix > 0

    def end_steps(self, total_steps: int) -> int:
        """Number of the last steps, of ``total_steps``, that see real images only."""
        return round(self.real_at_end * total_steps)

    @property
    def needing_added(self) -> list[str]:
        """Keys that are set and concern added images."""
        defaults = type(self)()
        others = [name for name in type(self).model_fields if name not in REAL_KEYS]
        return [name for name in others if getattr(self, name) != getattr(defaults, name)]

    @model_validator(mode="after")
    def _keys_fit(self) -> Use:
        if self.pairs == "across" and not self.mixes:
            raise ValueError("pairs: goes with mixup or cutmix, neither of which is set")
        if self.head_only and not self.real_at_end:
            raise ValueError("head_only: goes with real_at_end, which is not set")
        if self.replace == 1:
            for name in self.needing_added:
                if name != "replace":
                    raise ValueError(f"{name}: allowed with replace below 1; at 1, no real image is left")
        return self

    @property
    def words(self) -> str:
        """What is set, as text for a footer; empty for the default."""
        parts = []
        if self.replace:
            parts.append(
                f"added images replace {self.replace:.0%} of the real images of each class, both drawn anew"
                " for each run"
            )
        if self.weight != 1:
            parts.append(
                f"the loss of an added image has the weight {self.weight:g} (weighted mean over a batch)"
            )
        if self.mixes:
            named = [("MixUp", self.mixup), ("CutMix", self.cutmix)]
            mixing = " or ".join(f"{name} (alpha {alpha:g})" for name, alpha in named if alpha)
            partners = "of the same batch" if self.pairs == "within" else "of the other kind, real or added"
            parts.append(f"{mixing} with partners {partners}")
        if self.label_smoothing:
            parts.append(f"label smoothing {self.label_smoothing:g}")
        if self.real_at_end:
            layer = ", which train the last layer only" if self.head_only else ""
            parts.append(f"real images only in the last {self.real_at_end:.0%} of the steps{layer}")
        return "; ".join(parts)


CONCATENATED = Use()
