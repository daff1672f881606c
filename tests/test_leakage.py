"""The leakage guard: which images are near-duplicates, which are not, and the consequences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from augbench.artifacts.pool import build_index, load_images, read_index
from augbench.artifacts.shards import ShardRow, encode_image, write_shard
from augbench.artifacts.store import Store
from augbench.classifier.score import SCHEMA as PREDICTIONS
from augbench.config.stages import Leakage
from augbench.config.study import Study, parse_study
from augbench.data import fashion_mnist
from augbench.data.classes import load_class_table, write_class_table
from augbench.data.splits import Split, write_split
from augbench.errors import UserError
from augbench.files import read_json, write_json
from augbench.leakage.effects import accuracy_without, without_leaks
from augbench.leakage.pictures import Picture, compare
from augbench.leakage.records import SCHEMA, count_images, read_leaks
from augbench.leakage.search import find_near_duplicates, nearest
from augbench.leakage.stage import embed_splits, guard
from augbench.measures.eyes import Eyes
from augbench.miniature.corpus.style import clean_images
from augbench.models.clip import load_clip
from augbench.pools.scores import read_scores, write_scores
from augbench.report.tables.leakage import draw_pairs, read_rows, write_leakage_table
from augbench.resample import Drawing, draw
from augbench.runtime.job import Job

torch.set_num_threads(1)
PROJECT = Path(__file__).resolve().parents[1]
CLIP = PROJECT / "resources/mini/clip"
CLASSES = load_class_table("fashion_mnist")
LIMITS = Leakage()
# to the miniature's CLIP, all garments are similar
SEARCH = LIMITS.model_copy(update={"clip_threshold": 0.8, "neighbours": 3})
Change = Callable[[Image.Image], Image.Image]


def padded(images: np.ndarray) -> list[Image.Image]:
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in clean_images(images)]


@pytest.fixture(scope="module")
def garments(garment_files: Path) -> list[Image.Image]:
    """The first 1000 test images, 32 x 32 pixels."""
    return padded(fashion_mnist.load(garment_files, "test")[0][:1000])


@pytest.fixture(scope="module")
def garment_labels(garment_files: Path) -> np.ndarray:
    return fashion_mnist.load(garment_files, "test")[1][:1000]


@pytest.fixture(scope="module")
def strangers(garment_files: Path) -> tuple[list[Image.Image], np.ndarray]:
    """200 training images, none of which shows a test image."""
    images, labels = fashion_mnist.load(garment_files, "train")
    return padded(images[:200]), labels[:200]


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    """40 parts of two photographs, 128 x 106 pixels.

    They include the temple's sky and the flower's blurred background.
    """
    whole = [Image.fromarray(image) for image in load_sample_images().images]
    return [
        photo.crop((x, y, x + 128, y + 106))
        for photo in whole
        for x in range(0, 640, 128)
        for y in range(0, 424, 106)
    ]


def is_flat(image: Image.Image) -> bool:
    return not Picture(image).whole_detail.any()


# --- changes --------------------------------------------------------------------------------------


def recompressed(image: Image.Image, quality: int = 60) -> Image.Image:
    stream = BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream)


def resized(image: Image.Image) -> Image.Image:
    scale = 2 if image.width < 64 else 0.6
    return image.resize((round(scale * image.width), round(scale * image.height)), Image.Resampling.BICUBIC)


def cropped(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A random crop of 70 to 100% of width and height, resized to the original size and recompressed."""
    scale = rng.uniform(0.7, 1)
    width, height = scale * image.width, scale * image.height
    left, upper = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
    part = image.resize(image.size, Image.Resampling.BICUBIC, box=(left, upper, left + width, upper + height))
    return recompressed(part, int(rng.integers(70, 95)))


def near_centre(image: Image.Image) -> Image.Image:
    return image.crop(
        (
            image.width // 10,
            image.height // 8,
            image.width - image.width // 10,
            image.height - image.height // 16,
        )
    )


