"""Gather the points of Figure 5B."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.report.figures.figure5b import collect

    source, plan = snakemake.input, job.plan
    collect(
        plan,
        source.table,
        source.per_class,
        source.train,
        dict(zip(plan.scaling, source.sets, strict=True)),
        snakemake.output.table,
    )
