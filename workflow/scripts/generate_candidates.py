"""Generate part 0 of every candidate of a fine-tuned method, for a block of classes."""

from augbench.runtime.job import running

with running(snakemake, unfolded=True) as job:
    from augbench.generate.stage import LearnedFiles, generate

    method, inputs = snakemake.params.method, snakemake.input
    plan = job.plan_of(inputs.classes)
    targets = plan.candidate_shards(method, plan.folders_among(snakemake.output))
    learned = {name: LearnedFiles.of(plan, method, name) for name in targets}
    generate(
        job,
        method=method,
        prompts_path=inputs.prompts,
        model_path=inputs.diffusion,
        train_path=inputs.train,
        targets=targets,
        learned=learned,
    )
