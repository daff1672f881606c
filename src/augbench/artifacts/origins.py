"""Images of pools that other rows start from or learn from, and the images that a row started from.

Input: indexes of pools and the shards they name. Output: for each image its name in the provenance of what is
made from it, and its hash, which identifies it wherever it is stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from augbench.artifacts.pool import pool_of, pools_of, read_index
from augbench.artifacts.shards import image_name, read_shard

ADDED, TRAIN = "added:", "train"  # beginning of an added image's source in a manifest; the training images


@dataclass(frozen=True)
class Start:
    """An added image that sampling starts from.

    Attributes
    ----------
    source : str
        The address or id at which a retrieved image was found, or the name of a generated image in its shard.
    origin : str
        SHA-256 of the encoded image.
    """

    source: str
    origin: str


def starts_of(
    index_path: str | Path, folder: str | Path, leaks_path: str | Path | None = None
) -> dict[str, list[Start]]:
    """Images of a pool by class, in the order of its index; classes without images are missing.

    Images of several rows alternate, so that as many as a row starts from have about the shares of all.

    Parameters
    ----------
    index_path : path
        Index of the pool (:func:`augbench.artifacts.pool.build_index`), or the manifest of a set.
    folder : path
        Folder of the study's results.
    leaks_path : path, optional
        Near-duplicates of validation and test images (:func:`augbench.leakage.stage.guard`), which are left
        out.

    Raises
    ------
    UserError
        A file is damaged, or all images of a class are left out.
    """
    index = read_index(index_path)
    if leaks_path is not None:
        from augbench.leakage.effects import without_leaks
        from augbench.leakage.records import read_leaks

        index = without_leaks(index, read_leaks(leaks_path), where=str(index_path))
    names: dict[str, list[str]] = {}
    found: dict[str, list[Start]] = {}
    for row in index.take(_alternating(index)).to_pylist():
        if row["path"] not in names:
            names[row["path"]] = _names(Path(folder) / row["path"])
        start = Start(names[row["path"]][row["row"]], row["sha256"])
        found.setdefault(row["class_id"], []).append(start)
    return found


def _alternating(index: pa.Table) -> np.ndarray:
    """Order of an index in which the images of a class come from its pools in turn, by their shares.

    Image i of n of a pool comes at (i + 1/2) / n of the class; of equal places, the first pool comes first.
    """
    keys = list(zip(index.column("class_id").to_pylist(), pools_of(index), strict=True))
    sizes, seen = Counter(keys), Counter[tuple[str, str]]()
    places = np.zeros(len(keys))
    for row, key in enumerate(keys):
        places[row] = (seen[key] + 0.5) / sizes[key]
        seen[key] += 1
    return np.argsort(places, kind="stable")  # classes are taken apart afterwards


def _names(path: Path) -> list[str]:
    """Names of a shard's images: where retrieved images were found, and the names of generated ones."""
    rows = read_shard(path, ["class_id", "index", "source", "seed"]).to_pylist()
    return [
        row["source"] if row["seed"] is None and row["source"] else image_name(row["class_id"], row["index"])
        for row in rows
    ]


def rows_by_hash(index: pa.Table) -> Mapping[str, int]:
    """Row of an index by the hash of its image; of equal images, the first."""
    places: dict[str, int] = {}
    for row, sha256 in enumerate(index.column("sha256").to_pylist()):
        places.setdefault(sha256, row)
    return places


def origins(paths: Sequence[str | Path]) -> dict[tuple[str, int], str]:
    """Hash of the image that each image of some shards started from, by (class_id, index)."""
    found: dict[tuple[str, int], str] = {}
    for path in paths:
        if "origin" in pq.read_schema(path).names:
            table = read_shard(path, ["class_id", "index", "origin"])
            found |= {
                (row["class_id"], row["index"]): row["origin"] for row in table.to_pylist() if row["origin"]
            }
    return found


def added_source(row: Mapping[str, object]) -> str:
    """Source of an added image in a manifest, from its row of an index."""
    return f"{ADDED}{row['path']}#{row['row']}#{row['sha256']}"


def parse_added(source: str) -> dict[str, Any]:
    """Columns path, row and sha256 of an index from the source of an added image."""
    path, row, sha256 = source.removeprefix(ADDED).rsplit("#", 2)
    return {"path": path, "row": int(row), "sha256": sha256}


def counts_by_row(sources: Sequence[str]) -> dict[str, int]:
    """Number of images by the row that made or retrieved them; training images are those of ``train``."""
    made = [pool_of(parse_added(source)["path"]) if source.startswith(ADDED) else TRAIN for source in sources]
    return dict(Counter(made))
