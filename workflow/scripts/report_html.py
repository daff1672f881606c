"""Write the report as one page."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.report.html.page import write_report

    write_report(job.plan, snakemake.output[0])
