"""Choose the row with the best validation accuracy."""

from augbench.runtime.job import running

with running(snakemake, unfolded=True) as job:
    from augbench.pools.choice import choose

    method, plan = snakemake.params.method, job.plan
    among = job.study.choosing[method].among
    histories = {row: [plan.run_files(row, run)[1] for run in plan.runs] for row in among}
    choose(method, histories, snakemake.output[0])
