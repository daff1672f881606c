"""Attempts at images: one random generator each, and new ones for images that the safety checker flags.

:class:`Attempts` is what samplers have in common, whichever pipeline makes the images.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from augbench.errors import UserError
from augbench.progress import Progress
from augbench.runtime.fit import BatchLimit
from augbench.seeds import derive_seed

if TYPE_CHECKING:
    from PIL import Image

Try = tuple[int, int]  # number of the attempt, from 0, and position of the image


@dataclass(frozen=True)
class Sample:
    """One finished image, its seed, and the number of samples that the safety checker flagged before it."""

    image: Image.Image
    seed: int
    safety_flags: int


@dataclass(frozen=True)
class Samples:
    """Result of sampling: finished images by position, in ascending order, and the others.

    ``flagged`` has the number of samples of each image that was given up, all of them flagged.
    """

    made: dict[int, Sample]
    flagged: dict[int, int]


@dataclass
class Pending:
    """Images whose sampling has started.

    Attributes
    ----------
    batches : list
        For each batch in progress: its attempts, their seeds, and a future of the images and the safety
        checker's flags.
    """

    prompts: Sequence[str]
    scopes: Sequence[tuple[str | int, ...]]
    study_seed: int
    progress: Progress | None
    starts: Sequence[Image.Image] | None
    batches: list[tuple[Sequence[Try], list[int], Future[tuple[list[Image.Image], list[bool]]]]] = field(
        default_factory=list
    )


class Attempts(ABC):
    """Sampling of images with one seed per attempt (seeded images), batch by batch.

    Attributes
    ----------
    attempts_per_image : int
        Mean number of samples per image, over the images that are sampled together, after which those
        that the safety checker still flags are given up.
    """

    attempts_per_image: int

    @property
    @abstractmethod
    def _together(self) -> BatchLimit:
        """Largest batch of sampling."""

    @abstractmethod
    def _batch(
        self, prompts: Sequence[str], seeds: Sequence[int], starts: Sequence[Image.Image] | None
    ) -> Any:
        """Sample one batch; a batch that does not fit into the GPU's memory is halved."""

    @abstractmethod
    def _handed_over(
        self, sampled: Any, progress: Progress | None
    ) -> Future[tuple[list[Image.Image], list[bool]]]:
        """Pictures of a sampled batch and the safety checker's flags, which may still be computed."""

    def _attempt(self, pending: Pending, tries: Sequence[Try]) -> None:
        """Start sampling images, each with the seed of its attempt, batch by batch."""

        def sampled(batch: Sequence[Try]) -> tuple[Sequence[Try], list[int], Any]:
            seeds = [derive_seed(pending.study_seed, "image", *pending.scopes[i], n) for n, i in batch]
            starts = None if pending.starts is None else [pending.starts[i] for _, i in batch]
            return batch, seeds, self._batch([pending.prompts[i] for _, i in batch], seeds, starts)

        for batch, seeds, result in self._together.run(sampled, tries):
            pending.batches.append((batch, seeds, self._handed_over(result, pending.progress)))

    def begin(
        self,
        prompts: Sequence[str],
        scopes: Sequence[tuple[str | int, ...]],
        study_seed: int,
        progress: Progress | None = None,
        starts: Sequence[Image.Image] | None = None,
    ) -> Pending:
        """Start sampling one image per prompt; :meth:`end` returns the images.

        This does not wait for the safety checker.

        Parameters
        ----------
        scopes : sequence of tuple
            Scope that each image's seeds derive from: (class_id, i).
        starts : sequence of Image, optional
            Image that the sampling of each one starts from; only with ``noise``.
        """
        pending = Pending(prompts, scopes, study_seed, progress, starts)
        self._attempt(pending, [(0, i) for i in range(len(prompts))])
        return pending

    def end(self, pending: Pending) -> Samples:
        """Return the images; flagged ones are replaced by samples with their next seeds (paper, section 3.2).

        An image has no limit of its own. In each round, every image that is still flagged is sampled once
        more, in order, until all images together have had ``attempts_per_image`` samples each on average.
        The result is that of single rounds, although a batch with room for it runs several of them ahead.
        """
        left, attempts = self.attempts_per_image * len(pending.prompts), range(1)
        made: dict[int, Sample] = {}
        flagged: Counter[int] = Counter()
        refused = list(range(len(pending.prompts)))
        while True:
            found: dict[Try, tuple[Image.Image, int, bool]] = {}
            for batch, seeds, finished in pending.batches:
                images, flags = finished.result()
                found |= dict(zip(batch, zip(images, seeds, flags, strict=True), strict=True))
            pending.batches.clear()
            for attempt in attempts:
                for i in refused[:left]:
                    image, seed, flag = found[attempt, i]
                    left -= 1
                    if flag:
                        flagged[i] += 1
                    else:
                        made[i] = Sample(image, seed, flagged.pop(i, 0))
                refused = [i for i in refused if i not in made]
            if not refused or not left:
                return Samples(dict(sorted(made.items())), dict(flagged))
            together = self._together.size
            ahead = max(1, min(attempts.stop, together // len(refused)))
            attempts = range(attempts.stop, attempts.stop + ahead)
            tries = [(attempt, i) for attempt in attempts for i in refused]
            self._attempt(pending, tries[: max(left, together)])

    def sample(
        self,
        prompts: Sequence[str],
        scopes: Sequence[tuple[str | int, ...]],
        study_seed: int,
        progress: Progress | None = None,
        starts: Sequence[Image.Image] | None = None,
    ) -> list[Sample]:
        """Sample one image per prompt: :meth:`begin`, then :meth:`end`.

        Raises
        ------
        UserError
            The safety checker flagged all samples of some images.
        """
        samples = self.end(self.begin(prompts, scopes, study_seed, progress, starts))
        if samples.flagged:
            first, times = next(iter(samples.flagged.items()))
            raise UserError(
                "safety checker",
                f"all samples of {len(samples.flagged)} of {len(prompts)} images flagged, {times} of the"
                f" prompt {prompts[first]!r}",
                "change the prompts",
            )
        return [*samples.made.values()]
