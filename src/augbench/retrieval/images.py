"""Get the images of neighbours from the miniature corpus, a folder, Parquet files, or the web.

Input: neighbours of a class. Output: for each neighbour an :class:`Arrival`: its fate and a function that
opens the image. A single bad image never raises an error.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pyarrow.parquet as pq
from PIL import Image

from augbench.config.corpus import ImageCorpus, MiniatureCorpus, ParquetCorpus
from augbench.config.methods import RetrieveMethod
from augbench.config.stages import Download
from augbench.data.decode import decode, in_order, open_rgb, try_decode
from augbench.data.parquet_images import Encoded, file_and_row, list_corpus_rows
from augbench.data.walk import path_problem
from augbench.errors import UserError
from augbench.files import sha256_file
from augbench.plan.inputs import CORPUS_ROWS_PER_PART
from augbench.progress import Progress
from augbench.retrieval.lists import list_problems, read_takedown
from augbench.retrieval.neighbours import Neighbour
from augbench.retrieval.web.fates import FETCHED, UNDECODABLE, Limits

if TYPE_CHECKING:
    from augbench.retrieval.web.cache import Cache
    from augbench.runtime.job import Job

CLASSES_AT_ONCE = 8
LEAST_SIDE = 32  # pixels; smaller images are trackers and placeholders


@dataclass(frozen=True)
class Arrival:
    """Result of fetching one neighbour's image.

    Attributes
    ----------
    fate : str
        ``fetched``, or why there is no image.
    sha256 : str, optional
        Hash of the image's file.
    width, height : int, optional
        Size in pixels.
    open : callable, optional
        Opens the RGB image; None if there is no image.
    """

    fate: str
    sha256: str | None = None
    width: int | None = None
    height: int | None = None
    open: Callable[[], Image.Image] | None = None


class Origin(Protocol):
    """Source of a corpus's images."""

    def fetch(self, wanted: Mapping[str, Sequence[Neighbour]]) -> dict[str, dict[str, Arrival]]:
        """Fetch images; return arrivals by class_id and id. Images fetched before may be reused."""

    def close(self, class_id: str) -> None:
        """Release what is held for a class that is done."""


class CorpusOrigin:
    """Images in the Parquet parts of the miniature corpus; parts stay in memory once read."""

    def __init__(self, parts: Sequence[str | Path]) -> None:
        self.parts = [Path(part) for part in parts]
        self._encoded: dict[int, list[bytes]] = {}

    def _bytes(self, key: int) -> bytes:
        part, row = divmod(key, CORPUS_ROWS_PER_PART)
        if part not in self._encoded:
            column = pq.read_table(self.parts[part], columns=["image"]).column("image").combine_chunks()
            self._encoded[part] = column.field("bytes").to_pylist()
        return self._encoded[part][row]

    def _arrival(self, key: int) -> Arrival:
        encoded = self._bytes(key)
        with Image.open(BytesIO(encoded)) as image:
            width, height = image.size
        return Arrival(
            FETCHED,
            hashlib.sha256(encoded).hexdigest(),
            width,
            height,
            lambda: Image.open(BytesIO(encoded)).convert("RGB"),
        )

    def fetch(self, wanted: Mapping[str, Sequence[Neighbour]]) -> dict[str, dict[str, Arrival]]:
        """Fetch images by their number in the corpus."""
        return {
            class_id: {neighbour.id: self._arrival(int(neighbour.id)) for neighbour in rows}
            for class_id, rows in wanted.items()
        }

    def close(self, class_id: str) -> None:
        """Release nothing: other classes need the parts in memory."""


class FolderOrigin:
    """Images in a folder. A path that :func:`augbench.data.walk.walk` would not list is never opened."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def _arrival(self, neighbour: Neighbour) -> Arrival:
        if (problem := path_problem(neighbour.id)) is not None:
            return Arrival(f"refused: {problem}")
        path = self.root / neighbour.id
        if not os.path.isfile(path):
            return Arrival("dead: no such file")
        found = try_decode(path)
        if isinstance(found, UserError):
            return Arrival(UNDECODABLE)
        return Arrival(FETCHED, sha256_file(path), found.width, found.height, lambda: open_rgb(path))

    def fetch(self, wanted: Mapping[str, Sequence[Neighbour]]) -> dict[str, dict[str, Arrival]]:
        """Fetch images by their path relative to the folder."""
        return {
            class_id: {neighbour.id: self._arrival(neighbour) for neighbour in rows}
            for class_id, rows in wanted.items()
        }

    def close(self, class_id: str) -> None:
        """Do nothing: no resources are held."""


class ParquetOrigin:
    """Images in the rows of Parquet files; other files of the corpus's folder are never opened."""

    def __init__(self, corpus: ParquetCorpus) -> None:
        self.images, listed = list_corpus_rows(corpus)
        self.rows = listed.rows

    def _arrival(self, item: tuple[str, Encoded]) -> Arrival:
        name, content = item
        found = content if isinstance(content, UserError) else try_decode(name, content=content)
        if isinstance(content, UserError) or isinstance(found, UserError):
            return Arrival(UNDECODABLE)
        sha256 = hashlib.sha256(content).hexdigest()
        return Arrival(FETCHED, sha256, found.width, found.height, lambda: self._open(name))

    def _open(self, name: str) -> Image.Image:
        """Read an image again: those of all neighbours may not fit into memory."""
        content = next(self.images.read([name]))
        if isinstance(content, UserError):
            raise content
        return decode(name, content=content).image

    def _exists(self, name: str) -> bool:
        file, _, row = name.rpartition(":")
        return row.isdecimal() and int(row) < self.rows.get(file, 0)

    def fetch(self, wanted: Mapping[str, Sequence[Neighbour]]) -> dict[str, dict[str, Arrival]]:
        """Fetch images by the names of their rows."""
        ids = {neighbour.id for rows in wanted.values() for neighbour in rows}
        names = sorted(filter(self._exists, ids), key=file_and_row)
        arrivals = in_order(self._arrival, zip(names, self.images.read(names), strict=True))
        by_id = dict(zip(names, arrivals, strict=True))
        return {
            class_id: {one.id: by_id.get(one.id, Arrival("dead: no such row")) for one in rows}
            for class_id, rows in wanted.items()
        }

    def close(self, class_id: str) -> None:
        """Do nothing: no resources are held."""


