"""Download Fashion-MNIST's four published files to the downloads folder."""

from pathlib import Path

from augbench.runtime.job import running

with running(snakemake):
    from augbench.data import fashion_mnist

    fashion_mnist.fetch(Path(snakemake.output[0]).parent)
