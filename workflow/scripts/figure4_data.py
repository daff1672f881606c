"""Choose the images of Figure 4."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.report.figures.figure4 import collect

    inputs, output = snakemake.input, snakemake.output
    collect(
        job,
        manifests=dict(zip(job.plan.exemplified, inputs.sets, strict=True)),
        train_path=inputs.train,
        classes_path=inputs.classes,
        table=output.table,
        images=output.images,
    )
