"""Frozen manifests: lists of the images that a retrieval kept.

With a manifest, a later study or another group fetches the same images without a search. A method's ledgers
become ``retrieval/{method}/manifest.parquet``, one row per kept image. A published manifest gives
neighbours, and the hash that each file must have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from augbench.errors import UserError
from augbench.files import atomic_path
from augbench.retrieval.hunt import PLACE, kept_rows
from augbench.retrieval.neighbours import Found, check_ids, metadata_table

SCHEMA = pa.schema(
    [
        ("class_id", pa.string()),
        ("query", pa.string()),
        ("rank", pa.int32()),  # among all neighbours of the query
        ("id", pa.string()),  # of the image in the corpus
        ("url", pa.string()),
        ("caption", pa.string()),
        ("similarity", pa.float32()),  # cosine of image and query
        ("sha256", pa.string()),  # of the file
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("backend", pa.string()),  # name of the search backend
        ("clip", pa.string()),  # content hash of the CLIP model that embedded the query
    ]
)


def freeze(ledgers: Sequence[str | Path], neighbours_path: str | Path, out: str | Path) -> None:
    """Write a method's manifest from the ledgers of all its classes, each in the order of its pool."""
    first = pq.ParquetFile(neighbours_path).read(columns=["backend", "clip"]).slice(0, 1).to_pylist()
    made_by = first[0] if first else {"backend": None, "clip": None}
    tables = [pq.read_table(path) for path in ledgers]
    selected = any(PLACE.name in table.schema.names for table in tables)
    rows = [{**row, **made_by} for table in tables for row in kept_rows(table.to_pylist())]
    with atomic_path(out) as temporary:
        schema = SCHEMA.append(PLACE) if selected else SCHEMA
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary)


@dataclass(frozen=True)
class Manifest:
    """A published manifest; ``table`` has the columns of :data:`SCHEMA`, and :data:`PLACE` if it has it."""

    path: str
    table: pa.Table

    @cached_property
    def hashes(self) -> dict[str, dict[str, str]]:
        """SHA-256 by class_id and id."""
        found: dict[str, dict[str, str]] = {}
        for row in self.table.select(["class_id", "id", "sha256"]).to_pylist():
            found.setdefault(row["class_id"], {})[row["id"]] = row["sha256"]
        return found

    def found(self, class_ids: Sequence[str]) -> dict[str, Found]:
        """Return the manifest's images by class_id, in the form of a search result.

        Raises
        ------
        UserError
            The manifest has no image of a class, or an id stands for several.
        """
        if missing := [class_id for class_id in class_ids if class_id not in self.hashes]:
            raise UserError(
                self.path,
                f"no image of class {missing[0]!r}",
                f"allowed: a manifest with all {len(class_ids)} classes of the study",
            )
        results = {}
        for class_id in class_ids:
            is_of_class = pc.equal(self.table.column("class_id"), class_id)
            order = PLACE.name if PLACE.name in self.table.schema.names else "rank"
            rows = self.table.filter(is_of_class).sort_by(order)
            names = ("id", "url", "caption", "width", "height")
            columns = {name: rows.column(name).to_pylist() for name in names}
            check_ids(columns["id"], class_id, self.path)
            results[class_id] = Found(
                metadata_table(columns, rows.num_rows),
                rows.column("similarity").to_numpy().astype(np.float32),
                None,
            )
        return results


def read_manifest(path: str | Path) -> Manifest:
    """Read a manifest.

    Raises
    ------
    UserError
        The file is missing, damaged, or not a manifest.
    """
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            str(path),
            f"not readable ({str(error).splitlines()[0]})",
            "allowed: a manifest.parquet that a study has frozen",
        ) from None
    if missing := [name for name in SCHEMA.names if name not in table.schema.names]:
        raise UserError(
            str(path),
            f"no column {', '.join(missing)}",
            "allowed: a manifest.parquet that a study has frozen",
        )
    names = [*SCHEMA.names, *(name for name in (PLACE.name,) if name in table.schema.names)]
    return Manifest(str(path), table.select(names))
