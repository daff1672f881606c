"""Write the checked config, including defaults, beside the results."""

import yaml

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.config.base import COMPLETE
    from augbench.files import write_text

    config = job.study.model_dump(mode="json", exclude={"execution", "pretrain"}, context=COMPLETE)
    write_text(snakemake.output[0], yaml.safe_dump(config, sort_keys=False))
