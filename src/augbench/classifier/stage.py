"""Train classifiers on a method's training sets and score them on the test split (paper, section 3).

Input: a split of real images, the validation and test splits, and the manifests of added images of a
method's runs. Output per run: ``model.safetensors`` (by default the checkpoint with the best validation
accuracy), ``history.json``, ``predictions.parquet``, ``result.json`` and ``timing.json``. The last is no
declared output of the rule, because it differs each time. Real images are decoded once for all runs, and only
if a run is missing from the store. Test images are read by :func:`augbench.classifier.score.score_test`. With
several GPUs, one process per GPU trains the missing runs together with the others; this process only reads,
scores and publishes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL.Image import Image
from safetensors.torch import load_file

from augbench.artifacts.parquet import REMAKE
from augbench.artifacts.pool import lacks_of, load_images, read_index
from augbench.artifacts.store import Recipe, Store
from augbench.classifier.compute import Compute, ProcessGroup, compute_of, count_processes
from augbench.classifier.features import Frozen, of_rows, of_split
from augbench.classifier.history import History, read_history
from augbench.classifier.images import LabelledImages
from augbench.classifier.launch import in_processes
from augbench.classifier.networks import build, build_head
from augbench.classifier.replacing import replace_in_run
from augbench.classifier.score import has_rows, score_test, top1, write_predictions
from augbench.classifier.start import Start, names_of, read_start
from augbench.classifier.stored import commit_run, is_trained
from augbench.classifier.train import train_run
from augbench.config.study import Study
from augbench.data.classes import read_class_table
from augbench.data.sources import open_source
from augbench.data.splits import check_labels, read_split
from augbench.errors import UserError
from augbench.files import canonical_hash, read_json, write_json
from augbench.models.folders import pick_device
from augbench.plan.recipes import classifier_recipe, data_set_recipe
from augbench.resample import check_same_labels, needed_images

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sources:
    """Input files of the runs of a block, and the classes that are left out.

    Attributes
    ----------
    method : str
        The method's name.
    train, validation, classes : path
        Splits and the class table.
    manifests : mapping of path to path or None
        Folder of each run, mapped to its manifest of added images; None for a baseline.
    excluded : collection of str
        Classes that are left out.
    first_weights : path, optional
        Fingerprint of the model that classifiers begin with. Default: random weights.
    """

    method: str
    train: str | Path
    validation: str | Path
    classes: str | Path
    manifests: Mapping[Path, str | Path | None]
    excluded: Collection[str]
    first_weights: str | Path | None = None


@dataclass(frozen=True)
class SharedInputs:
    """Inputs that the runs of a block share.

    Attributes
    ----------
    method : str
        The method's name.
    kept : ndarray, int (C,)
        The study's labels of the classes in use; the classifier numbers them from 0 to C - 1.
    real, validation, test : LabelledImages
        Splits; ``test`` is None for candidates, which are compared on the validation split.
    start : Start, optional
        What the classifiers begin with; None: random weights.
    """

    method: str
    kept: np.ndarray
    real: LabelledImages
    validation: LabelledImages
    test: LabelledImages | None
    start: Start | None = None

    @property
    def classes(self) -> int:
        """Number of classes in use."""
        return len(self.kept)


@dataclass(frozen=True)
class TrainingRun:
    """One run of a block.

    Attributes
    ----------
    block : SharedInputs
        Inputs that it shares with other runs.
    folder : Path
        Its folder, whose name is the run's number.
    added : LabelledImages or None
        Images added to the real ones; None for a baseline.
    lacking : int
        Number of added images that the set lacks, because the pool has too few of their classes; if added
        images replace real ones, of those that would replace them.
    stays : ndarray, int, optional
        The real images that are trained on, if added ones replace some; None: all.
    """

    block: SharedInputs
    folder: Path
    added: LabelledImages | None
    lacking: int = 0
    stays: np.ndarray | None = None

    @property
    def real_images(self) -> int:
        """Number of real images that are trained on."""
        return len(self.block.real) if self.stays is None else len(self.stays)

    @property
    def number(self) -> int:
        """Number of the resample."""
        return int(self.folder.name)

    @property
    def what(self) -> str:
        """Name in progress lines and errors."""
        return f"{self.block.method}, run {self.number}"


def train_block(
    study: Study,
    store: Store,
    method: str,
    train_path: str | Path,
    validation_path: str | Path,
    test_path: str | Path | None,
    classes_path: str | Path,
    added_paths: Sequence[str | Path],
    folders: Sequence[str | Path],
    excluded: Collection[str] = (),
    first_weights: str | Path | None = None,
) -> None:
    """Train and score the classifiers of some runs of a method; those in the store are only linked.

    Parameters
    ----------
    store : Store
        The study's store; it is in the study's folder, which also has the shards.
    test_path : path, optional
        The test split; None trains without scoring (model selection).
    classes_path : path
        ``classes.parquet``.
    added_paths : sequence of path
        One manifest per folder, or none at all for a baseline.
    folders : sequence of path
        Folder of each run's files; its name is the number of the run.
    excluded : collection of str
        Classes that are left out of training and scoring. The classifier renumbers the others; predictions
        have the study's labels.
    first_weights : path, optional
        Fingerprint of the model that classifiers begin with. Default: random weights.

    Raises
    ------
    UserError
        A manifest or shard is damaged, sources disagree about the classes, or a process was killed.
    """
    device = pick_device(study.execution.device)
    processes = 1
    if study.classifier.train != "probe":  # whose one layer is trained on features in seconds
        processes = count_processes(study.execution, device, study.classifier.batch_norm_groups)
    compute = _compute(study, store, device)
    added: Sequence[str | Path | None] = added_paths or [None] * len(folders)
    manifests = dict(zip(map(Path, folders), added, strict=True))
    sources = Sources(
        method=method,
        train=train_path,
        validation=validation_path,
        classes=classes_path,
        manifests=manifests,
        excluded=excluded,
        first_weights=first_weights,
    )
    runs = open_runs(study, store, sources, test_path)

    def recipe_of(run: TrainingRun) -> Recipe:
        return run_recipe(study, run)

    def is_there(run: TrainingRun) -> bool:
        return is_trained(store, recipe_of(run))

    for group in store.in_turn("classifiers", runs, recipe_of, is_there):
        if processes > 1:
            missing = replace(sources, manifests={run.folder: manifests[run.folder] for run in group})
            fresh = Store(store.root, store.study)  # with a tally of its own
            store.tally.made += in_processes(processes, device, _train_together, study, fresh, missing)
        else:
            for run in group:
                train_missing(study, store, run, compute)
    for run in runs:
        publish_run(study, store, run, compute)


def _compute(study: Study, store: Store, device: torch.device, group: ProcessGroup | None = None) -> Compute:
    return compute_of(study.execution, device, _work(store), group)


def _work(store: Store) -> Path:
    """Folder of the study's unfinished work."""
    return store.study / ".work"


