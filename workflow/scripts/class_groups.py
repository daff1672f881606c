"""Write the sizes of the classes, and macro, head, middle and tail accuracy."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.data.classes import read_class_table
    from augbench.report.inference.images import average_hits, read_hits
    from augbench.report.render import read_csv
    from augbench.report.tables import class_groups, class_sizes
    from augbench.report.tables.table1 import RunRow, average_draws, read_rows
    from augbench.retrieval.shortfall import read_excluded
    from augbench.seeds import derive_seed

    plan, study, inputs = job.plan, job.study, snakemake.input
    draws, per_draw = study.dataset.draws, study.augmentation.resamples
    excluded = read_excluded(inputs.excluded)
    sizes = class_sizes.build_rows(
        study,
        splits=plan.splits,
        real={method: plan.split_of(method) for method in plan.methods},
        sets=class_sizes.sets_of(plan),
        excluded=excluded,
    )
    notes = class_sizes.tail_notes(study, plan.splits["train"], excluded)
    class_sizes.write_class_sizes(study.study, sizes, plan.class_sizes, notes)
    table, runs = read_rows(inputs.table), read_csv(inputs.runs, RunRow)
    predictions = {method: plan.predictions(method) for method in plan.methods}
    hits, labels = read_hits(predictions), class_groups.read_labels(predictions[plan.methods[0]][0])
    if draws > 1:
        runs, hits = average_draws(runs, per_draw), average_hits(hits, per_draw)
    rows = class_groups.build_rows(
        table,
        runs,
        hits,
        labels,
        training_images=class_sizes.count_classes(plan.splits["train"], excluded),
        class_labels={info.class_id: label for label, info in enumerate(read_class_table(inputs.classes))},
        seed=derive_seed(study.seed, "bootstrap"),
        report=study.report,
    )
    class_groups.write_class_groups(study.study, table, rows, plan.class_groups, draws)
