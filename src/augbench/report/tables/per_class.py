"""Accuracy per class, which the mean over classes hides (paper, Figure 5A).

Input: ``predictions.parquet`` of every classifier, and the class table. Output:
``tables/per_class.parquet``, one row per method, run and scored class. A class that the study leaves out
has no predictions and no row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from augbench.artifacts.parquet import REMAKE, whole
from augbench.data.classes import read_class_table
from augbench.errors import UserError
from augbench.files import atomic_path

SCHEMA = pa.schema(
    [
        ("method", pa.string()),
        ("run", pa.int32()),
        ("class_id", pa.string()),
        ("n_test", pa.int32()),  # test images of the class
        ("top1", pa.float64()),  # share of these images with a correct prediction, 0 to 1
    ]
)


def class_accuracies(
    labels: np.ndarray, predicted: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Number of test images and accuracy per label.

    Parameters
    ----------
    labels, predicted : ndarray, int (N,)
    classes : int
        C, the number of possible labels.

    Returns
    -------
    n_test : ndarray, int (C,)
    top1 : ndarray, float (C,)
        0 for a label without test images.
    """
    n_test = np.bincount(labels, minlength=classes)
    hits = np.bincount(labels[labels == predicted], minlength=classes)
    return n_test, hits / np.maximum(n_test, 1)


def write_per_class(
    classes_path: str | Path, predictions: Mapping[str, Sequence[str | Path]], out: str | Path
) -> None:
    """Write accuracies per class, in the order of methods, runs and labels.

    Parameters
    ----------
    classes_path : path
        ``classes.parquet``.
    predictions : mapping of method to sequence of path
        ``predictions.parquet`` of every run, in the order of their numbers from 0.

    Raises
    ------
    UserError
        Predictions are damaged, or have a label that the class table does not have.
    """
    class_ids = [info.class_id for info in read_class_table(classes_path)]
    tables = []
    for method, paths in predictions.items():
        for run, path in enumerate(map(Path, paths)):
            labels, predicted = _read(path)
            if len(labels) and labels.max() >= len(class_ids):
                raise UserError(
                    str(path), f"label {labels.max()}, but there are {len(class_ids)} classes", REMAKE
                )
            n_test, accuracy = class_accuracies(labels, predicted, len(class_ids))
            kept = np.flatnonzero(n_test)
            columns = [
                [method] * len(kept),
                [run] * len(kept),
                [class_ids[label] for label in kept],
                n_test[kept],
                accuracy[kept],
            ]
            tables.append(
                pa.Table.from_arrays(
                    [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)],
                    schema=SCHEMA,
                )
            )
    with atomic_path(out) as temporary:
        pq.write_table(pa.concat_tables(tables) if tables else SCHEMA.empty_table(), temporary)


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with whole(path):
        table = pq.read_table(path, columns=["label", "predicted"])
    return table.column("label").to_numpy(), table.column("predicted").to_numpy()


@dataclass(frozen=True)
class ClassAccuracies:
    """Accuracies of one method, with runs in rows and classes in columns.

    Attributes
    ----------
    runs : tuple of int
        Numbers of the R runs.
    class_ids : tuple of str
        Ids of the C classes, in label order.
    n_test : ndarray, int (C,)
    top1 : ndarray, float (R, C)
        0 to 1.
    """

    runs: tuple[int, ...]
    class_ids: tuple[str, ...]
    n_test: np.ndarray
    top1: np.ndarray


def read_per_class(path: str | Path) -> dict[str, ClassAccuracies]:
    """Read accuracies per class, by method.

    Raises
    ------
    UserError
        The file is damaged, or runs of a method differ in their classes.
    """
    with whole(path):
        table = pq.read_table(path, schema=SCHEMA)
    methods, runs, class_ids, n_test, accuracy = (table.column(name).to_numpy() for name in SCHEMA.names)
    found = {}
    for method in dict.fromkeys(methods):
        own = methods == method
        numbers = tuple(dict.fromkeys(int(run) for run in runs[own]))
        names = (
            class_ids[own].reshape(len(numbers), -1)
            if own.sum() % len(numbers) == 0
            else class_ids[own][None]
        )
        if len(names) != len(numbers) or (names != names[0]).any():
            raise UserError(str(path), f"runs of {method} differ in their classes", REMAKE)
        found[str(method)] = ClassAccuracies(
            numbers,
            tuple(map(str, names[0])),
            n_test[own][: names.shape[1]],
            accuracy[own].reshape(names.shape),
        )
    return found