CHANGES: dict[str, tuple[Change, str]] = {
    "copy": (lambda image: image.copy(), "copy"),
    "recompression": (recompressed, "copy"),
    "resize": (resized, "copy"),
    "mirror image": (ImageOps.mirror, "mirror"),
    "brightness": (lambda image: image.point(lambda value: 20 + 0.7 * value), "copy"),
    "crop": (near_centre, "crop"),
    "recompressed crop of the mirror image": (
        lambda image: recompressed(ImageOps.mirror(near_centre(image)), 85),
        "mirrored crop",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_planted_garment_is_found_whatever_was_done_to_it(garments: list[Image.Image], change: str) -> None:
    function, _ = CHANGES[change]
    matches = [compare(Picture(function(image)), Picture(image), LIMITS) for image in garments[:20]]
    assert all(match is not None and match.within(LIMITS) for match in matches)


@pytest.mark.parametrize("change", CHANGES)
def test_a_planted_photo_is_found_and_how_it_was_changed(photos: list[Image.Image], change: str) -> None:
    function, kind = CHANGES[change]
    for image in [photo for photo in photos if not is_flat(photo) and not is_flat(function(photo))][::4]:
        match = compare(Picture(function(image)), Picture(image), LIMITS)
        assert match is not None and match.within(LIMITS) and match.kind == kind


def test_either_picture_may_be_the_part(photos: list[Image.Image]) -> None:
    image = next(photo for photo in photos if not is_flat(near_centre(photo)))
    part, whole = Picture(near_centre(image)), Picture(image)
    for match in (compare(part, whole, LIMITS), compare(whole, part, LIMITS)):
        assert match is not None and match.within(LIMITS) and match.kind == "crop"


def test_the_square_centre_of_a_wide_photo_is_found() -> None:
    photo = Image.fromarray(load_sample_images().images[0])
    centre = ImageOps.fit(photo, (256, 256))
    match = compare(Picture(centre), Picture(photo), LIMITS)
    assert match is not None and match.within(LIMITS) and match.kind == "crop"


def test_of_100_random_recompressed_crops_nearly_all_are_confirmed(
    garments: list[Image.Image], photos: list[Image.Image]
) -> None:
    rng = np.random.default_rng(0)
    detailed = [photo for photo in photos if not is_flat(photo)]
    for images in (garments[:100], [detailed[i % len(detailed)] for i in range(100)]):
        parts = [cropped(image, rng) for image in images]
        # some crops show only the sky
        shown = [(part, image) for part, image in zip(parts, images, strict=True) if not is_flat(part)]
        matches = [compare(Picture(part), Picture(image), LIMITS) for part, image in shown]
        assert len(shown) >= 90 and sum(
            match is not None and match.within(LIMITS) for match in matches
        ) >= 0.95 * len(shown)


def false_alarms(pairs: Sequence[tuple[Image.Image, Image.Image]]) -> int:
    matches = [compare(Picture(one), Picture(other), LIMITS) for one, other in pairs]
    return sum(match is not None and match.within(LIMITS) for match in matches)


def test_200_unrelated_garments_raise_no_alarm(
    garments: list[Image.Image], garment_labels: np.ndarray, strangers: tuple[list[Image.Image], np.ndarray]
) -> None:
    images, labels = strangers
    rng = np.random.default_rng(0)
    same = [
        (images[i], garments[rng.choice(np.flatnonzero(garment_labels == labels[i]))]) for i in range(100)
    ]
    other = [
        (images[i], garments[rng.choice(np.flatnonzero(garment_labels != labels[i]))])
        for i in range(100, 200)
    ]
    assert false_alarms(same + other) == 0


def test_200_unrelated_photos_raise_no_alarm(photos: list[Image.Image]) -> None:
    rng = np.random.default_rng(0)
    pairs = [rng.choice(len(photos), 2, replace=False) for _ in range(200)]
    assert false_alarms([(photos[i], photos[j]) for i, j in pairs]) == 0


def gradient(turns: int, dark: int, light: int) -> Image.Image:
    values = np.tile(np.linspace(dark, light, 64), (64, 1))
    return Image.fromarray(np.rot90(values, turns).round().astype(np.uint8)).convert("RGB")


def test_pictures_without_detail_match_only_when_they_are_equal() -> None:
    plain = [Image.new("RGB", (64, 64), (grey,) * 3) for grey in (0, 128, 140, 255)]
    flat = [
        Picture(image)
        for image in [
            *plain,
            *(
                gradient(turns, *range_)
                for turns in range(2)
                for range_ in ((100, 160), (10, 250), (90, 120))
            ),
        ]
    ]
    for i, one in enumerate(flat):
        for j, other in enumerate(flat):
            match = compare(one, other, LIMITS)
            assert (match is not None and match.within(LIMITS)) == (i == j)


def test_limits_decide(garments: list[Image.Image]) -> None:
    changed = Picture(recompressed(garments[0], 40))
    match = compare(changed, Picture(garments[0]), LIMITS)
    assert (
        match is not None and match.within(LIMITS) and match.hash_distance > 0 and match.correlation < 0.999
    )
    assert not match.within(LIMITS.model_copy(update={"hash_threshold": match.hash_distance - 1}))
    assert not match.within(LIMITS.model_copy(update={"correlation": match.correlation + 1e-4}))


# --- sets of images -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embed() -> Callable[[Sequence[Image.Image]], np.ndarray]:
    tower = load_clip({"folder": CLIP}, torch.device("cpu")).image_tower()
    return lambda images: torch.nn.functional.normalize(
        torch.cat([tower(images[i : i + 32]) for i in range(0, len(images), 32)]), dim=1
    ).numpy()


def test_only_the_nearest_above_the_threshold_are_looked_at() -> None:
    angles = np.deg2rad([0, 10, 20, 30, 80])
    real = np.stack([np.cos(angles), np.sin(angles)], 1)
    added = np.array([[1.0, 0.0], [-1.0, 0.0]])
    near = LIMITS.model_copy(update={"clip_threshold": float(np.cos(np.deg2rad(25)))})
    assert [pair[:2] for pair in nearest(added, real, near)] == [(0, 0), (0, 1), (0, 2)]
    assert [pair[:2] for pair in nearest(added, real, near.model_copy(update={"neighbours": 2}))] == [
        (0, 0),
        (0, 1),
    ]
    assert [round(cosine, 4) for *_, cosine in nearest(added, real, near)] == [
        1,
        round(np.cos(angles[1]), 4),
        round(np.cos(angles[2]), 4),
    ]
    assert not list(nearest(added[:0], real, near)) and not list(nearest(added, real[:0], near))


def test_planted_images_are_found_among_a_thousand_and_strangers_are_not(
    garments: list[Image.Image],
    strangers: tuple[list[Image.Image], np.ndarray],
    embed: Callable[[Sequence[Image.Image]], np.ndarray],
) -> None:
    rng = np.random.default_rng(1)
    planted = [recompressed(image, 80) for image in garments[:25]] + [
        cropped(image, rng) for image in garments[25:50]
    ]
    added = [*planted, *strangers[0][:100]]
    loaded: list[int] = []

    def load_added(rows: Sequence[int]) -> list[Image.Image]:
        assert list(rows) == sorted(set(rows))
        return [added[row] for row in rows]

    def load_real(places: Sequence[int]) -> list[Image.Image]:
        loaded.extend(places)
        return [garments[place] for place in places]

    found = find_near_duplicates(embed(added), embed(garments), load_added, load_real, SEARCH)
    assert {pair.added for pair in found if pair.added < 25} == set(range(25))
    # only 6 of 25: to the miniature's CLIP, other garments are nearer than a crop
    assert sum(pair.added >= 25 for pair in found) >= 6
    assert all(pair.real == pair.added for pair in found)
    assert all(pair.clip_similarity >= SEARCH.clip_threshold for pair in found)
    assert len(loaded) == len(set(loaded)) < 1000


# --- a study --------------------------------------------------------------------------------------

PER_CLASS = 6


def study() -> Study:
    return parse_study(
        {
            "study": "small",
            "dataset": {"kind": "fashion_mnist"},
            "corpus": {"kind": "miniature"},
            "diffusion": {"model": "resources/mini/stable-diffusion", "resolution": 32},
            "clip": {"model": str(CLIP)},
            "methods": {
                "none": {"mechanism": "real"},
                "web": {"mechanism": "retrieve", "label": "Retrieval"},
                "clean": {"mechanism": "sample"},
            },
            "augmentation": {"images_per_class": PER_CLASS, "resamples": 1},
        }
    )


def write_pool(folder: Path, method: str, images: dict[int, list[Image.Image]]) -> Path:
    paths = []
    for label, members in images.items():
        class_id = CLASSES[label].class_id
        rows = [
            ShardRow(encode_image(image, "png", 95), label, class_id, i, "a prompt", "model", seed=i)
            for i, image in enumerate(members)
        ]
        paths.append(folder / f"shards/{method}/selected/{class_id}/0.parquet")
        write_shard(paths[-1], rows, {})
    build_index(paths, folder, folder / f"shards/{method}/selected/index.parquet")
    return folder / f"shards/{method}/selected/index.parquet"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, garment_files: Path) -> Path:
    """Splits and two pools.

    In ``web``, image 0 of each class is a test image, image 1 of the first class is a crop of a validation
    image, and image 2 of the last class is a recompressed training image.
    """
    folder = tmp_path_factory.mktemp("small")
    images, labels = fashion_mnist.load(garment_files, "train")
    test, test_labels = fashion_mnist.load(garment_files, "test")

    def members(of: np.ndarray, part: int) -> np.ndarray:
        return np.concatenate(
            [np.flatnonzero(of == label)[PER_CLASS * part : PER_CLASS * (part + 1)] for label in range(10)]
        )

    parts = (("val", "train", labels, 0), ("train", "train", labels, 2), ("test", "test", test_labels, 0))
    for name, prefix, of, part in parts:
        chosen = members(of, part)
        ids = [f"{prefix}-{index:05d}" for index in chosen]
        write_split(
            Split(ids, [CLASSES[label].class_id for label in of[chosen]], of[chosen].astype(np.int32), ids),
            folder / f"splits/{name}.parquet",
        )
    pool = padded(images[members(labels, 1)])
    web = {label: pool[PER_CLASS * label : PER_CLASS * (label + 1)] for label in range(10)}
    write_pool(folder, "clean", web)
    first_test = padded(test[members(test_labels, 0)])[::PER_CLASS]
    first_val = padded(images[members(labels, 0)])[0]
    for label in range(10):
        web[label] = [recompressed(first_test[label], 85), *web[label][1:]]
    web[0][1] = first_val.resize((32, 32), Image.Resampling.BICUBIC, box=(2, 1, 31, 30))
    web[9][2] = recompressed(padded(images[members(labels, 2)])[-1], 85)
    write_pool(folder, "web", web)
    write_json(folder / "clip.json", {"folder": str(CLIP), "id": "the miniature's"})
    return folder


def run_guard(
    folder: Path,
    method: str,
    clip: Path,
    out: Path,
    excluded: Sequence[str] = (),
    limits: Leakage = SEARCH,
    names: Sequence[str] = ("val", "test"),
) -> tuple[pa.Table, Store]:
    job = Job(study(), Store(folder / ".store"), 1)
    splits = {name: folder / f"splits/{name}.parquet" for name in names}
    embeddings = {name: out / f"{name}.npy" for name in splits}
    embed_splits(job, splits, clip, embeddings)
    indexes = {method: folder / f"shards/{method}/selected/index.parquet"}
    leaks = {method: out / f"{method}.parquet"}
    summaries = {method: out / f"{method}.json"} if "val" in splits else {}
    guard(job, indexes, splits, embeddings, clip, limits, leaks, summaries, excluded)
    return read_leaks(out / f"{method}.parquet"), job.store


@pytest.fixture(scope="module")
def leaks(small: Path) -> pa.Table:
    run_guard(small, "clean", small / "clip.json", small / "leakage")
    return run_guard(small, "web", small / "clip.json", small / "leakage")[0]


@pytest.fixture(scope="module")
def repeats(small: Path) -> pa.Table:
    run_guard(small, "clean", small / "clip.json", small / "leakage/train", names=["train"])
    return run_guard(small, "web", small / "clip.json", small / "leakage/train", names=["train"])[0]


def test_every_planted_image_is_named_with_the_real_one(small: Path, leaks: pa.Table) -> None:
    index = {
        (row["class_id"], row["index"]): row["sha256"]
        for row in read_index(small / "shards/web/selected/index.parquet").to_pylist()
    }
    rows = leaks.to_pylist()
    test = [row for row in rows if row["split"] == "test"]
    ids = pq.read_table(small / "splits/test.parquet").to_pylist()
    first = {row["class_id"]: row["image_id"] for row in reversed(ids)}
    assert [(row["class_id"], row["index"], row["image_id"]) for row in test] == [
        (info.class_id, 0, first[info.class_id]) for info in CLASSES
    ]
    (val,) = (row for row in rows if row["split"] == "val")
    assert (val["class_id"], val["index"], val["real_class_id"]) == (
        CLASSES[0].class_id,
        1,
        CLASSES[0].class_id,
    )
    assert all(
        row["sha256"] == index[row["class_id"], row["index"]] and row["method"] == "web" for row in rows
    )
    assert all(
        row["hash_distance"] <= SEARCH.hash_threshold and row["clip_similarity"] >= SEARCH.clip_threshold
        for row in rows
    )
    summary = read_json(small / "leakage/web.json")
    assert [summary[name] for name in ("checked", "val", "test", "either", "val_images", "test_images")] == [
        60,
        1,
        10,
        11,
        1,
        10,
    ]


def test_a_repeated_training_image_is_counted_and_keeps_its_pool_whole(
    small: Path, repeats: pa.Table
) -> None:
    (row,) = repeats.to_pylist()
    last = pq.read_table(small / "splits/train.parquet").to_pylist()[-1]
    assert (row["class_id"], row["index"], row["split"]) == (CLASSES[9].class_id, 2, "train")
    assert row["image_id"] == last["image_id"] and row["kind"] == "copy"
    assert count_images(repeats, "train") == 1 and count_images(repeats, "test") == 0


def test_where_no_pair_is_near_enough_to_be_looked_at_nothing_is_found(small: Path, tmp_path: Path) -> None:
    found, _ = run_guard(
        small,
        "clean",
        small / "clip.json",
        tmp_path,
        limits=SEARCH.model_copy(update={"clip_threshold": 1.0}),
    )
    assert found.num_rows == 0 and read_json(tmp_path / "clean.json")["checked"] == 60


def test_a_pool_without_planted_images_is_clean(small: Path, leaks: pa.Table) -> None:
    assert read_leaks(small / "leakage/clean.parquet").num_rows == 0
    assert read_json(small / "leakage/clean.json")["either"] == 0


def test_a_mixture_has_the_near_duplicates_of_its_pools_and_no_set_gets_them(
    small: Path, leaks: pa.Table, tmp_path: Path
) -> None:
    shards = [
        path
        for name in ("clean", "web")
        for path in sorted(small.glob(f"shards/{name}/selected/*/0.parquet"))
    ]
    index_path = small / "shards/halves/selected/index.parquet"
    build_index(shards, small, index_path)
    found, _ = run_guard(small, "halves", small / "clip.json", tmp_path)
    assert set(found.column("method").to_pylist()) == {"halves"}
    names = [name for name in leaks.column_names if name != "method"]
    assert found.select(names).equals(leaks.select(names))
    assert read_json(tmp_path / "halves.json")["checked"] == 120
    index = read_index(index_path)
    sizes = dict.fromkeys(index.column("class_id").to_pylist(), 6)
    halves = Drawing(first_part=False, pools={"clean": 0.5, "web": 0.5})
    leaking = set(leaks.column("sha256").to_pylist())
    drawn, clean = (
        [
            row
            for run in range(5)
            for row in draw(pool, sizes, run, 7, drawing=halves).column("sha256").to_pylist()
        ]
        for pool in (index, without_leaks(index, found))
    )
    assert leaking & {*drawn} and not leaking & {*clean} and len(drawn) == len(clean)


def test_clips_scores_are_probabilities_that_agree_with_its_zero_shot_labels(
    small: Path, tmp_path: Path
) -> None:
    job = Job(study(), Store(small / ".store", small), 1)
    write_class_table(CLASSES, tmp_path / "classes.parquet")
    shards = sorted(small.glob("shards/clean/selected/*/0.parquet"))
    out = tmp_path / "clean.parquet"
    write_scores(job, shards, tmp_path / "classes.parquet", [], out, clip_path=small / "clip.json")
    index = read_index(small / "shards/clean/selected/index.parquet")
    scores = read_scores(out)
    values = [scores[row["class_id"], row["index"], row["sha256"]] for row in index.to_pylist()]
    assert len(scores) == index.num_rows and all(0 <= value <= 1 for value in values)
    labels = index.column("label").to_numpy()
    seen = Eyes({"folder": CLIP}, None, CLASSES, torch.device("cpu")).look(
        load_images(index, small), labels, "clean"
    )
    for value, predicted, label in zip(values, seen.clip, labels, strict=True):
        assert value < 0.5 if predicted != label else value > 0.1
    first = CLASSES[0].class_id
    write_scores(job, shards, tmp_path / "classes.parquet", [first], out, clip_path=small / "clip.json")
    fewer = read_scores(out)
    assert {key[0] for key in scores} - {key[0] for key in fewer} == {first}, (
        "left out, and no rival any more"
    )
    assert all(fewer[key] >= scores[key] for key in fewer)


def test_a_second_run_embeds_nothing(small: Path, leaks: pa.Table, tmp_path: Path) -> None:
    write_json(tmp_path / "clip.json", {"folder": str(tmp_path / "no CLIP here"), "id": "the miniature's"})
    again, store = run_guard(small, "web", tmp_path / "clip.json", tmp_path)
    assert again.equals(leaks)
    assert (store.tally.made, store.tally.reused) == (0, 2 + 10)


def test_another_clip_embeds_splits_and_pools_again(small: Path, leaks: pa.Table, tmp_path: Path) -> None:
    clip = tmp_path / "clip.json"
    write_json(clip, {"folder": str(tmp_path / "no CLIP here"), "id": "another"})
    job, splits = Job(study(), Store(small / ".store"), 1), {"val": small / "splits/val.parquet"}
    with pytest.raises(UserError, match="no CLIP here"):
        embed_splits(job, splits, clip, {"val": tmp_path / "val.npy"})
    index = {"web": small / "shards/web/selected/index.parquet"}
    with pytest.raises(UserError, match="no CLIP here"):
        guard(
            job,
            index,
            splits,
            {"val": small / "leakage/val.npy"},
            clip,
            SEARCH,
            {"web": tmp_path / "web.parquet"},
            {"web": tmp_path / "web.json"},
        )
    assert not (tmp_path / "web.parquet").exists()


def test_classes_that_are_left_out_are_not_looked_at(small: Path, leaks: pa.Table, tmp_path: Path) -> None:
    rest, _ = run_guard(small, "web", small / "clip.json", tmp_path, [CLASSES[0].class_id])
    assert rest.to_pylist() == [row for row in leaks.to_pylist() if row["class_id"] != CLASSES[0].class_id]
    assert read_json(tmp_path / "web.json")["checked"] == 54


def test_embeddings_of_another_split_are_refused(small: Path, leaks: pa.Table, tmp_path: Path) -> None:
    np.save(tmp_path / "short.npy", np.load(small / "leakage/test.npy")[:-1])
    job = Job(study(), Store(small / ".store"), 1)
    with pytest.raises(UserError, match=r"short\.npy.*60 embeddings"):
        guard(
            job,
            {"web": small / "shards/web/selected/index.parquet"},
            {"test": small / "splits/test.parquet"},
            {"test": tmp_path / "short.npy"},
            small / "clip.json",
            SEARCH,
            {"web": tmp_path / "web.parquet"},
            {"web": tmp_path / "web.json"},
        )
    assert not (tmp_path / "web.parquet").exists()


# --- what follows ---------------------------------------------------------------------------------


def test_dropping_takes_the_images_found_and_no_other(small: Path, leaks: pa.Table) -> None:
    index = read_index(small / "shards/web/selected/index.parquet")
    left = without_leaks(index, leaks)
    gone = {(info.class_id, 0) for info in CLASSES} | {(CLASSES[0].class_id, 1)}
    kept = [row for row in index.to_pylist() if (row["class_id"], row["index"]) not in gone]
    assert left.to_pylist() == kept and left.schema == index.schema
    assert without_leaks(index, leaks.slice(0, 0)).equals(index)


def test_a_class_that_becomes_too_small_is_named_with_its_counts(small: Path, leaks: pa.Table) -> None:
    index = read_index(small / "shards/web/selected/index.parquet")
    sizes = {info.class_id: 5 for info in CLASSES}
    with pytest.raises(
        UserError,
        match=rf"web: too few images left for 1 class\(es\).*{CLASSES[0].class_id} 4 of 5 \(2 dropped\)",
    ):
        without_leaks(index, leaks, sizes, "web")
    assert without_leaks(index, leaks, {**sizes, CLASSES[0].class_id: 4}).num_rows == 49


def test_part_0_must_stay_large_enough_for_the_first_set(small: Path, leaks: pa.Table) -> None:
    index = read_index(small / "shards/web/selected/index.parquet")
    paths = [
        path if number < 4 else path.replace("/0.", "/1.")
        for path, number in zip(*(index.column(c).to_pylist() for c in ("path", "index")), strict=True)
    ]
    parted = index.set_column(index.schema.get_field_index("path"), "path", pa.array(paths, pa.string()))
    assert without_leaks(parted, leaks, {CLASSES[3].class_id: 3}).num_rows == 49
    with pytest.raises(UserError, match=rf"{CLASSES[3].class_id} 3 of 4 \(1 dropped\)"):
        without_leaks(parted, leaks, {CLASSES[3].class_id: 4})


def test_leaks_of_another_pool_are_refused(small: Path, leaks: pa.Table) -> None:
    with pytest.raises(UserError, match="was changed or deleted"):
        without_leaks(read_index(small / "shards/clean/selected/index.parquet"), leaks)


def test_a_table_of_other_columns_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "leaks.parquet")
    with pytest.raises(UserError, match=r"leaks\.parquet: columns \['a'\]"):
        read_leaks(tmp_path / "leaks.parquet")
    with pytest.raises(UserError, match="missing"):
        read_leaks(tmp_path / "none.parquet")


