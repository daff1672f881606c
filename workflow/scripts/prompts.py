"""Write the prompts of a method."""

from collections import Counter

from augbench.job import running

with running(snakemake) as job:
    from augbench.classes import read_class_table
    from augbench.data.splits import read_split
    from augbench.prompts import write_prompts

    classes = read_class_table(snakemake.input.classes)
    counts = Counter(read_split(snakemake.input.train).class_ids)
    write_prompts(job.study, snakemake.wildcards.method, classes, counts, snakemake.output[0])
