"""Draw one of Figures 3 to 5B or the learning curves from its table, and from its images if it has any."""

from augbench.runtime.job import running

with running(snakemake):
    from augbench.report.figures.write import write_figure

    outs = dict(snakemake.output.items())
    write_figure(snakemake.params.figure, **dict(snakemake.input.items()), outs=outs)
