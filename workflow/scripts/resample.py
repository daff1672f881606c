"""Draw the added images of each training set from a method's pool, and index the pool first if necessary."""

from augbench.runtime.job import running

with running(snakemake, unfolded=True) as job:
    from augbench.artifacts.pool import build_index
    from augbench.artifacts.shards import shards_among
    from augbench.pools.keep import filter_of
    from augbench.resample import Drawing, resample
    from augbench.retrieval.shortfall import read_excluded

    inputs, output, method = snakemake.input, snakemake.output, snakemake.params.method
    excluded, leaks = read_excluded(inputs.excluded), next(iter(inputs.get("leaks", [])), None)
    index = inputs.get("index", output.get("index"))
    if index == output.get("index"):
        keep = filter_of(job.study.filters.get(method), inputs.scores, excluded, index)
        build_index(shards_among(inputs, job.folder), job.plan.root, index, keep)
    resample(
        index,
        train_path=inputs.train,
        outs=output.manifests,
        study_seed=job.study.seed_of(method),
        drawing=Drawing.of(job.study, method),
        excluded=excluded,
        leaks_path=leaks,
    )
