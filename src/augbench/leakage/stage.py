"""The leakage guard: near-duplicates of validation and test images among the images that a method adds.

Flows in: the index of a method's pool, the validation and test splits, CLIP. Flows out: ``leakage/{method}.parquet`` with one row per confirmed
pair, a summary beside it, and what follows from them: a pool without those images, an accuracy without those test images.

CLIP proposes pairs; pixels confirm them. One image of a pair is aligned with a part of the other, either way round, mirrored or not, and they
are near-duplicates if both their perceptual hashes and their fine detail agree. Neither would do alone: pictures of little detail have like
hashes, and two shirts before a black ground correlate as wholes.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from augbench.artifacts.parquet import REMAKE, read_table
from augbench.artifacts.pool import load_images, read_index
from augbench.batches import in_batches
from augbench.data.source import open_source
from augbench.data.splits import read_split
from augbench.errors import UserError
from augbench.files import atomic_path, canonical_hash, read_json, sha256_file, write_json
from augbench.progress import Progress, track

if TYPE_CHECKING:
    from augbench.runtime.job import Job

logger = logging.getLogger(__name__)

BATCH = 32  # images embedded together; on a CPU, more do not fit into its cache
HASH_SIZE = 16  # so a hash has 256 bits; the usual 64 do not tell one shirt from another
KEPT_SIDE = 96  # shorter side of the pictures compared, at most
SEARCH_SIDE = 48  # shorter side of a picture that another one is searched for in
LEAST_SIDE = 8  # of what is searched for
SCALES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
SIDE = 32  # of the patches whose detail is compared
WORTH_ALIGNING = 0.5  # correlation of detail where a search ends; crops of one picture have more
STARTS = 2  # places aligned per pair
STEPS = 40  # evaluations of one alignment
WHOLE_AREA = 0.92  # of what is not called a crop
WARM = 512  # real pictures for which it is kept what was computed, about 100 kB each
FLAT = 1.5  # standard deviation of detail, in grey levels of 255, below which there is nothing to recognise: skies have less, garments ten times as much
KINDS = ("copy", "crop", "mirror", "mirrored crop")
SCHEMA = pa.schema(
    [
        ("method", pa.string()),
        ("class_id", pa.string()),
        ("index", pa.int32()),  # i of "image i of class c"
        ("sha256", pa.string()),  # of the added image
        ("split", pa.string()),  # val or test
        ("image_id", pa.string()),  # of the real image
        ("real_class_id", pa.string()),
        ("clip_similarity", pa.float32()),
        ("hash_distance", pa.int32()),  # of 256 bits
        ("correlation", pa.float32()),  # of fine detail
        ("kind", pa.string()),  # one of KINDS
    ]
)
Box = tuple[float, float, float, float]  # left, upper, right, lower, as shares of width and height
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Limits:
    """What makes a near-duplicate.

    The last two are calibrated on Fashion-MNIST's 28 x 28 pixels, where unrelated images are most alike: of 300 random crops (70 to 100% of a
    side, JPEG at quality 70 to 95) 99% are confirmed, of recompressed images 97% at quality 60 and 77% at 30; of 5000 pairs of nearest
    neighbours by CLIP that show different garments, one is. Parts of photographs, 128 x 106 pixels, are confirmed in 98 to 100% of these
    cases, if there is any detail in them; 780 unrelated ones are 48 bits or more apart. All that holds for pairs that CLIP proposes. The
    miniature's CLIP has the original of a recompressed image among the 5 nearest of 10,000 test images in 97% of cases, of one that is
    enlarged or mirrored in 84%, of a crop of 90 to 100% of a side in 48%, of 70 to 100% in 19%: it finds garments alike that are not.

    Attributes
    ----------
    clip_threshold : float
        Cosine of CLIP embeddings from which a pair is looked at.
    neighbours : int
        Real images of a split that are looked at per added image, at most; the nearest ones.
    hash_threshold : int
        Largest Hamming distance of the aligned pictures' perceptual hashes, of 256 bits.
    correlation : float
        Smallest correlation of their fine detail.
    """

    clip_threshold: float = 0.9
    neighbours: int = 5
    hash_threshold: int = 24
    correlation: float = 0.8


# --- two pictures -----------------------------------------------------------------------------------------------------


def _unit(patch: np.ndarray) -> np.ndarray:
    """A patch ``(S, S)`` with mean 0 and length 1, so that a sum of products is a correlation; a flat one becomes 0."""
    centred = patch - patch.mean()
    length = float(np.sqrt(np.vdot(centred, centred)))
    return centred / length if length >= FLAT * len(patch) else np.zeros_like(patch)


def _detail(luminance: np.ndarray, blur: float = 1.0) -> np.ndarray:
    """What a Gaussian blur of ``blur`` pixels takes from a picture ``(H, W)``: edges and texture, no shading."""
    import cv2

    return luminance - cv2.GaussianBlur(luminance, (0, 0), blur)


class Picture:
    """The luminance of an image, at most :data:`KEPT_SIDE` pixels at the shorter side, and what comparing it needs."""

    def __init__(self, image: Image.Image) -> None:
        grey = image.convert("L")
        scale = KEPT_SIDE / min(grey.size)
        if scale < 1:
            grey = grey.resize((round(grey.width * scale), round(grey.height * scale)), Image.Resampling.LANCZOS)
        self.grey = grey

    def cut(self, box: Box, side: int, filter: Image.Resampling = Image.Resampling.BICUBIC) -> Image.Image:
        """The part in ``box``, squashed to a square of ``side`` pixels."""
        (left, upper, right, lower), (width, height) = box, self.grey.size
        return self.grey.resize((side, side), filter, box=(left * width, upper * height, right * width, lower * height))

    def detail(self, box: Box = WHOLE) -> np.ndarray:
        """Fine detail of the part in ``box``, a unit patch, float32 ``(SIDE, SIDE)``."""
        return _unit(_detail(np.asarray(self.cut(box, SIDE), dtype=np.float32)))

    @cached_property
    def whole_detail(self) -> np.ndarray:
        """Fine detail of the whole picture; 0 where there is none, and so nothing to recognise."""
        return self.detail()

    @cached_property
    def hash(self) -> Any:
        """The whole picture's perceptual hash."""
        import imagehash

        return imagehash.phash(self.grey, HASH_SIZE)

    @cached_property
    def mirrored(self) -> Picture:
        """The mirror image."""
        return Picture(ImageOps.mirror(self.grey))

    @cached_property
    def search_size(self) -> tuple[int, int]:
        """Width and height at which parts are searched for."""
        scale = SEARCH_SIDE / min(self.grey.size)
        return round(scale * self.grey.width), round(scale * self.grey.height)

    def search_detail(self, size: tuple[int, int] | None = None) -> np.ndarray:
        """Detail of the picture at ``size``, width and height, default: its own :attr:`search_size`; float32 ``(height, width)``."""
        import cv2

        size = size or self.search_size
        if size not in self._search_details:
            luminance = cv2.resize(self._search_luminance, size, interpolation=cv2.INTER_AREA)
            self._search_details[size] = _detail(luminance, SEARCH_SIDE / SIDE)
        return self._search_details[size]

    @cached_property
    def _search_luminance(self) -> np.ndarray:
        return np.asarray(self.grey.resize(self.search_size, Image.Resampling.BICUBIC), dtype=np.float32)

    @cached_property
    def _search_details(self) -> dict[tuple[int, int], np.ndarray]:
        return {}

    def forget(self) -> None:
        """Keep the pixels only: what was computed is ten times as much."""
        self.__dict__ = {"grey": self.grey}