def predictions(ids: Sequence[str], right: Sequence[bool]) -> pa.Table:
    columns = [list(ids), [0] * len(ids), [0 if hit else 1 for hit in right], [0.5] * len(ids)]
    return pa.Table.from_arrays(
        [pa.array(column, field.type) for column, field in zip(columns, PREDICTIONS, strict=True)],
        schema=PREDICTIONS,
    )


def pairs(*images: tuple[str, str]) -> pa.Table:
    row = dict.fromkeys(SCHEMA.names)
    return pa.Table.from_pylist(
        [{**row, "method": "web", "split": split, "image_id": image} for split, image in images],
        schema=SCHEMA,
    )


def test_accuracy_without_near_duplicates_counts_each_test_image_once() -> None:
    scored = predictions(["a", "b", "c", "d"], [True, True, False, True])
    assert accuracy_without(scored, pairs()) == (0.75, 4)
    assert accuracy_without(scored, pairs(("test", "a"), ("test", "a"), ("test", "b"))) == (0.5, 2)
    assert accuracy_without(scored, pairs(("val", "a"))) == (0.75, 4)
    assert accuracy_without(scored, pairs(*(("test", image) for image in "abcd"))) == (None, 0)
    assert accuracy_without(scored, pairs(("test", "of a class that is left out"))) == (0.75, 4)


