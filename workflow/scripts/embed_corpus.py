"""Embed the corpus with CLIP, in clip-retrieval's layout."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.config.corpus import ImageCorpus, MiniatureCorpus
    from augbench.retrieval.embed import embed_folder, embed_miniature, embed_parquet

    corpus, inputs, out = job.study.corpus, snakemake.input, snakemake.output[0]
    if isinstance(corpus, MiniatureCorpus):
        embed_miniature(job, inputs.parts, inputs.clip, out)
    elif isinstance(corpus, ImageCorpus):
        embed_folder(job, corpus.root, inputs.clip, out)
    else:
        embed_parquet(job, corpus, inputs.clip, out)
