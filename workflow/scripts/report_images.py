"""Choose the images of the report and write their thumbnails."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.report.html.images import collect

    source = snakemake.input
    collect(
        job,
        per_class=source.per_class,
        table=source.table,
        manifests=dict(zip(job.plan.study.pooled, source.get("sets", []), strict=True)),
        train_path=source.train,
        classes_path=source.classes,
        out=snakemake.output[0],
    )
