"""Choose the images of Figure 3."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.report.figures.figure3 import collect

    source, output = snakemake.input, snakemake.output
    # the figure shows the first of several such methods
    collect(
        job,
        method=job.plan.reconstructing[0],
        manifest=source.sets[0],
        train_path=source.train,
        classes_path=source.classes,
        table=output.table,
        images=output.images,
    )