def _train_together(group: ProcessGroup, study: Study, store: Store, sources: Sources) -> int:
    """Train the runs, in each process of a group; return the number of artifacts that this process made.

    Only the first process commits runs to the store.
    """
    kind = pick_device(study.execution.device).type
    compute = _compute(
        study, store, torch.device(kind, group.rank) if kind == "cuda" else torch.device(kind), group
    )
    for run in open_runs(study, store, sources):
        train_missing(study, store, run, compute)
    return store.tally.made


def open_runs(
    study: Study, store: Store, sources: Sources, test_path: str | Path | None = None
) -> list[TrainingRun]:
    """Return the runs of :func:`train_block`, in the order of their folders, without reading images yet.

    The runs share the splits, whose images are later decoded once for all.
    """
    info = read_class_table(sources.classes)
    images = open_source(study.dataset, study.seed, study.corpus)

    kept = np.array([label for label, row in enumerate(info) if row.class_id not in sources.excluded])
    number = np.full(len(info), -1)
    number[kept] = np.arange(len(kept))

    start = read_start(sources.first_weights, [info[label] for label in kept])
    frozen = frozen_network(study, start, store)

    def labelled(path: str | Path) -> LabelledImages:
        split = read_split(path)
        check_labels(split, info, str(path))
        rows = np.flatnonzero(number[split.labels] >= 0)
        ids, where = ([column[row] for row in rows] for column in (split.image_ids, split.sources))
        stamps = split.stamps_at(rows)

        def load(wanted: slice) -> Iterable[Image]:
            return images.load_unchanged(where[wanted], stamps and stamps[wanted])

        split_images = LabelledImages(ids, number[split.labels[rows]], load, Path(path).stem, stamps)
        return (
            split_images if frozen is None else of_split(frozen, split_images, _origin(study, split_images))
        )

    test = None if test_path is None else labelled(test_path)
    block = SharedInputs(
        sources.method, kept, labelled(sources.train), labelled(sources.validation), test, start
    )
    labels = {row.class_id: label for label, row in enumerate(info)}
    use, runs = study.methods[sources.method].use, []
    for folder, manifest in sources.manifests.items():
        added, lacking, stays = None, 0, None
        if manifest is not None:
            if Path(manifest).stem != folder.name:
                raise ValueError(f"run {folder.name} is given the added images of run {Path(manifest).stem}")
            rows = read_index(manifest)
            check_same_labels(rows, labels, str(manifest))
            if left := sorted(set(rows.column("class_id").to_pylist()) & set(sources.excluded)):
                raise UserError(str(manifest), f"images of class {left[0]!r}, which is left out", REMAKE)
            if use.replace:
                class_ids = [info[label].class_id for label in kept]
                given = number[rows.column("label").to_numpy()]
                stays, used = replace_in_run(
                    study, sources.method, int(folder.name), block.real.labels, given, class_ids
                )
                wanted = sum(needed_images(use.replace, int(own)) for own in np.bincount(block.real.labels))
                rows, lacking = rows.take(used), wanted - len(used)
            else:
                lacking = sum(lack.images for lack in lacks_of(rows).values())
            added = _added(rows, number, store.study, f"{sources.method}, set {folder.name}")
            if frozen is not None:
                added = of_rows(frozen, added, rows, store.study)
        runs.append(TrainingRun(block, folder, added, lacking, stays))
    return runs


