"""Split each class's images into training, validation and test (paper, section 3; protocol, section 1).

Input: the images of every class as a data source lists them, the fractions of the config, the study's
seed. Output: manifests ``splits/{train,train2x,full,val,test}.parquet``. A class's split depends only on
the seed, its id and its list of images. train, val and test are always made, train2x and full only if a
method needs them. Manifests of a user's own images also record the stamps of their files.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from augbench.artifacts.parquet import REMAKE, read_table
from augbench.config.draws import drawn_name
from augbench.data.stamps import KeyName, Stamp, Stamps, names_in_keys, stamps_of
from augbench.errors import UserError
from augbench.files import atomic_path
from augbench.seeds import derive_seed

if TYPE_CHECKING:
    from augbench.config.data import Dataset
    from augbench.data.classes import ClassInfo
    from augbench.data.source import ClassImages, ImageSource

ALWAYS = frozenset({"train", "val", "test"})
SCHEMA = pa.schema(
    [("image_id", pa.string()), ("class_id", pa.string()), ("label", pa.int32()), ("source", pa.string())]
)
STAMPED = pa.schema([*SCHEMA, ("size", pa.int64()), ("mtime_ns", pa.int64())])


@dataclass(frozen=True)
class Shares:
    """Exact shares of the training pool; validation and test are 0 if the data set gives their images.

    ``before`` is the share that precedes the held-out images in a class's random order: ``held_out_like``, or
    the training share. ``shots`` and ``validation_shots`` are numbers of images in place of shares. With
    ``shots``, the held-out images are the last of the order, whatever the number of shots.
    """

    train: Fraction
    validation: Fraction
    test: Fraction
    before: Fraction
    shots: int | None = None
    validation_shots: int | None = None


def resolve_shares(
    dataset: Dataset, given_validation: bool, given_test: bool, needed: Collection[str] = ()
) -> Shares:
    """Shares that the config asks for, with its defaults filled in (protocol, section 1).

    By default, validation is as large as train if test images are given (ImageNet in the paper, section
    3), otherwise half of what train leaves (Caltech256). Test, if not given, is by default half of what
    train leaves. With ``held_out_like``, these are the defaults of the study with that ``train_fraction``.
    With ``shots``, validation has as many images by default, and test half of the pool.

    Raises
    ------
    UserError
        The shares do not fit into the pool. train2x counts if it is in ``needed``.
    """
    counted = dataset.validation_images

    def share(given: bool, configured: float | None, default: Fraction) -> Fraction:
        return Fraction(0) if given else default if configured is None else Fraction(str(configured))

    if dataset.shots is not None:
        return Shares(
            train=Fraction(0),
            validation=share(given_validation, dataset.validation_fraction, Fraction(0)),
            test=share(given_test, dataset.test_fraction, Fraction(1, 2)),
            before=Fraction(0),
            shots=dataset.shots,
            validation_shots=counted,
        )
    train = Fraction(str(dataset.train_fraction))
    before = train if dataset.held_out_like is None else Fraction(str(dataset.held_out_like))
    half = (1 - before) / 2
    validation = share(
        given_validation or counted is not None, dataset.validation_fraction, before if given_test else half
    )
    test = share(given_test, dataset.test_fraction, half)
    room = 1 - train
    if validation + test > room:
        names = [
            name for name, value in (("validation_fraction", validation), ("test_fraction", test)) if value
        ]
        values = " + ".join(f"{float(value):g}" for value in (validation, test) if value)
        keys = " + ".join(f"dataset.{name}" for name in names)
        raise UserError(
            keys,
            f"{values} beside train_fraction {float(train):g}",
            f"allowed: at most {float(room):g} in all; set lower values",
        )
    if before + validation + test > 1:
        raise UserError(
            "dataset.held_out_like",
            f"{float(before):g} beside {float(validation + test):g} for validation and test",
            f"allowed: at most {float(1 - validation - test):g}",
        )
    if "train2x" in needed and train > room - validation - test:
        left = float(room - validation - test)
        raise UserError(
            "dataset.train_fraction",
            f"{float(train):g}, and train2x needs as much again",
            f"allowed: at most the {left:g} that validation and test leave; lower the fractions",
        )
    return Shares(train, validation, test, before, validation_shots=counted)


@dataclass(frozen=True)
class SplitSizes:
    """Number of images of one class per split.

    ``pool_validation`` and ``pool_test`` are the numbers taken from the training pool, ``before`` the number
    of images that precede them in the class's random order.
    """

    train: int
    validation: int
    test: int
    pool_validation: int
    pool_test: int
    room: int  # images of the pool that are in no other split: train2x takes its further images from these
    before: int


def _sizes(pool: int, shares: Shares, given_validation: int | None, given_test: int | None) -> SplitSizes:
    """Sizes of a class's splits; they fit only if none is empty or negative (:func:`split_sizes`)."""
    counted = shares.validation_shots if given_validation is None else None
    validation = math.ceil(shares.validation * pool) if counted is None else counted
    test = math.ceil(shares.test * pool)
    before = pool - validation - test if shares.shots is not None else math.ceil(shares.before * pool)
    rest = pool - before
    if validation + test > rest:  # rounded up, they exceed what is left: share what is left
        if counted is None:
            validation = math.floor(rest * shares.validation / (shares.validation + shares.test))
        test = rest - validation if shares.test else 0
    left = pool - validation - test
    train = shares.shots or min(math.ceil(shares.train * pool), left)
    return SplitSizes(
        train=train,
        validation=validation if given_validation is None else shares.validation_shots or given_validation,
        test=test if given_test is None else given_test,
        pool_validation=validation,
        pool_test=test,
        room=left - train,
        before=before,
    )


