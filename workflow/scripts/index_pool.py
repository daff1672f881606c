"""Index a method's pool of added images."""

from augbench.runtime.job import running

with running(snakemake, unfolded=True) as job:
    from augbench.artifacts.pool import build_index

    build_index(list(snakemake.input), job.plan.root, snakemake.output[0])
