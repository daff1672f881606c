"""Choose the real images that added ones replace (``use.replace``).

Input: the labels of the real images and of a training set's added images. Output: the real images that stay
and the added ones that are used. Both are drawn per run and class, from a seed that does not depend on the
share: a smaller share replaces some of what a larger one does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from augbench.config.study import Study
from augbench.resample import needed_images
from augbench.seeds import derive_seed


def replaced_images(share: float, real: int, added: int) -> int:
    """Number of a class's real images that are replaced: ``share``, rounded up, of at most the added."""
    return min(needed_images(share, real), added)


def replace_in_run(
    study: Study, row: str, run: int, real: np.ndarray, added: np.ndarray, class_ids: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Apply :func:`replace_real` as a run of an unfolded row does."""
    return replace_real(
        real,
        added,
        study.methods[row].use.replace,
        class_ids=class_ids,
        run=run,
        study_seed=study.seed_of(row),
        ranked=study.augmented[row].ranked,
    )


def replace_real(
    real: np.ndarray,
    added: np.ndarray,
    share: float,
    *,
    class_ids: Sequence[str],
    run: int,
    study_seed: int,
    ranked: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of the real images that stay and of the added ones that are used, both ascending.

    In each class, added images replace ``share`` of the real ones, rounded up; fewer if the set has fewer, so
    that each class keeps its size.

    Parameters
    ----------
    real, added : ndarray, int
        Labels of the real images and of the set's added ones.
    class_ids : sequence of str
        Classes by label.
    ranked : bool
        Use the first added images of each class, the most similar ones, instead of random ones.
    """
    stays, used = np.ones(len(real), dtype=bool), np.zeros(len(added), dtype=bool)
    for label, class_id in enumerate(class_ids):
        own, others = np.flatnonzero(real == label), np.flatnonzero(added == label)
        replaced = replaced_images(share, len(own), len(others))
        rng = np.random.default_rng(derive_seed(study_seed, "replace", run, class_id))
        stays[rng.permutation(own)[:replaced]] = False
        used[(others if ranked else rng.permutation(others))[:replaced]] = True
    return np.flatnonzero(stays), np.flatnonzero(used)
