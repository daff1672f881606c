"""Write the accuracy of every classifier per class."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.report.tables.per_class import write_per_class

    plan = job.plan
    write_per_class(
        snakemake.input.classes,
        {method: plan.predictions(method) for method in plan.methods},
        snakemake.output[0],
    )
