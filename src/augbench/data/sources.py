"""Open the data set that a study's config names."""

from __future__ import annotations

from pydantic import BaseModel

from augbench.config.corpus import MiniatureCorpus
from augbench.config.data import Caltech256, Dataset, ImageFolder, ParquetImages
from augbench.data.source import ImageSource

DEFAULT_CORPUS_IMAGES = 50_000  # of Fashion-MNIST's 60,000 training images; the other 10,000 are the target's


def open_source(dataset: Dataset, seed: int, corpus: BaseModel | None = None) -> ImageSource:
    """Open the data set of a study.

    Parameters
    ----------
    seed : int
        The study's seed; it decides which of Fashion-MNIST's training images belong to the target.
    corpus : section of the config, optional
        The study's corpus. A miniature corpus takes its images from Fashion-MNIST, and the target gets
        the others.
    """
    if isinstance(dataset, ImageFolder):
        from augbench.data.image_folder import ImageFolderSource

        return ImageFolderSource(dataset)
    if isinstance(dataset, ParquetImages):
        from augbench.data.parquet_source import ParquetSource

        return ParquetSource(dataset)
    if isinstance(dataset, Caltech256):
        from augbench.data.caltech256 import Caltech256Source

        return Caltech256Source(dataset)
    from augbench.data.fashion_target import FashionMnistSource

    corpus_images = corpus.images if isinstance(corpus, MiniatureCorpus) else DEFAULT_CORPUS_IMAGES
    return FashionMnistSource(dataset, seed, corpus_images)
