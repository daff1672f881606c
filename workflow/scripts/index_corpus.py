"""Build clip-retrieval's index of the corpus."""

from augbench.job import running

with running(snakemake) as job:
    from augbench.corpus.embed import build_index
    from augbench.files import read_json

    clip = read_json(snakemake.input.clip)["folder"]
    build_index(snakemake.input.embeddings, snakemake.output[0], clip, job.threads)
