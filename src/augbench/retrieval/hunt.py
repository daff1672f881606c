"""Hunt for a class's images through growing prefixes of its neighbours (paper, section 3.2).

Input: the neighbours of each class's query, the source of their images, the number of images wanted.
Output: the images, and a ledger with one row per candidate considered, with its fate.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from augbench.config.methods import RetrieveMethod
from augbench.resample import needed_by_class
from augbench.retrieval.filters import KEPT, Filters
from augbench.retrieval.images import Arrival, Origin
from augbench.retrieval.lists import TAKEN_DOWN
from augbench.retrieval.neighbours import Neighbour, stack_embeddings
from augbench.retrieval.web.fates import FETCHED

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

NOT_NEEDED = "not needed"
NOT_SELECTED = "not selected"
COPY = "copy of a training image"
UNSAFE = "unsafe: checker"
IMAGES_AT_ONCE = 64  # batch size of the safety checker
LEDGER = pa.schema(
    [
        ("class_id", pa.string()),
        ("query", pa.string()),
        ("rank", pa.int32()),
        ("id", pa.string()),
        ("url", pa.string()),
        ("caption", pa.string()),
        ("similarity", pa.float32()),
        ("k", pa.int32()),  # size of the last prefix of neighbours
        ("fate", pa.string()),
        ("sha256", pa.string()),  # of the fetched file; null if there is none
        ("width", pa.int32()),  # of the fetched file, in pixels
        ("height", pa.int32()),
    ]
)
COPY_OF = pa.field("copy_of", pa.string())  # id of the training image that the image copies
PLACE = pa.field("place", pa.int32())  # number of the kept image in the order of selection
Flags = Callable[[Sequence["Image.Image"]], Sequence[bool]]
Embed = Callable[[Sequence["Image.Image"]], np.ndarray]
# positions of the chosen candidates, in the order of their choice, for candidates and their number to choose
Choose = Callable[[Sequence[Neighbour], int], list[int]]
# ids of the training images that images with these embeddings copy, None for others
Copies = Callable[[Sequence["Image.Image"], np.ndarray], Sequence[str | None]]


def ledger_schema(method: RetrieveMethod) -> pa.Schema:
    """Columns of a method's ledgers: :data:`LEDGER`, and what copies and selections add."""
    schema = LEDGER
    if method.copies is not None:
        schema = schema.append(COPY_OF)
    return schema.append(PLACE) if method.selects else schema


