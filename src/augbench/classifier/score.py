"""Score a finished classifier on the test split, or on a further test set: one prediction per image.

Only this module and the leakage guard read test images (guarded test split).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from augbench.classifier.compute import Compute
from augbench.classifier.features import logits_on
from augbench.classifier.images import LabelledImages
from augbench.classifier.networks import build
from augbench.classifier.sizes import evaluation_resize
from augbench.classifier.start import Start
from augbench.config.classifier import Classifier
from augbench.files import atomic_path

SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("label", pa.int32()),
        ("predicted", pa.int32()),
        ("probability", pa.float32()),
    ]
)


def score_test(
    state: Mapping[str, torch.Tensor],
    config: Classifier,
    kept: np.ndarray,
    test: LabelledImages,
    compute: Compute,
    start: Start | None = None,
) -> pa.Table:
    """Classify the test images.

    A prediction is the best of the classes that ``test`` has images of. Those of a further test set may be
    few; the others are masked, as is usual for ImageNet-R and -A. The ordinary test split has images of all.

    Parameters
    ----------
    state : mapping of str to Tensor
        Weights of the network that ``config`` describes.
    kept : ndarray, int (C,)
        The study's labels of the C classes, which the network and ``test`` number from 0 to C - 1.
    start : Start, optional
        What the network began with, if its weights were not random.

    Returns
    -------
    Table
        Columns :data:`SCHEMA`, rows in the order of ``test``, with the study's labels; ``probability`` is
        that of the true label, among the classes that are not masked.
    """
    logits = logits_of(state, config, len(kept), test, compute, start)
    labels = torch.from_numpy(test.labels)
    absent = torch.ones(len(kept), dtype=torch.bool)
    absent[labels] = False
    probabilities = logits.masked_fill(absent, -torch.inf).softmax(dim=1)
    of_truth = probabilities.gather(1, labels[:, None])[:, 0]
    columns = [test.ids, kept[labels.numpy()], kept[probabilities.argmax(dim=1).numpy()], of_truth.numpy()]
    return pa.Table.from_arrays(
        [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA
    )


def logits_of(
    state: Mapping[str, torch.Tensor],
    config: Classifier,
    classes: int,
    images: LabelledImages,
    compute: Compute,
    start: Start | None = None,
) -> torch.Tensor:
    """Logits of ``images`` by a network with the weights ``state``, float32 (N, classes) on the CPU.

    The images of a probe, whose state is that of its one layer, come as
    :class:`~augbench.classifier.features.LabelledFeatures`.
    """
    if config.train == "probe":
        model: nn.Module = nn.Linear(state["weight"].shape[1], classes)
    else:
        model = build(config, classes, 0, None if start is None else replace(start, classes=()))
    model.load_state_dict(state)
    model = model.to(compute.device).to(memory_format=torch.channels_last)
    return logits_on(model, images.pool(evaluation_resize(config), compute), config, compute.device)


def write_predictions(predictions: pa.Table, path: str | Path) -> None:
    """Write predictions to ``path``, atomically."""
    with atomic_path(path) as temporary:
        pq.write_table(predictions, temporary)


def has_rows(path: Path, rows: int) -> bool:
    """Whether a file of predictions is whole and has this many rows."""
    try:
        return pq.read_table(path).num_rows == rows
    except (pa.ArrowException, OSError):
        return False


def top1(predictions: pa.Table) -> float:
    """Share of images whose predicted label is the true one."""
    hits = sum(
        label == predicted
        for label, predicted in zip(
            *(predictions.column(name).to_pylist() for name in ("label", "predicted")), strict=True
        )
    )
    return hits / predictions.num_rows
