"""Train the reference classifiers that judge images."""

from pathlib import Path

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.miniature.pretrain.stage import pretrain_reference

    pretrain_reference(job, Path(snakemake.input[0]).parent, snakemake.output[0])
