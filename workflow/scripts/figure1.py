"""Draw Figure 1 from the table."""

from augbench.runtime.job import running

with running(snakemake):
    from augbench.report.figures.figure1 import write_figure1

    write_figure1(snakemake.input.table, dict(snakemake.output.items()))
