"""Choose the images of Figure 3."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.report.figures.figure3 import collect

    inputs, output = snakemake.input, snakemake.output
    # the figure shows the first of several such methods
    collect(
        job,
        method=job.plan.reconstructing[0],
        manifest=inputs.sets[0],
        train_path=inputs.train,
        classes_path=inputs.classes,
        table=output.table,
        images=output.images,
    )
