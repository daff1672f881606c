"""Draw the split manifests."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.data.classes import read_class_table
    from augbench.data.sources import open_source
    from augbench.data.splits import make_splits, write_split

    study, wanted = job.study, dict(snakemake.output.items())
    images = open_source(study.dataset, study.seed, study.corpus).scan()
    classes = read_class_table(snakemake.input.classes)
    splits = make_splits(classes, images, study.dataset, study.seed, set(wanted))
    for name, path in wanted.items():
        write_split(splits[name], path)
