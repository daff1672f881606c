"""Write the statistics of Table 1 in all their formats."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.report.tables.statistics import write_statistics

    write_statistics(
        job.study.study, snakemake.input.table, snakemake.input.runs, dict(snakemake.output.items())
    )
