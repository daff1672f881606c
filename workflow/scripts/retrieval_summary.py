"""Write what retrieval gave: manifests, the fates of all candidates, the classes that are left out."""

from collections import Counter

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.data.classes import read_class_table
    from augbench.data.splits import read_split
    from augbench.retrieval.shortfall import summarise

    source, output, plan = snakemake.input, snakemake.output, job.plan
    summarise(
        job.study,
        [info.class_id for info in read_class_table(source.classes)],
        Counter(read_split(source.train).class_ids),
        {method: list(source[f"ledgers_{method}"]) for method in plan.study.retrieved},
        {method: source[f"neighbours_{method}"] for method in plan.study.retrieved},
        {method: output[f"manifest_{method}"] for method in plan.study.retrieved},
        output.fates,
        output.excluded,
    )
