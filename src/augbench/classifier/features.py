"""Features of a frozen network, computed once per real split and per shard, and kept in the store.

Input: labelled images and what the network begins with. Output: a :class:`FeaturePool`, on which a probe (one
linear layer) is trained and scored in place of images. Features are those at the evaluation's crop, float16.
Resamples, runs and rows share them, because the key names the images and the frozen network alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import nn

from augbench.artifacts.pool import index_of, load_images
from augbench.artifacts.store import Store
from augbench.classifier.compute import Compute, ProcessGroup
from augbench.classifier.images import ImagePool, LabelledImages
from augbench.classifier.networks import Features, build
from augbench.classifier.predict import predict
from augbench.classifier.sizes import evaluation_resize
from augbench.classifier.start import Start
from augbench.config.classifier import Classifier
from augbench.files import canonical_hash, is_array
from augbench.models.folders import to_device
from augbench.plan.recipes import features_recipe
from augbench.progress import track

KIND = "features"


@dataclass(frozen=True)
class FeaturePool:
    """Features of images on the device, float32 ``(N, D)``."""

    features: torch.Tensor

    def __len__(self) -> int:
        return len(self.features)

    def logits(self, layer: nn.Module, rows: slice | None = None) -> torch.Tensor:
        """Logits of a layer, float32 ``(N, classes)`` on the CPU, for all images or those in ``rows``."""
        logits: torch.Tensor = layer(self.features[rows or slice(None)])
        return logits.cpu()


def logits_on(
    model: nn.Module,
    pool: ImagePool | FeaturePool,
    config: Classifier,
    device: torch.device,
    rows: slice | None = None,
) -> torch.Tensor:
    """Logits, float32 (N, classes) on the CPU, of all images or of ``rows``, from pixels or features."""
    if isinstance(pool, FeaturePool):
        with torch.inference_mode():
            return pool.logits(model, rows)
    return predict(model, pool, config, device, rows)


class Frozen:
    """A frozen network, built only if features are missing from the store.

    Parameters
    ----------
    start : Start
        What the network begins with.
    store : Store
        Keeps the features.
    """

    def __init__(self, config: Classifier, start: Start, store: Store) -> None:
        self.config, self.start, self.store = config, start, store

    @cached_property
    def network(self) -> Features:
        """The network, in evaluation mode, on the CPU."""
        start = Start(self.start.id, self.start.place)  # features do not depend on the class names
        network: Features = Features(build(self.config, 2, 0, start)).eval()
        return network

    def keep(
        self,
        images: Callable[[], Iterable[Image.Image]],
        count: int,
        named: Mapping[str, Any],
        compute: Compute,
    ) -> np.ndarray:
        """Return the features of images, float16 ``(N, D)``, from the store if it has them.

        Parameters
        ----------
        images : callable
            Yields them.
        named : mapping
            What names the images in the key.
        """
        recipe = {**features_recipe(self.config), "weights": self.start.id, **named}

        def write(out: Path) -> None:
            alone = Compute(compute.device, ProcessGroup(), compute.storage)
            everything = slice(0, count)
            labelled = LabelledImages([""] * count, [0] * count, lambda _: images(), "images of features")
            pool = labelled.pool(evaluation_resize(self.config), alone)
            network = self.network.to(compute.device).to(memory_format=torch.channels_last)
            found = predict(network, pool, self.config, compute.device, everything)
            with out.open("wb") as stream:
                np.save(stream, found.half().numpy())

        found: np.ndarray = np.load(self.store.keep(KIND, recipe, ".npy", write, is_array))
        return found


class LabelledFeatures(LabelledImages):
    """Labelled images whose :meth:`pool` has features in place of pixels.

    Parameters
    ----------
    images : LabelledImages
        Ids and labels are theirs.
    compute_features : callable
        Returns their features, float16 ``(N, D)``.
    """

    def __init__(self, images: LabelledImages, compute_features: Callable[[Compute], np.ndarray]) -> None:
        super().__init__(images.ids, images.labels, images.load, images.what, images.stamps)
        self._compute = compute_features
        self._features: FeaturePool | None = None

    def pool(self, side: int | None, compute: Compute) -> FeaturePool:  # type: ignore[override]
        """Return the features, computed or read at the first call."""
        if self._features is None:
            found = torch.from_numpy(self._compute(compute)).float()
            self._features = FeaturePool(to_device(found, compute.device))
        return self._features

    def forget(self) -> None:
        """Release the memory of the features."""
        self._features = None


def of_split(frozen: Frozen, images: LabelledImages, origin: Mapping[str, Any]) -> LabelledImages:
    """Return real images as features; ``origin`` names the data set that their ids belong to."""

    def computed(compute: Compute) -> np.ndarray:
        named = {"images": canonical_hash(images.key_names), **origin}
        return frozen.keep(lambda: images.load(slice(0, len(images))), len(images), named, compute)

    return LabelledFeatures(images, computed)


def of_rows(frozen: Frozen, images: LabelledImages, rows: pa.Table, study: Path) -> LabelledImages:
    """Return added images, which are ``rows`` of an index, as features.

    The features of whole shards are kept, so that all sets drawn from a pool share them.
    """

    def computed(compute: Compute) -> np.ndarray:
        if not rows.num_rows:
            return np.empty((0, frozen.network.width), dtype=np.float16)
        paths, places = (rows.column(name).to_numpy(zero_copy_only=False) for name in ("path", "row"))
        parts = []
        members = [np.flatnonzero(paths == path) for path in dict.fromkeys(paths.tolist())]
        for member in track(members, f"features of {images.what}", "shard", len(members)):
            shard = index_of([study / paths[member[0]]], study, images.what)
            named = {"images": canonical_hash(shard.column("sha256").to_pylist())}
            vectors = frozen.keep(partial(load_images, shard, study), shard.num_rows, named, compute)
            place_of = {row: place for place, row in enumerate(shard.column("row").to_pylist())}
            parts.append(vectors[[place_of[row] for row in places[member]]])
        back = np.argsort(np.concatenate(members), kind="stable")
        found: np.ndarray = np.concatenate(parts)[back]
        return found

    return LabelledFeatures(images, computed)
