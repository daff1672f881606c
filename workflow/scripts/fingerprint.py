"""Hash a model's files."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.files import write_json
    from augbench.models.folders import fingerprint
    from augbench.models.open_clip_files import fingerprint_open_clip

    recipe = snakemake.params.recipe
    if "open_clip" in recipe:
        found = fingerprint_open_clip(job.study.clip.named, recipe["folder"])
    else:
        found = fingerprint(recipe["folder"], recipe.get("safety_checker", "model"))
    write_json(snakemake.output[0], found)
