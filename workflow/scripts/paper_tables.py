"""Write the paper's smaller tables with our results beside the paper's."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.report.tables.paper_tables import write_paper_tables

    write_paper_tables(job.plan, snakemake.input.table, dict(snakemake.output.items()))
