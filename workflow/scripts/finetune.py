"""Fine-tune for a block of classes at one learning rate."""

from augbench.runtime.job import running

with running(snakemake, unfolded=True) as job:
    from augbench.personalise.stage import finetune_classes
    from augbench.retrieval.shortfall import read_excluded

    method, inputs, factor = snakemake.params.method, snakemake.input, snakemake.params.factor
    plan = job.plan_of(inputs.classes)
    finetune_classes(
        job,
        method=method,
        factor=factor,
        train_path=inputs.train,
        val_path=inputs.val,
        classes_path=inputs.classes,
        diffusion_path=inputs.diffusion,
        clusters_path=next(iter(inputs.clusters), None),
        vectors=plan.vectors(method, factor, plan.folders_among(snakemake.output.vectors)),
        shared=plan.trained_unets(method, factor) | plan.trained_adapters(method, factor),
        excluded=read_excluded(inputs.excluded),
    )
