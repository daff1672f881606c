"""Assemble the pre-trained models into folders that from_pretrained loads."""

from pathlib import Path

from augbench.runtime.job import running

with running(snakemake):
    from augbench.miniature.pretrain.stage import assemble_models

    source = snakemake.input
    corpus = Path(source.parts[0]).parent
    assemble_models(corpus, source.clip, source.autoencoder, source.unet, snakemake.output[0])
