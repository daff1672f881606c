"""Names of learned vectors in prompts, in files, and as tokens of the text encoder.

A class has one placeholder per cluster, such as ``<bag:3>``, or ``<bag>`` if there is only one cluster.
"""

from __future__ import annotations


def placeholder(class_id: str, cluster: int = 0, clusters: int = 1) -> str:
    """Name of the vectors learned for ``cluster`` of a class; a single cluster needs no number."""
    return f"<{class_id}>" if clusters == 1 else f"<{class_id}:{cluster}>"


def placeholders(class_id: str, clusters: int) -> list[str]:
    """Names of all vectors learned for a class, in order of the clusters."""
    return [placeholder(class_id, cluster, clusters) for cluster in range(clusters)]
