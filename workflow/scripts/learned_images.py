"""List the images that a row learns from: training images, and first training sets of other rows."""

from augbench.runtime.job import running

with running(snakemake, unfolded=True) as job:
    from augbench.personalise.learned import write_learned_images
    from augbench.retrieval.shortfall import read_excluded

    method, inputs = snakemake.params.method, snakemake.input
    row = job.study.personalised[method]
    write_learned_images(
        method,
        row,
        train_path=inputs.train,
        sets=dict(zip(row.built_on, inputs.sets, strict=True)),
        out=snakemake.output[0],
        excluded=read_excluded(inputs.excluded),
    )
