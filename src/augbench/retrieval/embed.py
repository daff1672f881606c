"""CLIP embeddings of a corpus of images in clip-retrieval's layout, and an index of them.

Input: the miniature corpus, a folder of images or Parquet files with images, and a CLIP model. Output: a
folder with ``img_emb/img_emb_00000.npy`` (float16, unit length), ``metadata/metadata_00000.parquet`` with the
same rows, and ``augbench.json``, which names the CLIP model and the content. The index folder has the layout
of ``clip-retrieval index``.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from augbench.batches import in_batches
from augbench.config.corpus import ImageCorpus, MiniatureCorpus, OwnCorpus, ParquetCorpus
from augbench.data.decode import Decoded, in_order, try_decode
from augbench.data.parquet_images import Encoded, ImageRows, is_text, list_corpus_rows, row_name
from augbench.data.stamps import names_in_keys, stamp_of, stamps_of
from augbench.data.walk import LeftOut, list_corpus, log_left_out, printable
from augbench.errors import UserError
from augbench.files import canonical_hash, read_json, sha256_file, write_json
from augbench.plan.recipes import Recipe
from augbench.progress import Progress
from augbench.retrieval.embedding_files import SPELLINGS
from augbench.retrieval.web.fates import UNDECODABLE
from augbench.runtime.fit import BatchLimit

if TYPE_CHECKING:
    import torch

    from augbench.models.towers import Clip, ImageTower
    from augbench.runtime.job import Job

logger = logging.getLogger(__name__)

# images per batch; on a CPU, larger batches do not fit into the cache and take 1.5 times as long
BATCH = {"cpu": 32, "cuda": 256}
ROWS_PER_FILE = 5000
# vectors; comparing a query with this many takes a fraction of a second, and no neighbour is missed
EXACT_UP_TO = 1_000_000
FOLDER_METADATA = pa.schema(
    [("id", pa.string()), ("url", pa.string()), ("width", pa.int64()), ("height", pa.int64())]
)
PARQUET_METADATA = FOLDER_METADATA.append(pa.field("caption", pa.string()))
LEFT_OUT = pa.schema([("id", pa.string()), ("fate", pa.string())])
METADATA = ("id", "url", "caption", "width", "height", "NSFW", "punsafe")
IDENTITY = "augbench.json"
KIND, SUFFIXES = "embeddings", (".npy", ".parquet")  # of a part's files in the store


@dataclass(frozen=True)
class _Content:
    """Images of a part, their captions (None if there are none), and their metadata.

    ``metadata`` may be called once the images have been used: it has a row for each image that was yielded.
    """

    images: Iterable[Image.Image]
    captions: Sequence[str] | None
    metadata: Callable[[], pa.Table]


@dataclass(frozen=True)
class _Part:
    """Part of a corpus: a function that makes its recipe of its files, its rows, and one that reads it."""

    identify: Callable[[], Recipe]
    rows: int
    read: Callable[[], _Content]

    @cached_property
    def recipe(self) -> Recipe:
        """Names the part's images."""
        return self.identify()


@dataclass(frozen=True)
class _Own:
    """What is below the folder of a user's own corpus: its images, and what is left out."""

    root: Path
    images: Sequence[str]
    left_out: Sequence[LeftOut]


@dataclass(frozen=True)
class Listing:
    """A corpus that is to be embedded, in parts."""

    parts: Sequence[_Part]
    own: _Own | None = None


def _miniature_part(path: str | Path) -> _Part:
    def read() -> _Content:
        table = pq.read_table(path)
        encoded = table.column("image").combine_chunks().field("bytes")
        images = (Image.open(BytesIO(data.as_py())).convert("RGB") for data in encoded)
        return _Content(images, table.column("caption").to_pylist(), lambda: table.select(METADATA))

    return _Part(lambda: {"part": sha256_file(path)}, pq.read_metadata(path).num_rows, read)


def _content(
    decoded: Iterable[Decoded | UserError], metadata: Iterable[dict[str, Any]], schema: pa.Schema
) -> _Content:
    """Images that could be decoded, with their ``metadata``; the others are left out."""
    rows: list[dict[str, Any]] = []

    def images() -> Iterator[Image.Image]:
        for found, known in zip(decoded, metadata, strict=True):
            if isinstance(found, UserError):
                logger.warning("left out: %s", found)
                continue
            rows.append({**known, "width": found.width, "height": found.height})
            yield found.image

    return _Content(images(), None, lambda: pa.Table.from_pylist(rows, schema))


def _folder_part(root: Path, names: Sequence[str]) -> _Part:
    def read() -> _Content:
        decoded = in_order(try_decode, (root / name for name in names))
        return _content(decoded, ({"id": name, "url": name} for name in names), FOLDER_METADATA)

    def identify() -> Recipe:
        stamps = stamps_of(root / name for name in names)
        return {"files": canonical_hash(names_in_keys(names, stamps))}

    return _Part(identify, len(names), read)


