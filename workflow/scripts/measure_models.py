"""Measure the pre-trained models."""

from pathlib import Path

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.miniature.pretrain.stage import measure_models

    source, output = snakemake.input, snakemake.output
    corpus, downloads = Path(source.parts[0]).parent, Path(source.downloads[0]).parent
    measure_models(job, corpus, downloads, source.models, source.references, output.quality, output.picture)
