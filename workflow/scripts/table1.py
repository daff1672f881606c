"""Write Table 1 in all its formats."""

from augbench.job import running

with running(snakemake) as job:
    from augbench.report.table1 import write_table1

    write_table1(job.study, snakemake.input.results, snakemake.input.pools, dict(snakemake.output.items()))
