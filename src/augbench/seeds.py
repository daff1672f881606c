"""Seeds that depend on what is made, never on batches, blocks, order or machine (invariant 3).

Flows in: the study's seed and the names of what is drawn. Flows out: a 63-bit integer.
"""

from __future__ import annotations

import hashlib


def derive_seed(study_seed: int, *scope: str | int) -> int:
    """A seed for ``scope`` (for example ``"image", class_id, i``): the first 63 bits of a SHA-256 of its text.

    Two scopes share a seed with probability 2**-63; the same scope has the same seed on every machine.
    """
    text = "\x1f".join(str(part) for part in (study_seed, *scope))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def classifier_seed(study_seed: int, run: int) -> int:
    """The seed of a run's classifier: its weights, batches and crops; the same for all methods, so that they differ by their images."""
    return derive_seed(study_seed, "classifier", run)
