"""The ``dataset`` section: one class per kind of data set."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from augbench.config.base import LONGEST_NAME, SLUG, Place, Positive, Section, WrittenPlace, key

HENDRYCKS = "Hendrycks and Dietterich, 2019 (ImageNet-C)"
SPLIT_NAMES = ("train", "train2x", "full", "val", "test")


class FolderTest(Section):
    """Test images in a folder with one folder of images per class, of some or all classes of the study.

    ImageNet-V2, -R, -Sketch and -A are published like this. A prediction is the best of the classes that the
    set has; the others are masked.
    """

    kind: Literal["folder"]
    root: Place = key(..., "Folder that holds the class folders.")
    folders: Literal["class_ids", "class_names", "label_numbers"] = key(
        "class_ids",
        "What the class folders are called: class_ids (ImageNet: wnids), class_names (one of a class's "
        "lemmas, with _ or - for spaces, in upper or lower case), or label_numbers (ImageNet-V2; see "
        "numbers_of). Folders that are no class of the study are left out, and the check counts them.",
    )
    numbers_of: Literal["study", "imagenet", "imagenet100", "caltech256", "fashion_mnist"] | None = key(
        None,
        "With label_numbers, which it needs: the class table whose places, from 0 on, the folders' numbers "
        "are. A shipped table (ImageNet-V2: imagenet, whatever classes the study has), or study, its own.",
        new=True,
    )
    classes: tuple[str, ...] | None = key(
        None,
        "class_ids of the classes to score; each must have a folder, and others are not looked at. Default: "
        "those that have a folder.",
    )

    @model_validator(mode="after")
    def _numbers_are_of_a_table(self) -> FolderTest:
        if self.folders == "label_numbers" and self.numbers_of is None:
            raise ValueError(
                "numbers_of: needed with folders: label_numbers: imagenet for ImageNet-V2, study for places "
                "in the study's own class table"
            )
        if self.folders != "label_numbers" and self.numbers_of is not None:
            raise ValueError("numbers_of: goes with folders: label_numbers")
        return self


class WebStyleTest(Section):
    """The ordinary test images of Fashion-MNIST in the miniature web's style.

    Each image's look depends on the study's seed and its number alone.
    """

    kind: Literal["web_style"]
    shift: Literal["none", "mild", "strong"] = key(
        "strong", "Level of the shift, as in `corpus.shift`; none gives the ordinary test images."
    )


class CorruptedTest(Section):
    """The ordinary test images, corrupted.

    The noise of an image depends on the study's seed and the image's id alone. An image whose shorter side is
    above 256 pixels is scaled to 256 before.
    """

    kind: Literal["corrupted"]
    corruption: Literal["gaussian_noise", "gaussian_blur", "contrast"] = key(
        ...,
        "gaussian_noise (on each value), gaussian_blur (its width grows with the image's side), or contrast "
        "(which is lowered).",
        source=HENDRYCKS,
    )
    severity: int = key(3, "Severity, as in ImageNet-C.", source=HENDRYCKS, ge=1, le=5)


FurtherTest = Annotated[FolderTest | WebStyleTest | CorruptedTest, Field(discriminator="kind")]


class _Splits(Section):
    gives: ClassVar[
        tuple[str, ...]
    ] = ()  # keys that name the data set's own validation images, then test images

    train_fraction: float | None = key(
        0.1,
        "Share of each class's training pool that becomes the training split: ceil(share x n) images. null "
        "with shots, which stands in its place.",
        source="paper, section 3",
        gt=0,
        lt=1,
    )
    shots: Positive | None = key(
        None,
        "Images per class in the training split, in place of train_fraction. train2x has twice as many."
        " Fewer shots are the first of more shots.",
        "images",
        new=True,
    )
    imbalance: float | None = key(
        None,
        "Long tail of the training split: the first class of the class table has this many times the images"
        " of the last one, and the sizes between fall exponentially. The first class has as many as the"
        " smallest class has without imbalance. Validation and test stay as they are. Default: no long tail.",
        "largest / smallest class",
        "Cui et al., 2019; Cao et al., 2019",
        gt=1,
        new=True,
    )
    validation_fraction: float | None = key(
        None,
        "Share of the pool that becomes the validation split, unless the data set has validation images of "
        "its own. Default: train_fraction if the data set has test images of its own, else half of what "
        "train leaves; with shots, validation_shots.",
        source="paper, section 3",
        gt=0,
        lt=1,
    )
    validation_shots: Positive | None = key(
        None,
        "Images per class in the validation split, in place of validation_fraction; validation images of the "
        "data set's own are cut to as many. Default: as many as shots, if neither key is set; else no cut.",
        "images",
        "Oliver et al., 2018: a validation split is not larger than the training split in practice",
        new=True,
    )
    test_fraction: float | None = key(
        None,
        "Share of the pool that becomes the test split, unless the data set has test images of its own. "
        "Default: half of what train leaves; with shots, half of the pool.",
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
    further_tests: dict[str, FurtherTest] = key(
        {},
        "Test sets of other distributions by name (a-z, 0-9 and _). The finished classifiers of all rows are "
        "scored on them; nothing is trained or chosen by them.",
        new=True,
    )

    @model_validator(mode="after")
    def _further_tests_fit(self) -> _Splits:
        for name, test in self.further_tests.items():
            if not re.fullmatch(SLUG, name) or len(name) > LONGEST_NAME or name in SPLIT_NAMES:
                raise ValueError(
                    f"further_tests.{name}: allowed: a name of a-z, 0-9 and _ with at most {LONGEST_NAME} "
                    f"characters, and none of {', '.join(SPLIT_NAMES)}"
                )
            if isinstance(test, WebStyleTest) and not isinstance(self, FashionMnist):
                raise ValueError(f"further_tests.{name}.kind: allowed only with kind: fashion_mnist")
        return self

    @model_validator(mode="before")
    @classmethod
    def _shots_in_place_of_shares(cls, data: Any) -> Any:
        """Give ``train_fraction`` no default where ``shots`` stands in its place."""
        if not isinstance(data, dict):
            return data
        if data.get("shots") is None:
            if data.get("train_fraction", 0) is None:
                raise ValueError(
                    "train_fraction: allowed without shots: a share between 0 and 1; give one of the two"
                )
            return data
        for name in ("train_fraction", "held_out_like"):
            if data.get(name) is not None:
                raise ValueError(f"{name}: allowed with shots: null; give one of the two")
        return {**data, "train_fraction": None}

    @model_validator(mode="after")
    def _one_size_of_validation(self) -> _Splits:
        if self.validation_fraction is not None and self.validation_shots is not None:
            raise ValueError("validation_shots: allowed with validation_fraction: null; give one of the two")
        return self

    @property
    def validation_images(self) -> int | None:
        """Validation images per class, if their number is given: ``validation_shots``, or its default."""
        if self.validation_shots is not None:
            return self.validation_shots
        return self.shots if self.validation_fraction is None else None

    @property
    def may_be_unbalanced(self) -> bool:
        """Whether classes may differ in their training or test images, as far as the config alone can tell.

        With ``shots``, test images may differ: what the data set gives, or half of each class.
        """
        return True

    @model_validator(mode="after")
    def _fractions_fit(self) -> _Splits:
        given = {
            name: getattr(self, name) for name in ("train_fraction", "validation_fraction", "test_fraction")
        }
        total = sum(value for value in given.values() if value is not None)
        if total > 1:
            raise ValueError(f"the fractions sum to {total:g}; at most 1 is possible")
        return self

    @property
    def gives_validation(self) -> bool:
        """Whether the data set has validation images of its own."""
        return any(getattr(self, name) is not None for name in self.gives[:1])

    @model_validator(mode="after")
    def _holds_out(self) -> _Splits:
        if self.held_out_like is not None and self.gives and all(getattr(self, name) for name in self.gives):
            raise ValueError(
                f"held_out_like: goes with held-out images that are sampled; {' and '.join(self.gives)} give "
                "them all"
            )
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

    @property
    def may_be_unbalanced(self) -> bool:
        """Only in a long tail, for all classes have 6000 training and 1000 test images."""
        return self.imbalance is not None


class ImageFolder(_Splits):
    """Any data set with the layout ``root/class/*`` or ``root/split/class/*`` (for example ImageNet)."""

    gives = ("validation_folder", "test_folder")

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
    validation_labels: str | None = key(
        None,
        "As test_labels, for a validation_folder without class folders. Default: it has class folders.",
        new=True,
    )
    test_labels: str | None = key(
        None,
        "File under root that gives the class of each image in test_folder, if that has no class folders: "
        "ILSVRC2012_validation_ground_truth.txt with meta.mat beside it (ILSVRC2012's development kit), or "
        "LOC_val_solution.csv (Kaggle). Default: test_folder has class folders.",
        new=True,
    )

    @model_validator(mode="after")
    def _labels_of_a_folder(self) -> ImageFolder:
        for name in ("validation", "test"):
            if getattr(self, f"{name}_labels") is not None and getattr(self, f"{name}_folder") is None:
                raise ValueError(f"{name}_labels: goes with {name}_folder, the folder of these images")
        return self


class ParquetImages(_Splits):
    """Parquet files with a column of images and one of labels, as Hugging Face's ``datasets`` writes them.

    The files are below ``root``, in any folders. The split is part of a file's or a folder's name, as in
    ``data/train-00000-of-00294.parquet``. They are read in place.
    """

    gives = ("validation_split", "test_split")

    kind: Literal["parquet"]
    root: WrittenPlace = key(..., "Folder of the Parquet files.")
    classes: Place | None = key(
        None,
        "Class table: the name of a shipped table, or a YAML or TSV file. Default: the names that the files "
        "give to the labels (ClassLabel). A table is needed if they give none.",
    )
    train_split: str = key("train", "Split with the training images.")
    validation_split: str | None = key(
        None, "Split with the validation images. Default: sampled from the training images."
    )
    test_split: str | None = key(
        None,
        "Split with the test images (imagenet-1k: validation, because its split test has no labels)."
        " Default: sampled from the training images.",
    )
    image_column: str = key("image", "Column of the images' files.")
    label_column: str = key(
        "label",
        "Column of the classes: whole numbers from 0 on, in the order of the names or of the class table, or "
        "texts that are class_ids.",
    )

    @model_validator(mode="after")
    def _different_splits(self) -> ParquetImages:
        keys: dict[str, str] = {}
        for name in ("train_split", "validation_split", "test_split"):
            split = getattr(self, name)
            if split is not None and (first := keys.setdefault(split, name)) != name:
                raise ValueError(f"{name}: allowed: another split than {first}")
        return self


class Caltech256(_Splits):
    """Caltech256 as published (``root/001.ak47/*.jpg``), without the clutter class (257)."""

    kind: Literal["caltech256"]
    root: WrittenPlace = key(..., "Path of the data set's folder, 256_ObjectCategories.")
    train_fraction: float | None = key(
        0.8,
        "Share of each class that becomes the training split: ceil(share x n) images. null with shots, which "
        "stands in its place.",
        source="paper, section 3",
        gt=0,
        lt=1,
    )


Dataset = Annotated[FashionMnist | ImageFolder | ParquetImages | Caltech256, Field(discriminator="kind")]