def frozen_network(study: Study, start: Start | None, store: Store) -> Frozen | None:
    """The frozen network whose features a probe is trained on; None if images are trained on."""
    if study.classifier.train != "probe":
        return None
    assert start is not None
    return Frozen(study.classifier, start, store)


def _added(rows: pa.Table, number: np.ndarray, study_folder: Path, what: str) -> LabelledImages:
    def load(wanted: slice) -> Iterable[Image]:
        return load_images(rows.slice(wanted.start, wanted.stop - wanted.start), study_folder)

    return LabelledImages(
        rows.column("sha256").to_pylist(), number[rows.column("label").to_numpy()], load, what
    )


def _origin(study: Study, *parts: LabelledImages) -> Recipe:
    """Which data set the images of splits belong to (:func:`augbench.plan.recipes.data_set_recipe`)."""
    return data_set_recipe(study, stamped=all(part.stamps is not None for part in parts))


def run_recipe(study: Study, run: TrainingRun) -> dict[str, Any]:
    """Recipe of a run's weights: config, seed, and ordered ids, stamps and labels of its training images."""
    block, added = run.block, run.added
    return {
        "classifier": classifier_recipe(study, block.method),
        "classes": block.classes,
        "real": block.real.key if run.stays is None else block.real.key_of(run.stays),
        "added": None if added is None else added.key,
        "validation": block.validation.key,
        "run": run.number,
        **names_of(block.start, study.classifier.arch),
        **_origin(study, block.real, block.validation),
    }


def train_missing(study: Study, store: Store, run: TrainingRun, compute: Compute) -> None:
    """Train a run that the store lacks, from its checkpoint if there is one, and commit it.

    In a group, every process calls this function.
    """
    block, recipe = run.block, run_recipe(study, run)
    checkpoint = _work(store) / "classifiers" / f"{canonical_hash(recipe)}.pt"
    result = train_run(
        study.classifier,
        classes=block.classes,
        real=block.real,
        added=run.added,
        validation=block.validation,
        run=run.number,
        study_seed=study.seed_of(block.method),
        compute=compute,
        checkpoint=checkpoint,
        what=run.what,
        repeats=study.methods[block.method].real_repeats,
        use=study.methods[block.method].use,
        stays=run.stays,
        start=block.start,
    )
    if run.added is not None:
        run.added.forget()
    if compute.group.rank == 0:
        commit_run(store, recipe, result, study.classifier, compute)
        checkpoint.unlink(missing_ok=True)


