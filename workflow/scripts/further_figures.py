"""Draw every row's difference from the baseline on each further test set."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.report.figures.further_tests import write_figures

    write_figures(snakemake.input.table, job.plan.further_figures)