def split_sizes(
    class_id: str,
    pool: int,
    shares: Shares,
    given_validation: int | None,
    given_test: int | None,
    needed: Collection[str] = (),
    draws: int = 1,
) -> SplitSizes:
    """Number of images in each split of one class: ceil(share x n) (protocol, section 1).

    The same shares in every class keep the class imbalance.

    Parameters
    ----------
    pool : int
        Images in the class's training pool.
    given_validation, given_test : int or None
        Number of images that the data set gives for these splits; None: they are sampled from the pool.
    needed : collection of str
        Splits that the study's methods use; ``train2x`` needs room for as many images again as train.
    draws : int
        Draws of the training images; several need images besides those of all splits.

    Raises
    ------
    UserError
        A split of this class would be empty, train2x has no room, or all draws would be the same.
    """

    def fits(size: int) -> bool:
        sizes = _sizes(size, shares, given_validation, given_test)
        twice = sizes.train if "train2x" in needed else 0
        return (
            sizes.room >= twice
            and sizes.before + sizes.pool_validation + sizes.pool_test <= size
            and sizes.train > 0
            and (given_validation is not None or sizes.validation > 0)
            and (given_test is not None or sizes.test > 0)
        )

    for name, given in (("validation", given_validation), ("test", given_test)):
        if given == 0:
            raise UserError("dataset", f"class {class_id!r} has 0 {name} images", "at least 1 is needed")
    if given_validation is not None and given_validation < (shares.validation_shots or 0):
        raise UserError(
            "dataset.validation_shots",
            f"{shares.validation_shots}, but class {class_id!r} has {given_validation} validation images",
            f"allowed: at most {given_validation}; its default is shots",
        )
    if not fits(pool):
        enough = next((size for size in range(pool + 1, pool + 10_000) if fits(size)), "many more")
        sampled = [
            "train",
            *(["val"] if given_validation is None else []),
            *(["test"] if given_test is None else []),
        ]
        names = sampled + (["train2x"] if "train2x" in needed else [])
        found, enough_for = (
            f"class {class_id!r} has {pool} images",
            f"{enough} are enough for {', '.join(names)}",
        )
        if shares.shots is None:
            raise UserError("dataset", found, f"{enough_for} at these fractions")
        raise UserError("dataset.shots", f"{shares.shots}, but {found}", f"{enough_for} with as many shots")
    sizes = _sizes(pool, shares, given_validation, given_test)
    if draws > 1 and not sizes.room:
        raise UserError(
            "dataset.draws",
            f"{draws}, but class {class_id!r} has no image besides its training, validation and test images",
            "allowed: 1 at these fractions; lower train_fraction for draws that differ",
        )
    return sizes