def test_the_table_shows_accuracy_with_and_without_beside_the_baseline(
    small: Path, leaks: pa.Table, repeats: pa.Table, tmp_path: Path
) -> None:
    ids = pq.read_table(small / "splits/test.parquet").column("image_id").to_pylist()
    touched = {row["image_id"] for row in leaks.to_pylist() if row["split"] == "test"}
    runs = {"none": [0.5, 0.5], "web": [0.5, 0.7], "clean": [0.5]}
    paths: dict[str, list[Path]] = {}
    for method, shares in runs.items():
        for run, share in enumerate(shares):
            others = [image for image in ids if image not in touched]
            right = [image in touched or others.index(image) < share * len(others) for image in ids]
            paths.setdefault(method, []).append(tmp_path / f"{method}_{run}.parquet")
            pq.write_table(predictions(ids, right), paths[method][-1])
    tables = {kind: tmp_path / f"leakage.{kind}" for kind in ("csv", "md", "txt")}
    found, summaries = (
        {name: small / f"leakage/{name}.{kind}" for name in ("web", "clean")} for kind in ("parquet", "json")
    )
    repeated = {name: small / f"leakage/train/{name}.parquet" for name in found}
    write_leakage_table(study(), found, repeated, summaries, paths, tables)
    web, clean = read_rows(tables["csv"])
    assert (web.label, web.checked, web.train, web.val, web.test, web.test_images, web.test_left) == (
        "Retrieval",
        60,
        1,
        1,
        10,
        10,
        50,
    )
    assert web.either_percent == pytest.approx(100 * 11 / 60)
    assert (web.top1_percent, web.without_percent) == (
        pytest.approx(100 * (10 + 50 * 0.6) / 60),
        pytest.approx(60),
    )
    assert (web.baseline_percent, web.baseline_without_percent) == (
        pytest.approx(100 * 35 / 60),
        pytest.approx(50),
    )
    assert (clean.test, clean.test_left) == (0, 60) and clean.top1_percent == clean.without_percent
    assert len(pd.read_csv(tables["csv"], comment="#")) == 2
    text = tables["txt"].read_text(encoding="utf-8")
    assert "Near-duplicates of real images, study small" in text and "of 256 bits" in text
    assert "| Retrieval | 60 | 1 | 1 | 10 | 18% | 10 | 66.7 | 60.0 | 58.3 | 50.0 |" in tables["md"].read_text(
        encoding="utf-8"
    )


def test_pairs_can_be_looked_at(small: Path, leaks: pa.Table, tmp_path: Path) -> None:
    job = Job(study(), Store(small / ".store"), 1)
    splits = {name: small / f"splits/{name}.parquet" for name in ("val", "test")}
    sizes = {}
    for method in ("web", "clean"):
        out = tmp_path / f"{method}.png"
        draw_pairs(
            job,
            [small / f"leakage/{method}.parquet"],
            [small / f"shards/{method}/selected/index.parquet"],
            splits,
            out,
        )
        with Image.open(out) as picture:
            sizes[method] = picture.size
    assert sizes["web"][1] == 3 * sizes["clean"][1]
