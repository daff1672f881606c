"""Fine-tune for a block of classes at one learning rate."""

from augbench.job import running

with running(snakemake) as job:
    from augbench.personalise.stage import finetune_classes

    method, source, factor = snakemake.params.method, snakemake.input, snakemake.wildcards.factor
    finetune_classes(
        job,
        method,
        float(factor),
        source.train,
        source.val,
        source.classes,
        source.diffusion,
        source.get("clusters"),
        snakemake.output.vectors,
        job.plan.trained_unets(method, factor),
    )
