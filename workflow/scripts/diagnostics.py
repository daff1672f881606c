"""Look at the added images of all methods: agreement with their class, distance to the target's style."""

from pathlib import Path

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.report.tables.diagnostics import write_diagnostics

    source = snakemake.input
    write_diagnostics(
        job,
        {Path(path).parents[1].name: path for path in source.get("pools", [])},
        source.train,
        source.val,
        source.classes,
        source.clip,
        {Path(path).parent.name: path for path in source.get("histories", [])},
        {Path(path).parent.name: path for path in source.get("lrs", [])},
        {Path(path).stem: path for path in source.get("selected", [])},
        dict(snakemake.output.items()),
    )
