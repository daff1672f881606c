"""Write the prompts of a method."""

from augbench.runtime.job import running

with running(snakemake, unfolded=True) as job:
    from augbench.artifacts.origins import starts_of
    from augbench.data.classes import read_class_table
    from augbench.data.splits import read_split
    from augbench.prompts.stage import write_prompts
    from augbench.retrieval.shortfall import read_excluded

    inputs = snakemake.input
    classes = read_class_table(inputs.classes)
    train = read_split(inputs.train)
    images = {info.class_id: [] for info in classes}
    for class_id, image_id in zip(train.class_ids, train.image_ids, strict=True):
        images[class_id].append(image_id)
    leaks = next(iter(inputs.leaks), None)
    starts = [starts_of(index, job.folder, leaks) for index in inputs.started]
    write_prompts(
        job.study,
        snakemake.wildcards.method,
        classes,
        images,
        snakemake.output[0],
        starts=next(iter(starts), None),
        excluded=read_excluded(inputs.excluded),
    )
