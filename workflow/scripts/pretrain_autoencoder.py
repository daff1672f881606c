"""Pre-train the miniature's VAE."""

from pathlib import Path

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.miniature.pretrain.stage import pretrain_autoencoder

    pretrain_autoencoder(job, Path(snakemake.input[0]).parent, snakemake.output[0])
