"""Write the statistics of Table 1, the tests of the contrasts, and the components of the spread."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.report.inference.images import average_hits, read_hits
    from augbench.report.render import read_csv
    from augbench.report.tables.components import write_components
    from augbench.report.tables.contrasts import write_contrasts
    from augbench.report.tables.statistics import write_statistics
    from augbench.report.tables.table1 import RunRow, average_draws, read_rows
    from augbench.seeds import derive_seed

    plan, study = job.plan, job.study
    draws, per_draw = study.dataset.draws, study.augmentation.resamples
    table, runs = read_rows(snakemake.input.table), read_csv(snakemake.input.runs, RunRow)
    write_components(study.study, table, runs, plan.components, per_draw if draws > 1 else None)
    hits = read_hits({method: plan.predictions(method) for method in plan.methods})
    if draws > 1:
        runs, hits = average_draws(runs, per_draw), average_hits(hits, per_draw)
    seed = derive_seed(study.seed, "bootstrap")
    write_statistics(study.study, table, runs, hits, seed, study.report, plan.statistics, draws)
    write_contrasts(study.study, table, runs, hits, seed, study.report, plan.contrasts)
