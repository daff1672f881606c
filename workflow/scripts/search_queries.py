"""Write the queries of a retrieval method, for the jobs that share its search."""

from augbench.runtime.job import running

with running(snakemake, unfolded=True) as job:
    from augbench.data.splits import read_split
    from augbench.retrieval.search import questions_of

    inputs, name = snakemake.input, snakemake.wildcards.method
    embedded = next(iter(inputs.embedded), None)
    questions = questions_of(job, name, inputs.prompts, read_split(inputs.train), inputs.clip, embedded)
    questions.write(snakemake.output[0])
