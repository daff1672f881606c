"""Train one classifier per candidate of a fine-tuned method; the test split is not among what it is given."""

from pathlib import Path

from augbench.job import running

with running(snakemake) as job:
    from augbench.classify import train_block

    source = snakemake.input
    folders = list(dict.fromkeys(Path(path).parent for path in snakemake.output))
    train_block(job.study, job.store, snakemake.params.method, source.train, source.val, None, source.classes, source.manifests, folders)
