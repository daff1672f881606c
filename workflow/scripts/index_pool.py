"""Index a method's pool of added images."""

from pathlib import Path

from augbench.runtime.job import running

with running(snakemake, unfolded=True) as job:
    from augbench.artifacts.pool import build_index
    from augbench.artifacts.shards import shards_among
    from augbench.pools.keep import filter_of
    from augbench.retrieval.shortfall import read_excluded

    inputs, index = snakemake.input, snakemake.output[0]
    keep = job.study.filters.get(Path(index).parents[1].name)
    build_index(
        shards_among(inputs, job.folder),
        job.plan.root,
        index,
        filter_of(keep, inputs.scores, read_excluded(inputs.excluded), index),
    )
