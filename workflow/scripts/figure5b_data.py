"""Collect the points of Figure 5B."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.report.figures.figure5b import collect

    source, plan = snakemake.input, job.plan
    collect(
        plan,
        table=source.table,
        per_class=source.per_class,
        train_path=source.train,
        manifests=dict(zip(plan.scaling, source.sets, strict=True)),
        out=snakemake.output.table,
    )
