"""Query vectors: of a text, of training images in CLIP space, or of both.

Input: a method's query, the prompts, the CLIP embeddings of the training images. Output: one or several
named query vectors per class. The name says in every neighbour's row which query found it. If several jobs
share a search, a file has the queries, so that all compare with the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from augbench.artifacts.parquet import REMAKE
from augbench.config.methods import Query
from augbench.errors import UserError
from augbench.files import atomic_path
from augbench.seeds import derive_seed


@dataclass(frozen=True)
class Asked:
    """A query of a class: its name in tables, and its vector, float32 ``(D,)`` of unit length."""

    name: str
    vector: np.ndarray


@dataclass(frozen=True)
class Questions:
    """Queries of a method by class id, and the number of images that each class may need, its k."""

    asked: Mapping[str, Sequence[Asked]]
    limits: Mapping[str, int]

    @property
    def vectors(self) -> np.ndarray:
        """Vectors of all queries, class by class, float32 ``(Q, D)``."""
        return np.stack([query.vector for of_class in self.asked.values() for query in of_class])

    @property
    def k(self) -> int:
        """Images that are searched for each query."""
        return max(self.limits.values())

    @property
    def sizes(self) -> list[int] | None:
        """Number of queries of each class; None if each has one."""
        sizes = [len(of_class) for of_class in self.asked.values()]
        return sizes if max(sizes) > 1 else None

    @property
    def names(self) -> dict[str, list[str]]:
        """Names of the queries by class id."""
        return {class_id: [query.name for query in of_class] for class_id, of_class in self.asked.items()}

    def write(self, path: str | Path) -> None:
        """Write a table with one row per query, class by class; the vectors keep all their bits."""
        queries = [(class_id, query) for class_id, of_class in self.asked.items() for query in of_class]
        vectors = self.vectors
        columns = {
            "class_id": [class_id for class_id, _ in queries],
            "query": [query.name for _, query in queries],
            "k": [self.limits[class_id] for class_id, _ in queries],
            "vector": pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1]),
        }
        with atomic_path(path) as temporary:
            pq.write_table(pa.table(columns), temporary)

    @classmethod
    def read(cls, path: str | Path) -> Questions:
        """Read what :meth:`write` has written.

        Raises
        ------
        UserError
            The file is damaged.
        """
        try:
            table = pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise UserError(str(path), f"damaged ({str(error).splitlines()[0]})", REMAKE) from None
        vectors = table["vector"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
        names = table.drop_columns("vector").to_pylist()
        asked: dict[str, list[Asked]] = {}
        for row, vector in zip(names, vectors, strict=True):
            asked.setdefault(row["class_id"], []).append(Asked(row["query"], vector))
        return cls(asked, {row["class_id"]: row["k"] for row in names})


def unit_mean(vectors: np.ndarray) -> np.ndarray:
    """Mean of unit vectors ``(N, D)``, scaled to unit length, float32 ``(D,)``."""
    mean = vectors.astype(np.float64).mean(axis=0)
    unit: np.ndarray = (mean / np.linalg.norm(mean)).astype(np.float32)
    return unit


def image_queries(query: Query, images: Sequence[str], embeddings: np.ndarray, seed: int) -> list[Asked]:
    """Queries made of a class's training images.

    Parameters
    ----------
    images : sequence of str
        Ids of the images.
    embeddings : ndarray, float (N, D)
        Their CLIP embeddings, of unit length.
    seed : int
        Seed of k-means, which groups the images if ``query.pool`` is ``clusters``. Clusters come in the
        order of their first image.
    """
    if query.pool == "mean":
        return [Asked(f"mean of {len(images)} training images", unit_mean(embeddings))]
    if query.pool == "each":
        return [
            Asked(f"training image {image}", unit_mean(vector[None]))
            for image, vector in zip(images, embeddings, strict=True)
        ]
    from augbench.personalise.cluster import cluster_class

    assert query.clusters is not None
    vectors = embeddings.astype(np.float32)
    found, _ = cluster_class(vectors, vectors[:0], query.clusters, seed)
    return [
        Asked(
            f"mean of {np.count_nonzero(found == cluster)} training images, cluster {number} of "
            f"{query.clusters}",
            unit_mean(embeddings[found == cluster]),
        )
        for number, cluster in enumerate(dict.fromkeys(found.tolist()), 1)
    ]


def combine(text: Asked, images: Asked, weight: float) -> Asked:
    """Return w x text + (1 - w) x images at unit length; at 1 and 0 one of the two as it is.

    A linear combination of queries is what Burg et al. (2023) hope for in their discussion.
    """
    if weight in (0, 1):
        return text if weight else images
    vector = weight * text.vector.astype(np.float64) + (1 - weight) * images.vector.astype(np.float64)
    name = f"{weight:g} x {text.name!r} + {1 - weight:g} x {images.name}"
    return Asked(name, (vector / np.linalg.norm(vector)).astype(np.float32))


def class_queries(
    query: Query,
    text: Asked | None,
    images: Sequence[str],
    embeddings: np.ndarray,
    class_id: str,
    seed: int,
) -> list[Asked]:
    """All queries of a class, in the order in which they take turns.

    Parameters
    ----------
    text : Asked, optional
        The query's text; None if it has none.
    images, embeddings
        As in :func:`image_queries`; not used if the query is the text alone.
    seed : int
        Seed of the method's draw of the training images.
    """
    if query.weight == 1:
        assert text is not None
        return [text]
    found = image_queries(query, images, embeddings, derive_seed(seed, "query clusters", class_id))
    return found if text is None else [combine(text, asked, query.weight) for asked in found]
