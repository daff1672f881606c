"""Fashion-MNIST: the published bytes from every source, and a target disjoint from the corpus."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from augbench.config.corpus import MiniatureCorpus
from augbench.config.data import FashionMnist
from augbench.data import fashion_mnist
from augbench.data.fashion_mnist import FILES, PublishedFile, published_bytes, split_corpus_and_target
from augbench.data.fashion_target import FashionMnistSource
from augbench.data.source import ImageSource
from augbench.data.sources import open_source
from augbench.data.splits import make_splits


@pytest.fixture(scope="session")
def labels(garment_files: Path) -> np.ndarray:
    return fashion_mnist.load(garment_files, "train")[1]


@pytest.fixture(scope="session")
def target(garment_files: Path) -> ImageSource:
    return open_source(FashionMnist(kind="fashion_mnist", downloads=str(garment_files)), seed=0)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_files_have_the_published_md5(garment_files: Path, file: PublishedFile) -> None:
    assert hashlib.md5((garment_files / f"{file.name}.gz").read_bytes()).hexdigest() == file.md5


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_stripped_gzip_header_is_put_back(garment_files: Path, file: PublishedFile) -> None:
    published = (garment_files / f"{file.name}.gz").read_bytes()
    named = 10 + len(file.name) + 1
    # no name and no time, as in Debian's package
    stripped = b"\x1f\x8b\x08\x00" + bytes(4) + b"\x00\x03" + published[named:]
    assert stripped != published
    assert published_bytes(stripped, file) == published
    assert published_bytes(published, file) == published


def test_fetching_keeps_files_that_are_whole(garment_files: Path, tmp_path: Path) -> None:
    for file in FILES:
        (tmp_path / f"{file.name}.gz").symlink_to(garment_files / f"{file.name}.gz")
    fashion_mnist.fetch(tmp_path)
    assert all((tmp_path / f"{file.name}.gz").is_symlink() for file in FILES)


def test_images_and_labels_have_the_published_shapes(garment_files: Path) -> None:
    for split, count in (("train", 60_000), ("test", 10_000)):
        images, labels = fashion_mnist.load(garment_files, split)
        assert (images.shape, images.dtype) == ((count, 28, 28), np.uint8)
        assert np.bincount(labels).tolist() == [count // 10] * 10


@pytest.mark.parametrize("corpus_images", [2_000, 50_000, 59_000])
def test_corpus_and_target_are_disjoint_and_stratified(labels: np.ndarray, corpus_images: int) -> None:
    corpus, target = split_corpus_and_target(labels, corpus_images, seed=0)
    assert not set(corpus.tolist()) & set(target.tolist())
    assert len(corpus) + len(target) == 60_000
    assert np.bincount(labels[corpus]).tolist() == [corpus_images // 10] * 10


def test_target_has_100_training_images_per_class_as_imagenet10_has(
    target: ImageSource, garment_files: Path
) -> None:
    dataset = FashionMnist(kind="fashion_mnist", downloads=str(garment_files), train_fraction=0.1)
    splits = make_splits(target.classes(), target.scan(), dataset, seed=0, needed={"train2x", "full"})
    assert {name: np.bincount(split.labels).tolist() for name, split in splits.items()} == {
        "train": [100] * 10,
        "val": [100] * 10,
        "test": [1000] * 10,
        "train2x": [200] * 10,
        "full": [900] * 10,
    }


def test_no_image_of_any_split_is_in_the_corpus(target: ImageSource, labels: np.ndarray) -> None:
    corpus, _ = split_corpus_and_target(labels, 50_000, seed=0)
    in_corpus = {f"train-{index:05d}" for index in corpus.tolist()}
    assert not any(in_corpus & set(found.pool.image_ids) for found in target.scan())


@pytest.mark.parametrize("corpus_images", [2_000, 50_000, 59_000])
def test_the_target_is_what_the_corpus_leaves(garment_files: Path, corpus_images: int) -> None:
    dataset = FashionMnist(kind="fashion_mnist", downloads=str(garment_files))
    data = open_source(dataset, 0, MiniatureCorpus(kind="miniature", images=corpus_images))
    assert isinstance(data, FashionMnistSource)
    assert {len(found.pool) for found in data.scan()} == {data.pool_size()} == {6000 - corpus_images // 10}


def test_images_are_rgb_padded_with_black_to_32_pixels_with_the_labels_of_their_ids(
    target: ImageSource, garment_files: Path, labels: np.ndarray
) -> None:
    bags = target.scan()[8]
    assert bags.class_id == "bag"
    assert {int(labels[int(image_id.removeprefix("train-"))]) for image_id in bags.pool.image_ids} == {8}
    assert bags.test is not None
    for split, sources in (("train", bags.pool.sources[:3]), ("test", bags.test.sources[:3])):
        published = fashion_mnist.load(garment_files, split)[0]
        for source, image in zip(sources, target.load(sources), strict=True):
            grey = published[int(source.split("-")[1])]
            assert image.mode == "RGB"
            assert np.array_equal(np.asarray(image), np.pad(grey, 2)[:, :, None].repeat(3, 2))


@pytest.mark.full
def test_the_target_looks_as_the_corpus_does_without_web_style(
    target: ImageSource, garment_files: Path
) -> None:
    from augbench.miniature.corpus.style import clean_images

    sources = target.scan()[0].pool.sources[:5]
    published = fashion_mnist.load(garment_files, "train")[0][
        [int(source.split("-")[1]) for source in sources]
    ]
    loaded = np.stack([np.asarray(image) for image in target.load(sources)])
    assert np.array_equal(loaded.transpose(0, 3, 1, 2), clean_images(published).numpy())
