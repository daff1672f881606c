"""Early errors: config against data, models and disk, before any job starts (invariant 8).

Flows in: a checked :class:`~augbench.config.study.Study`. Flows out: lines that say what was found, or one
:class:`~augbench.config.problems.ConfigError` with all problems, a line each: key or file, what stands there, what is allowed. Models
are judged by their JSON files: nothing heavy is imported.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from augbench.config.corpus import IndexCorpus, MiniatureCorpus, OwnCorpus
from augbench.config.data import FashionMnist
from augbench.config.hub import HUB_ID, HubModel
from augbench.config.methods import AddingMethod, DrawMethod
from augbench.config.problems import ConfigError
from augbench.config.study import Study
from augbench.data.classes import ClassInfo
from augbench.data.fashion_target import TEST_PER_CLASS, FashionMnistSource
from augbench.data.image_folder import NAMED, first_problems, some
from augbench.data.source import ClassImages, ImageSource
from augbench.data.sources import open_source
from augbench.data.splits import SplitSizes, resolve_shares, split_sizes
from augbench.errors import UserError
from augbench.measures.judge import check_judge
from augbench.models.folders import NO_SAFETY_CHECKER
from augbench.personalise.tasks import check_clusters
from augbench.prompts.stage import check_prompts
from augbench.resample import needed_images

LEAST_FREE_BYTES = 10**9
TEXT_WIDTH, CROSS_ATTENTION_WIDTH = (
    512,
    1280,
)  # what transformers and diffusers take where a config.json is silent
PIPELINE_FILES = (
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer_config.json",
)
HUB_HINT = ", or a model's id on the Hub with its revision"
SAFETY_FILES = ("safety_checker/config.json", "feature_extractor/preprocessor_config.json")


@dataclass(frozen=True)
class ClassCounts:
    """Images of one class; None where validation or test images are not given."""

    class_id: str
    pool: int
    validation: int | None
    test: int | None


def check_study(study: Study, *, models: bool = True, verify_images: bool = False) -> list[str]:
    """Check all that can be known before a run.

    Parameters
    ----------
    models : bool
        Check the folders of the diffusion model and CLIP; not wanted where they are about to be pre-trained.
    verify_images : bool
        Open every image file of the data set, too.

    Returns
    -------
    list of str
        What was found, a line each.

    Raises
    ------
    ConfigError
        All problems, a line each.
    """
    problems: list[UserError] = []
    notes: list[str] = []
    source = open_source(study.dataset, study.seed, study.corpus)
    problems += _published_files(study)
    images: list[ClassImages] | None = None
    try:
        if isinstance(source, FashionMnistSource):  # its counts are known before it is fetched
            counts = [
                ClassCounts(info.class_id, source.pool_size(), None, TEST_PER_CLASS)
                for info in source.classes()
            ]
        else:
            images = source.scan()
            counts = [
                ClassCounts(
                    found.class_id,
                    len(found.pool),
                    *(None if part is None else len(part) for part in (found.validation, found.test)),
                )
                for found in images
            ]
        sizes = _split_sizes(study, counts)
    except UserError as error:
        problems += error.problems if isinstance(error, ConfigError) else [error]
    else:
        problems += _excluded(study, list(sizes))
        notes.append(_summary(sizes, study.dataset.test_images_per_class))
        problems += _prompts(study, source.classes())
        for name, method in study.personalised.items():
            problems += check_clusters(
                f"methods.{name}.clusters",
                method.clusters,
                {class_id: size.train for class_id, size in sizes.items()},
            )
        problems += _judge(study, list(sizes))
        problems += _added_images(study, {class_id: size.train for class_id, size in sizes.items()})
    problems += _corpus(study)
    if images is not None and verify_images:
        problems += _damaged_images(source, images)
    if models:
        problems += _models(study)
        notes += _to_fetch(study)
    problems += _results(Path("results") / study.study)
    if problems:
        raise ConfigError(problems)
    return notes


# --- data -----------------------------------------------------------------------------------------------------------


def _published_files(study: Study) -> Iterator[UserError]:
    """Fashion-MNIST's files, where they are, have the published MD5; missing ones are fetched later."""
    sections = {"dataset": study.dataset, "corpus": study.corpus}
    folders = {
        section.downloads: name
        for name, section in sections.items()
        if isinstance(section, FashionMnist | MiniatureCorpus)
    }
    for folder, name in folders.items():
        from augbench.data.fashion_mnist import FILES

        if Path(folder).exists() and not Path(folder).is_dir():
            yield UserError(
                f"{name}.downloads", f"{folder!r} is a file", "allowed: a folder, which is made if need be"
            )
            continue
        for file in FILES:
            path = Path(folder) / f"{file.name}.gz"
            if path.is_file() and (found := hashlib.md5(path.read_bytes()).hexdigest()) != file.md5:
                yield UserError(
                    str(path),
                    f"its MD5 is {found}",
                    f"the published file has {file.md5}; delete it and run again: it is fetched",
                )


