"""Choose the images of Figure 4."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.report.figures.figure4 import collect

    source, output = snakemake.input, snakemake.output
    collect(
        job,
        manifests=dict(zip(job.plan.exemplified, source.sets, strict=True)),
        train_path=source.train,
        classes_path=source.classes,
        table=output.table,
        images=output.images,
    )
