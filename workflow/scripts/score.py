"""Score the images of a pool by CLIP or by a classifier that was trained on real images only."""

from augbench.runtime.job import running

with running(snakemake, unfolded=True) as job:
    from augbench.artifacts.shards import shards_among
    from augbench.pools.scores import write_scores
    from augbench.retrieval.shortfall import read_excluded

    inputs = snakemake.input
    write_scores(
        job,
        shards=shards_among(inputs, job.folder),
        classes_path=inputs.classes,
        excluded=read_excluded(inputs.excluded),
        out=snakemake.output[0],
        clip_path=next(iter(inputs.clip), None),
        classifier=next(((snakemake.params.scorer, path) for path in inputs.weights), None),
        first_weights=next(iter(inputs.first_weights), None),
    )
