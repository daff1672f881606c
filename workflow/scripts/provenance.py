"""Write the provenance of the results."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from pathlib import Path

    from augbench.runtime.provenance import write_provenance

    inputs = snakemake.input
    write_provenance(job.study, Path(job.plan.root), inputs.config, inputs.models, snakemake.output[0])
