"""``augbench debug``: run the script of one job in this process, on the terminal, under Python's debugger.

Snakemake plans the job, so the script gets the ``snakemake`` object that it would get in a run. It runs in
the foreground: its output is not sent to the log, ``breakpoint()`` works anywhere in the package, and an
exception opens the debugger where it was raised.
"""

from __future__ import annotations

import os
import pdb
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from augbench.config.study import load_study
from augbench.errors import UserError
from augbench.runtime.dag import planned
from augbench.runtime.job import ON_TERMINAL
from augbench.runtime.launcher import prepare


def debug(configfiles: Sequence[str], target: str, step: bool = True) -> None:
    """Run the script of the job that makes ``target``.

    Parameters
    ----------
    configfiles : sequence of str
        The study and its overlays.
    target : str
        A file of the study, or the name of a rule without wildcards. The job's outputs are written again;
        Snakemake's own records are not, so a later run makes what depends on them again.
    step : bool
        Stop at the script's first line. Otherwise the debugger opens at ``breakpoint()`` and at an exception.

    Raises
    ------
    UserError
        No job makes the target, the job has no script, an input is missing, or a run is under way.
    """
    study = load_study(configfiles)
    with planned(configfiles, [target]) as dag:
        job = _job_of(dag, target)
        if missing := [path for path in job.input if not Path(path).exists()]:
            raise UserError(
                target, f"its input {missing[0]} is missing", f"run `snakemake {missing[0]}` first"
            )
        script = (Path(str(job.rule.basedir)) / job.rule.script).resolve()
        given = _given(job, str(script.parent))
    prepare(study)
    os.environ[ON_TERMINAL] = "1"
    for path in [*job.output, *job.log]:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    print(f"augbench: rule {job.rule.name}, {script}", file=sys.stderr)
    code = compile(script.read_text(encoding="utf-8"), str(script), "exec")
    names = {"__name__": "__main__", "__file__": str(script), "snakemake": given}
    try:
        if step:
            pdb.Pdb().run(code, names)
        else:
            exec(code, names)
    except Exception:
        traceback.print_exc()
        pdb.post_mortem()


def _job_of(dag: Any, target: str) -> Any:
    jobs = [job for job in dag.jobs if target == job.rule.name or target in map(str, job.output)]
    if not jobs or not jobs[0].rule.script:
        raise UserError(
            target, "no script makes it", "allowed: a file that a rule with a script makes, or such a rule"
        )
    return jobs[0]


def _given(job: Any, folder: str) -> Any:
    """The object that Snakemake gives the job's script."""
    from snakemake.script import Snakemake

    return Snakemake(
        input_=job.input,
        output=job.output,
        params=job.params,
        wildcards=job.wildcards,
        threads=job.threads,
        resources=job.resources,
        log=job.log,
        config=job.dag.workflow.config,
        rulename=job.rule.name,
        bench_iteration=None,
        scriptdir=folder,
    )
