"""Draw the added images of each training set."""

from augbench.job import running

with running(snakemake) as job:
    from augbench.resample import resample

    resample(snakemake.input.pool, snakemake.input.train, snakemake.output, job.study.seed)
