"""Measure the pre-trained models."""

from pathlib import Path

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.miniature.pretrain.stage import measure_models

    source, output = snakemake.input, snakemake.output
    corpus, downloads = Path(source.parts[0]).parent, Path(source.downloads[0]).parent
    measure_models(
        job,
        corpus=corpus,
        downloads=downloads,
        models=source.models,
        references=source.references,
        quality=output.quality,
        picture=output.picture,
    )
