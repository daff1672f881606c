"""Find images that were made from near-duplicates of validation and test images, through all edges."""

from augbench.runtime.job import running

with running(snakemake, unfolded=True) as job:
    from augbench.leakage.inherited import write_inherited
    from augbench.retrieval.shortfall import read_excluded

    inputs, plan = snakemake.input, job.plan
    write_inherited(
        job,
        indexes=dict(zip(plan.inheriting, inputs.pools, strict=True)),
        leaks=dict(zip(plan.guarded, inputs.leaks, strict=True)),
        learned=dict(zip(plan.inherited_from, inputs.learned, strict=True)),
        outs=dict(zip(plan.inheriting, snakemake.output, strict=True)),
        excluded=read_excluded(inputs.excluded),
    )