def kept_rows(ledger: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows of the images that a class keeps, in the order of its pool."""
    kept = [row for row in ledger if row["fate"] == KEPT]
    return sorted(kept, key=lambda row: row.get("place") or 0)


def wanted_images(method: RetrieveMethod, training_images: Mapping[str, int]) -> dict[str, int]:
    """Number of images to keep of each class: the config's, or else the number added to a training set.

    Parameters
    ----------
    training_images : mapping of str to int
        Real training images by class id.
    """
    if method.images_per_class is not None:
        return dict.fromkeys(training_images, method.images_per_class)
    return needed_by_class(training_images, method.added_per_training_image, method.fill_to)


def sought_images(method: RetrieveMethod, wanted: int) -> int:
    """Number of neighbours of a class that have to pass the filters before ``wanted`` ones are kept."""
    return math.ceil(method.candidates_per_image * wanted)


def prefix_sizes(method: RetrieveMethod, sought: int) -> list[int]:
    """Return the sizes k = i x first_k x sought, for i = 1 ... growth_limit (paper, section 3.2)."""
    return [round(step * method.first_k * sought) for step in range(1, method.growth_limit + 1)]


@dataclass
class Hunt:
    """The search for one class's images, through growing prefixes of its neighbours.

    Parameters
    ----------
    neighbours : list of Neighbour
        Nearest first, at most as many as the largest prefix. If the backend gives no embeddings, they are
        added when images arrive.
    wanted : int
        Number of images to keep.
    sizes : sequence of int
        Sizes of the prefixes, ascending.
    promised : mapping, optional
        SHA-256 that each file must have, by id; from a manifest.
    choose : callable, optional
        Chooses the images to keep among the candidates. Default: the first ones.
    sought : int
        Candidates to choose from, if there are as many; at least ``wanted``.
    drop_copies : bool
        Leave out copies of training images.
    """

    class_id: str
    neighbours: list[Neighbour]
    wanted: int
    sizes: Sequence[int]
    promised: Mapping[str, str] | None = None
    step: int = 0
    arrivals: dict[str, Arrival] = field(default_factory=dict)
    unsafe: dict[str, bool] = field(default_factory=dict)
    choose: Choose | None = None
    sought: int = 0
    drop_copies: bool = False
    copies: dict[str, str] = field(default_factory=dict)  # training image by the id of its copy

    @property
    def k(self) -> int:
        """Size of the current prefix; there may be fewer neighbours."""
        return self.sizes[self.step]

    @property
    def prefix(self) -> list[Neighbour]:
        """Neighbours in the current prefix."""
        return self.neighbours[: self.k]

    def fates(self, filters: Filters) -> list[str]:
        """Return the current fate of each neighbour of the prefix; images still to fetch count as kept."""
        fates, files = filters.fates(self.prefix), set()
        for place, neighbour in enumerate(self.prefix):
            arrival = self.arrivals.get(neighbour.id)
            if fates[place] != KEPT or arrival is None:
                continue
            if arrival.fate != FETCHED:
                fates[place] = arrival.fate
            elif arrival.sha256 in filters.lists.taken_down:
                fates[place] = TAKEN_DOWN
            elif self.promised is not None and self.promised.get(neighbour.id) != arrival.sha256:
                fates[place] = "changed since the manifest"
            elif arrival.sha256 in files:
                fates[place] = "same file"
            elif self.unsafe.get(neighbour.id):
                fates[place] = UNSAFE
            elif self.drop_copies and neighbour.id in self.copies:
                fates[place] = COPY
            else:
                files.add(arrival.sha256)
        return fates

    def missing(self, filters: Filters) -> list[Neighbour]:
        """Return neighbours of the prefix that pass all filters and have not been fetched."""
        return [
            n
            for n, fate in zip(self.prefix, self.fates(filters), strict=True)
            if fate == KEPT and n.id not in self.arrivals
        ]

    def is_done(self, filters: Filters) -> bool:
        """Whether enough images are kept or no neighbours are left; otherwise the prefix grows."""
        if (
            self.fates(filters).count(KEPT) >= max(self.wanted, self.sought)
            or len(self.neighbours) <= self.k
            or self.step + 1 == len(self.sizes)
        ):
            return True
        self.step += 1
        return False

    def ledger(self, filters: Filters) -> list[dict[str, Any]]:
        """Return one row per neighbour of the prefix, nearest first."""
        rows, fates = [], self.fates(filters)
        candidates = [place for place, fate in enumerate(fates) if fate == KEPT]
        considered = candidates[: max(self.wanted, self.sought)]
        chosen = considered[: self.wanted]
        if self.choose is not None:
            places = self.choose([self.prefix[place] for place in considered], self.wanted)
            chosen = [considered[place] for place in places]
        order = {place: number for number, place in enumerate(chosen)}
        left = {place: NOT_NEEDED for place in candidates} | {place: NOT_SELECTED for place in considered}
        for place, (neighbour, found) in enumerate(zip(self.prefix, fates, strict=True)):
            fate = found if place in order else left.get(place, found)
            arrival = self.arrivals.get(neighbour.id, Arrival(fate))
            given = {
                name: getattr(neighbour, name)
                for name in ("class_id", "query", "rank", "id", "url", "caption", "similarity")
            }
            rows.append(
                {
                    **given,
                    "k": self.k,
                    "fate": fate,
                    "sha256": arrival.sha256,
                    "width": arrival.width,
                    "height": arrival.height,
                    "copy_of": self.copies.get(neighbour.id),
                    "place": order.get(place),
                }
            )
        return rows


def hunt_all(
    hunts: Sequence[Hunt],
    filters: Filters,
    origin: Origin,
    flags: Flags,
    embed: Embed | None = None,
    copies: Copies | None = None,
) -> None:
    """Fetch images, in rounds of all classes together, until each class is done.

    Parameters
    ----------
    flags : callable
        Marks the unsafe images in a batch.
    embed : callable, optional
        Computes CLIP embeddings, float16 ``(N, D)`` of unit length, for neighbours without one.
    copies : callable, optional
        Finds copies of training images.
    """
    open_hunts, number = list(hunts), 0
    while open_hunts:
        number += 1
        wanted = {hunt.class_id: missing for hunt in open_hunts if (missing := hunt.missing(filters))}
        logger.info(
            "round %d: %d classes, %d images", number, len(open_hunts), sum(map(len, wanted.values()))
        )
        for class_id, arrivals in origin.fetch(wanted).items():
            hunt = next(hunt for hunt in open_hunts if hunt.class_id == class_id)
            hunt.arrivals.update(arrivals)
            fetched = [id_ for id_, arrival in arrivals.items() if arrival.fate == FETCHED]
            _look(hunt, fetched, flags, embed, copies)
        open_hunts = [hunt for hunt in open_hunts if not hunt.is_done(filters)]


def _look(hunt: Hunt, ids: Sequence[str], flags: Flags, embed: Embed | None, copies: Copies | None) -> None:
    """Run the safety checker on new images, embed them if ``embed`` is given, and look for copies."""
    for start in range(0, len(ids), IMAGES_AT_ONCE):
        batch = ids[start : start + IMAGES_AT_ONCE]
        images = [opened() for id_ in batch if (opened := hunt.arrivals[id_].open) is not None]
        hunt.unsafe.update(zip(batch, flags(images), strict=True))
        if embed is not None:
            vectors = dict(zip(batch, embed(images), strict=True))
            hunt.neighbours[:] = [
                replace(n, embedding=vectors[n.id]) if n.id in vectors and n.embedding is None else n
                for n in hunt.neighbours
            ]
        if copies is not None:
            known = {n.id: n for n in hunt.neighbours if n.id in hunt.arrivals}
            found = copies(images, stack_embeddings([known[id_] for id_ in batch]))
            hunt.copies.update(
                {id_: real for id_, real in zip(batch, found, strict=True) if real is not None}
            )
