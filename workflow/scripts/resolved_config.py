"""Write the checked config, including defaults, beside the results."""

import yaml

from augbench.runtime.job import running

with running(snakemake):
    from augbench.files import write_text

    write_text(snakemake.output[0], yaml.safe_dump(snakemake.params.config, sort_keys=False))
