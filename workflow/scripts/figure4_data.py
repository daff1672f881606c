"""Choose the images of Figure 4."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.report.figures.figure4 import collect

    source, output = snakemake.input, snakemake.output
    collect(
        job,
        dict(zip(job.plan.exemplified, source.sets, strict=True)),
        source.train,
        source.classes,
        output.table,
        output.images,
    )
