"""Train one classifier per candidate of a fine-tuned method, without access to the test split."""

from pathlib import Path

from augbench.runtime.job import running

with running(snakemake, unfolded=True) as job:
    from augbench.classifier.stage import train_block
    from augbench.retrieval.shortfall import read_excluded

    inputs = snakemake.input
    folders = list(dict.fromkeys(Path(path).parent for path in snakemake.output))
    excluded = read_excluded(inputs.excluded)
    train_block(
        job.study,
        store=job.store,
        method=snakemake.params.method,
        train_path=inputs.train,
        validation_path=inputs.val,
        test_path=None,
        classes_path=inputs.classes,
        added_paths=inputs.manifests,
        folders=folders,
        first_weights=next(iter(inputs.first_weights), None),
        excluded=excluded,
    )
