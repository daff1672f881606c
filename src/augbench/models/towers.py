"""CLIP, which compares texts with images: what all stages use of it, whichever library has made the model.

:mod:`augbench.models.transformers_clip` and :mod:`augbench.models.open_clip_model` are the two kinds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from augbench.models.folders import to_device
from augbench.runtime.compiling import compile_network, run_filled
from augbench.runtime.fit import BatchLimit, needing_memory
from augbench.runtime.overlap import Uploads, behind

if TYPE_CHECKING:
    import torch
    from PIL import Image

TEXTS_AT_ONCE = 64


class Clip(ABC):
    """A CLIP model in single precision, in evaluation mode, on a device."""

    @property
    @abstractmethod
    def scale(self) -> torch.Tensor:
        """The learned factor of cosines in CLIP's logits; a number."""

    @property
    def bias(self) -> torch.Tensor | float:
        """The learned summand of logits, which only models trained with a sigmoid loss (SigLIP) have."""
        return 0.0

    @abstractmethod
    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Compute unit text embeddings ``float32 (N, D)``, on the model's device."""

    @abstractmethod
    def image_tower(self, half: bool = False, compiled: bool = False) -> ImageTower:
        """The model's image tower; parameters as in :class:`ImageTower`."""


def embed_distinct(embed: Callable[[Sequence[str]], torch.Tensor], texts: Sequence[str]) -> torch.Tensor:
    """Compute unit text embeddings ``float32 (N, D)`` by a function that embeds a batch of texts.

    Texts repeat, so each distinct text is embedded once. Texts of similar length share a batch, so that one
    that pads to the longest pads little.
    """
    import torch

    def embedded(batch: Sequence[str]) -> torch.Tensor:
        return torch.nn.functional.normalize(embed(batch), dim=-1)

    distinct = sorted(set(texts), key=lambda text: (len(text), text))
    with torch.inference_mode():
        parts = list(BatchLimit(TEXTS_AT_ONCE, "CLIP", "text").run(embedded, distinct))
    row_of = {text: row for row, text in enumerate(distinct)}
    return torch.cat(parts)[[row_of[text] for text in texts]]


class ImageTower(ABC):
    """Compute CLIP's image embeddings, with its own preprocessing; call it with images.

    Parameters
    ----------
    network : Module
        The part that sees images.
    device : torch.device
        Where it is.
    half : bool
        Multiply matrices in float16, as CLIP's authors do; norms, sums and the result are float32.
    compiled : bool
        Compile the network, for the batches of :meth:`embed_all`.
    """

    def __init__(
        self, network: torch.nn.Module, device: torch.device, half: bool = False, compiled: bool = False
    ) -> None:
        self.device, self.half, self.compiled = device, half, compiled
        self._uploads = Uploads(device)
        if compiled:
            compile_network(network)

    @abstractmethod
    def prepare(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Resize and crop images to pixels, uint8 ``(N, 3, H, W)``, on the CPU.

        Other threads may do this ahead of :meth:`embed`.
        """

    @abstractmethod
    def _normalised(self, values: torch.Tensor) -> torch.Tensor:
        """Scale and normalise pixels on the device, as the model was trained: float32 ``(N, 3, H, W)``."""

    @abstractmethod
    def _features(self, values: torch.Tensor) -> torch.Tensor:
        """The network's output for normalised pixels, ``(N, D)``."""

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embed pixels from :meth:`prepare`: float32 ``(N, D)``, not normalised, on the model's device."""
        import torch

        values = self._normalised(to_device(pixels, self.device))
        with torch.inference_mode(), torch.autocast(self.device.type, torch.float16, enabled=self.half):
            return self._features(values).float()

    def embed_all(self, batches: Iterable[torch.Tensor], limit: BatchLimit) -> Iterator[torch.Tensor]:
        """Embed batches of pixels in main memory, of at most ``limit.size`` images each.

        On a GPU, the next batch is copied there while it embeds one, and results are read one batch behind.
        On a CPU each of torch's threads embeds a batch of its own, because threads that share the operations
        of one batch wait for each other after each of them. So their number changes no bit of the result.

        Yields
        ------
        Tensor, float32 (n, D)
            Unit embeddings in main memory, in order.
        """
        import torch

        def embedded(pixels: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
            part = pixels[rows[0] : rows[-1] + 1]
            found = run_filled(self.embed, limit.size, part) if self.compiled else self.embed(part)
            return torch.nn.functional.normalize(found, dim=-1)

        def in_parts(pixels: torch.Tensor) -> Iterator[torch.Tensor]:
            return limit.run(partial(embedded, pixels), range(len(pixels)))

        if self.device.type == "cpu" and not self.compiled:
            yield from self._on_cores(in_parts, batches)
            return

        def results() -> Iterator[torch.Tensor]:
            with needing_memory(limit.key, f"the pixels of {limit.size} images"):
                for pixels in self._uploads.ahead(batches):
                    yield from in_parts(pixels)

        yield from behind(results())

    @staticmethod
    def _on_cores(
        embedded: Callable[[torch.Tensor], Iterator[torch.Tensor]], batches: Iterable[torch.Tensor]
    ) -> Iterator[torch.Tensor]:
        """Yield the embeddings of each batch, in order; torch's threads embed one batch each."""
        import torch

        from augbench.data.decode import in_order

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for parts in in_order(lambda pixels: list(embedded(pixels)), batches, threads, ahead=2 * threads):
                yield from parts
        finally:
            torch.set_num_threads(threads)

    def embed_images(
        self, images: Iterable[Image.Image], limit: BatchLimit, threads: int
    ) -> Iterator[torch.Tensor]:
        """Embed images of any size, which ``threads`` threads prepare; yields as :meth:`embed_all`."""
        from augbench.batches import in_batches
        from augbench.data.decode import in_order

        return self.embed_all(in_order(self.prepare, in_batches(images, limit.size), threads), limit)

    def __call__(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Embed images of any size: float32 ``(N, D)``, not normalised."""
        return self.embed(self.prepare(images))
