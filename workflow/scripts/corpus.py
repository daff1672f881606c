"""Write the miniature web corpus."""

from pathlib import Path

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.data.classes import load_class_table
    from augbench.miniature.corpus.stage import build

    downloads = Path(snakemake.input[0]).parent
    classes = load_class_table("fashion_mnist")
    build(downloads, classes, job.study.corpus, job.study.seed, Path(snakemake.output[0]).parent)
