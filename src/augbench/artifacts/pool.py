"""The pool of a method: the index of all images in its shards, and the images of chosen rows.

The index, ``shards/{method}/selected/index.parquet``, has one small row per image, so training sets are drawn
without opening a shard. A row that mixes pools has one index of all; an image's path names its pool. Its
metadata count the images that shards lack, and those of a set's manifest the images that the set lacks. The
images of chosen rows are loaded with one read per shard.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from augbench.artifacts.parquet import REMAKE, read_table, whole
from augbench.artifacts.shards import read_lacking, read_shard
from augbench.errors import UserError
from augbench.files import atomic_path
from augbench.progress import track

SCHEMA = pa.schema(
    [
        ("class_id", pa.string()),
        ("label", pa.int32()),
        ("index", pa.int32()),  # i of "image i of class c"
        ("path", pa.string()),  # of the shard, relative to the study's folder
        ("row", pa.int32()),  # of the shard
        ("sha256", pa.string()),  # of the encoded image
        ("similarity", pa.float32()),  # to the query; null for generated images
    ]
)
LACKING = b"lacking"  # key of the metadata
LACKING_BY_POOL = b"lacking_by_pool"  # the same by pool, in an index of several


@dataclass(frozen=True)
class Lack:
    """Images that a class lacks: of a pool, those whose samples were all flagged; of a set, those not drawn.

    Attributes
    ----------
    images : int
        Number of missing images.
    wanted : int
        Number of images that the class should have.
    flagged : int
        Samples of the missing images, all of them flagged by the safety checker; 0 if the pool's shards have
        all images that could be found.
    """

    images: int
    wanted: int
    flagged: int = 0

    def __add__(self, other: Lack) -> Lack:
        return Lack(self.images + other.images, self.wanted + other.wanted, self.flagged + other.flagged)


def with_lacks(table: pa.Table, lacks: Mapping[str, Lack]) -> pa.Table:
    """``table`` with the images that classes lack in its metadata; without metadata if none lacks any."""
    said = {LACKING: json.dumps({name: asdict(lack) for name, lack in lacks.items()})} if lacks else None
    return table.replace_schema_metadata(said)


def lacks_of(table: pa.Table) -> dict[str, Lack]:
    """Images that classes of an index or a manifest lack, by class_id."""
    said = json.loads((table.schema.metadata or {}).get(LACKING, b"{}"))
    return {class_id: Lack(**lack) for class_id, lack in said.items()}


def lacks_by_pool(table: pa.Table) -> dict[tuple[str, str], Lack]:
    """Images that classes of an index lack, by pool and class_id."""
    said = json.loads((table.schema.metadata or {}).get(LACKING_BY_POOL, b"null"))
    if said is None:
        return {(pool, c): lack for pool in {*pools_of(table)} for c, lack in lacks_of(table).items()}
    return {(pool, c): Lack(**lack) for pool, lacks in said.items() for c, lack in lacks.items()}


def _with_lacks_by_pool(table: pa.Table, lacks: Mapping[tuple[str, str], Lack]) -> pa.Table:
    """Index with the images that classes lack in its metadata by class, and by pool if it has several."""
    merged: dict[str, Lack] = {}
    for (_, class_id), lack in lacks.items():
        merged[class_id] = merged.get(class_id, Lack(0, 0)) + lack
    short = {class_id: lack for class_id, lack in merged.items() if lack.images}
    table = with_lacks(table, short)
    pools = dict.fromkeys(pool for pool, _ in lacks)
    if not short or len(pools) < 2:
        return table
    said = {
        pool: {c: asdict(lack) for (other, c), lack in lacks.items() if other == pool and lack.images}
        for pool in pools
    }
    return table.replace_schema_metadata({**table.schema.metadata, LACKING_BY_POOL: json.dumps(said)})


def pool_of(path: str | Path) -> str:
    """Row that made the images of a shard, whose path is relative to the study's folder."""
    return Path(path).parts[1]


def pools_of(table: pa.Table) -> list[str]:
    """Row that made each image of an index or a manifest."""
    paths = table.column("path").combine_chunks().dictionary_encode()
    names = [pool_of(path) for path in paths.dictionary.to_pylist()]
    return [names[number] for number in paths.indices.to_pylist()]


def build_index(
    shard_paths: Sequence[str | Path],
    study_folder: str | Path,
    out: str | Path,
    keep: Callable[[pa.Table], pa.Table] | None = None,
) -> None:
    """Write the index of ``shard_paths``, or the part of it that ``keep`` returns.

    Raises as :func:`index_of`.
    """
    index = index_of(shard_paths, study_folder, Path(out).parent)
    index = index if keep is None else keep(index)
    with atomic_path(out) as temporary:
        pq.write_table(index, temporary)


