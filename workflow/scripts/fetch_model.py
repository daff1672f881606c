"""Download a model from the Hub, or from a mirror, to the downloads folder."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.artifacts.claims import fetching
    from augbench.models.fetch import fetch

    layout = snakemake.params.model
    model = job.plan.hub_models[layout]
    with fetching(model.folder):
        fetch(model, layout)
