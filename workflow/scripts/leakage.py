"""Find near-duplicates of validation and test images in the pools of all methods."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.leakage.stage import embed_splits, guard
    from augbench.retrieval.shortfall import read_excluded

    inputs, output, methods = snakemake.input, snakemake.output, job.plan.guarded
    splits = {name: inputs[name] for name in ("val", "test")}
    embedded = {name: output[name] for name in ("val", "test")}
    embed_splits(job, splits, inputs.clip, embedded)
    indexes, leaks, counts = (
        dict(zip(methods, paths, strict=True)) for paths in (inputs.pools, output.leaks, output.counts)
    )
    guard(
        job,
        indexes=indexes,
        splits=splits,
        embeddings=embedded,
        clip_path=inputs.clip,
        limits=job.study.leakage,
        leaks_outs=leaks,
        summary_outs=counts,
        excluded=read_excluded(inputs.excluded),
    )