def long_tail(sizes: Mapping[str, SplitSizes], imbalance: float | None) -> dict[str, SplitSizes]:
    """Sizes of all classes' splits with a long tail of training images, if ``imbalance`` asks for one.

    Class i of C has floor(n x imbalance^(-i / (C - 1))) training images, where n is the smallest training
    split of all classes without a tail (Cui et al., CVPR 2019; Cao et al., NeurIPS 2019). train2x has twice
    as many. What a class loses stays in its room; validation and test do not change.

    Parameters
    ----------
    sizes : mapping of str to SplitSizes
        Sizes without a tail (:func:`split_sizes`), by class id in label order.

    Raises
    ------
    UserError
        A class would have no training image; names it.
    """
    if imbalance is None:
        return dict(sizes)
    most, last = min(size.train for size in sizes.values()), max(1, len(sizes) - 1)
    tail: dict[str, SplitSizes] = {}
    for place, (class_id, size) in enumerate(sizes.items()):
        train = math.floor(most * imbalance ** (-place / last) + 1e-9)  # 50 / 50 is 1, not 0.99...
        if not train:
            raise UserError(
                "dataset.imbalance",
                f"{imbalance:g}, but class {class_id!r} would have 0 of {most} training images",
                f"allowed: at most {most}, the training images of the first class",
            )
        tail[class_id] = replace(size, train=train, room=size.room + size.train - train)
    return tail


def split_class(
    class_id: str,
    pool: int,
    dataset: Dataset,
    given_validation: int | None,
    given_test: int | None,
    rng: np.random.Generator,
    needed: Collection[str] = (),
    train: int | None = None,
) -> dict[str, np.ndarray]:
    """Split one class (paper, section 3; protocol, section 1).

    - ``train``: ceil(train_fraction x n) images of the pool, or ``shots``: the first of a random order, so
      that a smaller split is part of a larger one;
    - ``val``: the given images, else a disjoint sample, by default as large as train if test images are
      given, else half of the rest; with ``held_out_like``, the one of that study; with ``shots``, as many,
      taken before the test images from the end of the order, so that fewer are part of more;
    - ``test``: the given images, else a disjoint sample, with ``shots`` the end of the order; only
      ``test_images_per_class`` of them if the config sets that;
    - ``train2x`` (if needed): train and as many further images, none of them in val or test;
    - ``full`` (if needed): the pool without val and test images that were sampled from it (before any cut);
    - ``train_draw1``, ``train2x_draw1`` and so on (if needed): further draws of these sizes from ``full``.

    Parameters
    ----------
    pool, given_validation, given_test : int or int or None
        As in :func:`split_sizes`.
    rng : numpy Generator
        This class's own generator: see :func:`class_generator`. The splits in ``needed`` do not change
        the others.
    train : int, optional
        Training images of the class in a long tail (:func:`long_tail`). Default: those without one.

    Returns
    -------
    dict of str to ndarray, int64, sorted
        Indices into the pool, or into the given images for a ``val`` or ``test`` that is given.

    Raises
    ------
    UserError
        As :func:`resolve_shares` and :func:`split_sizes`.
    """
    shares = resolve_shares(dataset, given_validation is not None, given_test is not None, needed)
    sizes = split_sizes(
        class_id,
        pool=pool,
        shares=shares,
        given_validation=given_validation,
        given_test=given_test,
        needed=needed,
        draws=dataset.draws,
    )
    order = rng.permutation(pool)
    first, val, test, last = np.split(
        order, np.cumsum([sizes.before, sizes.pool_validation, sizes.pool_test])
    )
    full = np.concatenate([first, last])
    if given_test is not None:
        test = rng.permutation(given_test)
    if given_validation is not None:
        cut = shares.validation_shots
        val = np.arange(given_validation) if cut is None else rng.permutation(given_validation)[:cut]
    size = sizes.train if train is None else train
    chosen = {
        "train": full[:size],
        "val": val,
        "test": test[: dataset.test_images_per_class],
        "train2x": full[: 2 * size],
        "full": full,
    }
    for further in range(1, dataset.draws):
        order = rng.permutation(full)
        for name, count in (("train", size), ("train2x", 2 * size)):
            chosen[drawn_name(name, further)] = order[:count]
    return {
        name: np.sort(part).astype(np.int64) for name, part in chosen.items() if name in ALWAYS | {*needed}
    }


