"""Images of any split of a study: its own splits, and further test sets, which may be made from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from augbench.config.data import CorruptedTest, FashionMnist, FolderTest
from augbench.config.study import Study
from augbench.data.decode import in_order, open_rgb
from augbench.data.sources import open_source
from augbench.data.splits import Split
from augbench.data.stamps import check_unchanged
from augbench.further.corruptions import corrupt
from augbench.seeds import derive_seed

if TYPE_CHECKING:
    from PIL.Image import Image

Load = Callable[[Sequence[int]], Iterator["Image"]]


def images_of(study: Study, name: str, split: Split) -> Load:
    """Return a function from positions in a manifest to the images there, as 8-bit RGB, in that order.

    It raises a :class:`UserError` if a file has changed since the manifest recorded it.

    Parameters
    ----------
    name : str
        A further test set, or any other name for a split of the data set.
    split : Split
        Its manifest.
    """
    test = study.dataset.further_tests.get(name)
    if isinstance(test, FolderTest):
        root = Path(test.root)

        def own(places: Sequence[int]) -> Iterator[Image]:
            files = [root / split.sources[place] for place in places]
            if split.stamps is not None:
                check_unchanged(
                    files, [stamp for stamp in split.stamps_at(places) or () if stamp is not None]
                )
            return in_order(open_rgb, files)

        return own
    source = open_source(study.dataset, study.seed, study.corpus)

    def clean(places: Sequence[int]) -> Iterator[Image]:
        return source.load_unchanged([split.sources[place] for place in places], split.stamps_at(places))

    if test is None:
        return clean
    if isinstance(test, CorruptedTest):
        return lambda places: _corrupted(study, test, clean(places), [split.image_ids[i] for i in places])
    level = test.shift
    return lambda places: _styled(study, level, [split.sources[place] for place in places])


def _corrupted(
    study: Study, test: CorruptedTest, images: Iterator[Image], image_ids: Sequence[str]
) -> Iterator[Image]:
    for image, image_id in zip(images, image_ids, strict=True):
        seed = derive_seed(study.seed, "corruption", test.corruption, image_id)
        yield corrupt(image, test.corruption, test.severity, seed)


def _styled(study: Study, level: str, sources: Sequence[str]) -> Iterator[Image]:
    """Yield test images of Fashion-MNIST in the web's style, one at a time: none depends on the others."""
    import numpy as np
    from PIL import Image

    from augbench.data import fashion_mnist
    from augbench.miniature.corpus.style import web_style

    assert isinstance(study.dataset, FashionMnist)
    garments, _ = fashion_mnist.load(study.dataset.downloads, "test")
    seed = derive_seed(
        study.seed, "further test"
    )  # not the looks of the corpus, whose images count from 0, too
    for source in sources:
        number = int(source.removeprefix("test-"))
        pixels = web_style(garments[number : number + 1], np.array([number]), level, seed)[0]
        yield Image.fromarray(np.ascontiguousarray(pixels.numpy().transpose(1, 2, 0)))
