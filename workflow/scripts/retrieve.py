"""Make a block of image shards of a retrieval method, and its ledger."""

from collections import Counter

from augbench.job import running

with running(snakemake) as job:
    from augbench.data.splits import read_split
    from augbench.retrieval.images import CorpusImages
    from augbench.retrieval.retrieve import retrieve

    retrieve(
        job,
        snakemake.wildcards.method,
        snakemake.input.prompts,
        Counter(read_split(snakemake.input.train).class_ids),
        snakemake.input.index,
        snakemake.input.clip,
        snakemake.input.diffusion,
        CorpusImages(snakemake.input.images).__getitem__,
        snakemake.output.shards,
        snakemake.output.ledger,
    )