@dataclass(frozen=True)
class Match:
    """How well two pictures agree where they agree best.

    Attributes
    ----------
    hash_distance : int
        Hamming distance of perceptual hashes (DCT, 256 bits) of one picture and the part of the other that it is aligned with.
    correlation : float
        Pearson correlation of the two's fine detail at 32 x 32 pixels.
    kind : str
        ``copy``, ``crop``, ``mirror`` or ``mirrored crop``: which part it is, of either picture.
    """

    hash_distance: int
    correlation: float
    kind: str

    def within(self, limits: Limits) -> bool:
        """Whether that makes a near-duplicate."""
        return self.hash_distance <= limits.hash_threshold and self.correlation >= limits.correlation


@dataclass(frozen=True)
class _Place:
    """The whole of one picture at ``box`` of the other one, and how well the two correlate there."""

    correlation: float
    whole: Picture
    other: Picture
    box: Box
    mirrored: bool


def _sizes(whole: Picture, other: Picture) -> list[tuple[int, int]]:
    """Sizes at which ``whole`` is searched for in ``other``: :data:`SCALES` of the largest that fits, and squashed to all of it."""
    width, height = other.search_size
    ratio = whole.grey.width / whole.grey.height
    fit = min(width, height * ratio), min(height, width / ratio)
    sizes = [(round(scale * fit[0]), round(scale * fit[1])) for scale in SCALES]
    return list(dict.fromkeys([(width, height), *(size for size in sizes if min(size) >= LEAST_SIDE)]))


