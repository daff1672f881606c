"""Fashion-MNIST as a target data set: training images that the miniature corpus leaves, and all test images.

Images are RGB, padded with black to 32 x 32 pixels, as the miniature's models expect them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from augbench.config.data import FashionMnist
from augbench.data.classes import ClassInfo, load_class_table
from augbench.data.source import ClassImages, ImageList, ImageSource
from augbench.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

PADDING = 2  # pixels on each side: 28 + 2 x 2 = 32
CLASSES, TRAIN_PER_CLASS, TEST_PER_CLASS = 10, 6000, 1000  # Xiao et al., 2017


def _image_list(split: str, indices: np.ndarray) -> ImageList:
    ids = [f"{split}-{index:05d}" for index in indices.tolist()]
    return ImageList(ids, ids)


class FashionMnistSource(ImageSource):
    """The target's part of Fashion-MNIST.

    Parameters
    ----------
    seed, corpus_images : int
        As for :func:`~augbench.data.fashion_mnist.split_corpus_and_target`. The corpus uses it too, so
        target and corpus are disjoint.
    """

    def __init__(self, dataset: FashionMnist, seed: int, corpus_images: int) -> None:
        self.folder, self.table = Path(dataset.downloads), dataset.classes
        self.seed, self.corpus_images = seed, corpus_images

    def classes(self) -> list[ClassInfo]:
        """Read the class table: the shipped one, or the user's with other names for the ten classes.

        Raises
        ------
        UserError
            The table does not have ten classes.
        """
        classes = load_class_table(self.table)
        if len(classes) != CLASSES:
            raise UserError(
                "dataset.classes",
                f"{self.table!r} has {len(classes)} classes",
                f"allowed: Fashion-MNIST's {CLASSES}, in label order",
            )
        return classes

    def pool_size(self) -> int:
        """Number of images per class in the target's training pool.

        It is known without the files, because the data set is balanced.
        """
        return TRAIN_PER_CLASS - round(self.corpus_images / (CLASSES * TRAIN_PER_CLASS) * TRAIN_PER_CLASS)

    def scan(self) -> list[ClassImages]:
        """List the target's images by class.

        ``train-00012`` is the 13th published training image, ``test-00007`` the 8th test image.
        """
        import numpy as np

        from augbench.data import fashion_mnist

        _, train_labels = fashion_mnist.load(self.folder, "train")
        _, test_labels = fashion_mnist.load(self.folder, "test")
        _, target = fashion_mnist.split_corpus_and_target(train_labels, self.corpus_images, self.seed)
        return [
            ClassImages(
                info.class_id,
                pool=_image_list("train", target[train_labels[target] == label]),
                test=_image_list("test", np.flatnonzero(test_labels == label)),
            )
            for label, info in enumerate(self.classes())
        ]

    def load(self, sources: Sequence[str]) -> Iterator[Image]:
        """Yield RGB images of 32 x 32 pixels, as in :func:`augbench.miniature.corpus.style.clean_images`."""
        import numpy as np
        from PIL import Image

        from augbench.data import fashion_mnist

        arrays: dict[str, np.ndarray] = {}
        for source in sources:
            split, number = source.split("-")
            if split not in arrays:
                arrays[split] = fashion_mnist.load(self.folder, split)[0]
            yield Image.fromarray(np.pad(arrays[split][int(number)], PADDING)).convert("RGB")
