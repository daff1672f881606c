"""Embed the training images with CLIP, for queries by images and for comparison with retrieved images."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.leakage.stage import embed_splits

    inputs = snakemake.input
    embed_splits(job, {"train": inputs.train}, inputs.clip, {"train": snakemake.output[0]})
