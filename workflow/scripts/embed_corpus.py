"""Embed the corpus with CLIP, in clip-retrieval's layout."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.retrieval.embed import embed_folder, embed_miniature

    inputs, out = snakemake.input, snakemake.output[0]
    if job.study.miniature is None:
        embed_folder(job, job.study.corpus.root, inputs.clip, out)
    else:
        embed_miniature(job, inputs.parts, inputs.clip, out)