def _search(whole: Picture, other: Picture) -> Iterator[_Place]:
    """Where in ``other`` the whole of ``whole`` may be, and where its mirror image: the best place of all sizes (normalised cross-correlation)."""
    import cv2

    ground, (width, height) = other.search_detail(), other.search_size
    for mirrored, side in enumerate((whole, whole.mirrored)):
        best: _Place | None = None
        for size in _sizes(whole, other):
            template = side.search_detail(size)
            if template.std() < FLAT:
                continue
            _, score, _, (x, y) = cv2.minMaxLoc(cv2.matchTemplate(ground, template, cv2.TM_CCOEFF_NORMED))
            if score >= max(WORTH_ALIGNING, best.correlation if best else 0.0):
                box = (x / width, y / height, (x + size[0]) / width, (y + size[1]) / height)
                best = _Place(score, side, other, box, bool(mirrored))
        if best is not None:
            yield best


def _align(place: _Place) -> Box:
    """The part of the other picture near ``place``, moved and scaled, whose detail correlates best."""
    from scipy.optimize import minimize

    left, upper, right, lower = place.box
    width, height = right - left, lower - upper

    def box(moves: np.ndarray) -> Box:
        scale = min(max(moves[0], 0.5), 1 / max(width, height))
        w, h = scale * width, scale * height
        x = min(max((left + right) / 2 + moves[1] - w / 2, 0.0), 1 - w)
        y = min(max((upper + lower) / 2 + moves[2] - h / 2, 0.0), 1 - h)
        return x, y, min(x + w, 1.0), min(y + h, 1.0)

    def cost(moves: np.ndarray) -> float:
        return -float(np.vdot(place.other.detail(box(moves)), place.whole.whole_detail))

    simplex = np.array([[1, 0, 0], [0.97, 0, 0], [1, 0.02, 0], [1, 0, 0.02]])
    best = minimize(cost, simplex[0], method="Nelder-Mead", options={"initial_simplex": simplex, "maxfev": STEPS, "xatol": 2e-3, "fatol": 1e-3})
    return box(best.x)


def _match(place: _Place) -> Match:
    """How well the pictures agree at ``place`` once they are aligned."""
    import imagehash

    box = _align(place)
    part = place.other.cut(box, 4 * HASH_SIZE, Image.Resampling.LANCZOS)
    cropped = (box[2] - box[0]) * (box[3] - box[1]) < WHOLE_AREA
    return Match(
        hash_distance=int(place.whole.hash - imagehash.phash(part, HASH_SIZE)),
        correlation=float(np.vdot(place.whole.whole_detail, place.other.detail(box))),
        kind=KINDS[2 * place.mirrored + cropped],
    )


