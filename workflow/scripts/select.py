"""Select a candidate of a fine-tuned method by validation accuracy."""

from pathlib import Path

from augbench.job import running

with running(snakemake) as job:
    from augbench.select import drop_from_store, select

    source, method = snakemake.input, snakemake.params.method
    winner = select(method, {Path(path).parts[-3]: path for path in source.results}, snakemake.output[0])
    if not job.study.execution.keep_candidates:
        of_winner = [path for path in source.shards if Path(path).parts[-3] == winner]
        drop_from_store(job.store, of_winner, [path for path in source.shards if path not in set(of_winner)])
