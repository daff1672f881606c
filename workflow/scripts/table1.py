"""Write Table 1 in all its formats."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.report.tables.table1 import write_table1
    from augbench.retrieval.shortfall import read_excluded

    source = snakemake.input
    write_table1(
        job.study,
        source.results,
        source.pools,
        dict(snakemake.output.items()),
        read_excluded(source.excluded),
    )
