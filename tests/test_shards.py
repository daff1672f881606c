"""Shards: each is complete on its own, and damage is detected."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from augbench.artifacts.shards import (
    ShardRow,
    encode_image,
    is_kept,
    is_whole,
    read_footer,
    read_shard,
    write_shard,
)
from augbench.errors import UserError
from augbench.files import canonical_hash


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
