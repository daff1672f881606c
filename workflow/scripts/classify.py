"""Train and score a block of a method's classifiers."""

from pathlib import Path

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.classifier.stage import train_block
    from augbench.retrieval.shortfall import read_excluded

    source = snakemake.input
    folders = list(dict.fromkeys(Path(path).parent for path in snakemake.output))
    manifests = {Path(path).stem: path for path in source.get("added", [])}
    train_block(
        job.study,
        job.store,
        snakemake.wildcards.method,
        source.train,
        source.val,
        source.test,
        source.classes,
        [manifests[folder.name] for folder in folders] if manifests else [],
        folders,
        read_excluded(source.excluded),
    )