def _split_sizes(study: Study, counts: list[ClassCounts]) -> dict[str, SplitSizes]:
    needed = {method.split for method in study.real.values()}
    given = [any(getattr(count, part) is not None for count in counts) for part in ("validation", "test")]
    shares = resolve_shares(study.dataset, given[0], given[1], needed)
    sizes, problems = {}, []
    for count in counts:
        try:
            sizes[count.class_id] = split_sizes(
                count.class_id, count.pool, shares, count.validation, count.test, needed
            )
        except UserError as error:
            problems.append(error)
    if problems:
        raise ConfigError(first_problems(problems))
    return sizes


def _summary(sizes: dict[str, SplitSizes], test_cut: int | None) -> str:
    def span(values: list[int]) -> str:
        return f"{min(values)}" if min(values) == max(values) else f"{min(values)} to {max(values)}"

    train, validation = (
        span([size.train for size in sizes.values()]),
        span([size.validation for size in sizes.values()]),
    )
    test = span([min(size.test, test_cut or size.test) for size in sizes.values()])
    return f"dataset: {len(sizes)} classes with {train} training, {validation} validation and {test} test images each"


def _damaged_images(source: ImageSource, images: list[ClassImages]) -> list[UserError]:
    from augbench.data.decode import in_order
    from augbench.progress import track

    sources = [
        name
        for found in images
        for part in (found.pool, found.validation, found.test)
        if part is not None
        for name in part.sources
    ]
    damaged = [
        problem
        for problem in track(in_order(source.damage, sources), "images checked", "image", len(sources))
        if problem is not None
    ]
    if len(damaged) > NAMED:
        return [
            *damaged[:NAMED],
            UserError(
                "dataset",
                f"{len(damaged)} corrupt images of {len(sources)}",
                f"the first {NAMED} are named above",
            ),
        ]
    return damaged


# --- how much is added ----------------------------------------------------------------------------------------------


def _added_images(study: Study, train: dict[str, int]) -> Iterator[UserError]:
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


# --- retrieval ------------------------------------------------------------------------------------------------------


def _excluded(study: Study, class_ids: list[str]) -> Iterator[UserError]:
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


def _corpus(study: Study) -> Iterator[UserError]:
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


# --- diagnostics ---------------------------------------------------------------------------------------


def _judge(study: Study, class_ids: list[str]) -> Iterator[UserError]:
    if study.report.judge is None:
        return
    try:
        check_judge(study.report.judge, class_ids)
    except UserError as error:
        yield error


# --- prompts --------------------------------------------------------------------------------------------------------


def _prompts(study: Study, classes: list[ClassInfo]) -> Iterator[UserError]:
    """Every method's templates are there, and the class table has what they ask for."""
    for name in study.pooled:
        yield from check_prompts(study, name, classes)


# --- models ---------------------------------------------------------------------------------------------------------


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            str(path), f"not readable as JSON ({' '.join(str(error).split())})", "download the model again"
        ) from None
    if not isinstance(data, dict):
        raise UserError(
            str(path), f"holds a {type(data).__name__}", "a JSON object is needed; download the model again"
        )
    return data


def _model_folder(key: str, folder: Path, layout: str, first_file: str) -> dict[str, Any]:
    if not folder.is_dir():
        raise UserError(
            key,
            f"{str(folder)!r}, no such folder",
            f"allowed: a folder in {layout} layout{HUB_HINT if re.fullmatch(HUB_ID, str(folder)) else ''}",
        )
    if not (folder / first_file).is_file():
        raise UserError(key, f"{str(folder)!r} has no {first_file}", f"allowed: a folder in {layout} layout")
    return _json(folder / first_file)


def _weights(folder: Path) -> Iterator[UserError]:
    """Weights are there, and not only the pointers that git leaves without git-lfs."""
    files = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin")]
    if not files:
        yield UserError(
            str(folder), "no weights", "allowed: a .safetensors or .bin file; download the model again"
        )
    for path in files:
        with path.open("rb") as stream:
            start = stream.read(24)
        if not start:
            yield UserError(str(path), "an empty file", "the weights are needed; download the model again")
        elif start.startswith(b"version https://git-lfs"):
            yield UserError(str(path), "a git-lfs pointer", "the weights themselves are needed: git lfs pull")


def _models(study: Study) -> Iterator[UserError]:
    text: dict[str, Any] = {}
    try:
        if _is_here(study.diffusion.hub):
            text, problems = _diffusion(study)
            yield from problems
    except UserError as error:
        yield error
    try:
        if _is_here(study.diffusion.safety_checker_hub):
            yield from _safety_checker(study)
    except UserError as error:
        yield error
    try:
        if _is_here(study.clip.hub):
            yield from _clip(study, text)
    except UserError as error:
        yield error


def _is_here(hub: HubModel | None) -> bool:
    """Whether a model can be looked at: one that is fetched is not there at first, and is no mistake."""
    return hub is None or Path(hub.marker).is_file()


