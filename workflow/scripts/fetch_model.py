"""Download a model from the Hub, or from a mirror, to the downloads folder."""

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.artifacts.claims import fetching
    from augbench.models.fetch import fetch

    wanted = job.plan.hub_models[snakemake.params.model]
    with fetching(wanted.hub.folder):
        fetch(wanted.hub, wanted.layout, wanted.pipeline)