def compare(one: Picture, other: Picture, limits: Limits) -> Match | None:
    """Look for a part of one picture that is the other one, in both directions, mirrored or not.

    The most promising places are aligned (Nelder-Mead on position and scale); the first that is within the limits is taken, else the one with
    the smallest distance of hashes.

    Returns
    -------
    Match or None
        None where nothing is alike, or where a picture is flat. Equal pictures match whatever they show.
    """
    if one.grey.size == other.grey.size and one.grey.tobytes() == other.grey.tobytes():
        return Match(0, 1.0, KINDS[0])
    places = sorted([*_search(one, other), *_search(other, one)], key=lambda place: -place.correlation)
    matches = []
    for place in places[:STARTS]:
        matches.append(_match(place))
        if matches[-1].within(limits):
            return matches[-1]
    return min(matches, key=lambda match: match.hash_distance, default=None)


# --- two sets of pictures ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """A confirmed pair: positions of the added and of the real image, the cosine of their embeddings, and how they match."""

    added: int
    real: int
    clip_similarity: float
    match: Match


def nearest(added: np.ndarray, real: np.ndarray, limits: Limits) -> Iterator[tuple[int, int, float]]:
    """Pairs worth a look: of each added image the nearest real ones, with a cosine of ``limits.clip_threshold`` or more.

    Parameters
    ----------
    added, real : ndarray, float (M, D) and (N, D)
        Embeddings of unit length.

    Yields
    ------
    int, int, float
        Positions and cosine, by added image, nearest first.
    """
    import faiss

    if not len(added) or not len(real):
        return
    cosines, positions = faiss.knn(added.astype(np.float32), real.astype(np.float32), min(limits.neighbours, len(real)), metric=faiss.METRIC_INNER_PRODUCT)
    for row, column in np.argwhere(cosines >= limits.clip_threshold).tolist():
        yield row, int(positions[row, column]), float(cosines[row, column])


Load = Callable[[Sequence[int]], Iterable[Image.Image]]


def find_near_duplicates(added: np.ndarray, real: np.ndarray, load_added: Load, load_real: Load, limits: Limits, what: str = "leakage") -> list[Found]:
    """Near-duplicates between two sets of images: CLIP neighbours, confirmed by their pixels.

    Parameters
    ----------
    added, real : ndarray, float (M, D) and (N, D)
        CLIP embeddings of unit length.
    load_added, load_real : callable
        From ascending positions to the images at them. Each image that is in a pair is loaded once.
    what : str
        Begins the lines of the log.

    Returns
    -------
    list of Found
        By added image.
    """
    pairs = list(nearest(added, real, limits))
    wanted = sorted({place for _, place, _ in pairs})
    pictures = {place: Picture(image) for place, image in zip(wanted, track(load_real(wanted), f"{what}: real", "image", len(wanted)), strict=True)}
    partners: dict[int, list[tuple[int, float]]] = {}
    for row, place, cosine in pairs:
        partners.setdefault(row, []).append((place, cosine))
    found, rows = [], sorted(partners)
    warm: dict[int, None] = {}  # in the order of their last use
    progress = Progress(what, len(rows), "image")
    for row, image in zip(rows, load_added(rows), strict=True):
        picture = Picture(image)
        for place, cosine in partners[row]:
            match = compare(picture, pictures[place], limits)
            if match is not None and match.within(limits):
                found.append(Found(row, place, cosine, match))
            warm.pop(place, None)
            warm[place] = None
        while len(warm) > WARM:
            oldest = next(iter(warm))
            pictures[oldest].forget()
            del warm[oldest]
        progress.update(note=f"{len(found)} pairs")
    return found


# --- a study ----------------------------------------------------------------------------------------------------------


class _Embedder:
    """CLIP's image tower, loaded when an embedding is missing; embeddings are kept in the store."""

    def __init__(self, job: Job, clip: Mapping[str, Any]) -> None:
        self.job, self.clip = job, clip

    @cached_property
    def tower(self) -> Callable[[Sequence[Image.Image]], Any]:
        from augbench.models.folders import load_image_tower, pick_device

        return load_image_tower(self.clip["folder"], pick_device(self.job.study.execution.device))

    def embed(self, images: Iterable[Image.Image]) -> np.ndarray:
        """Unit embeddings, float16 (N, D)."""
        import torch

        parts = [torch.nn.functional.normalize(self.tower(batch), dim=-1).half().cpu().numpy() for batch in in_batches(images, BATCH)]
        return np.concatenate(parts)

    def recipe(self, **what: Any) -> dict[str, Any]:
        """What an embedding depends on."""
        return {"version": 1, "clip": self.clip["id"], **what}


