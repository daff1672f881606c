"""Write the table of further tests."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.report.tables.further_tests import write_further_tests

    write_further_tests(job.plan, snakemake.input.table, snakemake.input.runs, dict(snakemake.output.items()))
