"""Neighbours: the result of a search, in the same table for every backend.

The table is ``retrieval/{method}/neighbours.parquet``: one row per class and rank, with everything that
filters and downloads need. The rows can also be read as objects.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from augbench.artifacts.parquet import REMAKE
from augbench.errors import UserError
from augbench.files import atomic_path

METADATA = {
    "id": pa.string(),
    "url": pa.string(),  # location of the image: a web address, or a path relative to a folder of images
    "caption": pa.string(),
    "width": pa.int32(),  # in pixels
    "height": pa.int32(),
    "nsfw": pa.string(),  # LAION's tag: UNLIKELY, UNSURE, NSFW; others write true or LIKELY
    "punsafe": pa.float32(),  # LAION's probability that the image is unsafe
    "aesthetic": pa.float32(),  # LAION's score, about 1 to 10
    "hash": pa.string(),  # of the image's file or row, as the corpus gives it; for lists of images
}
"""Metadata columns of a corpus image; all except ``id`` may be null."""


def neighbour_schema(width: int | None) -> pa.Schema:
    """Schema of the table; embeddings are float16 ``(width,)``, or null if the backend gives none."""
    leading = [("class_id", pa.string()), ("query", pa.string()), ("rank", pa.int32())]
    embedding = pa.null() if width is None else pa.list_(pa.float16(), width)
    return pa.schema(
        [
            *leading,
            *METADATA.items(),
            ("similarity", pa.float32()),
            ("embedding", embedding),
            ("backend", pa.string()),
            ("clip", pa.string()),
        ]
    )


@dataclass(frozen=True)
class Neighbour:
    """One candidate image of a class.

    The attributes are columns of :func:`neighbour_schema`. ``embedding`` is float16 (D,), or None.
    """

    class_id: str
    query: str
    rank: int
    id: str
    url: str | None
    caption: str | None
    width: int | None
    height: int | None
    nsfw: str | None
    punsafe: float | None
    aesthetic: float | None
    similarity: float
    embedding: np.ndarray | None
    hash: str | None = None


def stack_embeddings(neighbours: Sequence[Neighbour]) -> np.ndarray:
    """Embeddings of neighbours that all have one, float16 ``(N, D)``."""
    return np.stack([neighbour.embedding for neighbour in neighbours if neighbour.embedding is not None])


@dataclass(frozen=True)
class Found:
    """Search result for one class, nearest image first.

    Attributes
    ----------
    metadata : Table
        Columns as in :data:`METADATA`.
    similarity : ndarray, float32 (N,)
        Cosine similarity of image and query.
    embeddings : ndarray, float16 (N, D), optional
        Image embeddings of unit length.
    query : ndarray, int (N,), optional
        Number of the query that found the image, among those of its class; None: all were found by one.
    """

    metadata: pa.Table
    similarity: np.ndarray
    embeddings: np.ndarray | None
    query: np.ndarray | None = None

    def first(self, k: int) -> Found:
        """The k nearest images."""
        return Found(
            self.metadata.slice(0, k),
            self.similarity[:k],
            None if self.embeddings is None else self.embeddings[:k],
            None if self.query is None else self.query[:k],
        )


def take_turns(keys: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Merge the neighbours of a class's queries; return the query and rank of each, int ``(N,)``.

    Queries take turns: the first neighbour of each in the order of the queries, then the second of each, and
    so on. An image that several queries found counts once, where it comes first: by the query that ranks it
    higher, and of equal ones by the first. The first k images stay.

    Parameters
    ----------
    keys : ndarray, int (Q, K)
        The images that each query found, nearest first; -1 where it found fewer.
    """
    in_turn = keys.T.ravel()
    names, place = np.unique(in_turn, return_index=True)
    place = np.sort(place[names >= 0])[:k]
    return place % len(keys), place // len(keys)


def merge(found: Sequence[Found], k: int) -> Found:
    """Merge the results of several queries of a class, which take turns (:func:`take_turns`)."""
    numbers: dict[str, int] = {}
    keys = np.full((len(found), max(len(result.similarity) for result in found)), -1)
    for row, result in enumerate(found):
        for rank, name in enumerate(result.metadata.column("id").to_pylist()):
            keys[row, rank] = numbers.setdefault(name, len(numbers))
    query, ranks = take_turns(keys, k)
    starts = np.cumsum([0, *(len(result.similarity) for result in found)])
    places = starts[query] + ranks
    vectors = [result.embeddings for result in found if result.embeddings is not None]
    return Found(
        pa.concat_tables([result.metadata for result in found]).take(pa.array(places)),
        np.concatenate([result.similarity for result in found])[places],
        np.concatenate(vectors)[places] if vectors else None,
        query,
    )


