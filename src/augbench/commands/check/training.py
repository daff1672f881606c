"""Warnings about the training of classifiers: numbers of steps too small to learn anything from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from augbench.classifier.history import LEAST_POINTS, Validation, tested
from augbench.classifier.schedule import StepSchedule, steps_per_epoch, undersized_parts
from augbench.config.classifier import Classifier
from augbench.config.study import Study
from augbench.config.use import Use
from augbench.errors import UserError, some
from augbench.resample import needed_by_class, needed_images

# With 500 real images of Fashion-MNIST and batches of 128, classifiers of 0.3 million parameters ended by the
# paper's own rule after 176 to 340 steps (44 to 85 epochs). Cut after 60 steps, 36 of 39 had their best epoch
# among the last five, and the order of the rows was another one.
LEAST_STEPS = 176


def pass_images(study: Study, name: str, train: Mapping[str, int]) -> int | None:
    """Images in one pass over the training set of row ``name``; None if it is all of the data, or none.

    Parameters
    ----------
    train : mapping of str to int
        Training images by class id.
    """
    row = study.methods[name]
    if row.real_split == "full" or name in study.choosing:
        return None
    real = row.real_repeats * {"train": 1, "train2x": 2}[row.real_split] * sum(train.values())
    augmented = study.augmented.get(name)
    if augmented is None or row.use.replace:
        return real
    added = needed_by_class(train, augmented.added_per_training_image, augmented.fill_to)
    return real + sum(added.values())


def batch_problems(study: Study, train: Mapping[str, int]) -> Iterator[UserError]:
    """Yield the problems of rows whose batches are too small to be normalised in parts.

    Parameters
    ----------
    train : mapping of str to int
        Training images by class id.
    """
    for name, row in study.methods.items():
        images = pass_images(study, name, train)
        if images and (problem := undersized_parts(f"row {name}", images, study.classifier)):
            yield problem
        if row.use.real_at_end:
            alone = sum(size - needed_images(row.use.replace, size) for size in train.values())
            what = f"row {name} in the steps of use.real_at_end"
            if alone < 2:
                yield UserError(what, f"{alone} real images", "at least two are needed")
            elif problem := undersized_parts(what, alone, study.classifier):
                yield problem


def training_warnings(study: Study, train: Mapping[str, int]) -> Iterator[str]:
    """Yield warnings: the smallest row gets too few steps, or nobody could tell; a batch is larger than it.

    Parameters
    ----------
    train : mapping of str to int
        Training images by class id.
    """
    config, rows = study.classifier, study.methods.values()
    sizes = {name: pass_images(study, name, train) for name in study.methods}
    known = {name: images for name, images in sizes.items() if images is not None}
    smallest = min(known, key=lambda row: known[row], default=None)
    if smallest is not None and known[smallest] < config.batch_size:
        yield (
            f"note: classifier.batch_size: {config.batch_size} is more than the {known[smallest]:,} images of"
            f" row {smallest}, which then has one smaller batch per epoch"
        )
    if config.schedule == "steps":
        steps, where = config.total_steps, f"classifier.steps: {config.total_steps} in every row"
        if (seen := min(_tested_validations(config, row.use) for row in rows)) < LEAST_POINTS:
            end = " and the start of use.real_at_end" if any(row.use.real_at_end for row in rows) else ""
            yield (
                f"warning: classifier.validate_every: {config.validation_interval}, so {seen}"
                " validations can tell whether accuracy was still rising (the last half of all, after the"
                f" last reduction of lr{end}); at least {LEAST_POINTS} are needed"
            )
        ending = [name for name, row in study.methods.items() if row.use.real_at_end]
        if ending and config.keep == "best":
            yield (
                f"warning: classifier.keep: best, and use.real_at_end in {some(ending)}: the weights that are"
                " scored may be from before the steps on real images only; classifier.keep: last scores the"
                " last ones"
            )
    else:
        if smallest is None:
            return
        steps = config.max_epochs * steps_per_epoch(known[smallest], config.batch_size)
        where = (
            f"classifier.max_epochs: {config.max_epochs}, at most {steps} steps in row {smallest}"
            f" ({known[smallest]:,} images in batches of {config.batch_size})"
        )
    if steps < LEAST_STEPS:
        yield (
            f"warning: {where}; in the miniature the paper's rule took at least {LEAST_STEPS} steps, and"
            " classifiers cut after 60 to 120 put the rows in another order; allow more"
        )


def _tested_validations(config: Classifier, use: Use) -> int:
    """Number of validations that the test for a rise would use under ``schedule: steps``."""
    state, points = StepSchedule(), []
    while not state.finished(config):
        last = state.next_validation(config, 0)
        points.append(Validation(last, 0, state.lr_of(last - 1, config), 0.0, 0.0))
        state = state.step(0.0, config)
    return len(tested(points, config, use))
