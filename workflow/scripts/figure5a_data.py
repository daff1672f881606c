"""Compute the change of each class's accuracy for Figure 5A, and choose the images of the figure."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.report.figures.figure5a import collect

    inputs, output = snakemake.input, snakemake.output
    collect(
        job,
        per_class=inputs.per_class,
        table=inputs.table,
        manifests=dict(zip(job.plan.class_changes, inputs.sets, strict=True)),
        train_path=inputs.train,
        classes_path=inputs.classes,
        out=output.table,
        images=output.images,
    )