def publish_run(study: Study, store: Store, run: TrainingRun, compute: Compute) -> None:
    """Link a trained run's files into its folder; score it only if the store lacks its predictions."""
    block, folder, recipe = run.block, run.folder, run_recipe(study, run)
    store.publish("classifiers", recipe, folder / "model.safetensors")
    store.publish("classifiers", recipe, folder / "history.json")
    store.publish("classifier_timings", recipe, folder / "timing.json")
    written = read_json(folder / "history.json")
    added = 0 if run.added is None else len(run.added)
    row = study.methods[block.method]
    images = row.real_repeats * run.real_images + added
    history = read_history(folder / "history.json", images, study.classifier, row.use)
    report = {
        "method": block.method,
        "run": run.number,
        "classes": block.classes,
        "best_epoch": written["best_epoch"],
        "epochs": history.epochs,
        "steps": history.steps,
        "stopped": history.stopped,
        "rising": history.rising,
        "val_top1": written["val_top1"],
        "test_top1": None,
        "dtype": read_json(folder / "timing.json").get("dtype"),
        "n_real": run.real_images,
        "n_added": added,
        "n_lacking": run.lacking,
        "n_val": len(block.validation),
        "n_test": 0 if block.test is None else len(block.test),
    }
    if use := row.use.model_dump(mode="json"):
        report["use"] = use
    if block.test is not None:
        predictions = folder / "predictions.parquet"
        state = partial(load_file, folder / "model.safetensors")
        scoring, write = _scoring(study, run, compute, recipe["classifier"], written["model_sha256"], state)
        whole = partial(has_rows, rows=len(block.test))
        store.provide("predictions", scoring, predictions, write, whole)
        report["test_top1"] = top1(pq.read_table(predictions))
        if study.classifier.arch == "clip":
            untrained = partial(_untrained, study, block)
            network = recipe["classifier"]["classifier"]  # not the seed, so that all rows share these scores
            scoring, write = _scoring(study, run, compute, network, "zero-shot", untrained)
            kept = store.keep("predictions", scoring, ".parquet", write, whole)
            report["zero_shot_top1"] = top1(pq.read_table(kept))
    write_json(folder / "result.json", report)
    logger.info("%s: %s", run.what, _summary(report, history))


def _untrained(study: Study, block: SharedInputs) -> Mapping[str, torch.Tensor]:
    """Weights of what is trained, before training."""
    new = build_head if study.classifier.train == "probe" else build
    state: Mapping[str, torch.Tensor] = new(study.classifier, block.classes, 0, block.start).state_dict()
    return state


def _scoring(
    study: Study,
    run: TrainingRun,
    compute: Compute,
    classifier: Recipe,
    model: str,
    state: Callable[[], Mapping[str, torch.Tensor]],
) -> tuple[Recipe, Callable[[Path], None]]:
    """Return the recipe of predictions on the test split, and a function that writes them.

    Parameters
    ----------
    classifier : dict
        The recipe's description of the classifier.
    model : str
        Name of the weights in the recipe: their hash.
    state : callable
        Returns the weights.
    """
    block, test = run.block, run.block.test
    assert test is not None
    recipe = {
        "classifier": classifier,
        "classes": block.classes,
        "model": model,
        "test": test.key,
        **names_of(block.start, study.classifier.arch),
        **_origin(study, test),
    }

    def write(path: Path) -> None:
        table = score_test(state(), study.classifier, block.kept, test, compute, block.start)
        write_predictions(table, path)

    return recipe, write


def _summary(report: Mapping[str, Any], history: History) -> str:
    """Describe a finished run on one line."""
    test_note = "" if report["test_top1"] is None else f", test top-1 {report['test_top1']:.4f}"
    cut = ", cut while validation accuracy was still rising" if history.rising else ""
    lacks = f"; {report['n_lacking']} added images are lacking" if report["n_lacking"] else ""
    return (
        f"{history.steps} steps, {history.epochs} epochs, ended by {history.stopped}{cut}; kept step"
        f" {history.kept_step}, val top-1 {report['val_top1']:.4f}{test_note}{lacks}"
    )
