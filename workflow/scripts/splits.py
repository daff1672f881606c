"""Draw the split manifests."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.data.classes import read_class_table
    from augbench.data.sources import open_source
    from augbench.data.splits import make_splits, stamped, write_split
    from augbench.data.walk import log_left_out

    study, wanted = job.study, dict(snakemake.output.items())
    source = open_source(study.dataset, study.seed, study.corpus)
    images = source.scan()
    log_left_out("data set", source.left_out)
    classes = read_class_table(snakemake.input.classes)
    splits = make_splits(classes, images, study.dataset, study.seed, set(wanted))
    for name, path in wanted.items():
        write_split(stamped(splits[name], source), path)
