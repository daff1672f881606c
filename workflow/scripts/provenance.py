"""Write the provenance of the results."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.runtime.provenance import write_provenance

    inputs = snakemake.input
    write_provenance(job.study, job.store, inputs.config, inputs.models, snakemake.output[0])
