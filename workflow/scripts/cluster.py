"""Cluster the images that each class learns from: the training images, or those of one row."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.personalise.cluster import cluster_images

    inputs = snakemake.input
    cluster_images(
        job,
        ks=snakemake.params.get("counts", job.plan.cluster_counts),
        train_path=inputs.train,
        val_path=inputs.val,
        classes_path=inputs.classes,
        clip_path=inputs.clip,
        outs=snakemake.output,
    )
