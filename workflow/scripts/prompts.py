"""Write the prompts of a method."""

from augbench.runtime.job import running

with running(snakemake, unfolded=True) as job:
    from augbench.data.classes import read_class_table
    from augbench.data.splits import read_split
    from augbench.prompts.stage import write_prompts

    classes = read_class_table(snakemake.input.classes)
    train = read_split(snakemake.input.train)
    images = {info.class_id: [] for info in classes}
    for class_id, image_id in zip(train.class_ids, train.image_ids, strict=True):
        images[class_id].append(image_id)
    write_prompts(job.study, snakemake.wildcards.method, classes, images, snakemake.output[0])
