"""Checks of the methods: number of added images, prompts, corpus, judge."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from augbench.config.corpus import IndexCorpus, OwnCorpus
from augbench.config.methods import AddingMethod, DrawMethod, RetrieveMethod
from augbench.config.study import Study
from augbench.data.classes import ClassInfo
from augbench.errors import UserError, some
from augbench.measures.judge import check_judge
from augbench.models.vit_l_14 import is_vit_l_14
from augbench.prompts.stage import check_prompts, images_without_caption
from augbench.resample import needed_by_class, needed_images, share_counts
from augbench.retrieval.lists import list_problems


class CorpusSize(NamedTuple):
    """Number of images in a corpus, and what was left out and why."""

    images: int
    left_out: list[str]


class _Needed(NamedTuple):
    """Number of images of the largest class that a pool must hold, the reason, and the class's own images."""

    images: int
    because: str
    size: int


def added_image_problems(
    study: Study, train: dict[str, int], corpus: CorpusSize | None = None
) -> Iterator[UserError]:
    """Yield a problem for each pool that is too small for its training sets.

    Parameters
    ----------
    train : dict
        Training images by class id. Each training set draws a multiple of them, so the largest class decides,
        or fills classes up, so the smallest class decides.
    corpus : CorpusSize, optional
        Size of the corpus, if it can be counted.
    """
    largest = max(train, key=lambda class_id: train[class_id])
    smallest = min(train, key=lambda class_id: train[class_id])

    def needed(method: AddingMethod) -> _Needed:
        if method.fill_to is not None:
            full = train[largest] if method.fill_to == "largest" else method.fill_to
            because = f"class {smallest!r} has {train[smallest]} training images and is filled to {full}"
            return _Needed(max(0, full - train[smallest]), because, train[smallest])
        size, times = train[largest], method.added_per_training_image
        added = "as many" if times == 1 else f"{times:g} times as many"
        because = f"class {largest!r} has {size} training images, and a resample adds {added}"
        return _Needed(needed_images(times, size), because, size)

    for name, row in study.augmented.items():
        if row.fill_to is not None and not needed(row).images:
            least = f"every class has at least {train[smallest]} training images, so no image would be added"
            yield UserError(f"methods.{name}.fill_to", row.fill_to, f"allowed: more; {least}")
    if study.generated:
        yield from _generated_images(study, max(map(needed, study.generated.values())))
    for name, drawn in study.drawn.items():
        yield from _drawn_images(study, name, drawn, needed(drawn), train)
    for name, retrieved in study.retrieved.items():
        yield from _retrieved_images(study, name, retrieved, needed(retrieved), corpus)


def _generated_images(study: Study, needed: _Needed) -> Iterator[UserError]:
    augmentation = study.augmentation
    made, multiple = augmentation.images_per_class, augmentation.images_per_training_image
    most = max(method.added_per_training_image for method in study.generated.values())
    if multiple is not None and multiple < most:
        allowed = f"allowed: at least {most:g}, which a method adds"
        yield UserError("augmentation.images_per_training_image", multiple, allowed)
    if made is None:
        return
    part, allowed = augmentation.images_per_part, f"allowed: at least {needed.images}; {needed.because}"
    if made < needed.images:
        yield UserError("augmentation.images_per_class", made, allowed)
    elif part is not None and part < needed.images:
        yield UserError(
            "augmentation.images_per_part", part, f"{allowed}, from part 0 alone during selection"
        )


def _retrieved_images(
    study: Study, name: str, method: RetrieveMethod, needed: _Needed, corpus: CorpusSize | None
) -> Iterator[UserError]:
    key, wanted = f"methods.{name}.images_per_class", method.images_per_class or needed.images
    if wanted < needed.images and not method.may_fall_short:
        yield UserError(key, wanted, f"allowed: at least {needed.images}; {needed.because}")
    if corpus is not None and wanted > corpus.images and not method.may_fall_short:
        allowed = "; ".join([f"allowed: at most {corpus.images}, the images of the corpus", *corpus.left_out])
        yield UserError(key, wanted, allowed)
    if study.miniature is None:
        return
    rows = study.miniature.images + study.miniature.distractors
    if math.ceil(method.first_k * wanted) > rows:
        most = math.floor(rows / method.first_k)
        why = f"the corpus has {rows} images and first_k is {method.first_k:g}"
        yield UserError(key, wanted, f"allowed: at most {most}, because {why}")


def _drawn_images(
    study: Study, name: str, method: DrawMethod, needed: _Needed, train: dict[str, int]
) -> Iterator[UserError]:
    for pool, images in share_counts(needed.images, method.shares or {method.pool_rows[0]: 1.0}).items():
        least, because = images, needed.because
        if method.shares:
            because += f", {images} of them from {pool}"
        if method.keep is not None:
            least = method.keep.needed(images)
            because += f"; keep.share is {method.keep.share:g}"
        yield from _images_of_pool(study, name, method, pool, _Needed(least, because, needed.size), train)


