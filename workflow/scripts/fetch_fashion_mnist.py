"""Download Fashion-MNIST's four published files to the downloads folder."""

from pathlib import Path

from augbench.runtime.job import running

with running(snakemake):
    from augbench.artifacts.claims import fetching
    from augbench.data import fashion_mnist

    folder = Path(snakemake.output[0]).parent
    with fetching(folder):
        fashion_mnist.fetch(folder)
