"""Collect the points of Figure 5B."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.report.figures.figure5b import collect

    inputs, plan = snakemake.input, job.plan
    collect(
        plan,
        table=inputs.table,
        per_class=inputs.per_class,
        train_path=inputs.train,
        manifests=dict(zip(plan.scaling, inputs.sets, strict=True)),
        out=snakemake.output.table,
    )
