"""The images of a training set, with what is known about each.

Input: a finished study's splits, manifest of added images, and shards. Output: images class by class, the
real ones before the added ones, as the row's classifier was trained on them: without the classes that are
left out, and with ``use.replace``.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import ExifTags, Image

from augbench.artifacts.parquet import REMAKE, whole
from augbench.artifacts.pool import Lack, lacks_of, load_rows, pool_of, pools_of, read_index
from augbench.artifacts.shards import encode_image, image_name, read_shard
from augbench.batches import in_batches
from augbench.classifier.replacing import replace_in_run
from augbench.data.classes import ClassInfo, read_class_table
from augbench.data.decode import BROKEN, MOST_PIXELS
from augbench.data.source import ImageSource
from augbench.data.sources import open_source
from augbench.data.splits import Split, check_labels, read_split
from augbench.errors import UserError
from augbench.plan.paths import Plan
from augbench.pools.choice import read_choice
from augbench.resample import check_same_labels
from augbench.retrieval.shortfall import read_excluded

REAL, ADDED = "real", "added"
READ_TOGETHER = 64  # files of real images in memory at once
SAMPLED = 16  # real images that are read to estimate the size of all
PLAIN_MODES = ("1", "L", "P", "RGB", "CMYK")
DETAILS = pa.schema(
    [
        ("label", pa.int64()),  # from 0, in the order of the study's class table
        ("class_id", pa.string()),
        ("class_name", pa.string()),
        ("kind", pa.string()),  # real or added
        ("id", pa.string()),  # of the real image in its data set, of the added one in its row
        ("row", pa.string()),  # row that generated or retrieved the image
        ("source", pa.string()),  # place in the data set, address, or the image that generation started from
        ("prompt", pa.string()),
        ("seed", pa.int64()),
        ("similarity", pa.float32()),
        ("safety_flags", pa.int32()),
        ("model", pa.string()),
        ("origin", pa.string()),  # hash of the added image that generation started from
        ("sha256", pa.string()),  # of the file
    ]
)
ADDRESSES = pa.schema(
    [
        *(
            pa.field(name, DETAILS.field(name).type)
            for name in ("label", "class_id", "class_name", "row", "id")
        ),
        ("corpus_id", pa.string()),
        ("url", pa.string()),
        ("sha256", pa.string()),  # of the file at the address, when the study fetched it
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("caption", pa.string()),
        ("similarity", pa.float32()),
    ]
)


@dataclass(frozen=True)
class Picture:
    """An image: its file's bytes, the path of that file if it may be linked, and :data:`DETAILS`."""

    content: bytes
    path: Path | None
    details: Mapping[str, Any]


def reads_alike(content: bytes) -> bool:
    """Whether a file is JPEG or PNG and any reader that converts to RGB sees the classifier's pixels.

    Other kinds of file, transparency, more than 8 bits and rotation by the EXIF block are read differently.
    """
    try:
        with Image.open(BytesIO(content)) as image:
            return (
                image.format in ("JPEG", "PNG")
                and image.mode in PLAIN_MODES
                and "transparency" not in image.info
                and image.getexif().get(ExifTags.Base.Orientation, 1) == 1
                and image.width * image.height <= MOST_PIXELS
            )
    except BROKEN:
        return False


def real_files(images: ImageSource, sources: Sequence[str]) -> Iterator[tuple[bytes, Path | None]]:
    """Yield the files of real images: as stored if :func:`reads_alike`, else as PNG of what is read."""
    stored = images.stored(sources)
    if stored is None:
        for image in images.load(sources):
            yield encode_image(image, "png", 0), None
        return
    for batch in in_batches(zip(sources, stored, strict=True), READ_TOGETHER):
        kept = [file if file is not None and reads_alike(file.content) else None for _, file in batch]
        decoded = images.load([source for (source, _), file in zip(batch, kept, strict=True) if file is None])
        for file in kept:
            if file is None:
                yield encode_image(next(decoded), "png", 0), None
            else:
                yield file.content, file.path


