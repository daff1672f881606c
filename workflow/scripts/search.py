"""Search the corpus for the neighbours of a retrieval method's queries, or merge what blocks of it have
given.
"""

from augbench.runtime.job import running

with running(snakemake, unfolded=True) as job:
    from augbench.data.splits import read_split
    from augbench.retrieval.queries import Questions
    from augbench.retrieval.search import questions_of, replay, search

    inputs, name = snakemake.input, snakemake.wildcards.method
    embedded = next(iter(inputs.get("embedded", [])), None)
    corpus, out = next(iter(inputs.get("corpus", [])), None), snakemake.output[0]
    if inputs.manifest:
        replay(job.study.retrieved[name], inputs.prompts, inputs.clip, out)
    elif inputs.get("searched"):
        questions = Questions.read(inputs.queries[0])
        search(job, name, inputs.clip, corpus, questions, out, device="cpu")
    else:
        questions = questions_of(job, name, inputs.prompts, read_split(inputs.train), inputs.clip, embedded)
        search(job, name, inputs.clip, corpus, questions, out)
