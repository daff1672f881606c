"""Write a block of image shards of a retrieval method, and their ledgers."""

from collections import Counter

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.data.splits import read_split
    from augbench.retrieval.images import open_origin
    from augbench.retrieval.stage import retrieve

    source, method = snakemake.input, snakemake.params.method
    retrieve(
        job,
        name=method,
        prompts_path=source.prompts,
        training_images=Counter(read_split(source.train).class_ids),
        neighbours_path=source.neighbours,
        clip_path=source.clip,
        diffusion_path=source.diffusion,
        origin=open_origin(job, method, source.get("images", [])),
        targets=snakemake.output.shards,
        ledgers=snakemake.output.ledgers,
    )
