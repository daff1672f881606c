"""Train one classifier per candidate of a fine-tuned method; the test split is not among what it is given."""

from pathlib import Path

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.classifier.stage import train_block
    from augbench.retrieval.shortfall import read_excluded

    source = snakemake.input
    folders = list(dict.fromkeys(Path(path).parent for path in snakemake.output))
    excluded = read_excluded(source.excluded)
    train_block(
        job.study,
        job.store,
        snakemake.params.method,
        source.train,
        source.val,
        None,
        source.classes,
        source.manifests,
        folders,
        excluded,
    )
