"""Assemble the pre-trained models into folders that from_pretrained loads."""

from pathlib import Path

from augbench.runtime.job import running

with running(snakemake):
    from augbench.miniature.pretrain.stage import assemble_models

    inputs = snakemake.input
    corpus = Path(inputs.parts[0]).parent
    assemble_models(corpus, inputs.clip, inputs.autoencoder, inputs.unet, snakemake.output[0])
