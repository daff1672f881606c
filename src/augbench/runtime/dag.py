"""The jobs of a study as Snakemake plans them, for commands that look at jobs without running them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from augbench.errors import UserError
from augbench.files import PROJECT

if TYPE_CHECKING:
    from snakemake.dag import DAG


@contextmanager
def planned(configfiles: Sequence[str | Path], targets: Sequence[str]) -> Iterator[DAG]:
    """Yield the graph of all jobs behind ``targets`` (files or rules), finished ones included.

    Raises
    ------
    UserError
        Snakemake cannot plan the targets: no rule makes one of them, or an input is missing.
    """
    from snakemake.api import SnakemakeApi
    from snakemake.exceptions import RuleException, WorkflowError
    from snakemake.settings.types import (
        ConfigSettings,
        DAGSettings,
        OutputSettings,
        Quietness,
        ResourceSettings,
    )

    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
        workflow = api.workflow(
            snakefile=PROJECT / "Snakefile",
            config_settings=ConfigSettings(configfiles=[Path(path) for path in configfiles]),
            resource_settings=ResourceSettings(cores=1),
        )
        try:
            with redirect_stdout(StringIO()):
                workflow.dag(DAGSettings(targets=set(targets))).printrulegraph()  # builds it
        except (WorkflowError, RuleException) as error:
            problem = " ".join(str(error).split())
            raise UserError(
                " ".join(targets), problem, "allowed: a file or a named rule of the study"
            ) from None
        yield workflow._workflow.dag
