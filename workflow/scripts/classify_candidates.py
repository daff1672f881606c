"""Train one classifier per candidate of a fine-tuned method, without access to the test split."""

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
        store=job.store,
        method=snakemake.params.method,
        train_path=source.train,
        validation_path=source.val,
        test_path=None,
        classes_path=source.classes,
        added_paths=source.manifests,
        folders=folders,
        excluded=excluded,
    )
