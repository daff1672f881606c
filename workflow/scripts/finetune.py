"""Fine-tune for a block of classes at one learning rate."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.personalise.stage import finetune_classes

    method, source, factor = snakemake.params.method, snakemake.input, snakemake.params.factor
    plan = job.plan_of(source.classes)
    finetune_classes(
        job,
        method=method,
        factor=factor,
        train_path=source.train,
        val_path=source.val,
        classes_path=source.classes,
        diffusion_path=source.diffusion,
        clusters_path=source.get("clusters"),
        vectors=plan.vectors(method, factor, plan.folders_among(snakemake.output.vectors)),
        unets=plan.trained_unets(method, factor),
    )
