"""Cluster each class's training images."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.personalise.cluster import cluster_images

    source = snakemake.input
    cluster_images(
        job,
        ks=list(job.plan.cluster_files),
        train_path=source.train,
        val_path=source.val,
        classes_path=source.classes,
        clip_path=source.clip,
        outs=snakemake.output,
    )
