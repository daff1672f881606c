"""Index part 0 of every candidate of a fine-tuned method, and draw the training set that they are compared on."""

from augbench.job import running

with running(snakemake) as job:
    from augbench.pool import build_index
    from augbench.resample import Drawing, resample
    from augbench.retrieval.shortfall import read_excluded

    drawing, excluded = Drawing.of(job.study, snakemake.params.method), read_excluded(snakemake.input.excluded)
    by_candidate = job.plan.by_candidate(snakemake.input.shards)
    for shards, index, manifest in zip(by_candidate.values(), snakemake.output.indexes, snakemake.output.manifests, strict=True):
        build_index(shards, job.plan.root, index)
        resample(index, snakemake.input.train, [manifest], job.study.seed, drawing, excluded)
