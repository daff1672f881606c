"""Download a model from the Hub, or from a mirror, to the downloads folder."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.models.fetch import fetch

    layout = snakemake.params.model
    fetch(job.plan.hub_models[layout], layout)
