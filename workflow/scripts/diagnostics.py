"""Measure the added images of all methods: agreement with their class, distance to the target's style."""

from pathlib import Path

from augbench.runtime.job import running

with running(snakemake) as job:
    from augbench.report.tables.diagnostics import write_diagnostics

    source = snakemake.input
    write_diagnostics(
        job,
        indexes={Path(path).parents[1].name: path for path in source.get("pools", [])},
        train_path=source.train,
        val_path=source.val,
        classes_path=source.classes,
        clip_path=source.clip,
        histories={Path(path).parent.name: path for path in source.get("histories", [])},
        lrs={Path(path).parent.name: path for path in source.get("lrs", [])},
        selected={Path(path).stem: path for path in source.get("selected", [])},
        outs=dict(snakemake.output.items()),
    )
