"""Build clip-retrieval's index of the corpus."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.retrieval.embed import build_index

    build_index(snakemake.input[0], snakemake.output[0], job.threads)
