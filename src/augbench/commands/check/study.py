"""Check a study's config against data, models and disk, before any job starts.

All problems are reported at once, one line each: key or file, value found, values allowed. Models are
checked by their JSON files, so torch is not imported here; where there is a GPU, another process asks torch.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from augbench.artifacts.store import open_store
from augbench.commands.check.dataset import (
    ClassCounts,
    published_file_problems,
    sizes_of_splits,
    summary_of_sizes,
)
from augbench.commands.check.files import FilesSource, check_files
from augbench.commands.check.gpus import gpu_warnings
from augbench.commands.check.methods import (
    added_image_problems,
    aesthetics_problems,
    baseline_notes,
    corpus_problems,
    glyph_notes,
    judge_problems,
    prompt_problems,
    pseudoword_problems,
    threshold_notes,
)
from augbench.commands.check.models import model_problems, models_to_fetch
from augbench.commands.check.networks import first_weights_notes, network_problems
from augbench.commands.check.prompts import indistinct_prompts
from augbench.commands.check.training import batch_problems, training_warnings
from augbench.config.problems import ConfigError
from augbench.config.study import Study
from augbench.data.classes import ClassInfo
from augbench.data.fashion_target import TEST_PER_CLASS, FashionMnistSource
from augbench.data.source import ClassImages
from augbench.data.sources import open_source
from augbench.errors import UserError
from augbench.personalise.tasks import check_clusters, learned_sizes
from augbench.plan.load import excluded_problems

LEAST_FREE_BYTES = 10**9


def check_study(
    study: Study, *, models: bool = True, verify_images: bool = False, tokenise: bool = False
) -> list[str]:
    """Check everything that can be known before a run, and return a summary, a line per item.

    Parameters
    ----------
    models : bool
        Check the folders of the diffusion model and CLIP. Pass False before they are pre-trained.
    verify_images : bool
        Also decode every image file of the data set, and of a corpus of images.
    tokenise : bool
        Also tokenise the prompts, which imports transformers.

    Raises
    ------
    ConfigError
        All problems, a line each.
    """
    problems: list[UserError] = []
    notes: list[str] = []
    source = open_source(study.dataset, study.seed, study.corpus)
    problems += published_file_problems(study)
    images: list[ClassImages] = []
    every_class: list[ClassInfo] = []
    train: dict[str, int] = {}
    try:
        if isinstance(source, FashionMnistSource):  # the counts are known before the files are fetched
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
        sizes = sizes_of_splits(study, counts)
    except UserError as error:
        problems += error.problems if isinstance(error, ConfigError) else [error]
    else:
        train = {class_id: size.train for class_id, size in sizes.items()}
        problems += excluded_problems(study, list(sizes))
        train = {class_id: size for class_id, size in train.items() if class_id not in study.retrieval.listed}
        notes.append(summary_of_sizes(sizes, study.dataset.test_images_per_class, study.dataset.draws))
        every_class = source.classes()
        classes = [info for info in every_class if info.class_id not in study.retrieval.listed]
        unfilled = list(prompt_problems(study, classes, train))
        problems += unfilled
        if tokenise and not unfilled:
            try:
                notes += indistinct_prompts(study, tuple(classes))
            except ConfigError as error:
                problems += error.problems
        for name, method in study.personalised.items():
            learned = learned_sizes(study, method, train)
            problems += check_clusters(f"methods.{name}.clusters", method.clusters, learned)
        for name, retrieved in study.retrieved.items():
            if retrieved.query.clusters is not None:
                key = f"methods.{name}.query.clusters"
                problems += check_clusters(key, retrieved.query.clusters, train)
        problems += judge_problems(study, list(sizes))
        problems += pseudoword_problems(study, list(train))
        problems += batch_problems(study, train)
        notes += training_warnings(study, train)
        notes += baseline_notes(study)
        notes += glyph_notes(study, classes)
    problems += corpus_problems(study)
    problems += aesthetics_problems(study)
    notes += threshold_notes(study)
    own = source if isinstance(source, FilesSource) else None
    files = check_files(study, own, images, verify_images, every_class)
    problems += files.problems
    notes += files.notes
    if train:
        problems += added_image_problems(study, train, files.corpus)
    if models:
        problems += model_problems(study)
        notes += models_to_fetch(study)
        problems += network_problems(study)
    notes += first_weights_notes(study, [info.class_id for info in every_class])
    problems += _outputs(study)
    try:
        notes += gpu_warnings(study)
    except UserError as error:
        problems.append(error)
    if problems:
        raise ConfigError(problems)
    return notes


def _outputs(study: Study) -> Iterator[UserError]:
    """Yield the first problem of the folders that a run writes to: the study's results, then the store.

    Space is needed where the results are; a job that finds the store's own disk full says so and loses
    nothing.
    """
    results = Path("results") / study.study
    try:
        folders = [results, open_store(study).root]
    except UserError as error:
        folders = [results]
        yield error
    for folder in folders:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not existing.is_dir():
            yield UserError(str(existing), "a file", "a folder for results is needed")
            return
        if not os.access(existing, os.W_OK | os.X_OK):
            yield UserError(str(existing), "not writable", "a writable folder for results is needed")
            return
        free = shutil.disk_usage(existing).free
        if folder is results and free < LEAST_FREE_BYTES:
            needed = f"at least {LEAST_FREE_BYTES / 1e9:g} GB are needed"
            yield UserError(str(existing), f"{free / 1e9:.2f} GB free", needed)
