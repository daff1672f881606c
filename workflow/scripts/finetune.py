"""Fine-tune for a block of classes at one learning rate."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.personalise.stage import finetune_classes

    method, source, factor = snakemake.params.method, snakemake.input, snakemake.params.factor
    plan = job.plan_of(source.classes)
    finetune_classes(
        job,
        method,
        factor,
        source.train,
        source.val,
        source.classes,
        source.diffusion,
        source.get("clusters"),
        plan.vectors(method, factor, plan.folders_among(snakemake.output.vectors)),
        plan.trained_unets(method, factor),
    )
