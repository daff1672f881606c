"""Compute the change of each class's accuracy for Figure 5A, and choose the images of the figure."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.report.figures.figure5a import collect

    source, output = snakemake.input, snakemake.output
    collect(
        job,
        per_class=source.per_class,
        table=source.table,
        manifests=dict(zip(job.plan.compared, source.sets, strict=True)),
        train_path=source.train,
        classes_path=source.classes,
        out=output.table,
        images=output.images,
    )
