"""Train and score a block of a method's classifiers."""

from pathlib import Path

from augbench.runtime.job import running

with running(snakemake, unfolded=True) as job:
    from augbench.classifier.stage import train_block
    from augbench.retrieval.shortfall import read_excluded

    inputs = snakemake.input
    folders = list(dict.fromkeys(Path(path).parent for path in snakemake.output))
    manifests = {Path(path).stem: path for path in inputs.get("added", [])}
    train_block(
        job.study,
        store=job.store,
        method=snakemake.wildcards.method,
        train_path=inputs.train,
        validation_path=inputs.val,
        test_path=inputs.test,
        classes_path=inputs.classes,
        added_paths=[manifests[folder.name] for folder in folders] if manifests else [],
        folders=folders,
        first_weights=next(iter(inputs.first_weights), None),
        excluded=read_excluded(inputs.excluded),
    )
