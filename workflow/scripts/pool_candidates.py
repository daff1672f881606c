"""Index part 0 of every candidate of a fine-tuned method, and draw the training set of its classifier."""

from augbench.runtime.job import running

with running(snakemake, unfolded=True) as job:
    from augbench.artifacts.pool import build_index
    from augbench.resample import Drawing, resample
    from augbench.retrieval.shortfall import read_excluded

    method, plan = snakemake.params.method, job.plan_of(snakemake.input.classes)
    drawing, excluded = Drawing.of(job.study, method), read_excluded(snakemake.input.excluded)
    candidates = plan.candidate_shards(method, plan.folders)
    for shards, index, manifest in zip(
        candidates.values(), snakemake.output.indexes, snakemake.output.manifests, strict=True
    ):
        build_index(shards, plan.root, index)
        resample(
            index,
            train_path=snakemake.input.train,
            outs=[manifest],
            study_seed=job.study.seed_of(method),
            drawing=drawing,
            excluded=excluded,
        )
