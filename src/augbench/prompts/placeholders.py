"""What a learned vector is called: in prompts, in files, and as a token of the text encoder.

Flows in: a class and the number of one of its clusters. Flows out: a placeholder such as ``<bag>`` or ``<bag:3>``.
"""

from __future__ import annotations


def placeholder(class_id: str, cluster: int = 0, clusters: int = 1) -> str:
    """The name of what is learned for ``cluster`` of a class; the only cluster needs no number."""
    return f"<{class_id}>" if clusters == 1 else f"<{class_id}:{cluster}>"


def placeholders(class_id: str, clusters: int) -> list[str]:
    """The names of all that is learned for a class, in order of the clusters."""
    return [placeholder(class_id, cluster, clusters) for cluster in range(clusters)]
