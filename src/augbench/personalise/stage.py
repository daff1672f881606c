"""Fine-tuning jobs: learn classes, choose the learning rate, gather the results (paper, section 3.2).

Input: splits, the class table, the diffusion model, clusters. Output: one file of vectors or adapters per
class with the losses of every epoch, and the U-Nets or adapters that all classes share, of candidates. Then,
per method, the results of the best learning rate: ``embeddings.safetensors``, with placeholders as keys, and
U-Nets or adapters. What the store holds is
not learned again. torch is imported only if there is something to learn.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from augbench.artifacts import adapters
from augbench.artifacts.origins import ADDED, parse_added
from augbench.artifacts.store import Store, link_file
from augbench.config.methods import PersonaliseMethod
from augbench.data.sources import open_source
from augbench.errors import UserError
from augbench.files import atomic_path, canonical_hash, read_json, write_json
from augbench.personalise.learned import WithAddedImages
from augbench.personalise.tasks import ClassTask, class_tasks, end_of_grid, start_prompt, start_word
from augbench.plan.recipes import Recipe, data_set_recipe, finetune_recipe
from augbench.prompts.placeholders import placeholders
from augbench.prompts.stage import class_name
from augbench.prompts.templates import fill, load_templates

if TYPE_CHECKING:
    from augbench.personalise.groups import Learned
    from augbench.runtime.job import Job

logger = logging.getLogger(__name__)

KIND = "finetune"
OF_CLASS = ("class_id", "unlearned")  # keys of a class's recipe beside those of its group
# parts of Stable Diffusion 1.x and 2.x that fine-tuning reads
MODEL_PARTS = ("scheduler/", "text_encoder/", "tokenizer/", "unet/", "vae/")
UNET_FILES = ("config.json", "diffusion_pytorch_model.safetensors")
ADAPTER_FILES = (adapters.FILE,)
HISTORY = pa.schema(
    [
        ("factor", pa.float64()),
        ("class_id", pa.string()),
        ("epoch", pa.int32()),
        ("train_loss", pa.float64()),
        ("val_loss", pa.float64()),
    ]
)


# --- recipes ---


def _task_recipe(task: ClassTask, method: PersonaliseMethod, seed: int) -> Recipe:
    """One class's part of a recipe: its texts, its images, their clusters."""
    if method.learn == "conditioning":
        texts = {"start": start_prompt(task, method, seed)}
    else:
        name = "{}" if method.learns_words else class_name(task.info, method.prompting.class_name)
        filled = [
            fill(template, name, task.info, "{scene}")
            for template in load_templates(method.prompting.templates)
        ]
        start = {"start": start_word(task)} if method.learns_words else {}
        texts = {**start, "prompts": canonical_hash(filled)}
    images = {
        name: canonical_hash([part.key_names, part.clusters])
        for name, part in (("train", task.train), ("validation", task.validation))
    }
    return {"class_id": task.info.class_id, **texts, **images}


def _model_hash(diffusion_path: str | Path, parts: tuple[str, ...]) -> str:
    """Hash of some parts of a diffusion model, from its fingerprint."""
    files = read_json(diffusion_path)["files"]
    return canonical_hash({path: digest for path, digest in files.items() if path.startswith(parts)})


def group_recipes(
    job: Job, name: str, factor: float, tasks: Sequence[ClassTask], diffusion_path: str | Path
) -> dict[str, Recipe]:
    """Recipe of each class's group, by class_id.

    If classes share what trains (the U-Net, one adapter), they are one group. Otherwise each is its own.
    """
    method, known = job.study.personalised[name], job.study.generator_of(name).other is None
    stamped = all(part.stamps is not None for task in tasks for part in (task.train, task.validation))
    base = {
        **finetune_recipe(job.study, name, factor),
        **data_set_recipe(job.study, stamped),
        "model": _model_hash(diffusion_path, MODEL_PARTS if known else ("",)),
    }
    each = {task.info.class_id: _task_recipe(task, method, job.study.seed_of(name)) for task in tasks}
    together = canonical_hash(list(each.values()))
    return {
        class_id: {**base, "group": together if method.shares_weights else canonical_hash([own])}
        for class_id, own in each.items()
    }


