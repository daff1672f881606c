"""Generate a block of image shards of a method that samples the diffusion model."""

from augbench.runtime.job import running

with running(snakemake, unfolded=True) as job:
    from augbench.artifacts.shards import write_shard_list
    from augbench.files import read_json
    from augbench.generate.stage import LearnedFiles, generate
    from augbench.plan.pools import SELECTED

    method, inputs = snakemake.params.method, snakemake.input
    learned = None
    if selected := inputs.get("selected"):
        winner = read_json(selected)["selected"]
        plan = job.plan
        learned = {SELECTED: LearnedFiles.of(plan, method, winner)}
    targets = {path: (path,) for path in snakemake.output}
    if classes := inputs.get("classes"):
        made = job.plan_of(classes).generated_targets(method)
        targets = {path: made[path] for path in snakemake.output if path in made}
    generate(
        job,
        method=method,
        prompts_path=inputs.prompts,
        model_path=inputs.diffusion,
        train_path=inputs.train,
        started_path=next(iter(inputs.started), None),
        targets={SELECTED: [shard for shards in targets.values() for shard in shards]},
        learned=learned,
    )
    for path, shards in targets.items():
        if shards != (path,):
            write_shard_list(path, shards, job.folder)
