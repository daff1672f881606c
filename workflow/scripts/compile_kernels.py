"""Compile the networks that generate images, into the cache that jobs share."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.generate.stage import compile_kernels

    compile_kernels(job, snakemake.params.methods)
