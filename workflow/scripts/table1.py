"""Write Table 1 in all its formats."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.report.tables.table1 import write_table1
    from augbench.retrieval.shortfall import read_excluded

    inputs = snakemake.input
    write_table1(
        job.study,
        inputs.results,
        inputs.pools,
        dict(snakemake.output.items()),
        read_excluded(inputs.excluded),
        inputs.draws,
        inputs.lrs,
        inputs.choices,
    )
