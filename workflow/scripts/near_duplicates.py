"""Write the table of near-duplicates, and a picture of examples per method."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.pools.choice import read_choice
    from augbench.report.tables.leakage import draw_pairs, write_leakage_table

    inputs, output, plan = snakemake.input, snakemake.output, job.plan.unfolded
    leaks, repeats, counts, pools = (
        dict(zip(plan.guarded_once, paths, strict=True))
        for paths in (inputs.leaks, inputs.repeats, inputs.counts, inputs.pools)
    )
    predictions = {method: plan.drawn_predictions(method) for method in plan.methods}
    tables = {kind: output[kind] for kind in ("csv", "md", "txt")}
    chosen = dict(zip(plan.study.choosing, map(read_choice, inputs.choices), strict=True))
    inherited = dict(zip(plan.inheriting, inputs.inherited, strict=True))
    write_leakage_table(job.study, leaks, repeats, counts, predictions, tables, inherited, chosen)
    for method in job.plan.guarded:
        names = [name for name in job.plan.in_all_draws(method) if name in leaks]
        draw_pairs(
            job,
            [leaks[name] for name in names],
            [pools[name] for name in names],
            {"val": inputs.val, "test": inputs.test},
            output[f"pairs_{method}"],
        )
