"""Embed the corpus with CLIP, in clip-retrieval's layout."""

from augbench.job import running

with running(snakemake) as job:
    from augbench.corpus.embed import embed_corpus

    output = snakemake.output
    embed_corpus(job, snakemake.input.parts, snakemake.input.clip, output.embeddings, output.metadata)