def embed_splits(job: Job, splits: Mapping[str, str | Path], clip_path: str | Path, outs: Mapping[str, str | Path]) -> None:
    """Embed the images of splits once for all methods, through the store.

    Parameters
    ----------
    splits, outs : mapping of str to path
        By split (``val``, ``test``): its manifest, and where its embeddings go: ``.npy``, float16 (N, D), of unit length, in the manifest's order.
    clip_path : path
        ``models/clip.json``.
    """
    study = job.study
    embedder = _Embedder(job, read_json(clip_path))
    source = open_source(study.dataset, study.seed, study.corpus)
    dataset = {name: value for name, value in study.dataset.model_dump(mode="json").items() if name in ("kind", "root")}
    for name, path in splits.items():
        split = read_split(path)

        def write(out: Path, name: str = name, sources: Sequence[str] = split.sources) -> None:
            with out.open("wb") as stream:
                np.save(stream, embedder.embed(track(source.load(sources), f"embed {name}", "image", len(sources))))

        recipe = embedder.recipe(split=sha256_file(path), dataset=dataset)
        job.store.provide("leakage", recipe, outs[name], write, _is_array)


def _is_array(path: Path) -> bool:
    try:
        np.load(path, mmap_mode="r")
    except (ValueError, OSError, EOFError):
        return False
    return True


def _embed_pool(embedder: _Embedder, index: pa.Table, folder: Path) -> np.ndarray:
    """Embeddings of a pool in the order of its index, float16 (N, D); each shard's are kept in the store under its images' hashes."""
    store = embedder.job.store
    paths = np.array(index.column("path").to_pylist())
    parts: dict[str, np.ndarray] = {path: np.flatnonzero(paths == path) for path in dict.fromkeys(paths.tolist())}
    embedded: np.ndarray | None = None
    for members in track(parts.values(), "embed added images", "shard", len(parts)):
        rows = index.take(members)
        recipe = embedder.recipe(images=canonical_hash(rows.column("sha256").to_pylist()))
        if not store.has("leakage", recipe, ".npy", _is_array):

            def write(out: Path, rows: pa.Table = rows) -> None:
                with out.open("wb") as stream:
                    np.save(stream, embedder.embed(load_images(rows, folder)))

            kept = store.commit("leakage", recipe, ".npy", write)
        else:
            kept = store.path("leakage", recipe, ".npy")
            store.tally.reused += 1
        vectors = np.load(kept)
        if embedded is None:
            embedded = np.empty((index.num_rows, vectors.shape[1]), np.float16)
        embedded[members] = vectors
    return np.empty((0, 1), np.float16) if embedded is None else embedded


@dataclass(frozen=True)
class Summary:
    """What the guard found in one method's pool: images, not pairs.

    Attributes
    ----------
    checked : int
        Added images.
    val, test, either : int
        Of these, with a near-duplicate in that split, or in one of them.
    val_images, test_images : int
        Distinct real images that have a near-duplicate in the pool.
    limits : dict
        :class:`Limits` used.
    """

    method: str
    checked: int
    val: int
    test: int
    either: int
    val_images: int
    test_images: int
    limits: dict[str, float]


