"""Search the corpus for the neighbours of a retrieval method's queries."""

from collections import Counter

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.data.splits import read_split
    from augbench.retrieval.search import search

    source = snakemake.input
    sizes = Counter(read_split(source.train).class_ids)
    search(
        job,
        snakemake.wildcards.method,
        source.prompts,
        sizes,
        source.clip,
        next(iter(source.get("corpus", [])), None),
        snakemake.output[0],
    )
