"""Find near-duplicates of a further test set's images in the pools of all methods."""

from pathlib import Path

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.leakage.stage import embed_splits, guard
    from augbench.retrieval.shortfall import read_excluded

    inputs, output, test = snakemake.input, snakemake.output, snakemake.params.test
    methods = [Path(path).stem for path in output.leaks]
    splits, embedded = {test: inputs.split}, {test: output.images}
    embed_splits(job, splits, inputs.clip, embedded)
    guard(
        job,
        indexes=dict(zip(methods, inputs.pools, strict=True)),
        splits=splits,
        embeddings=embedded,
        clip_path=inputs.clip,
        limits=job.study.leakage,
        leaks_outs=dict(zip(methods, output.leaks, strict=True)),
        summary_outs={},
        excluded=read_excluded(inputs.excluded),
    )