@dataclass(frozen=True)
class Contents:
    """A training set of a row, and further splits on request.

    Attributes
    ----------
    plan : Plan
        The study's, with the rows of all draws.
    row, run
        The row, and the number of the set.
    trained : str
        The row itself, or the one that it chose.
    classes : list of ClassInfo
        Classes in use; their places are the labels.
    excluded : frozenset of str
        Classes that are left out.
    splits : dict of str to Split
        Real images by the name of the split.
    added : Table, optional
        Added images (:data:`augbench.artifacts.pool.SCHEMA`) of ``train``; None for a baseline.
    listed : Table, optional
        Those of them that go out as addresses.
    """

    plan: Plan
    row: str
    run: int
    trained: str
    classes: Sequence[ClassInfo]
    excluded: frozenset[str]
    splits: Mapping[str, Split]
    added: pa.Table | None
    listed: pa.Table | None

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Label of each class in use."""
        return {info.class_id: label for label, info in enumerate(self.classes)}

    @cached_property
    def written(self) -> pa.Table | None:
        """Added images that go out as files; None if there are none."""
        if self.added is None or self.listed is None:
            return self.added
        return self.added.filter(_is_retrieved(self.plan, self.added, wanted=False))

    def counts(self, split: str) -> dict[str, Counter[str]]:
        """Number of images of each class, by kind: real, and in ``train`` added."""
        found = {REAL: Counter(self.splits[split].class_ids), ADDED: Counter[str]()}
        if split == "train" and self.added is not None:
            found[ADDED] = Counter(self.added.column("class_id").to_pylist())
        return found

    def size(self, split: str) -> int:
        """Number of images of a split that go out as files."""
        added = 0 if split != "train" or self.written is None else self.written.num_rows
        return len(self.splits[split]) + added

    @property
    def lacks(self) -> dict[str, Lack]:
        """Images that the set lacks, by class."""
        return {} if self.added is None else lacks_of(self.added)

    @cached_property
    def pools(self) -> list[str]:
        """Rows that made the set's images."""
        return [] if self.added is None else sorted({*pools_of(self.added)})

    def pictures(self, split: str, first: int = 0) -> Iterator[Picture]:
        """Yield the images of a split: by class, real before added, in the order of split and manifest.

        ``first`` images are left out at the beginning; their files are not read.
        """
        real, counts = self.splits[split], Counter(self.splits[split].class_ids)
        added = self.written if split == "train" else None
        added_counts = Counter[str]() if added is None else Counter(added.column("class_id").to_pylist())
        left, skipped = first, dict[tuple[str, str], int]()
        for info in self.classes:
            for kind, of_class in ((REAL, counts), (ADDED, added_counts)):
                skipped[info.class_id, kind] = min(left, of_class[info.class_id])
                left -= skipped[info.class_id, kind]
        self._images.check_unchanged(real.sources, real.stamps)
        begin = sum(number for (_, kind), number in skipped.items() if kind == REAL)
        sources = real.sources[begin:]
        rows = zip(real.image_ids[begin:], sources, real_files(self._images, sources), strict=True)
        for info in self.classes:
            number = counts[info.class_id] - skipped[info.class_id, REAL]
            for image_id, source, (content, path) in islice(rows, number):
                yield self._picture(content, path, info, kind=REAL, id=image_id, source=source)
            if added is not None:
                yield from self._added(added, info, skipped[info.class_id, ADDED])

    def _added(self, added: pa.Table, info: ClassInfo, first: int) -> Iterator[Picture]:
        rows = added.filter(pc.equal(added.column("class_id"), info.class_id)).slice(first)
        made = pools_of(rows) if rows.num_rows else []
        for pool, found in zip(made, load_rows(rows, self.plan.root), strict=True):
            names = ("source", "prompt", "seed", "similarity", "safety_flags", "model", "origin")
            details = {name: found.get(name) for name in names}
            name = image_name(found["class_id"], found["index"])
            yield self._picture(found["image"]["bytes"], None, info, kind=ADDED, id=name, row=pool, **details)

    def _picture(self, content: bytes, path: Path | None, info: ClassInfo, **details: Any) -> Picture:
        known = {
            "label": self.numbers[info.class_id],
            "class_id": info.class_id,
            "class_name": info.name,
            "sha256": hashlib.sha256(content).hexdigest(),
            **details,
        }
        return Picture(content, path, {name: known.get(name) for name in DETAILS.names})

    @cached_property
    def _images(self) -> ImageSource:
        study = self.plan.study
        return open_source(study.dataset, study.seed, study.corpus)

    def bytes_needed(self, linking_to: Path | None) -> int:
        """Estimate the bytes of all images; files on the disk of the folder ``linking_to`` are linked."""
        total = 0.0
        for split in self.splits.values():
            some = split.sources[:: max(1, len(split) // SAMPLED)]
            copied = [
                0
                if path is not None and linking_to is not None and _same_disk(path, linking_to)
                else len(content)
                for content, path in real_files(self._images, some)
            ]
            total += len(split) * sum(copied) / max(1, len(copied))
        if self.written is not None:
            for path, rows in Counter(self.written.column("path").to_pylist()).items():
                shard = Path(self.plan.root, path)
                with whole(shard):
                    total += shard.stat().st_size * rows / max(1, pq.read_metadata(shard).num_rows)
        return int(total)

    def addresses(self) -> pa.Table:
        """List where the retrieved images were found (:data:`ADDRESSES`), in the order of the set.

        Raises
        ------
        UserError
            A row's list of retrieved images is not of the same retrieval as its shards.
        """
        assert self.listed is not None
        known: dict[str, dict[str, list[dict[str, Any]]]] = {}
        shards: dict[str, list[dict[str, Any]]] = {}
        rows = []
        for entry in self.listed.to_pylist():
            pool, path = pool_of(entry["path"]), entry["path"]
            if pool not in known:
                known[pool] = _by_class(self.plan.manifest(pool))
            if path not in shards:
                shards[path] = read_shard(
                    Path(self.plan.root, path), ["class_id", "index", "source"]
                ).to_pylist()
            image = shards[path][entry["row"]]
            kept = known[pool].get(image["class_id"], [])
            place = image["index"]
            if place >= len(kept) or kept[place]["url"] != image["source"]:
                where = self.plan.manifest(pool)
                raise UserError(where, f"image {place} of class {image['class_id']!r} is another one", REMAKE)
            found = kept[place]
            rows.append(
                {
                    **{
                        name: found[name]
                        for name in ("url", "sha256", "width", "height", "caption", "similarity")
                    },
                    "corpus_id": found["id"],
                    "label": self.numbers[entry["class_id"]],
                    "class_id": entry["class_id"],
                    "class_name": self.classes[self.numbers[entry["class_id"]]].name,
                    "row": pool,
                    "id": image_name(image["class_id"], place),
                }
            )
        return pa.Table.from_pylist(rows, schema=ADDRESSES)


def _by_class(manifest: str) -> dict[str, list[dict[str, Any]]]:
    """Rows of a list of retrieved images by class, in the order of the pool."""
    with whole(manifest):
        rows = pq.read_table(manifest).to_pylist()
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["class_id"], []).append(row)
    return found


def _same_disk(path: Path, folder: Path) -> bool:
    return path.stat().st_dev == folder.stat().st_dev


def _is_retrieved(plan: Plan, rows: pa.Table, wanted: bool = True) -> pa.Array:
    methods = plan.study.methods
    pools = pools_of(rows) if rows.num_rows else []
    return pa.array([methods[pool].retrieves_images is wanted for pool in pools], pa.bool_())


def needed_files(plan: Plan, row: str, run: int, splits: Sequence[str]) -> list[str]:
    """Files of a finished study that its export reads, except shards and what these name."""
    manifest = [] if row in plan.study.real else [plan.resample(row, str(run))]
    choice = [plan.selected(row)] if row in plan.study.choosing else []
    others = [plan.splits[name] for name in splits if name != "train"]
    return [plan.classes, *plan.excluded, plan.split_of(row), *others, *choice, *manifest, plan.table1["csv"]]


def open_contents(plan: Plan, row: str, run: int, splits: Sequence[str], addresses: bool) -> Contents:
    """Gather a training set whose files exist (:func:`needed_files`); no image is read yet.

    Raises
    ------
    UserError
        A file is damaged, files disagree about the classes, or a split is not in their order.
    """
    study = plan.study
    info = read_class_table(plan.classes)
    excluded = read_excluded(plan.excluded)
    kept = [one for one in info if one.class_id not in excluded]
    trained = read_choice(plan.selected(row)) if row in study.choosing else row

    def split(path: str) -> Split:
        found = read_split(path)
        check_labels(found, info, path)
        if (later := np.flatnonzero(np.diff(found.labels) < 0)).size:
            before, after = (found.class_ids[row] for row in (later[0], later[0] + 1))
            raise UserError(path, f"images of class {after!r} after those of class {before!r}", REMAKE)
        return found.without(excluded)

    real, added = split(plan.split_of(trained)), None
    if row not in study.real:
        manifest = plan.resample(row, str(run))
        added = read_index(manifest)
        check_same_labels(added, {one.class_id: label for label, one in enumerate(info)}, manifest)
        if left := sorted(excluded.intersection(added.column("class_id").to_pylist())):
            raise UserError(manifest, f"images of class {left[0]!r}, which is left out", REMAKE)
        real, added = _after_replacing(plan, trained, run, info, excluded, real, added)
    listed = added.filter(_is_retrieved(plan, added)) if addresses and added is not None else None
    known = {name: real if name == "train" else split(plan.splits[name]) for name in splits}
    return Contents(plan, row, run, trained, kept, excluded, known, added, listed)


def _after_replacing(
    plan: Plan,
    row: str,
    run: int,
    info: Sequence[ClassInfo],
    excluded: frozenset[str],
    real: Split,
    added: pa.Table,
) -> tuple[Split, pa.Table]:
    """Real images that stay and added ones that are used (``use.replace``)."""
    if not plan.study.methods[row].use.replace:
        return real, added
    number = np.full(len(info), -1)
    kept = [label for label, one in enumerate(info) if one.class_id not in excluded]
    number[kept] = np.arange(len(kept))
    class_ids = [info[label].class_id for label in kept]
    given = number[added.column("label").to_numpy()]
    stays, used = replace_in_run(plan.study, row, run, number[real.labels], given, class_ids)
    ids, classes, sources = (
        [column[place] for place in stays] for column in (real.image_ids, real.class_ids, real.sources)
    )
    return Split(ids, classes, real.labels[stays], sources, real.stamps_at(stays)), added.take(used)
