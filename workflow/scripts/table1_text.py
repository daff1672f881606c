"""Write Table 1 as text, with the study's answer above it."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.report.tables.table1_text import write_table1_text

    inputs = snakemake.input
    write_table1_text(job.study.study, inputs.table, inputs.contrasts, dict(snakemake.output.items()))
