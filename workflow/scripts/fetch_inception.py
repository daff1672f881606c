"""Download torchvision's published Inception-v3 weights."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from pathlib import Path

    from augbench.artifacts.claims import fetching
    from augbench.models.fetch import INCEPTION_SHA256, INCEPTION_URL, fetch_weights

    with fetching(Path(snakemake.output[0]).parent):
        fetch_weights(
            snakemake.output[0], [*job.study.finetune.inception_mirrors, INCEPTION_URL], INCEPTION_SHA256
        )