# --- fine-tuning ---


def write_vectors(learned: Learned, recipe: Recipe, path: Path, sources: Sequence[str] = ()) -> None:
    """Write what a class learned: one tensor ``(clusters, ...)`` per candidate, or its adapters' tensors.

    A candidate of Stable Diffusion XL has two tensors, ``{candidate}.{entry}``
    (:data:`augbench.config.pipelines.LEARNED`).
    With an adapter that all classes share, the tensors are empty. The file's metadata hold the losses, the
    epochs of the candidates, the best epoch, the recipe and the floating-point type of the computation. If
    the class learned from added images, which ``sources`` name, ``learned_images`` has the hashes of these.
    """
    hashes = [parse_added(source)["sha256"] for source in sources if source.startswith(ADDED)]
    metadata = {
        "history": learned.history,
        "epochs": learned.epochs,
        "best_epoch": learned.best_epoch,
        "recipe": recipe,
        "dtype": learned.dtype,
        **({"learned_images": hashes} if hashes else {}),
    }
    tensors = {name: np.ascontiguousarray(values.numpy()) for name, values in learned.vectors.items()}
    save_file(tensors, path, {key: json.dumps(value, sort_keys=True) for key, value in metadata.items()})


def purge_learned(store: Store, hashes: Collection[str]) -> int:
    """Delete from the store what learned from added images with these hashes; return the number of files.

    Where classes share what trains, all of their files are deleted.
    """
    groups: dict[str, tuple[Recipe, set[int]]] = {}
    learned: dict[str, list[Path]] = {}
    for path in sorted((store.root / KIND).glob("*.safetensors")) if hashes else ():
        with safe_open(path, "np") as file:
            if "recipe" not in (file.metadata() or {}):
                continue  # a shared U-Net or adapter
        metadata = read_metadata(path)
        shared = {key: value for key, value in metadata["recipe"].items() if key not in OF_CLASS}
        group = canonical_hash(shared)
        learned.setdefault(group, []).append(path)
        if not {*metadata.get("learned_images", ())}.isdisjoint(hashes):
            groups[group] = (shared, {*metadata["epochs"].values()})
    doomed = [path for group in groups for path in learned[group]]
    for shared, epochs in groups.values():
        recipes = [{**shared, key: epoch} for key in ("unet_epoch", "adapter_epoch") for epoch in epochs]
        suffixes = {Path(name).suffix for name in (*UNET_FILES, *ADAPTER_FILES)}
        paths = [store.path(KIND, recipe, suffix) for recipe in recipes for suffix in suffixes]
        doomed += [path for path in paths if path.exists()]
    for path in doomed:
        path.unlink(missing_ok=True)
    return len(doomed)


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Read ``history``, ``epochs``, ``best_epoch``, ``recipe`` and ``dtype`` from a class's file of vectors.

    Files of version 0.1 have no ``dtype``.
    """
    with safe_open(path, "np") as file:
        return {key: json.loads(value) for key, value in file.metadata().items()}


def _is_whole(path: Path) -> bool:
    try:
        with safe_open(path, "np") as file:
            return bool(file.keys())
    except (SafetensorError, OSError):
        return False


def _shared_recipe(row: PersonaliseMethod, group: Recipe, epoch: int) -> Recipe:
    """Recipe of what all classes of a group share at the end of an epoch."""
    return {**group, "adapter_epoch" if row.lora is not None else "unet_epoch": epoch}


def _shared_files(row: PersonaliseMethod) -> tuple[str, ...]:
    return ADAPTER_FILES if row.lora is not None else UNET_FILES


def finetune_classes(
    job: Job,
    method: str,
    factor: float,
    train_path: str | Path,
    val_path: str | Path,
    classes_path: str | Path,
    diffusion_path: str | Path,
    clusters_path: str | Path | None,
    vectors: Sequence[str],
    shared: Mapping[str, str],
    excluded: Collection[str] = (),
) -> None:
    """Fine-tune the classes whose files are ``vectors``, at one factor on the learning rates.

    Results that the store holds are linked, each as soon as it is found there.

    Parameters
    ----------
    method : str
        A method of the study with the mechanism ``personalise``.
    clusters_path : path, optional
        Table that :func:`augbench.personalise.cluster.cluster_images` writes; None if each class is one
        cluster.
    vectors : sequence of str
        Targets ``.../{class_id}.safetensors``; of all classes if they share what trains.
    shared : mapping
        Target folders of the U-Net or adapter that all classes share, by candidate; empty without one.
    excluded : collection of str
        Classes that do not train what classes share, and keep the vectors that they start from.

    Raises
    ------
    UserError
        Sources disagree about the classes, images are missing or damaged, or the model can't be fine-tuned.
    """
    targets = {Path(target).stem: target for target in vectors}
    row = job.study.personalised[method]
    tasks = class_tasks(train_path, val_path, classes_path, clusters_path, list(targets))
    learning = [task for task in tasks if task.info.class_id not in excluded]
    groups = group_recipes(job, method, factor, learning, diffusion_path)
    common = next(iter(groups.values()))
    recipes: dict[str, Recipe] = {
        class_id: {**group, "class_id": class_id} for class_id, group in groups.items()
    }
    for task in tasks:
        if task not in learning:
            start = _task_recipe(task, row, job.study.seed_of(method)).get("start")
            recipes[task.info.class_id] = {**common, "class_id": task.info.class_id, "unlearned": start}
            groups[task.info.class_id] = common

    def is_known(class_id: str) -> bool:
        return job.store.take(KIND, recipes[class_id], targets[class_id], _is_whole)

    def shared_weights() -> dict[Path, Recipe]:
        epochs = read_metadata(vectors[0])["epochs"]
        return {
            Path(folder) / file: _shared_recipe(row, common, epochs[candidate])
            for candidate, folder in shared.items()
            for file in _shared_files(row)
        }

    def all_known(_: str = "") -> bool:
        return all(map(is_known, targets)) and all(
            job.store.take(KIND, recipe, target, _is_whole if target.suffix == ".safetensors" else None)
            for target, recipe in shared_weights().items()
        )

    # classes that share what trains are learned by one job, so one claim stands for all
    together = row.shares_weights
    if together:
        unknown = [] if all_known() else list(targets)
    else:
        unknown = [class_id for class_id in targets if not is_known(class_id)]
    job.store.tally.reused += len(targets) - len(unknown)
    for missing in job.store.in_turn(
        KIND,
        unknown[:1] if together else unknown,
        lambda class_id: recipes[class_id],
        all_known if together else is_known,
    ):
        learned = list(targets) if together else missing
        _learn(
            job=job,
            name=method,
            factor=factor,
            tasks=tasks,
            missing=set(learned),
            groups=groups,
            recipes=recipes,
            excluded=excluded,
            vae=_model_hash(diffusion_path, ("vae/",)),
        )
        for class_id in learned:
            job.store.publish(KIND, recipes[class_id], targets[class_id])
        for target, recipe in shared_weights().items() if together else ():
            job.store.publish(KIND, recipe, target)


def _learn(
    job: Job,
    name: str,
    factor: float,
    tasks: Sequence[ClassTask],
    missing: set[str],
    groups: Mapping[str, Recipe],
    recipes: Mapping[str, Recipe],
    excluded: Collection[str],
    vae: str,
) -> None:
    """Learn the ``missing`` classes and commit them to the store.

    An interrupted training resumes, with the classes that it was started with.
    """
    from augbench.personalise.fine_tune import fine_tune, unlearned
    from augbench.personalise.train import read_checkpoint, weights_folder

    row = job.study.personalised[name]
    folder = job.folder / ".work" / KIND / canonical_hash(list(recipes.values()))
    begun = read_checkpoint(folder)
    missing = missing.difference(excluded)
    if begun is not None and missing <= set(begun["classes"]):
        missing = set(begun["classes"])
    wanted = [task for task in tasks if task.info.class_id in missing]
    of_row = {"seed": job.study.seed_of(name), "diffusion": job.study.generator_of(name)}
    study = job.study.model_copy(update=of_row)
    for problem in adapters.learning_problems(f"methods.{name}", row, study.diffusion):
        raise problem
    source = WithAddedImages(open_source(job.study.dataset, job.study.seed, job.study.corpus), job.folder)
    learned = fine_tune(
        study,
        name=name,
        factor=factor,
        tasks=wanted,
        source=source,
        store=job.store,
        vae=vae,
        folder=folder,
        what=f"{name}, lr x {factor:g}",
    )
    if idle := [task for task in tasks if task.info.class_id in excluded]:
        learned |= unlearned(study, row, idle, next(iter(learned.values())))
    epochs = {epoch for result in learned.values() for epoch in result.epochs.values()}
    for epoch in sorted(epochs) if row.shares_weights else ():
        recipe = _shared_recipe(row, groups[wanted[0].info.class_id], epoch)
        for file in _shared_files(row):
            made = weights_folder(folder, "unet" if row.train_unet else "adapter", epoch) / file

            def copy(path: Path, made: Path = made) -> None:
                shutil.copyfile(made, path)

            job.store.commit(KIND, recipe, made.suffix, copy)
    taught = {task.info.class_id: task.train.sources for task in tasks if row.edges}
    for class_id, result in learned.items():
        write = partial(write_vectors, result, recipes[class_id], sources=taught.get(class_id, ()))
        job.store.commit(KIND, recipes[class_id], ".safetensors", write)
    shutil.rmtree(folder)


# --- the best learning rate ---


def _candidate_losses(path: str | Path, candidates: Sequence[str]) -> list[float]:
    """Validation losses of a class at the epochs of candidates; infinite where they are not finite."""
    metadata = read_metadata(path)
    losses = {entry["epoch"]: entry["val_loss"] for entry in metadata["history"]}
    at_epochs = [losses[metadata["epochs"][name]] for name in candidates]
    return [math.inf if loss is None else float(loss) for loss in at_epochs]


def _loss(paths: Sequence[str], candidates: Sequence[str]) -> float:
    """Validation loss by which a learning rate is judged: the mean over classes at its best candidate.

    ``val_loss``, if it is a candidate, is the best one by definition. Classes that do not learn have no loss.
    """
    names = ["val_loss"] if "val_loss" in candidates else candidates
    learned = [path for path in paths if read_metadata(path)["history"]]
    return float(np.mean([_candidate_losses(path, names) for path in learned], axis=0).min())


def _of_candidate(path: str | Path, candidate: str) -> dict[str, np.ndarray]:
    """A candidate's tensors in a class's file, by the rest of their names: ``.{name}`` or nothing."""
    with safe_open(path, "np") as file:
        names = [name for name in file.keys() if f"{name}.".startswith(f"{candidate}.")]  # noqa: SIM118
        return {name.removeprefix(candidate): file.get_tensor(name) for name in names}


def _gather_adapters(
    method: PersonaliseMethod, candidate: str, vectors: Sequence[str], shared: str | None, folder: Path
) -> None:
    """Put a candidate's adapter, which all classes share, or its adapter of each class into ``folder``."""
    assert method.lora is not None
    if shared is not None:
        link_file(Path(shared) / adapters.FILE, folder / adapters.FILE)
        return
    for path in vectors:
        tensors = {
            ending.removeprefix("."): values for ending, values in _of_candidate(path, candidate).items()
        }
        adapters.write_adapter(tensors, method.lora, folder / Path(path).stem / adapters.FILE)


