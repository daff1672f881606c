"""Make part 0 of every candidate of a fine-tuned method, for a block of classes."""

from pathlib import Path

from augbench.job import running

with running(snakemake) as job:
    from augbench.generate import Learned, generate

    method, source, plan = snakemake.params.method, snakemake.input, job.plan
    targets: dict[str, list[str]] = {}
    for path in snakemake.output:
        targets.setdefault(Path(path).parts[-3], []).append(path)
    learned = {name: Learned(plan.embeddings(method)[name], plan.unets(method).get(name)) for name in targets}
    generate(job, method, source.prompts, source.diffusion, source.train, targets, learned)
