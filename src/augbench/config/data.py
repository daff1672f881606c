"""The ``dataset`` section: one class per kind of data set."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from augbench.config.base import Positive, Section, key


class _Splits(Section):
    train_fraction: float = key(
        0.1,
        "Share of each class's training pool that is the training split; ceil(share x n).",
        source="paper, section 3",
        gt=0,
        lt=1,
    )
    validation_fraction: float | None = key(
        None,
        "Share that is the validation split. Default: train_fraction where test images are given, else half of what train leaves.",
        source="paper, section 3",
        gt=0,
        lt=1,
    )
    test_fraction: float | None = key(
        None,
        "Share that is the test split, where no test images are given. Default: half of what train leaves.",
        source="paper, section 3 (Caltech256)",
        gt=0,
        lt=1,
    )
    test_images_per_class: Positive | None = key(
        None,
        "Cut the test split to this many images per class (a cut against the protocol; the table's footer says so).",
        "images",
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
    """Fashion-MNIST; 10,000 of its training images are the target's pool, the others may be the miniature corpus."""

    kind: Literal["fashion_mnist"]
    classes: str = key(
        "fashion_mnist",
        "Class table: the shipped one, or a YAML or TSV file with its ten classes in label order under other names.",
    )
    downloads: str = key("results/downloads/fashion_mnist", "Folder that keeps the four published files.")


class ImageFolder(_Splits):
    """Any data set of the form ``root/class/*`` or ``root/split/class/*`` (ImageNet's layout is one)."""

    kind: Literal["image_folder"]
    root: str = key(..., "Folder of the data set.")
    classes: str | None = key(
        None, "Class table: the name of a shipped one, or a YAML or TSV file. Default: the folder names."
    )
    train_folder: str | None = key(
        None, "Folder under root that holds the training images, one folder per class. Default: root itself."
    )
    validation_folder: str | None = key(
        None, "Folder under root with given validation images. Default: sampled from the training images."
    )
    test_folder: str | None = key(
        None,
        "Folder under root with the test images (ImageNet: val). Default: sampled from the training images.",
    )


class Caltech256(_Splits):
    """Caltech256 as published: ``root/001.ak47/*.jpg``; the clutter class (257) is left out."""

    kind: Literal["caltech256"]
    root: str = key(..., "Folder 256_ObjectCategories.")
    train_fraction: float = key(
        0.8, "Share of each class that is the training split.", source="paper, section 3", gt=0, lt=1
    )


Dataset = Annotated[FashionMnist | ImageFolder | Caltech256, Field(discriminator="kind")]
