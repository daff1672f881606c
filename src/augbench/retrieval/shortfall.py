"""Shortfall: leave out classes for which retrieval found too few images (paper, section 3).

Such a class is left out for every method. Input: the ledgers of all retrieval methods and the class sizes.
Output: a frozen manifest per method, ``retrieval/yield.csv`` with the fates of all candidates, and
``retrieval/excluded.json``, which resampling and classification read. Generation covers all classes that the
config does not list, so nothing expensive is repeated when a class is included again.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from augbench.config.study import Study
from augbench.errors import UserError
from augbench.files import read_json, write_json, write_text
from augbench.resample import needed_by_class
from augbench.retrieval.filters import KEPT
from augbench.retrieval.hunt import COPY, COPY_OF
from augbench.retrieval.manifest import freeze

ALL = "all classes"
KEPT_COPY = f"{KEPT}, a {COPY}"  # in the yield: images that ``training_copies: count`` keeps
COUNTED = ("class_id", "fate", COPY_OF.name)


def shortfall(
    study: Study, kept: Mapping[str, Mapping[str, int]], training_images: Mapping[str, int]
) -> dict[str, dict[str, dict[str, int]]]:
    """Return ``kept`` and ``needed`` by class_id and method, for classes with too few images to stay.

    Methods with ``may_fall_short`` and classes that ``retrieval.exclude`` lists are ignored.

    Parameters
    ----------
    kept : mapping
        Number of kept images by method and class_id.
    training_images : mapping
        Images per class in the training split.
    """
    short: dict[str, dict[str, dict[str, int]]] = {}
    added = {
        name: needed_by_class(training_images, row.added_per_training_image, row.fill_to)
        for name, row in study.retrieved.items()
    }
    for class_id in training_images:
        if class_id in study.retrieval.listed:
            continue
        for name, counts in kept.items():
            method = study.retrieved[name]
            needed = max(added[name][class_id], method.least_images or 0)
            if not method.may_fall_short and counts.get(class_id, 0) < needed:
                short.setdefault(class_id, {})[name] = {"kept": counts.get(class_id, 0), "needed": needed}
    return short


def decide(study: Study, short: Mapping[str, Any], class_ids: Sequence[str]) -> list[str]:
    """Return the classes that ``retrieval.exclude`` leaves out, in label order.

    Raises
    ------
    UserError
        A class is short but not left out, or fewer than 2 classes would stay.
    """
    left_out = set(short) if study.retrieval.exclude == "auto" else study.retrieval.listed
    if forgotten := [class_id for class_id in class_ids if class_id in short and class_id not in left_out]:
        counts = ", ".join(
            f"{class_id} ({min(found['kept'] for found in short[class_id].values())} kept)"
            for class_id in forgotten[:10]
        )
        raise UserError(
            "retrieval.exclude",
            f"{len(forgotten)} class(es) with too few retrieved images: {counts}",
            "allowed: auto, or a list with these classes; or retrieve more neighbours",
        )
    if len(class_ids) - len(left_out) < 2:
        raise UserError(
            "retrieval.exclude",
            f"{len(left_out)} of {len(class_ids)} classes would be left out",
            "at least 2 must stay: retrieve more images, or use another corpus",
        )
    return [class_id for class_id in class_ids if class_id in left_out]


def summarise(
    study: Study,
    class_ids: Sequence[str],
    training_images: Mapping[str, int],
    ledgers: Mapping[str, Sequence[str | Path]],
    neighbours: Mapping[str, str | Path],
    manifests: Mapping[str, str | Path],
    yield_path: str | Path,
    excluded_path: str | Path,
) -> None:
    """Write the manifests, the yield and the classes that are left out.

    Parameters
    ----------
    ledgers, neighbours, manifests : mapping
        Paths by method; the manifests are written.

    Raises
    ------
    UserError
        As in :func:`decide`.
    """
    kept: dict[str, Counter[str]] = {}
    rows: list[tuple[str, str, str, int]] = []
    for name, paths in ledgers.items():
        fates: dict[str, Counter[str]] = {ALL: Counter(), **{class_id: Counter() for class_id in class_ids}}
        for path in paths:
            names = [name for name in COUNTED if name in pq.read_schema(path).names]
            for row in pq.read_table(path, columns=names).to_pylist():
                copied = row["fate"] == KEPT and row.get(COPY_OF.name) is not None
                for scope in (ALL, row["class_id"]):
                    fates[scope][KEPT_COPY if copied else row["fate"]] += 1
        kept[name] = Counter(
            {class_id: fates[class_id][KEPT] + fates[class_id][KEPT_COPY] for class_id in class_ids}
        )
        rows += [
            (name, scope, fate, count)
            for scope, counts in fates.items()
            for fate, count in counts.most_common()
        ]
        freeze(paths, neighbours[name], manifests[name])
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("method", "class_id", "fate", "candidates"))
    writer.writerows(rows)
    write_text(yield_path, text.getvalue())
    short = shortfall(study, kept, training_images)
    exclude = study.retrieval.exclude
    write_json(
        excluded_path,
        {
            "exclude": list(exclude) if isinstance(exclude, tuple) else exclude,
            "excluded": decide(study, short, class_ids),
            "short": short,
        },
    )


def read_excluded(paths: Sequence[str | Path]) -> frozenset[str]:
    """Read the classes that are left out from ``excluded.json``, if the study has one."""
    return frozenset(class_id for path in paths for class_id in read_json(path)["excluded"])
