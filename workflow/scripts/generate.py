"""Make a block of image shards of a sampled method."""

from augbench.job import running

with running(snakemake) as job:
    from augbench.generate import generate

    generate(job, snakemake.wildcards.method, snakemake.input.prompts, snakemake.input.diffusion, snakemake.output)