def merged(answers: Iterator[Found], sizes: Sequence[int] | None, k: int) -> list[Found]:
    """One result per class, whose numbers of queries are ``sizes``; without sizes, one per query."""
    if sizes is None:
        return list(answers)
    return [merge(list(islice(answers, size)), k) for size in sizes]


class Backend(Protocol):
    """A corpus that can be searched."""

    @property
    def name(self) -> str:
        """Name of the backend in tables."""

    def search(self, queries: np.ndarray, k: int, sizes: Sequence[int] | None = None) -> list[Found]:
        """Return the k nearest images of each query, or fewer if the corpus is smaller.

        ``queries`` is float32 ``(Q, D)`` of unit length. With ``sizes``, it holds that many queries of each
        class, class by class, and there is one result per class, in which its queries take turns.
        """


def metadata_table(columns: Mapping[str, Sequence[Any]], rows: int) -> pa.Table:
    """Build a table with the columns of :data:`METADATA`; columns that are not given are null."""
    arrays = [
        pa.array(columns[name], kind) if name in columns else pa.nulls(rows, kind)
        for name, kind in METADATA.items()
    ]
    return pa.table(arrays, names=list(METADATA))


def write_neighbours(
    path: str | Path,
    found: Mapping[str, Found],
    queries: Mapping[str, str | Sequence[str]],
    backend: str,
    clip: str,
) -> None:
    """Write the table of neighbours.

    Parameters
    ----------
    found, queries : mapping
        Search result, and query text or the names of several queries, by class_id.
    backend : str
        Name of the backend that searched.
    clip : str
        Content hash of the CLIP model that embedded the queries.
    """
    widths = {result.embeddings.shape[1] for result in found.values() if result.embeddings is not None}
    schema = neighbour_schema(widths.pop() if widths else None)
    parts = []
    for class_id, result in found.items():
        count = len(result.similarity)
        if result.embeddings is None:
            embeddings: pa.Array = pa.nulls(count, schema.field("embedding").type)
        else:
            embeddings = pa.FixedSizeListArray.from_arrays(
                pa.array(result.embeddings.astype(np.float16).ravel()), result.embeddings.shape[1]
            )
        asked = queries[class_id]
        names = [asked] if isinstance(asked, str) else asked
        finders = [names[0]] * count if result.query is None else [names[number] for number in result.query]
        columns = {
            "class_id": pa.array([class_id] * count, pa.string()),
            "query": pa.array(finders, pa.string()),
            "rank": pa.array(range(count), pa.int32()),
            **{name: result.metadata.column(name).cast(kind) for name, kind in METADATA.items()},
            "similarity": pa.array(result.similarity, pa.float32()),
            "embedding": embeddings,
            "backend": pa.array([backend] * count, pa.string()),
            "clip": pa.array([clip] * count, pa.string()),
        }
        parts.append(pa.table([columns[name] for name in schema.names], schema=schema))
    with atomic_path(path) as temporary:
        pq.write_table(pa.concat_tables(parts) if parts else schema.empty_table(), temporary)


def read_neighbours(path: str | Path, class_ids: Sequence[str]) -> dict[str, list[Neighbour]]:
    """Read the neighbours of the given classes, nearest first.

    Raises
    ------
    UserError
        The file is damaged, or an id stands for several images of a class.
    """
    try:
        there = pq.read_schema(path).names  # earlier versions wrote no hash
        wanted = [field.name for field in fields(Neighbour) if field.name in there]
        table = pq.read_table(path, columns=wanted, filters=[("class_id", "in", list(class_ids))])
    except (pa.ArrowException, OSError) as error:
        raise UserError(str(path), f"damaged ({str(error).splitlines()[0]})", REMAKE) from None
    embeddings = table.column("embedding").combine_chunks()
    vectors: Sequence[np.ndarray | None] = [None] * table.num_rows
    if table.num_rows and not pa.types.is_null(embeddings.type):
        vectors = list(embeddings.flatten().to_numpy().reshape(table.num_rows, -1))
    rows: dict[str, list[Neighbour]] = {class_id: [] for class_id in class_ids}
    for row, vector in zip(table.drop_columns(["embedding"]).to_pylist(), vectors, strict=True):
        rows[row["class_id"]].append(Neighbour(**row, embedding=vector))
    for class_id, found in rows.items():
        check_ids([neighbour.id for neighbour in found], class_id, path)
    return rows


def check_ids(ids: Sequence[str], class_id: str, path: str | Path) -> None:
    """Check that each id names one image of a class.

    Raises
    ------
    UserError
        Ids repeat. Fates, hashes and pixels go by id, so they would be exchanged.
    """
    if len(set(ids)) < len(ids):
        repeated, count = Counter(ids).most_common(1)[0]
        raise UserError(
            str(path),
            f"id {repeated!r} stands for {count} images of class {class_id!r}",
            "ids must be unique: search again (delete this file), or freeze the manifest again",
        )