def _parquet_part(images: ImageRows, corpus: ParquetCorpus, file: str, places: Sequence[int]) -> _Part:
    names = [row_name(file, place) for place in places]

    def read() -> _Content:
        def decoded(item: tuple[str, Encoded]) -> Decoded | UserError:
            name, content = item
            return (
                content if isinstance(content, UserError) else try_decode(images.root / name, content=content)
            )

        with images.open(file) as opened:
            known = _columns(opened, corpus, places)
        metadata = (
            {"id": name, "url": url or name, "caption": caption}
            for name, url, caption in zip(names, known["url"], known["caption"], strict=True)
        )
        return _content(
            in_order(decoded, zip(names, images.read(names), strict=True)), metadata, PARQUET_METADATA
        )

    def identify() -> Recipe:
        content = [file, *stamp_of(images.root / file), places[0], places[-1], corpus.image_column]
        texts = [corpus.caption_column, corpus.url_column]
        return {"rows": canonical_hash([*content, *texts])}

    return _Part(identify, len(names), read)


def _columns(
    opened: pq.ParquetFile, corpus: ParquetCorpus, places: Sequence[int]
) -> dict[str, list[str | None]]:
    """Addresses and captions of rows; None for what the file does not have."""
    given = {"url": corpus.url_column, "caption": corpus.caption_column}
    schema = opened.schema_arrow
    texts = [name for name in schema.names if schema.names.count(name) == 1 and is_text(schema, name)]
    found: dict[str, list[str | None]] = {}
    for name, column in given.items():
        usual = next((spelling for spelling in SPELLINGS[name] if spelling in texts), None)
        found[name] = [None] * len(places)
        if (chosen := column or usual) is not None:
            values = opened.read([chosen]).column(chosen).slice(places[0], len(places))
            found[name] = values.cast(pa.string()).to_pylist()
    return found


def list_miniature(parts: Sequence[str | Path]) -> Listing:
    """List the miniature corpus, which is in the files ``parts``."""
    return Listing([_miniature_part(path) for path in parts])


def list_folder(root: str | Path) -> Listing:
    """List every image below ``root``; ids are paths relative to it.

    Raises
    ------
    UserError
        The folder is missing, or has no images.
    """
    root, listing = Path(root), list_corpus(root)
    parts = [_folder_part(root, names) for names in in_batches(listing.images, ROWS_PER_FILE)]
    return Listing(parts, _Own(root, listing.images, listing.left_out))


def list_parquet(corpus: ParquetCorpus) -> Listing:
    """List the images in a corpus's Parquet files; ids are names of rows (``a/b.parquet:17``).

    Raises
    ------
    UserError
        The folder is missing, or none of its files has rows with images.
    """
    images, listed = list_corpus_rows(corpus)
    parts = [
        _parquet_part(images, corpus, file, places)
        for file, count in listed.rows.items()
        for places in in_batches(range(count), ROWS_PER_FILE)
    ]
    return Listing(parts, _Own(images.root, listed.names(), listed.left_out))


def list_images(corpus: OwnCorpus, miniature: Sequence[str | Path]) -> Listing:
    """List a corpus of any kind that a study embeds itself; ``miniature`` are the files of the miniature."""
    if isinstance(corpus, MiniatureCorpus):
        return list_miniature(miniature)
    return list_folder(corpus.root) if isinstance(corpus, ImageCorpus) else list_parquet(corpus)


def embed(job: Job, listing: Listing, clip_path: str | Path, out: str | Path) -> None:
    """Embed a corpus; each part goes to the store, so that an interrupted job resumes with the next part.

    ``similarity`` in the metadata of the miniature corpus is the cosine similarity of image and caption, as
    in LAION. For a corpus of the user's own, ``left_out.parquet`` lists the files, folders and rows that are
    not embedded (id, fate): those that :mod:`augbench.data.walk` leaves out, and images that can't be
    decoded.

    Raises
    ------
    UserError
        None of the images can be decoded.
    """
    out = Path(out)
    shutil.rmtree(out, ignore_errors=True)
    embedding = _Embedding(job, read_json(clip_path), sum(part.rows for part in listing.parts))
    recipes = [embedding.provide(part) for part in listing.parts]
    for number, recipe in enumerate(recipes):
        if not pq.read_metadata(job.store.path(KIND, recipe, ".parquet")).num_rows:
            continue  # none of its files can be decoded
        job.store.publish(KIND, recipe, out / "img_emb" / f"img_emb_{number:05d}.npy")
        job.store.publish(KIND, recipe, out / "metadata" / f"metadata_{number:05d}.parquet")
    write_json(out / IDENTITY, {"clip": embedding.clip["id"], "corpus": canonical_hash(recipes)})
    if listing.own is not None:
        _write_left_out(listing.own, out)


def embed_block(job: Job, listing: Listing, clip_path: str | Path, block: int, out: str | Path) -> None:
    """Embed one of the ``execution.embed_jobs`` blocks of a corpus: part ``block`` and every n-th after it.

    Its embeddings are in the store, where :func:`embed` finds them; ``out`` says how many images it has.
    """
    parts = listing.parts[block :: job.study.execution.embed_jobs]
    images = sum(part.rows for part in parts)
    embedding = _Embedding(job, read_json(clip_path), images)
    for part in parts:
        recipe = embedding.provide(part)
        for suffix in SUFFIXES:
            job.store.note_use(KIND, recipe, suffix)
    write_json(out, {"parts": len(parts), "images": images})


