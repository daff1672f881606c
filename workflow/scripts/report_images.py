"""Choose the images of the report and write their thumbnails."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.report.html.images import collect

    inputs = snakemake.input
    collect(
        job,
        per_class=inputs.per_class,
        table=inputs.table,
        manifests=dict(zip(job.plan.study.examined, inputs.get("sets", []), strict=True)),
        train_path=inputs.train,
        classes_path=inputs.classes,
        out=snakemake.output[0],
    )
