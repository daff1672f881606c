"""The miniature web corpus: 50,000 captioned Fashion-MNIST images in web style, and distractors.

The corpus is a folder of Parquet parts with one row per image. The columns follow LAION: id, image (PNG
bytes), caption, url, width, height, NSFW, punsafe. More columns serve measurements only: the true label, the
kind of caption, the index of the source image, and in a corpus with attributes the attribute that the image
shows. Retrieval and pre-training read image and
caption, as they would from the web.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from augbench.config.corpus import MiniatureCorpus
from augbench.data import fashion_mnist
from augbench.data.classes import ClassInfo
from augbench.files import atomic_path
from augbench.miniature.corpus.attributes import draw_attribute
from augbench.miniature.corpus.captions import caption_for, truthful_caption
from augbench.miniature.corpus.distractors import UNSAFE_KIND, distractor
from augbench.miniature.corpus.style import web_style
from augbench.plan.inputs import CORPUS_ROWS_PER_PART
from augbench.progress import track
from augbench.seeds import derive_seed

SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("caption", pa.string()),
        ("url", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("NSFW", pa.string()),
        ("punsafe", pa.float32()),
        ("true_label", pa.int32()),
        ("caption_kind", pa.string()),
        ("source_index", pa.int32()),
    ]
)
# in corpora whose images show attributes: its name, or none; and whether the caption states it
ATTRIBUTE_FIELDS = [("attribute", pa.string()), ("attribute_stated", pa.bool_())]


@dataclass(frozen=True)
class CorpusRow:
    """Metadata of one image of the corpus. ``true_label`` and ``source_index`` are -1 for distractors."""

    caption: str
    caption_kind: str
    true_label: int
    source_index: int
    unsafe: bool = False
    attribute: str | None = None
    attribute_stated: bool = False


def shown_attribute(index: int, label: int, classes: int, config: MiniatureCorpus, seed: int) -> str | None:
    """Draw the attribute that garment ``index`` of class ``label`` shows, or None."""
    if not config.attributes:
        return None
    rng = np.random.default_rng(derive_seed(seed, "shown attribute", index))
    return draw_attribute(label, classes, config.attributes, rng)


def garment_row(
    index: int, source: int, label: int, classes: list[ClassInfo], config: MiniatureCorpus, seed: int
) -> CorpusRow:
    """Draw attribute and caption of a garment; a share ``config.wrong_captions`` names another class."""
    rng = np.random.default_rng(derive_seed(seed, "caption", index))
    named, wrong = label, rng.random() < config.wrong_captions
    if wrong:
        named = (label + 1 + int(rng.integers(len(classes) - 1))) % len(classes)
    kinds, shares = zip(*config.captions.items(), strict=True)
    limits = np.cumsum(np.array(shares) / sum(shares))
    # the same draw as rng.choice, in half the time
    kind = kinds[int(np.searchsorted(limits / limits[-1], rng.random(), side="right"))]
    called = f"wrong {kind}" if wrong else kind
    if not config.attributes:
        return CorpusRow(caption_for(classes[named], kind, rng), called, label, source)
    shown = shown_attribute(index, label, len(classes), config, seed)
    stated = shown is not None and rng.random() < config.stated_attributes
    caption = truthful_caption(classes[named], kind, shown if stated else None, rng)
    return CorpusRow(caption, called, label, source, attribute=shown, attribute_stated=stated)


def _png(image: np.ndarray) -> bytes:
    stream = BytesIO()
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _part_rows(
    ids: range,
    sources: np.ndarray,
    images: np.ndarray,
    labels: np.ndarray,
    classes: list[ClassInfo],
    config: MiniatureCorpus,
    seed: int,
) -> Iterator[tuple[CorpusRow, np.ndarray]]:
    garments = np.array([i for i in ids if i < len(sources)], dtype=int)
    if len(garments):
        rows = [
            garment_row(
                i,
                source=(source := int(sources[i])),
                label=int(labels[source]),
                classes=classes,
                config=config,
                seed=seed,
            )
            for i in garments.tolist()
        ]
        shown = [row.attribute for row in rows]
        styled = web_style(images[sources[garments]], garments, config.shift, seed, shown).numpy()
        yield from zip(rows, styled, strict=True)
    for i in ids:
        if i >= len(sources):
            image, caption, kind = distractor(i - len(sources), seed)
            yield CorpusRow(caption, kind, -1, -1, kind == UNSAFE_KIND), image


def build(
    downloads: str | Path, classes: list[ClassInfo], config: MiniatureCorpus, seed: int, folder: str | Path
) -> None:
    """Write the corpus to ``folder/part_00000.parquet`` and so on. Random ids mix garments and distractors.

    Parameters
    ----------
    downloads : path
        Folder with Fashion-MNIST's four files.
    config : MiniatureCorpus
        Number of garments, level of style shift, rates of caption kinds and of wrong captions, number of
        distractors.
    """
    images, labels = fashion_mnist.load(downloads, "train")
    sources, _ = fashion_mnist.split_corpus_and_target(labels, config.images, seed)
    total = len(sources) + config.distractors
    places = np.random.default_rng(derive_seed(seed, "corpus order")).permutation(total)
    starts = range(0, total, CORPUS_ROWS_PER_PART)
    buffers: list[list[dict[str, object]]] = [[] for _ in starts]
    for start in track(starts, "corpus", unit="block"):
        ids = range(start, min(start + CORPUS_ROWS_PER_PART, total))
        rows = _part_rows(
            ids, sources=sources, images=images, labels=labels, classes=classes, config=config, seed=seed
        )
        for i, (row, image) in zip(ids, rows, strict=True):
            key = int(places[i])
            buffers[key // CORPUS_ROWS_PER_PART].append(
                {
                    "id": key,
                    "image": {"bytes": _png(image), "path": f"{key:08d}.png"},
                    "caption": row.caption,
                    "url": f"miniature://corpus/{key:08d}.png",
                    "width": image.shape[2],
                    "height": image.shape[1],
                    "NSFW": "NSFW" if row.unsafe else "UNLIKELY",
                    "punsafe": 0.99 if row.unsafe else 0.01,
                    "true_label": row.true_label,
                    "caption_kind": row.caption_kind,
                    "source_index": row.source_index,
                    "attribute": row.attribute,
                    "attribute_stated": row.attribute_stated,
                }
            )
    schema = pa.schema([*SCHEMA, *ATTRIBUTE_FIELDS]) if config.attributes else SCHEMA
    for part, records in enumerate(buffers):
        records.sort(key=lambda record: record["id"])  # type: ignore[arg-type,return-value]
        with atomic_path(Path(folder) / f"part_{part:05d}.parquet") as temporary:
            pq.write_table(pa.Table.from_pylist(records, schema=schema), temporary, row_group_size=500)


def part_paths(folder: str | Path) -> list[Path]:
    """List the corpus's parts in order."""
    return sorted(Path(folder).glob("part_*.parquet"))


def load_images(folder: str | Path) -> tuple[np.ndarray, pa.Table]:
    """Read all images ``uint8 (N, 3, 32, 32)`` and the other columns as a table, in order of id."""
    table = pq.ParquetDataset(part_paths(folder)).read()
    encoded = table.column("image").combine_chunks().field("bytes").to_pylist()
    images = np.stack(
        [np.asarray(Image.open(BytesIO(data)).convert("RGB")).transpose(2, 0, 1) for data in encoded]
    )
    return images, table.drop(["image"])
