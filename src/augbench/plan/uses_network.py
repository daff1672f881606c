"""The rules that may use the network."""

from __future__ import annotations

from augbench.config.corpus import OwnCorpus, ServerCorpus
from augbench.config.study import Study


def uses_network(rule: str, study: Study) -> bool:
    """Whether a rule may use the network.

    ``fetch_*`` always may, ``search`` if it queries a server, and ``retrieve_*`` if the corpus's images are
    on the web.
    """
    if rule == "search":
        return isinstance(study.corpus, ServerCorpus)
    if rule.startswith("retrieve_"):
        return study.corpus is not None and not isinstance(study.corpus, OwnCorpus)
    return rule.startswith("fetch_")
