"""Measure the added images of all methods: agreement with their class, distance to the target's style."""

from pathlib import Path

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.report.tables.diagnostics import write_diagnostics

    inputs = snakemake.input
    write_diagnostics(
        job,
        indexes={Path(path).parents[1].name: path for path in inputs.get("pools", [])},
        train_path=inputs.train,
        val_path=inputs.val,
        classes_path=inputs.classes,
        clip_path=inputs.clip,
        histories={Path(path).parent.name: path for path in inputs.get("histories", [])},
        lrs={Path(path).parent.name: path for path in inputs.get("lrs", [])},
        selected={Path(path).stem: path for path in inputs.get("selected", [])},
        outs=dict(snakemake.output.items()),
    )
