"""Prompts: one row per image to make, a function of (method, class, i) only (paper, section 3.1).

Flows in: the class table, the number of training images per class, a method. Flows out: ``prompts/{method}.parquet`` with
label, class_id, part, index, prompt; for retrieval one query per class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from augbench.classes import ClassInfo
from augbench.config import Prompting, RetrieveMethod, SampleMethod, Study
from augbench.files import atomic_path
from augbench.seeds import derive_seed
from augbench.templates import load_templates, strip_whitespace

SCHEMA = pa.schema(
    [
        ("label", pa.int32()),
        ("class_id", pa.string()),
        ("part", pa.int32()),
        ("index", pa.int32()),
        ("prompt", pa.string()),
    ]
)


def class_name(info: ClassInfo, how: str) -> str:
    """n ("tiger shark, Galeocerdo cuvieri") or w(n) ("tigershark,Galeocerdocuvieri"; paper, section 3.1)."""
    return strip_whitespace(info.name) if how == "no_whitespace" else info.name


def prompt_for(info: ClassInfo, index: int, prompting: Prompting, seed: int) -> str:
    """The prompt of image ``index`` of a class; templates are drawn with replacement, per image."""
    templates = load_templates(prompting.templates)
    chosen = 0
    if len(templates) > 1:
        rng = np.random.default_rng(derive_seed(seed, "template", info.class_id, index))
        chosen = int(rng.integers(len(templates)))
    return templates[chosen].format(class_name(info, prompting.class_name))


def write_prompts(study: Study, name: str, classes: Sequence[ClassInfo], training_images: Mapping[str, int], path: str | Path) -> None:
    """Write the prompts of method ``name``.

    Parameters
    ----------
    training_images : mapping
        Number of images per class id in the training split; sizes of pools may depend on it.
    """
    method = study.methods[name]
    assert isinstance(method, SampleMethod | RetrieveMethod)
    rows = []
    for label, info in enumerate(classes):
        if isinstance(method, RetrieveMethod):
            rows.append((label, info.class_id, 0, 0, prompt_for(info, 0, method.query, study.seed)))
            continue
        for part in range(study.augmentation.parts):
            for index in study.augmentation.part_range(part, training_images[info.class_id]):
                rows.append((label, info.class_id, part, index, prompt_for(info, index, method.prompt, study.seed)))
    columns = zip(*rows, strict=True)
    table = pa.table([pa.array(list(column), field.type) for column, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)


def read_prompts(path: str | Path) -> dict[tuple[str, int], list[dict[str, object]]]:
    """Rows by (class_id, part), in order of index."""
    grouped: dict[tuple[str, int], list[dict[str, object]]] = {}
    for row in pq.read_table(path).to_pylist():
        grouped.setdefault((row["class_id"], row["part"]), []).append(row)
    return grouped