def _images_of_pool(
    study: Study, name: str, method: DrawMethod, pool: str, needed: _Needed, train: dict[str, int]
) -> Iterator[UserError]:
    allowed = f"allowed: at least {needed.images}"
    if (source := study.retrieved.get(pool)) is not None:
        retrieved = source.images_per_class
        if method.may_fall_short:
            return
        if retrieved is not None and retrieved < needed.images:
            key = f"methods.{pool}.images_per_class"
            yield UserError(key, retrieved, f"{allowed}, because {name} draws from it; {needed.because}")
        if retrieved is not None:
            return
        if source.fill_to is not None or method.fill_to is not None:
            kept, asked = (
                needed_by_class(train, row.added_per_training_image, row.fill_to) for row in (source, method)
            )
            if lacking := [class_id for class_id in train if kept[class_id] < asked[class_id]]:
                few = f"{pool} keeps {kept[lacking[0]]} of class {lacking[0]!r}"
                why = f"allowed: as many as its pool; {few}, and {asked[lacking[0]]} are added"
                yield UserError(f"methods.{name}.pool", repr(pool), why)
        elif not method.is_composed:
            if source.added_per_training_image < method.added_per_training_image:
                key = f"methods.{name}.added_per_training_image"
                yield UserError(key, method.added_per_training_image, f"allowed: at most that of {pool}")
        elif (made := needed_images(source.added_per_training_image, needed.size)) < needed.images:
            key = f"methods.{pool}.images_per_class"
            yield UserError(
                key, f"null, {made} images", f"{allowed}, because {name} draws from it; {needed.because}"
            )
    elif study.augmentation.images_per_class is not None:
        images = method.images_per_class or study.augmentation.images_per_class
        if images < needed.images:
            yield UserError(f"methods.{name}.images_per_class", images, f"{allowed}; {needed.because}")


def corpus_problems(study: Study) -> Iterator[UserError]:
    """Yield missing files of retrieval: corpus, manifests, aesthetics weights."""
    if not study.retrieved:
        return
    corpus = study.corpus
    folder = getattr(corpus, "folder", None)
    fetched = bool(getattr(corpus, "fetch", ()))
    if folder is not None and not os.path.isdir(folder) and not fetched:
        yield UserError("corpus.folder", f"{folder!r}, no such folder", "allowed: a folder")
    yield from list_problems(study)
    if (
        isinstance(corpus, IndexCorpus)
        and os.path.isdir(corpus.folder)
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


def threshold_notes(study: Study) -> Iterator[str]:
    """Yield a warning for each default that was chosen for CLIP ViT-L/14, if the study has another CLIP.

    Cosines of another model are spread otherwise, so the same threshold finds more or fewer duplicates.
    """
    if is_vit_l_14(study.clip):
        return
    keys = {
        f"methods.{name}.duplicate_threshold": method.duplicate_threshold
        for name, method in study.retrieved.items()
        if method.duplicate_threshold is not None and "duplicate_threshold" not in method.model_fields_set
    }
    other_library = study.clip.named.library == "open_clip"  # such as SigLIP, whose cosines spread otherwise
    if (
        other_library
        and study.leakage.action != "off"
        and "clip_threshold" not in study.leakage.model_fields_set
    ):
        keys["leakage.clip_threshold"] = study.leakage.clip_threshold
    for key, value in keys.items():
        yield (
            f"warning: {key}: the default, {value:g}, was chosen for CLIP ViT-L/14, and clip.model is"
            f" {study.clip.model}; set a value for it"
        )


def aesthetics_problems(study: Study) -> Iterator[UserError]:
    """Yield rows that the aesthetics predictor would score on another CLIP's embeddings.

    Only a corpus without scores of its own is scored here; of corpora on the web, only their files can tell.
    """
    if is_vit_l_14(study.clip):
        return
    for name, method in study.retrieved.items():
        if method.min_aesthetics is not None and isinstance(study.corpus, OwnCorpus):
            yield UserError(
                f"methods.{name}.min_aesthetics",
                f"{method.min_aesthetics:g} with {study.clip.model}",
                "allowed: null, because the predictor reads embeddings of OpenAI's CLIP ViT-L/14 only",
            )


def baseline_notes(study: Study) -> Iterator[str]:
    """Yield a note if no row trains on the training images alone, with which the others are compared."""
    if not any(row.group == "real" and row.split == "train" for row in study.real.values()):
        yield (
            "note: methods: no row {mechanism: real}, so there is no baseline: no forest plot, no figure 5A,"
            " no difference from training without added images"
        )


def glyph_notes(study: Study, classes: list[ClassInfo]) -> Iterator[str]:
    """Yield a note if the labels and names that figures show have characters that no installed font has."""
    texts = [*map(study.label, study.methods), *(info.name for info in classes)]
    if "".join(texts).isascii():
        return  # the import takes time
    from augbench.report.figures.style import missing_glyphs

    if missing := missing_glyphs(texts):
        shown = some(list(missing))
        yield (
            f"note: figures: no font here has {shown}: boxes stand for them; install one, such as Noto Sans "
            "CJK"
        )


def pseudoword_problems(study: Study, class_ids: list[str]) -> Iterator[UserError]:
    """Yield class_ids that differ by case only for rows that learn words, which the tokenizer lowers."""
    lowered: dict[str, list[str]] = {}
    for class_id in class_ids:
        lowered.setdefault(class_id.lower(), []).append(class_id)
    same = [class_id for alike in lowered.values() if len(alike) > 1 for class_id in alike]
    for name, method in study.personalised.items():
        if same and method.learns_words:
            allowed = "allowed: conditioning, or class_ids that differ by more than case; rename the folders"
            yield UserError(f"methods.{name}.learn", f"'pseudoword' for {some(same)}", allowed)


def judge_problems(study: Study, class_ids: list[str]) -> Iterator[UserError]:
    """Yield the reason why the judge cannot judge the study's classes, if there is one."""
    if study.report.judge is None:
        return
    try:
        check_judge(study.report.judge, class_ids)
    except UserError as error:
        yield error


def prompt_problems(study: Study, classes: list[ClassInfo], train: dict[str, int]) -> Iterator[UserError]:
    """Yield missing prompt templates and captions, and class-table entries that templates need but lack.

    ``train`` has the number of training images by class id.
    """
    for name in study.pooled:
        problems = check_prompts(study, name, classes)
        yield from problems or images_without_caption(study, name, train)
