"""Finished studies to compare: where they are, and what is read of them.

Input: a study's folder of results, its name, or a config or overlay that names it. Of the folder are read
``config.yaml``, tables, ``classes.parquet``, the training splits, and every classifier's predictions. Rows
are named as in the first study.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow.parquet as pq

from augbench.artifacts.parquet import whole
from augbench.config.base import COMPLETE
from augbench.config.draws import drawn_name
from augbench.config.problems import ConfigError
from augbench.config.study import Study, parse_study, read_yaml
from augbench.data.classes import read_class_table
from augbench.errors import UserError, some
from augbench.plan.paths import Plan
from augbench.report.inference.images import Hits, average_hits, read_hits
from augbench.report.render import read_csv
from augbench.report.tables import contrasts, statistics, table1
from augbench.report.tables.statistics import accuracies_of
from augbench.report.tables.table1 import RunRow, average_draws

RESULTS = Path("results")
EXACT = 1e-6  # points that an accuracy in the table may differ from that of the predictions
T = TypeVar("T")


@dataclass(frozen=True)
class Finished:
    """A finished study.

    Attributes
    ----------
    name : str
        Name of its folder; the whole path if two folders have one name.
    config : dict
        The config with all defaults, without what never changes results (``execution``).
    rows : dict of str to str
        Names of its rows in its own config, by their names in the comparison.
    runs : list of RunRow
        With several draws of the training images, a run is a draw.
    class_ids : tuple of str
        Classes in use, in label order.
    test : ndarray of str, (2, N)
        Ids and class ids of the test images, sorted by id.
    """

    name: str
    folder: Path
    study: Study
    config: dict[str, Any]
    rows: dict[str, str]
    table: list[table1.Row]
    runs: list[RunRow]
    statistics: list[statistics.Row]
    contrasts: list[contrasts.Row]
    class_ids: tuple[str, ...]
    test: np.ndarray

    @property
    def accuracies(self) -> dict[str, dict[int, float]]:
        """Test accuracy in percent, by row and run."""
        return accuracies_of(self.runs)

    @property
    def labels(self) -> dict[str, str]:
        """Labels of the rows, by their names in the comparison."""
        return {row.method: row.label for row in self.table}

    def tested_like(self, other: Finished) -> bool:
        """Whether both studies score the same test images, with the same classes."""
        return self.class_ids == other.class_ids and np.array_equal(self.test, other.test)

    def training_images(self, draw: int) -> list[str]:
        """Ids of the real images in the training split of a draw, in the split's order."""
        path = self.folder / "splits" / f"{drawn_name('train', draw)}.parquet"
        with whole(path):
            ids: list[str] = pq.read_table(path, columns=["image_id"]).column("image_id").to_pylist()
        return ids


def open_studies(given: Sequence[str]) -> list[Finished]:
    """Open finished studies, in the order given; rows are named as in the first study that has them.

    A row is the same in two studies if it has the same name in both configs; or else the same label.

    Raises
    ------
    UserError
        There are fewer than two, one is given twice, is unknown or is not finished, a file is damaged, or a
        study has no row in common with the first one.
    """
    folders = folders_of(given)
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    studies = _aligned([_open(name, folder) for name, folder in zip(names, folders, strict=True)])
    first = studies[0]
    for other in studies[1:]:
        if not first.rows.keys() & other.rows.keys():
            raise UserError(
                other.name,
                f"no row in common with {first.name}, whose rows are {some([*first.rows])}",
                "allowed: studies that share a row by its name or label",
            )
    return studies


def folders_of(given: Sequence[str]) -> list[Path]:
    """The studies' folders of results. Raises :class:`UserError` for fewer than two, and one given twice."""
    folders = [folder_of(name) for name in given]
    for place, folder in enumerate(folders):
        if folder.resolve() in [other.resolve() for other in folders[:place]]:
            raise UserError("STUDY", f"{folder} is given twice", "allowed: each study once")
    if len(folders) < 2:
        raise UserError("STUDY", ", ".join(given) or "none", "allowed: at least two studies to compare")
    return folders


def folder_of(given: str) -> Path:
    """The folder of results that a study's folder, name or YAML file means.

    Raises
    ------
    UserError
        There is no such study, or the YAML file names none.
    """
    if Path(given).suffix in (".yaml", ".yml"):
        name = read_yaml(given).get("study")
        if not isinstance(name, str):
            raise UserError(given, "has no key study", "a config or overlay that names its study is needed")
        return RESULTS / name
    for folder in (RESULTS / given, Path(given)):
        if folder.is_dir():
            return folder
    known = sorted(path.parent.name for path in RESULTS.glob("*/config.yaml"))
    there = some(known) if known else "there is none yet"
    raise UserError(given, "no such study", f"allowed: a study in {RESULTS}: {there}; or the folder of one")


def needed_files(folder: Path) -> list[Path]:
    """Files of a finished study that a comparison reads. Raises :class:`UserError` if one is missing."""
    files = files_of(folder, _study_of(folder))
    _require(files, folder)
    return files


def _study_of(folder: Path) -> Study:
    path = folder / "config.yaml"
    _require([path], folder)
    try:
        return parse_study(read_yaml(path))
    except ConfigError as error:
        problem = str(error).splitlines()[0]
        raise UserError(
            str(path), f"not a config of this version ({problem})", "run the study again with this version"
        ) from None


def _within(folder: Path, plan: Plan, path: str) -> Path:
    """A file of the plan, in the folder where the study's results are now."""
    return folder / os.path.relpath(path, plan.root)


