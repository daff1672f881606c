"""Check a study's config against data, models and disk, before any job starts.

All problems are reported at once, one line each: key or file, value found, values allowed. Models are
checked by their JSON files, so torch is not imported here; where there is a GPU, another process asks torch.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
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
from augbench.data.source import ClassImages, ImageSource
from augbench.data.sources import open_source
from augbench.data.splits import SplitSizes
from augbench.errors import UserError
from augbench.personalise.tasks import check_clusters, learned_sizes
from augbench.plan.load import excluded_problems

LEAST_FREE_BYTES = 10**9


@dataclass
class _Findings:
    """Problems, and lines of the summary."""

    problems: list[UserError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """Add the problems that the block raises."""
        try:
            yield
        except UserError as error:
            self.problems += error.problems if isinstance(error, ConfigError) else [error]


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
    found = _Findings()
    source = open_source(study.dataset, study.seed, study.corpus)
    found.problems += published_file_problems(study)
    images: list[ClassImages] = []
    sizes: dict[str, SplitSizes] = {}
    with found.gathering():
        images, counts = _count(source)
        sizes = sizes_of_splits(study, counts)
    every_class = source.classes() if sizes else []
    train = _check_classes(study, every_class, sizes, tokenise, found) if sizes else {}
    found.problems += corpus_problems(study)
    found.problems += aesthetics_problems(study)
    found.notes += threshold_notes(study)
    own = source if isinstance(source, FilesSource) else None
    files = check_files(study, own, images, verify_images, every_class)
    found.problems += files.problems
    found.notes += files.notes
    if train:
        found.problems += added_image_problems(study, train, files.corpus)
    if models:
        found.problems += model_problems(study)
        found.notes += models_to_fetch(study)
        found.problems += network_problems(study)
    found.notes += first_weights_notes(study, [info.class_id for info in every_class])
    found.problems += _outputs(study)
    with found.gathering():
        found.notes += gpu_warnings(study)
    if found.problems:
        raise ConfigError(found.problems)
    return found.notes


def _count(source: ImageSource) -> tuple[list[ClassImages], list[ClassCounts]]:
    """List the images of the data set, and count those of each class.

    Those of Fashion-MNIST are not listed: the counts are known before the files are fetched.
    """
    if isinstance(source, FashionMnistSource):
        pool = source.pool_size()
        return [], [ClassCounts(info.class_id, pool, None, TEST_PER_CLASS) for info in source.classes()]
    images = source.scan()
    return images, [
        ClassCounts(
            found.class_id,
            len(found.pool),
            *(None if part is None else len(part) for part in (found.validation, found.test)),
        )
        for found in images
    ]


def _check_classes(
    study: Study,
    every_class: Sequence[ClassInfo],
    sizes: dict[str, SplitSizes],
    tokenise: bool,
    found: _Findings,
) -> dict[str, int]:
    """Check the study against its classes; return the training images of those that it does not exclude."""
    listed = study.retrieval.listed
    classes = [info for info in every_class if info.class_id not in listed]
    train = {class_id: size.train for class_id, size in sizes.items() if class_id not in listed}
    found.problems += excluded_problems(study, list(sizes))
    found.notes.append(summary_of_sizes(sizes, study.dataset.test_images_per_class, study.dataset.draws))
    unfilled = list(prompt_problems(study, classes, train))
    found.problems += unfilled
    if tokenise and not unfilled:
        with found.gathering():
            found.notes += indistinct_prompts(study, tuple(classes))
    found.problems += _cluster_problems(study, train)
    found.problems += judge_problems(study, list(sizes))
    found.problems += pseudoword_problems(study, list(train))
    found.problems += batch_problems(study, train)
    found.notes += training_warnings(study, train)
    found.notes += baseline_notes(study)
    found.notes += glyph_notes(study, classes)
    return train


def _cluster_problems(study: Study, train: dict[str, int]) -> Iterator[UserError]:
    """Yield rows that ask for more clusters than a class has images to learn from, or to search with."""
    for name, method in study.personalised.items():
        learned = learned_sizes(study, method, train)
        yield from check_clusters(f"methods.{name}.clusters", method.clusters, learned)
    for name, retrieved in study.retrieved.items():
        if retrieved.query.clusters is not None:
            yield from check_clusters(f"methods.{name}.query.clusters", retrieved.query.clusters, train)


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