def _write_left_out(own: _Own, out: Path) -> None:
    """List what a user's own corpus has that is not among the embeddings in ``out``."""
    metadata = sorted((out / "metadata").glob("*.parquet"))
    embedded = {name for path in metadata for name in pq.read_table(path, columns=["id"])["id"].to_pylist()}
    if not embedded:
        found = f"none of the {len(own.images)} images in {str(own.root)!r} can be decoded"
        raise UserError("corpus.root", found, "allowed: a folder of images; the log of this job names each")
    broken = [LeftOut(name, UNDECODABLE) for name in own.images if name not in embedded]
    rows = [{"id": printable(one.name), "fate": one.reason} for one in (*own.left_out, *broken)]
    log_left_out("corpus", [*own.left_out, *broken])
    pq.write_table(pa.Table.from_pylist(rows, LEFT_OUT), out / "left_out.parquet")


class _Embedding:
    """Embeds parts of a corpus; the model is loaded only if the store lacks one."""

    def __init__(self, job: Job, clip: Mapping[str, Any], images: int) -> None:
        self.job, self.clip = job, clip
        self.progress = Progress("embed corpus", images, "image")

    @cached_property
    def _device(self) -> torch.device:
        from augbench.models.folders import pick_device

        return pick_device(self.job.study.execution.device)

    @cached_property
    def _network(self) -> Clip:
        from augbench.models.clip import load_clip

        return load_clip(self.clip, self._device)

    @cached_property
    def _tower(self) -> ImageTower:
        on_gpu = self._device.type == "cuda"
        # the result is stored as float16, so computing in float16 changes at most its last digit
        return self._network.image_tower(half=on_gpu, compiled=on_gpu and self.job.study.execution.compile)

    @cached_property
    def _limit(self) -> BatchLimit:
        return BatchLimit(BATCH[self._device.type], "embedding the corpus")

    def provide(self, part: _Part) -> Recipe:
        """Embed a part, unless the store has it; return its key."""
        recipe = {"version": 2, "model": self.clip["id"], **part.recipe}
        store = self.job.store
        with store.claim(KIND, recipe):
            if all(store.has(KIND, recipe, suffix) for suffix in SUFFIXES):
                self.progress.update(part.rows, "from the store")
                return recipe
            content = part.read()
            vectors = self._images(content.images)
            kept = content.metadata()
            if content.captions is not None:
                kept = kept.append_column("similarity", self._similarity(vectors, content.captions))
            store.commit(KIND, recipe, ".npy", partial(np.save, arr=vectors.half().numpy()))
            store.commit(KIND, recipe, ".parquet", partial(pq.write_table, kept))
        return recipe

    def _images(self, images: Iterable[Image.Image]) -> torch.Tensor:
        import torch

        from augbench.models.clip import clip_width

        vectors = [torch.empty((0, clip_width(self.clip)))]
        for embedded in self._tower.embed_images(images, self._limit, self.job.threads):
            vectors.append(embedded)
            self.progress.update(len(embedded))
        return torch.cat(vectors)

    def _similarity(self, vectors: torch.Tensor, captions: Sequence[str]) -> pa.Array:
        """Cosine similarity of each image and its caption."""
        texts = self._network.embed_texts(captions).cpu()
        return pa.array((vectors * texts).sum(1).numpy(), pa.float32())


def build_index(embeddings: str | Path, index_folder: str | Path, threads: int) -> None:
    """Build an index folder in clip-retrieval's layout: ``image.index`` by autofaiss, and the metadata.

    Up to :data:`EXACT_UP_TO` vectors the index is exact. For more, autofaiss chooses an approximate index,
    as ``clip-retrieval index`` does for any number. ``augbench.json``, which names the CLIP model, is
    copied too, so that a search with another model fails.
    """
    import faiss
    from autofaiss import build_index as build_autofaiss_index

    embeddings, index_folder = Path(embeddings), Path(index_folder)
    shutil.rmtree(index_folder, ignore_errors=True)
    index_folder.mkdir(parents=True)
    count = sum(len(np.load(path, mmap_mode="r")) for path in (embeddings / "img_emb").glob("*.npy"))
    # autofaiss would write NumPy's numbers to its JSON file, which Python's json refuses
    index, infos = build_autofaiss_index(
        str(embeddings / "img_emb"),
        save_on_disk=False,
        index_key="Flat" if count <= EXACT_UP_TO else None,
        max_index_memory_usage="4G",
        current_memory_available="12G",
        nb_cores=threads,
    )
    if index is None:  # autofaiss only logs what went wrong
        raise RuntimeError(f"autofaiss made no index in {index_folder}; see its messages above in this log")
    faiss.write_index(index, str(index_folder / "image.index"))
    write_json(index_folder / "image.json", {name: infos[name] for name in ("index_key", "index_param")})
    shutil.copytree(embeddings / "metadata", index_folder / "metadata")
    shutil.copy(embeddings / IDENTITY, index_folder / IDENTITY)
