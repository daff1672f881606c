"""Measure the pre-trained models."""

from pathlib import Path

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.miniature.pretrain.stage import measure_models

    inputs, output = snakemake.input, snakemake.output
    corpus, downloads = Path(inputs.parts[0]).parent, Path(inputs.downloads[0]).parent
    measure_models(
        job,
        corpus=corpus,
        downloads=downloads,
        models=inputs.models,
        references=inputs.references,
        quality=output.quality,
        picture=output.picture,
    )
