"""Choose a fine-tuned method's learning rate by validation loss, and collect its results of all classes."""

from augbench.runtime.job import running

with running(snakemake, unfolded=True) as job:
    from augbench.personalise.stage import choose_lr

    method, plan = snakemake.params.method, job.plan_of(snakemake.input.classes)
    row = plan.study.personalised[method]
    vectors = {factor: plan.vectors(method, factor, plan.folders) for factor in row.lr_grid}
    shared = {
        factor: plan.trained_unets(method, factor) | plan.trained_adapters(method, factor)
        for factor in row.lr_grid
    }
    choose_lr(
        row,
        vectors=vectors,
        shared_folders=shared,
        lr_path=snakemake.output.lr,
        history_path=snakemake.output.history,
        embeddings=plan.embeddings(method),
        unets=plan.unets(method),
        adapter_folders=plan.adapters(method),
    )
