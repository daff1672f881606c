"""Find near-duplicates of the training images of further draws in the pools of these draws."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.leakage.stage import embed_splits, guard
    from augbench.retrieval.shortfall import read_excluded

    inputs, output, plan = snakemake.input, snakemake.output, job.plan
    names = [name for names in plan.further_guarded.values() for name in names]
    indexes, leaks = (dict(zip(names, paths, strict=True)) for paths in (inputs.pools, output.leaks))
    splits = zip(plan.further_guarded.values(), inputs.train, output.train, strict=True)
    for members, train, embedded in splits:
        embed_splits(job, {"train": train}, inputs.clip, {"train": embedded})
        guard(
            job,
            indexes={name: indexes[name] for name in members},
            splits={"train": train},
            embeddings={"train": embedded},
            clip_path=inputs.clip,
            limits=job.study.leakage,
            leaks_outs={name: leaks[name] for name in members},
            summary_outs={},
            excluded=read_excluded(inputs.excluded),
        )
