"""Find near-duplicates of a study's real images in the pools of all methods; counts are for val and test."""

from pathlib import Path

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.leakage.stage import embed_splits, guard
    from augbench.retrieval.shortfall import read_excluded

    inputs, output = snakemake.input, snakemake.output
    methods = [Path(path).stem for path in output.leaks]
    splits = {name: inputs[name] for name in ("train", "val", "test") if inputs.get(name)}
    embedded = {name: inputs.get(f"embedded_{name}", output.get(name)) for name in splits}
    if not inputs.get("embedded_val"):
        embed_splits(job, splits, inputs.clip, embedded)
    indexes, leaks = (dict(zip(methods, paths, strict=True)) for paths in (inputs.pools, output.leaks))
    guard(
        job,
        indexes=indexes,
        splits=splits,
        embeddings=embedded,
        clip_path=inputs.clip,
        limits=job.study.leakage,
        leaks_outs=leaks,
        summary_outs=dict(zip(methods, output.get("counts", ()), strict=False)),
        excluded=read_excluded(inputs.excluded),
    )
