"""Write the table of each method's cost."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.report.tables.cost import write_cost

    write_cost(job.plan, snakemake.input.table, dict(snakemake.output.items()))
