"""Files of further tests: test sets of other distributions, scored by the finished classifiers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from augbench.config.data import FolderTest
from augbench.config.draws import drawn_name
from augbench.plan.pools import RUN_FILES, PoolPaths


@dataclass(frozen=True)
class FurtherPaths(PoolPaths):
    """Paths of the manifests, predictions and near-duplicates of further test sets; none without any.

    They are the same for the folded and the unfolded study.
    """

    @cached_property
    def further_tests(self) -> list[str]:
        """Names of the further test sets, in the order of the config."""
        return list(self.study.dataset.further_tests)

    def has_own_images(self, test: str) -> bool:
        """Whether a further test set has images of its own; the others show the ordinary test images."""
        return isinstance(self.study.dataset.further_tests[test], FolderTest)

    def further_split(self, test: str) -> str:
        """Manifest of the images of a further test set."""
        own = self.path("splits/further", f"{test}.parquet")
        return own if self.has_own_images(test) else self.splits["test"]

    @cached_property
    def all_runs(self) -> list[tuple[str, str]]:
        """Row and run of every classifier, with the rows of all draws of the training images."""
        return [(name, run) for name in self.study.unfolded.methods for run in self.runs]

    @cached_property
    def models(self) -> list[str]:
        """Checkpoints of :attr:`all_runs`."""
        model = RUN_FILES.index("model.safetensors")
        return [self.run_files(name, run)[model] for name, run in self.all_runs]

    def further_predictions(self, test: str) -> list[str]:
        """Predictions of :attr:`all_runs` on a further test set."""
        return [self._prediction(test, name, run) for name, run in self.all_runs]

    def further_predictions_of(self, test: str, method: str) -> list[str]:
        """Predictions of a row's classifiers, draw by draw."""
        draws = range(self.study.dataset.draws)
        return [self._prediction(test, drawn_name(method, k), run) for k in draws for run in self.runs]

    def _prediction(self, test: str, method: str, run: str) -> str:
        return self.path("further_tests", test, method, f"{run}.parquet")

    def further_embeddings(self, test: str) -> str:
        """Path of the CLIP embeddings of the images of a further test set."""
        return self.path("leakage/further", test, "images.npy")

    def further_leaks(self, test: str) -> dict[str, str]:
        """Pairs of an added image and its near-duplicate in a further test set by row; none without guard."""
        return {
            method: self.path("leakage/further", test, f"{method}.parquet")
            for method in self.study.folded.pooled
            if self.guarded
        }

    @cached_property
    def all_further_leaks(self) -> list[str]:
        """The files of :meth:`further_leaks` of all sets."""
        return [path for test in self.further_tests for path in self.further_leaks(test).values()]