def guard(
    job: Job,
    indexes: Mapping[str, str | Path],
    splits: Mapping[str, str | Path],
    embeddings: Mapping[str, str | Path],
    clip_path: str | Path,
    limits: Limits,
    leaks_outs: Mapping[str, str | Path],
    summary_outs: Mapping[str, str | Path],
    excluded: Collection[str] = (),
) -> None:
    """Find near-duplicates of validation and test images in the pools of methods; CLIP is loaded once, and only if an embedding is missing.

    Parameters
    ----------
    indexes : mapping of method to path
        ``shards/{method}/selected/index.parquet``.
    splits, embeddings : mapping of str to path
        By split (``val``, ``test``): its manifest, and its embeddings as :func:`embed_splits` writes them.
    clip_path : path
        ``models/clip.json``, the same as for the splits.
    leaks_outs, summary_outs : mapping of method to path
        A table (:data:`SCHEMA`), one row per pair; JSON (:class:`Summary`).
    excluded : collection of str
        Classes that are left out of training and scoring, so here too.

    Raises
    ------
    UserError
        Damaged files, or embeddings that are not those of their split.
    """
    import cv2

    cv2.setNumThreads(job.threads)
    embedder = _Embedder(job, read_json(clip_path))
    real = [_Real.open(job, name, path, embeddings[name], excluded) for name, path in splits.items()]
    for method, path in indexes.items():
        index = read_index(path)
        index = index.filter(pa.array([class_id not in excluded for class_id in index.column("class_id").to_pylist()], pa.bool_()))
        leaks = _find_leaks(method, index, embedder, real, limits)
        summary = summarise(method, index.num_rows, leaks, limits)
        with atomic_path(leaks_outs[method]) as temporary:
            pq.write_table(leaks, temporary)
        write_json(summary_outs[method], asdict(summary))
        counts = summary.either, summary.checked, summary.val, summary.test
        logger.info("%s: %d of %d added images are near-duplicates of validation (%d) or test (%d) images", method, *counts)


@dataclass(frozen=True)
class _Real:
    """The real images of a split that are scored: ids, classes, embeddings ``(N, D)``, and how they are loaded from positions."""

    split: str
    where: str
    image_ids: list[str]
    class_ids: list[str]
    embeddings: np.ndarray
    load: Load

    @classmethod
    def open(cls, job: Job, name: str, split_path: str | Path, embeddings_path: str | Path, excluded: Collection[str]) -> _Real:
        study = job.study
        split, embeddings = read_split(split_path), np.load(embeddings_path)
        if embeddings.ndim != 2 or len(split) != len(embeddings):
            raise UserError(str(embeddings_path), f"an array {embeddings.shape}", f"{len(split)} embeddings are expected; {REMAKE}")
        scored = [place for place, class_id in enumerate(split.class_ids) if class_id not in excluded]
        ids, class_ids, sources = ([column[place] for place in scored] for column in (split.image_ids, split.class_ids, split.sources))
        source = open_source(study.dataset, study.seed, study.corpus)
        return cls(name, str(embeddings_path), ids, class_ids, embeddings[scored], lambda places: source.load([sources[place] for place in places]))


def _find_leaks(method: str, index: pa.Table, embedder: _Embedder, splits: Sequence[_Real], limits: Limits) -> pa.Table:
    """The pairs of one method, as :data:`SCHEMA`; rows of a split follow the order of the index."""
    folder = embedder.job.store.root.parent
    added = _embed_pool(embedder, index, folder)
    records: list[dict[str, Any]] = []
    for real in splits:
        if len(added) and real.embeddings.shape[1] != added.shape[1]:
            raise UserError(real.where, f"{real.embeddings.shape[1]} numbers per image", f"the study's CLIP gives {added.shape[1]}; {REMAKE}")
        found = find_near_duplicates(
            added, real.embeddings, lambda rows: load_images(index.take(pa.array(rows, pa.int64())), folder), real.load, limits, f"{method}, {real.split}"
        )
        for pair in found:
            row = {column: index.column(column)[pair.added].as_py() for column in ("class_id", "index", "sha256")}
            other = {"split": real.split, "image_id": real.image_ids[pair.real], "real_class_id": real.class_ids[pair.real]}
            records.append({"method": method, **row, **other, "clip_similarity": pair.clip_similarity, **asdict(pair.match)})
    return pa.Table.from_pylist(records, schema=SCHEMA)


