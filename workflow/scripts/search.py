"""Search the corpus for the neighbours of a retrieval method's queries."""

from augbench.runtime.job import running

with running(snakemake, unfolded=True) as job:
    from augbench.data.splits import read_split
    from augbench.retrieval.search import search

    inputs = snakemake.input
    search(
        job,
        name=snakemake.wildcards.method,
        prompts_path=inputs.prompts,
        train=read_split(inputs.train),
        clip_path=inputs.clip,
        corpus_folder=next(iter(inputs.get("corpus", [])), None),
        out=snakemake.output[0],
        embedded_train=next(iter(inputs.get("embedded", [])), None),
    )
