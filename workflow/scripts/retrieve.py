"""Make a block of image shards of a retrieval method, and their ledgers."""

from collections import Counter

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.data.splits import read_split
    from augbench.retrieval.images import open_origin
    from augbench.retrieval.stage import retrieve

    source, method = snakemake.input, snakemake.params.method
    retrieve(
        job,
        method,
        source.prompts,
        Counter(read_split(source.train).class_ids),
        source.neighbours,
        source.clip,
        source.diffusion,
        open_origin(job, method, source.get("images", [])),
        snakemake.output.shards,
        snakemake.output.ledgers,
    )