def _to_fetch(study: Study) -> Iterator[str]:
    models = {
        "diffusion.model": study.diffusion.hub,
        "diffusion.safety_checker": study.diffusion.safety_checker_hub,
        "clip.model": study.clip.hub,
    }
    for key, hub in models.items():
        if hub is not None and not _is_here(hub):
            yield f"{key}: {hub.repository} at {hub.revision} is fetched to {hub.folder}"


def _clip(study: Study, text: dict[str, Any]) -> Iterator[UserError]:
    """What is wrong with CLIP; ``text`` is the config of the diffusion model's text encoder, empty where it is unknown."""
    folder = Path(study.clip.folder)
    config = _model_folder("clip.model", folder, "transformers' CLIP", "config.json")
    if config.get("model_type") != "clip":
        yield UserError(
            "clip.model",
            f"{str(folder)!r} is a model of type {config.get('model_type')!r}",
            "allowed: 'clip'",
        )
        return
    yield from _weights(folder)
    width, wanted = (
        (config.get("text_config") or {}).get("hidden_size", TEXT_WIDTH),
        text.get("hidden_size", TEXT_WIDTH),
    )
    # Stable Diffusion 2.x takes a text encoder of OpenCLIP's (plain GELU); what is retrieved with is the user's choice there
    if text and text.get("hidden_act", "quick_gelu") == "quick_gelu" and width != wanted:
        yield UserError(
            "clip.model",
            f"{str(folder)!r} has text states of width {width}",
            f"allowed: {wanted}, as the text encoder of diffusion.model has",
        )


def _diffusion(study: Study) -> tuple[dict[str, Any], list[UserError]]:
    """The config of the text encoder, and what is wrong with the diffusion model otherwise."""
    key, folder = "diffusion.model", Path(study.diffusion.folder)
    index = _model_folder(key, folder, "diffusers' Stable Diffusion", "model_index.json")
    if index.get("_class_name") != "StableDiffusionPipeline":
        raise UserError(
            key, f"{str(folder)!r} is a {index.get('_class_name')}", "allowed: a StableDiffusionPipeline"
        )
    own_checker = study.diffusion.safety_checker == "model"
    if own_checker and None in index.get("safety_checker", []):
        raise UserError("diffusion.safety_checker", f"{str(folder)!r} has none of its own", NO_SAFETY_CHECKER)
    if missing := [
        name
        for name in (*PIPELINE_FILES, *(SAFETY_FILES if own_checker else ()))
        if not (folder / name).is_file()
    ]:
        raise UserError(
            key,
            f"{str(folder)!r} has no {', '.join(missing)}",
            "a whole pipeline folder is needed; download the model again",
        )
    problems = [problem for part in ("unet", "vae") for problem in _weights(folder / part)]
    unet, vae, text = (_json(folder / part / "config.json") for part in ("unet", "vae", "text_encoder"))
    width = text.get("hidden_size", TEXT_WIDTH)
    crossed = unet.get("cross_attention_dim", CROSS_ATTENTION_WIDTH)
    if isinstance(crossed, int) and crossed != width:
        problems.append(
            UserError(
                str(folder / "unet/config.json"),
                f"cross_attention_dim {crossed}",
                f"allowed: {width}, the text encoder's width",
            )
        )
    latent, channels = unet.get("sample_size"), vae.get("block_out_channels")
    if isinstance(latent, int) and isinstance(channels, list):
        side = latent * 2 ** (len(channels) - 1)
        if study.diffusion.resolution != side:
            problems.append(
                UserError(
                    "diffusion.resolution", study.diffusion.resolution, f"allowed: {side}, the model's own"
                )
            )
    return text, problems


def _safety_checker(study: Study) -> Iterator[UserError]:
    """What is wrong with a safety checker that is not the model's own."""
    checker = study.diffusion.safety_checker_folder
    if checker in (None, "model"):
        return
    key, folder = "diffusion.safety_checker", Path(str(checker))
    _model_folder(key, folder, "transformers' safety checker", "config.json")
    if not (folder / "preprocessor_config.json").is_file():
        raise UserError(
            key,
            f"{str(folder)!r} has no preprocessor_config.json",
            "allowed: a folder with a safety checker and its feature extractor",
        )
    yield from _weights(folder)


# --- results --------------------------------------------------------------------------------------------------------


def _results(folder: Path) -> Iterator[UserError]:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        yield UserError(str(existing), "a file", "a folder for results is needed")
    elif not os.access(existing, os.W_OK | os.X_OK):
        yield UserError(str(existing), "not writable", "a writable folder for results is needed")
    elif (free := shutil.disk_usage(existing).free) < LEAST_FREE_BYTES:
        yield UserError(
            str(existing), f"{free / 1e9:.2f} GB free", f"at least {LEAST_FREE_BYTES / 1e9:g} GB are needed"
        )
