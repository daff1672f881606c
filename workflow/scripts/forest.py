"""Draw every row's difference from the baseline."""

from augbench.runtime.job import running

with running(snakemake):
    from augbench.report.figures.forest import write_forest

    inputs = snakemake.input
    write_forest(inputs.table, inputs.statistics, dict(snakemake.output.items()))
