"""Hash a model's files."""

from augbench.job import running

with running(snakemake):
    from augbench.files import write_json
    from augbench.models import fingerprint

    write_json(snakemake.output[0], fingerprint(snakemake.params.recipe["folder"]))
