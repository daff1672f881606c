"""The ``dataset`` section: one class per kind of data set."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from augbench.config.base import Place, Positive, Section, WrittenPlace, key


class _Splits(Section):
    train_fraction: float = key(
        0.1,
        "Share of each class's training pool that becomes the training split: ceil(share x n) images.",
        source="paper, section 3",
        gt=0,
        lt=1,
    )
    validation_fraction: float | None = key(
        None,
        "Share of the pool that becomes the validation split, unless the data set has validation images of "
        "its own. Default: train_fraction if the data set has test images of its own, else half of what "
        "train leaves.",
        source="paper, section 3",
        gt=0,
        lt=1,
    )
    test_fraction: float | None = key(
        None,
        "Share of the pool that becomes the test split, unless the data set has test images of its own. "
        "Default: half of what train leaves.",
        source="paper, section 3 (Caltech256)",
        gt=0,
        lt=1,
    )
    held_out_like: float | None = key(
        None,
        "Hold out the validation and test images that a study of this data set and seed with this "
        "train_fraction samples from the pool, and train on the others. Default: train_fraction.",
        source="paper, section 3 (full ImageNet: all but the validation split of the 10%)",
        gt=0,
        lt=1,
        new=True,
    )
    test_images_per_class: Positive | None = key(
        None,
        "Cut the test split to this many images per class. Default: no cut. A cut departs from the paper's "
        "protocol, and the footer of Table 1 says so.",
        "images",
    )

    draws: int = key(
        1,
        "Independent draws of the training images. The study is repeated with each, validation and test "
        "images stay the same, and the errors in Table 1 are over draws. Rows whose images do not depend on "
        "the training images make them once.",
        "draws",
        ge=1,
        le=1000,
        new=True,
    )

    @model_validator(mode="after")
    def _fractions_fit(self) -> _Splits:
        given = {
            name: getattr(self, name) for name in ("train_fraction", "validation_fraction", "test_fraction")
        }
        total = sum(value for value in given.values() if value is not None)
        if total > 1:
            raise ValueError(f"the fractions sum to {total:g}; at most 1 is possible")
        return self


class FashionMnist(_Splits):
    """Fashion-MNIST. The target uses 10,000 training images; the miniature corpus may use the others."""

    kind: Literal["fashion_mnist"]
    classes: Place = key(
        "fashion_mnist",
        "Class table: the shipped one, or a YAML or TSV file that gives the ten classes other names, in "
        "label order.",
    )
    downloads: Place = key(
        "results/downloads/fashion_mnist", "Folder that keeps Fashion-MNIST's four published files."
    )


class ImageFolder(_Splits):
    """Any data set with the layout ``root/class/*`` or ``root/split/class/*`` (for example ImageNet)."""

    kind: Literal["image_folder"]
    root: WrittenPlace = key(..., "Folder of the data set.")
    classes: Place | None = key(
        None, "Class table: the name of a shipped table, or a YAML or TSV file. Default: the folder names."
    )
    train_folder: str | None = key(
        None, "Folder under root with the training images, one folder per class. Default: root itself."
    )
    validation_folder: str | None = key(
        None, "Folder under root with the validation images. Default: sampled from the training images."
    )
    test_folder: str | None = key(
        None,
        "Folder under root with the test images (ImageNet: val). Default: sampled from the training images.",
    )

    @model_validator(mode="after")
    def _holds_out(self) -> ImageFolder:
        if self.held_out_like is not None and self.validation_folder and self.test_folder:
            raise ValueError(
                "held_out_like: goes with held-out images that are sampled; validation_folder and test_folder "
                "give them all"
            )
        return self


class Caltech256(_Splits):
    """Caltech256 as published (``root/001.ak47/*.jpg``), without the clutter class (257)."""

    kind: Literal["caltech256"]
    root: WrittenPlace = key(..., "Path of the data set's folder, 256_ObjectCategories.")
    train_fraction: float = key(
        0.8,
        "Share of each class that becomes the training split: ceil(share x n) images.",
        source="paper, section 3",
        gt=0,
        lt=1,
    )


Dataset = Annotated[FashionMnist | ImageFolder | Caltech256, Field(discriminator="kind")]
