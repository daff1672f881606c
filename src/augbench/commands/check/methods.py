"""Checks of the rows: how many images they add, their prompts, the corpus they retrieve from, the judge of their images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from augbench.config.corpus import IndexCorpus, OwnCorpus
from augbench.config.methods import AddingMethod, DrawMethod
from augbench.config.study import Study
from augbench.data.classes import ClassInfo
from augbench.data.image_folder import some
from augbench.errors import UserError
from augbench.measures.judge import check_judge
from augbench.prompts.stage import check_prompts
from augbench.resample import needed_images


def added_image_problems(study: Study, train: dict[str, int]) -> Iterator[UserError]:
    """Every pool must hold as many images of a class as the class has for training: each resample draws that many."""
    largest = max(train, key=lambda class_id: train[class_id])
    augmentation = study.augmentation

    def needed(method: AddingMethod) -> tuple[int, str]:
        size, times = train[largest], method.added_per_training_image
        added = "as many" if times == 1 else f"{times:g} times as many"
        return needed_images(
            times, size
        ), f"class {largest!r} has {size} training images, and a resample adds {added}"

    generated = [needed(method) for method in study.generated.values()]
    if generated and augmentation.images_per_training_image is not None:
        most = max(method.added_per_training_image for method in study.generated.values())
        if augmentation.images_per_training_image < most:
            yield UserError(
                "augmentation.images_per_training_image",
                augmentation.images_per_training_image,
                f"allowed: at least {most:g}, which a method adds",
            )
    if generated and augmentation.images_per_class is not None:
        part = augmentation.images_per_part
        size, because = max(generated)
        if augmentation.images_per_class < size:
            yield UserError(
                "augmentation.images_per_class",
                augmentation.images_per_class,
                f"allowed: at least {size}; {because}",
            )
        elif part is not None and part < size:
            yield UserError(
                "augmentation.images_per_part",
                part,
                f"allowed: at least {size}; {because}, from part 0 alone during selection",
            )
    for name, drawn in study.drawn.items():
        yield from _drawn_images(study, name, drawn, *needed(drawn))
    for name, method in study.retrieved.items():
        size, because = needed(method)
        key, wanted = f"methods.{name}.images_per_class", method.images_per_class or size
        if wanted < size and not method.may_fall_short:
            yield UserError(key, wanted, f"allowed: at least {size}; {because}")
        if study.miniature is not None:
            rows = study.miniature.images + study.miniature.distractors
            if math.ceil(method.first_k * wanted) > rows:
                yield UserError(
                    key,
                    wanted,
                    f"allowed: at most {math.floor(rows / method.first_k)}, for the corpus has {rows} images and first_k is {method.first_k:g}",
                )


def _drawn_images(
    study: Study, name: str, method: DrawMethod, size: int, because: str
) -> Iterator[UserError]:
    """What a row draws from must hold a set of its size, too."""
    if (pool := study.retrieved.get(method.pool)) is not None:
        retrieved = pool.images_per_class
        if retrieved is not None and retrieved < size and not method.may_fall_short:
            yield UserError(
                f"methods.{method.pool}.images_per_class",
                retrieved,
                f"allowed: at least {size}, for {name} draws from it; {because}",
            )
        if (
            retrieved is None
            and pool.added_per_training_image < method.added_per_training_image
            and not method.may_fall_short
        ):
            yield UserError(
                f"methods.{name}.added_per_training_image",
                method.added_per_training_image,
                f"allowed: at most that of {method.pool}",
            )
    elif study.augmentation.images_per_class is not None:
        images = method.images_per_class or study.augmentation.images_per_class
        if images < size:
            yield UserError(
                f"methods.{name}.images_per_class", images, f"allowed: at least {size}; {because}"
            )


def excluded_problems(study: Study, class_ids: list[str]) -> Iterator[UserError]:
    """Classes that are left out are classes."""
    exclude = study.retrieval.exclude
    for class_id in sorted(set(exclude) - set(class_ids)) if isinstance(exclude, tuple) else ():
        yield UserError(
            "retrieval.exclude", repr(class_id), f"allowed: class_ids of the data set, {some(class_ids)}"
        )
    if isinstance(exclude, tuple) and len(set(class_ids) - set(exclude)) < 2:
        yield UserError(
            "retrieval.exclude", f"{len(exclude)} of {len(class_ids)} classes", "at least 2 must stay"
        )


def corpus_problems(study: Study) -> Iterator[UserError]:
    """The corpus is there, and so are manifests and weights that are named."""
    if not study.retrieved:
        return
    corpus = study.corpus
    places = {"root": getattr(corpus, "root", None), "folder": getattr(corpus, "folder", None)}
    for key, place in places.items():
        if place is not None and not Path(place).is_dir():
            yield UserError(f"corpus.{key}", f"{place!r}, no such folder", "allowed: a folder")
    if (
        isinstance(corpus, IndexCorpus)
        and Path(corpus.folder).is_dir()
        and not (Path(corpus.folder) / "image.index").is_file()
    ):
        yield UserError(
            "corpus.folder",
            f"no image.index in {corpus.folder!r}",
            "allowed: a folder that `clip-retrieval index` has made",
        )
    for name, method in study.retrieved.items():
        if method.manifest is not None and not Path(method.manifest).is_file():
            yield UserError(
                f"methods.{name}.manifest",
                f"{method.manifest!r}, no such file",
                "allowed: a manifest.parquet that a study has frozen",
            )
        if (
            method.min_aesthetics is not None
            and isinstance(corpus, OwnCorpus)
            and study.retrieval.aesthetics_weights is None
        ):
            yield UserError(
                "retrieval.aesthetics_weights",
                "null",
                f"methods.{name}.min_aesthetics needs the predictor's weights: {corpus.kind} has no scores",
            )


def judge_problems(study: Study, class_ids: list[str]) -> Iterator[UserError]:
    """Yield what keeps the judge from judging the study's classes."""
    if study.report.judge is None:
        return
    try:
        check_judge(study.report.judge, class_ids)
    except UserError as error:
        yield error


def prompt_problems(study: Study, classes: list[ClassInfo]) -> Iterator[UserError]:
    """Every method's templates are there, and the class table has what they ask for."""
    for name in study.pooled:
        yield from check_prompts(study, name, classes)
