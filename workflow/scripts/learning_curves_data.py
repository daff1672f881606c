"""Write the validations of all runs, from which the learning curves are drawn."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.report.figures.learning_curves import write_data

    write_data(job.study, snakemake.input.results, snakemake.output.table)
