"""Embed one block of the corpus with CLIP, into the store."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.retrieval.embed import embed_block, list_images

    inputs, block = snakemake.input, int(snakemake.wildcards.block)
    listing = list_images(job.study.corpus, inputs.parts)
    embed_block(job, listing, inputs.clip, block, snakemake.output[0])
