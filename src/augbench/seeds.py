"""Derive seeds from the study's seed and the name of what is drawn (seeded images).

They never depend on batches, blocks, order or machine.
"""

from __future__ import annotations

import hashlib


def derive_seed(study_seed: int, *scope: str | int) -> int:
    """Return a 63-bit seed for ``scope``, for example ``"image", class_id, i``.

    It is the first 63 bits of the SHA-256 of seed and scope as text. Two scopes share a seed with probability
    2**-63; the same scope has the same seed on every machine.
    """
    text = "\x1f".join(str(part) for part in (study_seed, *scope))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def classifier_seed(study_seed: int, run: int) -> int:
    """Return the seed of a run's classifier, from which its weights, batches and crops derive.

    It is the same for all methods, so that they differ by their images only.
    """
    return derive_seed(study_seed, "classifier", run)
