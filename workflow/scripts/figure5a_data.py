"""Compute every class's change for Figure 5A, and choose its images."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.report.figures.figure5a import collect

    source, output = snakemake.input, snakemake.output
    sets = dict(zip(job.plan.compared, source.sets, strict=True))
    collect(
        job, source.per_class, source.table, sets, source.train, source.classes, output.table, output.images
    )
