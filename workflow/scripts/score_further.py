"""Score all classifiers on a further test set."""

from augbench.runtime.job import running

with running(snakemake, unfolded=True) as job:
    from augbench.further.stage import score_further
    from augbench.retrieval.shortfall import read_excluded

    inputs, runs = snakemake.input, job.plan.all_runs
    score_further(
        job.study,
        store=job.store,
        test=snakemake.params.test,
        split_path=inputs.split,
        classes_path=inputs.classes,
        models=dict(zip(runs, inputs.models, strict=True)),
        outs=dict(zip(runs, snakemake.output, strict=True)),
        first_weights=next(iter(inputs.first_weights), None),
        excluded=read_excluded(inputs.excluded),
    )