def class_generator(seed: int, class_id: str) -> np.random.Generator:
    """Random generator that splits one class; adding or removing other classes does not change it."""
    return np.random.default_rng(derive_seed(seed, "split", class_id))


@dataclass(frozen=True, eq=False)
class Split:
    """A manifest: columns with one entry per image, sorted by (label, image_id).

    ``stamps`` are those of the images' files when they were split. None: the content of the data set is
    fixed, or a version before these wrote the manifest.
    """

    image_ids: list[str]
    class_ids: list[str]
    labels: np.ndarray  # int32
    sources: list[str]
    stamps: Stamps | None = None

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def key_names(self) -> list[KeyName]:
        """What names the images in the store's keys."""
        return names_in_keys(self.image_ids, self.stamps)

    def stamps_at(self, rows: Iterable[int]) -> Stamps | None:
        """Stamps of the images in some rows."""
        return None if self.stamps is None else [self.stamps[row] for row in rows]

    def without(self, class_ids: Collection[str]) -> Split:
        """The manifest without the images of some classes."""
        rows = [row for row, class_id in enumerate(self.class_ids) if class_id not in class_ids]
        ids, classes, sources = (
            [column[row] for row in rows] for column in (self.image_ids, self.class_ids, self.sources)
        )
        return Split(ids, classes, self.labels[rows], sources, self.stamps_at(rows))


def make_splits(
    classes: Sequence[ClassInfo],
    images: Sequence[ClassImages],
    dataset: Dataset,
    seed: int,
    needed: Collection[str],
) -> dict[str, Split]:
    """Split every class.

    Parameters
    ----------
    images : sequence of ClassImages
        In label order, as :meth:`~augbench.data.source.ImageSource.scan` returns them.
    needed : collection of str
        The splits to make, as :func:`split_class` names them; train, val and test are always made.

    Raises
    ------
    UserError
        A class cannot be split. The error names the first such class; ``augbench check`` names all.
    """
    columns: dict[str, list[tuple[int, str, str, str]]] = {name: [] for name in sorted(ALWAYS | {*needed})}
    tail = {} if dataset.imbalance is None else _sizes_in_tail(images, dataset, needed)
    for label, (info, found) in enumerate(zip(classes, images, strict=True)):
        if found.class_id != info.class_id:
            raise ValueError(
                f"class {label} is {info.class_id!r} in the table and {found.class_id!r} in the scan"
            )
        given = _given(found)
        rng = class_generator(seed, info.class_id)
        for name, indices in split_class(
            info.class_id,
            pool=len(found.pool),
            dataset=dataset,
            given_validation=given[0],
            given_test=given[1],
            rng=rng,
            needed=needed,
            train=tail[info.class_id].train if tail else None,
        ).items():
            given_images = {"val": found.validation, "test": found.test}.get(name)
            origin = found.pool if given_images is None else given_images
            columns[name] += sorted(
                (label, origin.image_ids[i], info.class_id, origin.sources[i]) for i in indices.tolist()
            )
    return {name: _split(rows) for name, rows in columns.items()}


