"""Give the chosen row's training sets and classifiers the name of the row that chooses."""

from augbench.runtime.job import running

with running(snakemake, unfolded=True) as job:
    from augbench.pools.choice import adopt, read_choice

    adopt(job.plan, snakemake.params.method, read_choice(snakemake.input.choice))