def files_of(folder: Path, study: Study) -> list[Path]:
    """Files that a comparison reads of a study, in the folder where its results are."""
    plan = Plan(study, ())
    tables = [plan.table1["csv"], plan.table1["runs"], plan.statistics["csv"], plan.contrasts["csv"]]
    splits = [
        plan.path("splits", f"{drawn_name('train', draw)}.parquet") for draw in range(study.dataset.draws)
    ]
    predictions = [path for method in plan.methods for path in plan.predictions(method)]
    paths = (plan.config, *tables, plan.classes, *splits, *predictions)
    return [_within(folder, plan, path) for path in paths]


def _require(paths: Sequence[Path], folder: Path) -> None:
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise UserError(
            some(missing, most=3),
            f"missing, because study {folder.name} is not finished or has changed",
            f"finish it: augbench run --configfile, with the config files of {folder.name}",
        )


def _open(name: str, folder: Path) -> Finished:
    study = _study_of(folder)
    _require(files_of(folder, study), folder)
    plan = Plan(study, ())

    def read(path: str, kind: type[T]) -> list[T]:
        where = _within(folder, plan, path)
        try:
            return read_csv(where, kind)  # type: ignore[type-var]
        except (KeyError, TypeError, ValueError):
            raise UserError(
                str(where), "not a table of this version", "delete it and run the study again"
            ) from None

    runs = read(plan.table1["runs"], RunRow)
    if study.dataset.draws > 1:
        runs = average_draws(runs, study.augmentation.resamples)
    config = study.model_dump(mode="json", exclude={"execution", "pretrain"}, context=COMPLETE)
    classes = [info.class_id for info in read_class_table(folder / "classes.parquet")]
    test, labels = _test_images(_within(folder, plan, plan.predictions(plan.methods[0])[0]), classes)
    return Finished(
        name=name,
        folder=folder,
        study=study,
        config=config,
        rows={method: method for method in study.methods},
        table=read(plan.table1["csv"], table1.Row),
        runs=runs,
        statistics=read(plan.statistics["csv"], statistics.Row),
        contrasts=read(plan.contrasts["csv"], contrasts.Row),
        class_ids=tuple(classes[label] for label in labels),
        test=test,
    )


def _test_images(path: Path, classes: Sequence[str]) -> tuple[np.ndarray, list[int]]:
    """Ids and class ids of the images that a classifier was scored on, and the labels in use."""
    with whole(path):
        table = pq.read_table(path, columns=["image_id", "label"])
    ids, labels = table.column("image_id").to_numpy(), table.column("label").to_numpy()
    order = np.argsort(ids)
    found = np.array([ids[order], np.asarray(classes, dtype=object)[labels[order]]])
    return found, np.unique(labels).tolist()


def _aligned(studies: Sequence[Finished]) -> list[Finished]:
    """Name the rows of all studies alike."""
    known: dict[str, str] = {}
    aligned = []
    for study in studies:
        keys: dict[str, str] = {}
        for row in study.table:
            alike = (
                key
                for key, label in known.items()
                if label == row.label and key not in study.rows and key not in keys.values()
            )
            keys[row.method] = row.method if row.method in known else next(alike, row.method)
            known.setdefault(keys[row.method], row.label)
        aligned.append(_renamed(study, keys))
    return aligned


def _renamed(study: Finished, keys: Mapping[str, str]) -> Finished:
    methods = {keys[name]: row for name, row in study.config["methods"].items()}
    return replace(
        study,
        config={**study.config, "methods": methods},
        rows={key: name for name, key in keys.items()},
        table=[replace(row, method=keys[row.method]) for row in study.table],
        runs=[replace(run, method=keys[run.method]) for run in study.runs],
        statistics=[replace(row, method=keys[row.method]) for row in study.statistics],
        contrasts=[replace(row, row=keys[row.row], against=keys[row.against]) for row in study.contrasts],
    )


def hits_of(studies: Sequence[Finished]) -> list[Hits | None]:
    """Which test images every classifier got right, by study; None where others than the first's are tested.

    All are in one order of images. With several draws of the training images, a run is a draw.

    Raises
    ------
    UserError
        Predictions are damaged, or do not fit the study's table.
    """
    first = studies[0]
    alike = {place: study for place, study in enumerate(studies) if study.tested_like(first)}
    read = read_hits(
        {
            f"{place}/{key}": [_within(study.folder, plan, path) for path in plan.predictions(name)]
            for place, study in alike.items()
            for plan in [Plan(study.study, ())]
            for key, name in study.rows.items()
        }
    )
    return [
        _checked(study, {key: read[f"{place}/{key}"] for key in study.rows}) if place in alike else None
        for place, study in enumerate(studies)
    ]


def _checked(study: Finished, hits: Hits) -> Hits:
    """Average the hits over draws, and check that the study's table has the same accuracies."""
    if study.study.dataset.draws > 1:
        hits = average_hits(hits, study.study.augmentation.resamples)
    for row, own in study.accuracies.items():
        for run, top1 in own.items():
            if run not in hits[row] or abs(100 * float(hits[row][run].mean()) - top1) > EXACT:
                raise UserError(
                    str(study.folder / "tables/table1_runs.csv"),
                    f"row {study.rows[row]}, run {run} does not fit the predictions",
                    "run the study again: its tables are not up to date",
                )
    return hits


def each(studies: Sequence[Finished], value: Callable[[Finished], Any]) -> dict[str, Any]:
    """A value of every study, by the study's name."""
    return {study.name: value(study) for study in studies}