def _write_history(vectors: Mapping[float, Sequence[str]], target: str | Path) -> None:
    """Write all losses (:data:`HISTORY`); ``vectors`` has the classes' files by factor."""
    rows = [
        {"factor": factor, "class_id": Path(path).stem, **entry}
        for factor, paths in vectors.items()
        for path in paths
        for entry in read_metadata(path)["history"]
    ]
    with atomic_path(target) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, HISTORY), temporary)


def _gather_vectors(method: PersonaliseMethod, candidate: str, paths: Sequence[str], target: str) -> None:
    """Write a candidate's vectors of all classes into one file, by placeholder."""
    tensors = {}
    for path in paths:
        names = placeholders(Path(path).stem, method.clusters)
        for ending, values in _of_candidate(path, candidate).items():
            for name, value in zip(names, values, strict=True):
                whole = np.atleast_2d(value) if method.learns_words else value
                tensors[f"{name}{ending}"] = np.ascontiguousarray(whole)
    with atomic_path(target) as temporary:
        save_file(tensors, temporary, {"format": "pt"})


def choose_lr(
    method: PersonaliseMethod,
    vectors: Mapping[float, Sequence[str]],
    shared_folders: Mapping[float, Mapping[str, str]],
    lr_path: str | Path,
    history_path: str | Path,
    embeddings: Mapping[str, str],
    unets: Mapping[str, str],
    adapter_folders: Mapping[str, str] | None = None,
) -> None:
    """Choose the factor on the learning rates with the lowest validation loss, and gather its results.

    Parameters
    ----------
    vectors : mapping
        By factor: files of all classes in the order of the class table.
    shared_folders : mapping
        Folders of the U-Net or adapter that all classes share, by factor, then by candidate; the inner
        mappings are empty without one.
    lr_path : path
        Target for the chosen factor, the end of the grid that it is (:func:`end_of_grid`), the floating-point
        types that its classes were computed in and, for each factor, the validation loss that it was chosen
        by: the mean over classes at its best candidate.
    history_path : path
        Target for all losses.
    embeddings : mapping
        By candidate: target file with one tensor per placeholder, ``(tokens, width)`` for conditioning and
        ``(1, width)`` for a pseudo-word, as diffusers' ``load_textual_inversion`` takes it; of Stable
        Diffusion XL two tensors, ``{placeholder}.{entry}``, of which a pooled text state is ``(width,)``.
    unets : mapping
        By candidate: target folder that diffusers loads.
    adapter_folders : mapping, optional
        By candidate: target folder of adapters (:mod:`augbench.artifacts.adapters`).

    Raises
    ------
    UserError
        No factor gave a finite loss.
    """
    losses = {factor: _loss(paths, method.candidate_names) for factor, paths in vectors.items()}
    chosen = min(losses, key=lambda factor: losses[factor])
    if not math.isfinite(losses[chosen]):
        raise UserError(
            "lr_grid",
            f"no finite validation loss with any of {list(losses)}",
            "use lower factors, or lower lr and unet_lr",
        )
    _write_history(vectors, history_path)
    for candidate, target in embeddings.items():
        _gather_vectors(method, candidate, vectors[chosen], target)
    for candidate, folder in unets.items():
        for file_name in UNET_FILES:
            link_file(Path(shared_folders[chosen][candidate]) / file_name, Path(folder) / file_name)
    for candidate, folder in (adapter_folders or {}).items():
        _gather_adapters(
            method, candidate, vectors[chosen], shared_folders[chosen].get(candidate), Path(folder)
        )
    factors = [
        {"factor": factor, "val_loss": loss if math.isfinite(loss) else None}
        for factor, loss in losses.items()
    ]
    record = {"factor": chosen, "factors": factors}
    end = end_of_grid(record)
    dtypes = {read_metadata(path).get("dtype") for path in vectors[chosen]} - {None}
    write_json(lr_path, {**record, "end_of_grid": end, "dtypes": sorted(dtypes)})
    logger.info("learning rates x %g, mean best validation loss %.4f", chosen, losses[chosen])
    if end is not None:
        logger.warning("lr_grid: x %g is the %s of %s; a better one may lie beyond", chosen, end, [*losses])
