"""Find the clusters of each class's images."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.personalise.cluster import cluster_images

    source = snakemake.input
    cluster_images(
        job,
        list(job.plan.cluster_files),
        source.train,
        source.val,
        source.classes,
        source.clip,
        snakemake.output,
    )