def summarise(method: str, checked: int, leaks: pa.Table, limits: Limits) -> Summary:
    """The figures of one method, from its table of pairs and the number of images ``checked``."""
    images: dict[str, set[Any]] = {"val": set(), "test": set()}
    real: dict[str, set[Any]] = {"val": set(), "test": set()}
    for row in leaks.to_pylist():
        images[row["split"]].add((row["class_id"], row["index"]))
        real[row["split"]].add(row["image_id"])
    return Summary(
        method=method,
        checked=checked,
        val=len(images["val"]),
        test=len(images["test"]),
        either=len(images["val"] | images["test"]),
        val_images=len(real["val"]),
        test_images=len(real["test"]),
        limits=asdict(limits),
    )


def read_leaks(path: str | Path) -> pa.Table:
    """Read the pairs of one method.

    Raises
    ------
    UserError
        Missing, not a whole Parquet file, or other columns than :data:`SCHEMA`.
    """
    return read_table(path, SCHEMA)


# --- what follows -----------------------------------------------------------------------------------------------------


def without_leaks(index: pa.Table, leaks: pa.Table, class_sizes: Mapping[str, int] | None = None, where: str = "pool") -> pa.Table:
    """A pool's index without the images that have a near-duplicate in a split.

    Parameters
    ----------
    index : Table
        :data:`augbench.artifacts.pool.SCHEMA`.
    leaks : Table
        :data:`SCHEMA`, of the same pool.
    class_sizes : mapping of str to int, optional
        Images that each class needs; part 0, from which the first training set is drawn, needs as many. Default: one per class.
    where : str
        Name of the pool in errors.

    Raises
    ------
    UserError
        Classes with too few images left, all of them listed with their counts; or leaks of other images than the pool has.
    """
    keys = list(zip(*(index.column(name).to_pylist() for name in ("class_id", "index", "sha256")), strict=True))
    leaking = set(zip(*(leaks.column(name).to_pylist() for name in ("class_id", "index", "sha256")), strict=True))
    if strange := sorted(leaking - set(keys)):
        class_id, number, _ = strange[0]
        raise UserError(where, f"image {number} of class {class_id!r} has changed or is gone since its near-duplicates were looked for", "run the guard again")
    stays = np.array([key not in leaking for key in keys], dtype=bool)
    left = index.filter(pa.array(stays, pa.bool_()))
    dropped = Counter(key[0] for key in keys if key in leaking)
    sizes = dict.fromkeys(index.column("class_id").to_pylist(), 1) if class_sizes is None else class_sizes
    counts = Counter(left.column("class_id").to_pylist())
    first = Counter(row["class_id"] for row in left.select(["class_id", "path"]).to_pylist() if Path(row["path"]).stem == "0")
    short = []
    for class_id, size in sizes.items():
        fewest = counts[class_id] if class_sizes is None else min(counts[class_id], first[class_id])
        if fewest < size and dropped[class_id]:
            short.append(f"{class_id} {fewest} of {size} ({dropped[class_id]} dropped)")
    if short:
        problem = f"too few images left for {len(short)} class(es) once near-duplicates of validation and test images are dropped: {', '.join(short)}"
        raise UserError(where, problem, "make or retrieve more per class, or let the report name them instead of dropping them")
    return left


def accuracy_without(predictions: pa.Table, leaks: pa.Table) -> tuple[float | None, int]:
    """Accuracy on the test images that have no near-duplicate in a pool.

    Parameters
    ----------
    predictions : Table
        :data:`augbench.classifier.score.SCHEMA`.
    leaks : Table
        :data:`SCHEMA`; rows of other splits than ``test`` change nothing.

    Returns
    -------
    float or None, int
        Share of images whose predicted label is the true one (None where no image is left), and the number of images left.
    """
    touched = pc.unique(leaks.filter(pc.equal(leaks.column("split"), "test")).column("image_id"))
    left = predictions.filter(pc.invert(pc.is_in(predictions.column("image_id"), value_set=touched)))
    share = pc.mean(pc.equal(left.column("label"), left.column("predicted")).cast(pa.float64())).as_py()
    return share, left.num_rows
