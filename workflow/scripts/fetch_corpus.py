"""Download one file of a corpus of published embeddings."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from pathlib import Path

    from augbench.artifacts.claims import fetching
    from augbench.retrieval.fetch import fetch_file

    target = Path(snakemake.output[0])
    with fetching(target.parent):
        fetch_file(snakemake.params.address, target)
