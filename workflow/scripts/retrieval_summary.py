"""Summarise retrieval: manifests, the outcome of every candidate, the classes that are left out.

What was taken down is deleted from the store.
"""

from collections import Counter

from augbench.runtime.job import running

with running(snakemake, unfolded=True) as job:
    from augbench.data.classes import read_class_table
    from augbench.data.splits import read_split
    from augbench.retrieval.lists import addresses, purge, read_takedown
    from augbench.retrieval.shortfall import summarise

    inputs, output, plan = snakemake.input, snakemake.output, job.plan
    neighbours = {method: inputs[f"neighbours_{method}"] for method in plan.study.retrieved}
    summarise(
        job.study,
        class_ids=[info.class_id for info in read_class_table(inputs.classes)],
        training_images=Counter(read_split(inputs.train).class_ids),
        ledgers={method: list(inputs[f"ledgers_{method}"]) for method in plan.study.retrieved},
        neighbours=neighbours,
        manifests={method: output[f"manifest_{method}"] for method in plan.study.retrieved},
        yield_path=output.fates,
        excluded_path=output.excluded,
    )
    taken_down = read_takedown(job.study.retrieval)
    purge(job.store, taken_down | addresses(neighbours.values(), taken_down))