class WebOrigin:
    """Images on the web, through :mod:`augbench.retrieval.web`.

    Each class has its own cache, so that an interrupted job resumes.

    Parameters
    ----------
    folder : path
        Folder for the caches, one per class. Only one process may write to it at a time.
    taken_down : frozenset
        Addresses and hashes of files that are deleted from the caches.
    """

    def __init__(
        self,
        folder: str | Path,
        method: RetrieveMethod,
        download: Download,
        taken_down: frozenset[str] = frozenset(),
    ) -> None:
        self.folder, self.method, self.download = Path(folder), method, download
        self.taken_down = taken_down
        self._caches: dict[str, Cache] = {}
        self._homes: dict[str, str] = {}  # the class whose cache holds an address

    def _cache(self, class_id: str) -> Cache:
        from augbench.retrieval.web.cache import Cache

        if class_id not in self._caches:
            self._caches[class_id] = Cache(self.folder / f"{class_id}.sqlite")
            self._caches[class_id].open()
        return self._caches[class_id]

    def fetch(self, wanted: Mapping[str, Sequence[Neighbour]]) -> dict[str, dict[str, Arrival]]:
        """Fetch images by their addresses, several classes at a time.

        If several classes ask for an address, it is fetched once, for the first of them.
        """
        from concurrent.futures import ThreadPoolExecutor

        urls: dict[str, dict[str, None]] = {}
        for class_id, rows in wanted.items():
            for neighbour in rows:
                url = neighbour.url or ""
                urls.setdefault(self._homes.setdefault(url, class_id), {})[url] = None
        # each class has its own connections, so the overall limits are divided among the classes
        at_once = max(1, min(CLASSES_AT_ONCE, self.download.per_host, self.download.concurrency, len(urls)))
        limits = self._limits(at_once)
        progress = Progress("fetch", sum(map(len, urls.values())), "image")
        with ThreadPoolExecutor(at_once) as pool:
            arrived = pool.map(lambda home: self._fetch(home, list(urls[home]), limits, progress), urls)
            by_url = {url: arrival for arrivals in arrived for url, arrival in arrivals.items()}
        return {
            class_id: {neighbour.id: by_url[neighbour.url or ""] for neighbour in rows}
            for class_id, rows in wanted.items()
        }

    def _limits(self, classes: int) -> Limits:
        config = self.download
        return Limits(
            concurrency=config.concurrency // classes,
            per_host=config.per_host // classes,
            timeout_s=config.timeout,
            max_bytes=config.max_bytes,
            max_pixels=config.max_pixels,
            min_side=self.method.min_side or LEAST_SIDE,
            max_redirects=config.max_redirects,
            retries=config.retries,
            allow_private=config.allow_private,
            respect_opt_out=config.respect_opt_out,
            user_agent=config.user_agent,
        )

    def _fetch(
        self, home: str, urls: Sequence[str], limits: Limits, progress: Progress
    ) -> dict[str, Arrival]:
        from augbench.retrieval.web.download import download

        cache = self._cache(home)
        fetched = download(urls, cache, limits, progress, retry_transient=self.download.retry_transient)

        def arrival(url: str) -> Arrival:
            row = fetched[url]
            return Arrival(
                row.fate,
                row.sha256,
                row.width,
                row.height,
                (lambda: cache.image(url)) if row.fate == FETCHED else None,
            )

        return {url: arrival(url) for url in urls}

    def close(self, class_id: str) -> None:
        """Close the class's cache, and delete it, or what was taken down if the config keeps downloads."""
        if self.taken_down and (self.folder / f"{class_id}.sqlite").is_file():
            self._cache(class_id).forget_bytes(self.taken_down)
        if (cache := self._caches.pop(class_id, None)) is not None:
            cache.close()
        if not self.download.keep:
            (self.folder / f"{class_id}.sqlite").unlink(missing_ok=True)


def open_origin(job: Job, name: str, corpus_parts: Sequence[str | Path]) -> Origin:
    """Return the source of the images of the study's corpus."""
    study, method = job.study, job.study.retrieved[name]
    if isinstance(study.corpus, MiniatureCorpus):
        return CorpusOrigin(corpus_parts)
    if isinstance(study.corpus, ImageCorpus):
        return FolderOrigin(study.corpus.root)
    if isinstance(study.corpus, ParquetCorpus):
        return ParquetOrigin(study.corpus)
    if problem := next(list_problems(study), None):
        raise problem
    taken_down = read_takedown(study.retrieval)
    return WebOrigin(job.folder / ".downloads" / name, method, study.retrieval.download, taken_down)
