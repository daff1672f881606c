"""Choose the images of Figure 3."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.report.figures.figure3 import collect

    source, output = snakemake.input, snakemake.output
    # of several such rows the first one is shown
    collect(
        job,
        job.plan.reconstructing[0],
        source.sets[0],
        source.train,
        source.classes,
        output.table,
        output.images,
    )
