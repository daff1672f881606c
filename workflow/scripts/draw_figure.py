"""Draw one of Figures 3 to 5B or the learning curves from its table, and from its images if it has any."""

from importlib import import_module

from augbench.runtime.job import running

with running(snakemake):
    figure = import_module(f"augbench.report.figures.{snakemake.params.figure}")
    figure.write_figure(**dict(snakemake.input.items()), outs=dict(snakemake.output.items()))
