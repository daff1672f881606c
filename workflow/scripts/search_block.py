"""Search one block of the corpus's files for the neighbours of a retrieval method's queries."""

from augbench.runtime.job import running

with running(snakemake, unfolded=True) as job:
    from augbench.retrieval.queries import Questions
    from augbench.retrieval.search import search_block

    inputs, wildcards = snakemake.input, snakemake.wildcards
    search_block(
        job,
        name=wildcards.method,
        clip_path=inputs.clip,
        corpus_folder=next(iter(inputs.corpus), None),
        questions=Questions.read(inputs.queries),
        block=int(wildcards.block),
        out=snakemake.output[0],
    )
