"""List the images of a further test set."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.data.classes import read_class_table
    from augbench.further.folders import write_manifest

    classes = read_class_table(snakemake.input.classes)
    write_manifest(job.study, snakemake.params.test, classes, snakemake.output[0])
