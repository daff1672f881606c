"""Hash a model's files."""

from augbench.runtime.job import running

with running(snakemake):
    from augbench.files import write_json
    from augbench.models.folders import fingerprint

    recipe = snakemake.params.recipe
    write_json(snakemake.output[0], fingerprint(recipe["folder"], recipe.get("safety_checker", "model")))
