"""Shortfall: what retrieval gave per class, and which classes are left out everywhere because it gave too little (paper, section 3).

Flows in: the ledgers of all retrieval methods and the sizes of classes. Flows out: one frozen manifest per method, ``retrieval/yield.csv`` with
the fates of all candidates, and ``retrieval/excluded.json``, which resampling and classification read. Generation covers all classes,
so nothing expensive is made again when a class comes back.
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
from augbench.resample import needed_images
from augbench.retrieval.filters import KEPT
from augbench.retrieval.manifest import freeze

ALL = "all classes"


def shortfall(
    study: Study, kept: Mapping[str, Mapping[str, int]], training_images: Mapping[str, int]
) -> dict[str, dict[str, dict[str, int]]]:
    """Classes with fewer images than a training set needs, by class_id and method, with ``kept`` and ``needed``; methods that may fall short don't count.

    Parameters
    ----------
    kept : mapping
        Images kept by method and class_id.
    training_images : mapping
        Images per class in the training split.
    """
    short: dict[str, dict[str, dict[str, int]]] = {}
    for class_id, size in training_images.items():
        for name, counts in kept.items():
            method = study.retrieved[name]
            needed = needed_images(method.added_per_training_image, size)
            if not method.may_fall_short and counts.get(class_id, 0) < needed:
                short.setdefault(class_id, {})[name] = {"kept": counts.get(class_id, 0), "needed": needed}
    return short


def decide(study: Study, short: Mapping[str, Any], class_ids: Sequence[str]) -> list[str]:
    """The classes that are left out, as ``retrieval.exclude`` says, in label order.

    Raises
    ------
    UserError
        A class is short and not left out; all but one would go; or the list names an unknown class.
    """
    exclude = study.retrieval.exclude
    if isinstance(exclude, tuple) and (unknown := sorted(set(exclude) - set(class_ids))):
        raise UserError("retrieval.exclude", repr(unknown[0]), "allowed: class_ids of the data set")
    left_out = set(short) if exclude == "auto" else set() if exclude == "none" else set(exclude)
    if forgotten := [class_id for class_id in class_ids if class_id in short and class_id not in left_out]:
        counts = ", ".join(
            f"{class_id} ({min(found['kept'] for found in short[class_id].values())} kept)"
            for class_id in forgotten[:10]
        )
        raise UserError(
            "retrieval.exclude",
            f"{len(forgotten)} class(es) with too few retrieved images: {counts}",
            "allowed: auto, or a list that holds them; or more neighbours",
        )
    if len(class_ids) - len(left_out) < 2:
        raise UserError(
            "retrieval.exclude",
            f"{len(left_out)} of {len(class_ids)} classes would be left out",
            "at least 2 must stay: retrieve more, or search elsewhere",
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
        By method; the last are written.

    Raises
    ------
    UserError
        As :func:`decide`.
    """
    kept: dict[str, Counter[str]] = {}
    rows: list[tuple[str, str, str, int]] = []
    for name, paths in ledgers.items():
        fates: dict[str, Counter[str]] = {ALL: Counter(), **{class_id: Counter() for class_id in class_ids}}
        for path in paths:
            for row in pq.read_table(path, columns=["class_id", "fate"]).to_pylist():
                for scope in (ALL, row["class_id"]):
                    fates[scope][row["fate"]] += 1
        kept[name] = Counter({class_id: fates[class_id][KEPT] for class_id in class_ids})
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
    """Classes that are left out, from ``excluded.json`` where there is one."""
    return frozenset(class_id for path in paths for class_id in read_json(path)["excluded"])
