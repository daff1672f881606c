"""Score finished classifiers on further test sets; manifests are in :mod:`augbench.further.folders`.

Nothing is trained. Input: checkpoints (``model.safetensors``), a manifest. Output per classifier: predictions
as of the ordinary test (:data:`augbench.classifier.score.SCHEMA`), which the store keeps by the checkpoint's
hash and the set's images.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from safetensors.torch import load_file

from augbench.artifacts.store import Store
from augbench.classifier.compute import compute_of
from augbench.classifier.features import of_split
from augbench.classifier.images import LabelledImages
from augbench.classifier.score import has_rows, score_test, top1, write_predictions
from augbench.classifier.stage import frozen_network
from augbench.classifier.start import names_of, read_start
from augbench.config.study import Study
from augbench.data.classes import ClassInfo, read_class_table
from augbench.data.splits import check_labels, read_split
from augbench.errors import UserError
from augbench.files import sha256_file
from augbench.further.images import images_of
from augbench.models.folders import pick_device
from augbench.plan.recipes import classifier_recipe, further_images_recipe
from augbench.progress import track

logger = logging.getLogger(__name__)


def score_further(
    study: Study,
    store: Store,
    test: str,
    split_path: str | Path,
    classes_path: str | Path,
    models: Mapping[tuple[str, str], str | Path],
    outs: Mapping[tuple[str, str], str | Path],
    excluded: Collection[str] = (),
    first_weights: str | Path | None = None,
) -> None:
    """Score classifiers on a further test set; predictions that are in the store are only linked.

    Parameters
    ----------
    test : str
        Name of the set.
    split_path : path
        Its manifest.
    models, outs : mapping of (str, str) to path
        By row and run: the checkpoint, and the target for its predictions.
    excluded : collection of str
        Classes that training and scoring leave out.
    first_weights : path, optional
        Fingerprint of the model that classifiers begin with. Default: random weights.

    Raises
    ------
    UserError
        The manifest does not fit the class table, the set has fewer than two of the study's classes, or an
        image can't be decoded.
    """
    images, kept = _labelled(study, test, split_path, read_class_table(classes_path), excluded)
    further = further_images_recipe(study, test, images.stamps is not None)
    start = read_start(first_weights)
    if (frozen := frozen_network(study, start, store)) is not None:
        images = of_split(frozen, images, {"further": further})
    device = pick_device(study.execution.device)
    compute = compute_of(study.execution, device, store.study / ".work")
    for (method, run), model in track(models.items(), f"score on {test}", "classifier", len(models)):
        recipe = {
            "classifier": classifier_recipe(study, method)["classifier"],
            "classes": len(kept),
            "model": sha256_file(model),
            "test": images.key,
            "further": further,
            **names_of(start, study.classifier.arch),
        }

        def score(path: Path, model: str | Path = model) -> None:
            predictions = score_test(load_file(model), study.classifier, kept, images, compute, start)
            write_predictions(predictions, path)

        out = outs[method, run]
        store.provide("predictions", recipe, out, score, lambda path: has_rows(path, len(images)))
        logger.info("%s, run %s: top-1 on %s %.4f", method, run, test, top1(pq.read_table(out)))


def _labelled(
    study: Study,
    test: str,
    split_path: str | Path,
    info: Sequence[ClassInfo],
    excluded: Collection[str],
) -> tuple[LabelledImages, np.ndarray]:
    """Images of the classes in use, numbered as the classifiers number them, and these classes' labels."""
    split = read_split(split_path)
    check_labels(split, info, str(split_path))
    split = split.without(excluded)
    if len(there := set(split.class_ids)) < 2:
        found = f"{len(there)} of the study's classes, after those that the study leaves out"
        raise UserError(f"dataset.further_tests.{test}", found, "at least 2 classes are needed")
    kept = np.array([label for label, row in enumerate(info) if row.class_id not in excluded])
    load = images_of(study, test, split)
    numbers = np.searchsorted(kept, split.labels)
    ids = split.image_ids
    return LabelledImages(ids, numbers, lambda rows: load(range(len(ids))[rows]), test, split.stamps), kept
