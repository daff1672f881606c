"""Write the class table."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.data.classes import write_class_table
    from augbench.data.sources import open_source

    source = open_source(job.study.dataset, job.study.seed, job.study.corpus)
    write_class_table(source.classes(), snakemake.output[0])
