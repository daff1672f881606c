"""Write a block of image shards of a retrieval method, and their ledgers."""

from augbench.runtime.job import running

with running(snakemake, unfolded=True) as job:
    from augbench.retrieval.images import open_origin
    from augbench.retrieval.stage import retrieve

    inputs, method = snakemake.input, snakemake.params.method
    retrieve(
        job,
        name=method,
        prompts_path=inputs.prompts,
        train_path=inputs.train,
        neighbours_path=inputs.neighbours,
        clip_path=inputs.clip,
        diffusion_path=inputs.diffusion,
        origin=open_origin(job, method, inputs.get("images", [])),
        targets=snakemake.output.shards,
        ledgers=snakemake.output.ledgers,
        embedded_train=next(iter(inputs.get("embedded", [])), None),
    )
