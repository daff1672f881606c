"""Pre-train the miniature's U-Net."""

from pathlib import Path

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.miniature.pretrain.stage import pretrain_unet

    corpus = Path(snakemake.input.parts[0]).parent
    pretrain_unet(job, corpus, snakemake.input.clip, snakemake.input.autoencoder, snakemake.output[0])
