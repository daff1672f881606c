"""Summarise retrieval: manifests, the outcome of every candidate, the classes that are left out. Free what was taken down."""

from collections import Counter

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.data.classes import read_class_table
    from augbench.data.splits import read_split
    from augbench.retrieval.lists import purge, read_takedown
    from augbench.retrieval.shortfall import summarise

    inputs, output, plan = snakemake.input, snakemake.output, job.plan
    summarise(
        job.study,
        class_ids=[info.class_id for info in read_class_table(inputs.classes)],
        training_images=Counter(read_split(inputs.train).class_ids),
        ledgers={method: list(inputs[f"ledgers_{method}"]) for method in plan.study.retrieved},
        neighbours={method: inputs[f"neighbours_{method}"] for method in plan.study.retrieved},
        manifests={method: output[f"manifest_{method}"] for method in plan.study.retrieved},
        yield_path=output.fates,
        excluded_path=output.excluded,
    )
    purge(job.store, read_takedown(job.study.retrieval))