def index_of(shard_paths: Sequence[str | Path], study_folder: str | Path, where: str | Path) -> pa.Table:
    """Index of ``shard_paths``, made without reading the images.

    Rows are sorted by label, then by pool in the order of the paths, then by index.

    Parameters
    ----------
    shard_paths : sequence of path
        All shards of a method, or of several, in subfolders of ``study_folder``.
    where : path
        Name of the index in errors.

    Raises
    ------
    UserError
        A shard is damaged, is not in the study's folder, or has images of a class that is not its folder's
        name; a class has two labels or a label two classes; an image occurs twice; or there is no image,
        because the safety checker flagged all samples.
    """
    tables, lacks = [], dict[tuple[str, str], Lack]()
    for path in track(shard_paths, "index", "shard"):
        table = read_shard(path, ["class_id", "label", "index", "sha256", "similarity"])
        found = set(table.column("class_id").to_pylist())
        if found - {Path(path).parent.name}:
            raise UserError(
                str(path),
                f"images of {sorted(found)}",
                f"a shard of class {Path(path).parent.name!r} only is expected here; {REMAKE}",
            )
        try:
            relative = Path(path).resolve().relative_to(Path(study_folder).resolve()).as_posix()
        except ValueError:
            raise UserError(
                str(path), f"not in {study_folder}", "the shards of a study are in its folder"
            ) from None
        rows = table.num_rows
        flagged = lacking.flagged if (lacking := read_lacking(path)) is not None else {}
        key, lack = (pool_of(relative), Path(path).parent.name), Lack(len(flagged), rows + len(flagged))
        lacks[key] = lacks.get(key, Lack(0, 0)) + replace(lack, flagged=sum(flagged.values()))
        table = table.append_column("path", pa.array([relative] * rows, pa.string())).append_column(
            "row", pa.array(range(rows), pa.int32())
        )
        tables.append(table.select(SCHEMA.names).cast(SCHEMA))
    index = pa.concat_tables(tables) if tables else SCHEMA.empty_table()
    pools = pools_of(index)
    _check(index, pools, Path(where))
    place = {pool: number for number, pool in enumerate(dict.fromkeys(pools))}
    labels, numbers = (index.column(name).to_numpy() for name in ("label", "index"))
    index = index.take(np.lexsort((numbers, [place[pool] for pool in pools], labels)))
    if not index.num_rows and any(lack.images for lack in lacks.values()):
        raise UserError(
            str(where),
            f"no image: the safety checker flagged all {sum(lack.flagged for lack in lacks.values())} "
            "samples",
            "change the row's prompts, or diffusion.safety_checker",
        )
    return _with_lacks_by_pool(index, lacks)


def _check(index: pa.Table, pools: Sequence[str], where: Path) -> None:
    """Check that classes and labels are one to one, and that no (class, index) occurs twice in a pool."""
    pairs = set(zip(index.column("label").to_pylist(), index.column("class_id").to_pylist(), strict=True))
    for position, what in ((0, "label"), (1, "class_id")):
        if twice := sorted(
            value for value, count in Counter(pair[position] for pair in pairs).items() if count > 1
        ):
            raise UserError(
                str(where),
                f"{what} {twice[0]!r} is in more than one of the pairs {sorted(pairs)}",
                f"one label per class is expected; {REMAKE}",
            )
    ids, numbers = (index.column(name).to_pylist() for name in ("class_id", "index"))
    keys = Counter(zip(ids, numbers, pools, strict=True))
    if repeated := sorted(key for key, count in keys.items() if count > 1):
        raise UserError(
            str(where), f"image {repeated[0][1]} of class {repeated[0][0]!r} is in two shards", REMAKE
        )


def read_index(path: str | Path) -> pa.Table:
    """Read an index, or the manifest of a set, which has the same columns.

    Raises
    ------
    UserError
        The file is missing, not a whole Parquet file, or has other columns than :data:`SCHEMA`.
    """
    return read_table(path, SCHEMA)


def load_images(rows: pa.Table, study_folder: str | Path) -> Iterator[Image.Image]:
    """Yield the images of ``rows``, in their order, as RGB. Reads and raises as :func:`load_rows`."""
    for row in load_rows(rows, study_folder, ("image", "sha256")):
        yield Image.open(BytesIO(row["image"]["bytes"])).convert("RGB")


def load_rows(
    rows: pa.Table, study_folder: str | Path, columns: Sequence[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Yield what shards say of the images of ``rows``, in their order; each shard is read once.

    A shard stays in memory until its last row is yielded, so rows in the order of the index need one shard
    in memory at a time.

    Parameters
    ----------
    columns : sequence of str, optional
        Columns of the shards, ``sha256`` among them. Default: all that a shard has.

    Raises
    ------
    UserError
        A shard is damaged, or was remade with other images after the index.
    """
    paths, places, hashes = (rows.column(name).to_pylist() for name in ("path", "row", "sha256"))
    pending: dict[str, list[int]] = {}
    for path, place in zip(paths, places, strict=True):
        pending.setdefault(path, []).append(place)
    shards: dict[str, dict[int, dict[str, Any]]] = {}
    for path, place, sha256 in zip(paths, places, hashes, strict=True):
        if path not in shards:
            shards[path] = _read_rows(Path(study_folder) / path, pending[path], columns)
        found = shards[path].get(place)
        if found is None or found["sha256"] != sha256:
            raise UserError(
                str(path),
                f"row {place} is not the image of the index",
                "delete the index of this method and run again",
            )
        yield found
        pending[path].pop()
        if not pending[path]:
            del shards[path]


def _read_rows(path: Path, wanted: Sequence[int], columns: Sequence[str] | None) -> dict[int, dict[str, Any]]:
    """Map each of the wanted rows that the shard has to its columns."""
    if columns is None:
        with whole(path):
            columns = pq.read_schema(path).names
    table = read_shard(path, columns)
    rows = sorted({row for row in wanted if row < table.num_rows})
    return dict(zip(rows, table.take(rows).to_pylist(), strict=True))
