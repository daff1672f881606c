"""Download the published weights of LAION's aesthetics predictor."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from pathlib import Path

    from augbench.artifacts.claims import fetching
    from augbench.models.fetch import fetch_weights
    from augbench.retrieval.aesthetics import WEIGHTS_SHA256, WEIGHTS_URL

    retrieval = job.study.retrieval
    with fetching(Path(snakemake.output[0]).parent):
        fetch_weights(
            snakemake.output[0],
            [*retrieval.aesthetics_mirrors, WEIGHTS_URL],
            retrieval.aesthetics_sha256 or WEIGHTS_SHA256,
        )
