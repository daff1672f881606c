"""Write the provenance of the results."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from pathlib import Path

    from augbench.runtime.provenance import write_provenance

    source = snakemake.input
    write_provenance(job.study, Path(job.plan.root), source.config, source.models, snakemake.output[0])
