"""Choose the images of the report and keep their thumbnails."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.report.html.images import collect

    source = snakemake.input
    sets = dict(zip(job.plan.study.pooled, source.get("sets", []), strict=True))
    collect(job, source.per_class, source.table, sets, source.train, source.classes, snakemake.output[0])
