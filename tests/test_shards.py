"""Shards: each is complete on its own, and damage is detected."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import SMALL_STUDY
from PIL import Image

from augbench.artifacts.pool import build_index
from augbench.artifacts.shards import (
    ShardRow,
    content_of,
    encode_image,
    is_kept,
    is_whole,
    key_of,
    read_footer,
    read_shard,
    shards_among,
    write_shard,
    write_shard_list,
)
from augbench.artifacts.store import Store
from augbench.config.study import parse_study
from augbench.data.classes import load_class_table
from augbench.errors import UserError
from augbench.files import canonical_hash, write_json
from augbench.generate import stage
from augbench.generate.attempts import Sample, Samples
from augbench.plan.paths import Plan
from augbench.plan.recipes import generate_recipe
from augbench.prompts.stage import read_prompts, write_prompts
from augbench.runtime.job import Job


def rows(count: int = 5) -> list[ShardRow]:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)) for _ in range(count)]
    return [
        ShardRow(
            encode_image(image, "png", 95),
            3,
            "dress",
            index,
            "A photo of dress.",
            "abc",
            seed=index,
        )
        for index, image in enumerate(images)
    ]


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "0.parquet"
    write_shard(path, rows(), {"guidance_scale": 3.0})
    return path


def test_the_footer_holds_the_recipe(shard: Path) -> None:
    footer = read_footer(shard)
    assert footer["recipe"] == {"guidance_scale": 3.0} and footer["rows"] == 5


def test_images_come_back_as_they_were(shard: Path) -> None:
    images = [row["image"]["bytes"] for row in read_shard(shard).to_pylist()]
    assert images == [row.image for row in rows()]


def test_hugging_face_datasets_reads_it_as_images_without_our_code(shard: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(
        "parquet", data_files=str(shard), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert isinstance(loaded.features["image"], datasets.Image)
    assert isinstance(loaded[0]["image"], Image.Image) and loaded[0]["image"].size == (32, 32)
    assert loaded[0]["class_id"] == "dress"


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
def test_every_image_format_can_be_read(image_format: str, tmp_path: Path) -> None:
    image = Image.new("RGB", (32, 32), (200, 10, 10))
    write_shard(
        tmp_path / "s.parquet",
        [ShardRow(encode_image(image, image_format, 95), 0, "a", 0, None, "x")],
        {},
    )
    (row,) = read_shard(tmp_path / "s.parquet").to_pylist()
    assert row["image"]["path"].endswith({"png": ".png", "jpeg": ".jpg", "webp": ".webp"}[image_format])


def test_a_truncated_shard_is_refused(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:-100])
    assert not is_whole(shard)
    with pytest.raises(UserError, match=r"not a whole Parquet file.*delete it and run again"):
        read_shard(shard)


def test_a_flipped_bit_in_an_image_is_noticed(shard: Path) -> None:
    data = bytearray(shard.read_bytes())
    middle = data.find(b"IDAT") + 40
    data[middle] ^= 1
    shard.write_bytes(data)
    assert not is_whole(shard)


def test_the_store_takes_no_shard_of_another_recipe_than_its_name_stands_for(
    shard: Path, tmp_path: Path
) -> None:
    for name, expected in (({"guidance_scale": 3.0}, True), ({"guidance_scale": 2.0}, False)):
        kept = tmp_path / f"{canonical_hash(name)}.parquet"
        kept.write_bytes(shard.read_bytes())
        assert is_kept(kept) is expected
    kept.write_bytes(shard.read_bytes()[:-100])
    assert not is_kept(kept)


def test_a_foreign_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "foreign.parquet"
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(UserError, match="not a shard; delete it"):
        read_shard(path)


def test_a_shard_with_a_row_less_is_refused(shard: Path) -> None:
    table = pq.read_table(shard)
    pq.write_table(table.slice(0, 4).replace_schema_metadata(table.schema.metadata), shard)
    with pytest.raises(UserError, match="4 rows, but the footer says 5"):
        read_footer(shard)


def test_a_list_stands_for_its_shards_and_is_the_same_for_the_same_images(tmp_path: Path) -> None:
    study = tmp_path / "small"
    shards = [f"{study}/shards/m/selected/dress/{part}.parquet" for part in (0, 1, 10)]
    for path in shards:
        write_shard(path, rows(), {"guidance_scale": 3.0})
    listed, again = (f"{study}/shards/m/lists/{name}/000.json" for name in ("0-10", "again"))
    write_shard_list(listed, shards, study)
    write_shard(shards[0], rows(), {"guidance_scale": 3.0, "attempts_per_image": 9})
    write_shard_list(again, shards, study)
    assert Path(listed).read_bytes() == Path(again).read_bytes()
    write_shard(shards[0], rows(4), {"guidance_scale": 3.0})
    write_shard_list(again, shards, study)
    assert Path(listed).read_bytes() != Path(again).read_bytes()
    others = [f"{study}/shards/web/selected/dress/0.parquet", f"{study}/shards/web/selected/index.parquet"]
    found = shards_among([f"{study}/splits/train.parquet", listed, *others], study)
    assert sorted(found) == sorted([*shards, others[0]])
    assert shards_among([shards[2], listed, shards[0]], study) == [shards[2], *shards[:2]], "each once"
    Path(shards[1]).write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"1\.parquet: not a whole Parquet file"):
        write_shard_list(listed, shards, study)


def test_a_study_may_be_called_shards(tmp_path: Path) -> None:
    study = tmp_path / "shards"
    shard, listed = f"{study}/shards/m/selected/dress/0.parquet", f"{study}/shards/m/lists/0-1/000.json"
    write_shard(shard, rows(), {})
    write_shard_list(listed, [shard], study)
    write_json(f"{study}/classifiers/lists/0/result.json", {})
    inputs = [f"{study}/classes/0.parquet", f"{study}/classifiers/lists/0/result.json", listed]
    assert shards_among(inputs, study) == [shard]


def test_a_shard_is_published_as_soon_as_it_is_made_and_one_that_lacks_images_beside_the_full_one(
    tmp_path: Path,
) -> None:
    job, key = Job(parse_study(SMALL_STUDY), Store(tmp_path / "store"), 1), {"class_id": "bag", "model": "m"}
    maker = object.__new__(stage._Maker)
    maker.job, maker.method = job, "simple_prompt"
    row = {"label": 0, "class_id": "bag", "prompt": "a bag", "source": None}
    sample = Sample(Image.new("RGB", (8, 8)), 1, 0)
    kept = {}
    for name, flagged in (("lacks", {1: 40}), ("full", {})):
        rows = [{**row, "index": index} for index in range(1 + len(flagged))]
        target = tmp_path / f"{name}.parquet"
        maker._commit(stage._Shard(str(target), key, rows), Samples({0: sample}, flagged))
        kept[name] = job.store.path("shards", key_of(target), ".parquet")
        assert target.samefile(kept[name])
    assert kept["full"] == job.store.path("shards", key, ".parquet") != kept["lacks"]
    accepted = {name: [n for n in (1, 20, 30) if is_kept(path, n)] for name, path in kept.items()}
    assert accepted == {"lacks": [20], "full": [1, 20, 30]}, "the study's number is 20"


def test_parts_that_were_made_when_each_was_a_target_are_listed_and_none_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study, classes = parse_study(SMALL_STUDY), load_class_table("fashion_mnist")
    images = {info.class_id: [str(number) for number in range(8)] for info in classes}
    write_prompts(study, "simple_prompt", classes, images, "prompts.parquet")
    write_json("model.json", {"id": "m"})
    recipe, earlier = content_of(generate_recipe(study, "simple_prompt")), Store(Path("store"), Path("a"))
    image = encode_image(Image.new("RGB", (8, 8)), "png", 95)
    for (class_id, _), made in read_prompts("prompts.parquet").items():
        said = canonical_hash(
            [[row[name] for name in ("label", "index", "prompt", "source")] for row in made]
        )
        key = {**recipe, "model": "m", "class_id": class_id, "rows": said}
        found = [ShardRow(image, row["label"], class_id, row["index"], row["prompt"], "m") for row in made]
        earlier.commit("shards", key, ".parquet", lambda path: write_shard(path, found, key))  # noqa: B023
    monkeypatch.setattr(stage, "_Maker", None)  # nothing may be made
    job = Job(study, Store(Path("store"), Path("results/small")), 1)
    targets = Plan(study, tuple(info.class_id for info in classes)).generated_targets("simple_prompt")
    shards = [shard for listed in targets.values() for shard in listed]
    stage.generate(
        job, "simple_prompt", "prompts.parquet", "model.json", "train.parquet", {"selected": shards}
    )
    assert (job.store.tally.made, job.store.tally.reused) == (0, 20) and len(targets) == 2
    for path, listed in targets.items():
        write_shard_list(path, listed, job.folder)
    for name, paths in (("listed", shards_among(targets, job.folder)), ("each", shards)):
        build_index(paths, job.folder, f"{name}/index.parquet")
    assert Path("listed/index.parquet").read_bytes() == Path("each/index.parquet").read_bytes()
