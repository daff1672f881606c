"""Select a candidate of a fine-tuned method by validation accuracy."""

from augbench.runtime.job import running

with running(snakemake, unfolded=True) as job:
    from augbench.personalise.select import drop_from_store, select

    inputs, method = snakemake.input, snakemake.params.method
    plan = job.plan_of(inputs.classes)
    shards = plan.candidate_shards(method, plan.folders)
    winner = select(method, dict(zip(shards, inputs.results, strict=True)), snakemake.output[0])
    if not job.study.execution.keep_candidates:
        drop_from_store(job.store, shards.pop(winner), [path for paths in shards.values() for path in paths])