def _given(found: ClassImages) -> tuple[int | None, int | None]:
    """Number of validation and test images that the data set gives a class; None: they are sampled."""
    validation, test = (None if part is None else len(part) for part in (found.validation, found.test))
    return validation, test


def _sizes_in_tail(
    images: Sequence[ClassImages], dataset: Dataset, needed: Collection[str]
) -> dict[str, SplitSizes]:
    """Sizes of all classes' splits in the data set's long tail."""
    sizes = {}
    for found in images:
        validation, test = _given(found)
        shares = resolve_shares(dataset, validation is not None, test is not None, needed)
        sizes[found.class_id] = split_sizes(
            found.class_id, len(found.pool), shares, validation, test, needed, dataset.draws
        )
    return long_tail(sizes, dataset.imbalance)


def _split(rows: list[tuple[int, str, str, str]]) -> Split:
    labels, image_ids, class_ids, sources = (list(column) for column in zip(*rows, strict=True))
    return Split(image_ids, class_ids, np.array(labels, dtype=np.int32), sources)


def stamped(split: Split, source: ImageSource) -> Split:
    """The manifest with the stamps of the images' files, unless hashes fix what the data set holds."""
    files = source.files(split.sources)
    return split if files is None else replace(split, stamps=stamps_of(files))


def write_split(split: Split, path: str | Path) -> None:
    """Write a manifest atomically, with rows sorted by (label, image_id).

    Columns are image_id, class_id, label (int32), source. With stamps, size (bytes) and mtime_ns
    (nanoseconds since 1970) follow; they are null for images that are named by the hash of their bytes.
    """
    if len(set(split.image_ids)) != len(split):
        raise ValueError("an image_id appears twice in the split")
    labels = split.labels.tolist()
    order = sorted(range(len(split)), key=lambda i: (labels[i], split.image_ids[i]))
    columns = [
        [split.image_ids[i] for i in order],
        [split.class_ids[i] for i in order],
        split.labels[order],
        [split.sources[i] for i in order],
    ]
    schema, stamps = SCHEMA, split.stamps_at(order)
    if stamps is not None:
        schema = STAMPED
        columns += [
            [None if stamp is None else stamp.size for stamp in stamps],
            [None if stamp is None else stamp.mtime_ns for stamp in stamps],
        ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_arrays(arrays, schema=schema), temporary)


def read_split(path: str | Path) -> Split:
    """Read a manifest.

    Raises
    ------
    UserError
        The file is not a complete Parquet file, has other columns than :data:`SCHEMA` or :data:`STAMPED`,
        missing values, or an image twice.
    """
    table = read_table(path, SCHEMA, STAMPED)
    if any(table.column(name).null_count for name in SCHEMA.names):
        raise UserError(str(path), "a split with missing values", REMAKE)
    image_ids, class_ids, sources = (
        table.column(name).to_pylist() for name in ("image_id", "class_id", "source")
    )
    if len(set(image_ids)) != len(image_ids):
        raise UserError(str(path), "an image_id appears twice", REMAKE)
    stamps: list[Stamp | None] | None = None
    if STAMPED.names == table.schema.names:
        numbers = zip(table.column("size").to_pylist(), table.column("mtime_ns").to_pylist(), strict=True)
        stamps = [None if size is None or time is None else Stamp(size, time) for size, time in numbers]
    return Split(image_ids, class_ids, table.column("label").to_numpy(), sources, stamps)


def check_labels(split: Split, classes: Sequence[ClassInfo], where: str = "split") -> None:
    """Check that label i is class i of the table, by id; called wherever a split and a class table meet.

    Raises
    ------
    UserError
        A label has no class in the table, or the class has another class_id there.
    """
    ids = [info.class_id for info in classes]
    for label, class_id in sorted(set(zip(split.labels.tolist(), split.class_ids, strict=True))):
        expected = ids[label] if 0 <= label < len(ids) else None
        if class_id != expected:
            raise UserError(
                where,
                f"label {label} is class {class_id!r}",
                f"the class table says {expected!r}; delete both and run again",
            )
