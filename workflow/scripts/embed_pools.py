"""Embed one block of the shards of added images with CLIP, into the store."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.leakage.stage import embed_pools_block
    from augbench.retrieval.shortfall import read_excluded

    inputs = snakemake.input
    embed_pools_block(
        job,
        indexes=inputs.pools,
        clip_path=inputs.clip,
        block=snakemake.params.block,
        out=snakemake.output[0],
        excluded=read_excluded(inputs.excluded),
    )
