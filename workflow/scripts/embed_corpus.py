"""Embed the corpus with CLIP, in clip-retrieval's layout."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.retrieval.embed import embed, list_images

    inputs = snakemake.input
    embed(job, list_images(job.study.corpus, inputs.parts), inputs.clip, snakemake.output[0])
