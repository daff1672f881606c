"""Index a method's pool of added images, and draw those of each training set."""

from augbench.job import running

with running(snakemake) as job:
    from augbench.pool import build_index
    from augbench.resample import resample

    source, output = snakemake.input, snakemake.output
    build_index(source.shards, job.plan.root, output.index)
    resample(output.index, source.train, output.manifests, job.study.seed)
