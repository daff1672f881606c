"""The bridge from Snakemake's config to the plan: the Snakefile's only entry point besides recipes.

Input: the dictionary that Snakemake merged from its ``--configfile`` and ``--config``. Problems in the
config end the parse, with one clear line for each.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from augbench.config.problems import ConfigError
from augbench.config.study import DEMO, Study, merge, parse_study, read_yaml
from augbench.data.classes import folder_of
from augbench.data.sources import open_source
from augbench.errors import UserError, ending_in_one_line, some
from augbench.plan.paths import Plan


def load_plan(config: dict[str, Any], project: Path, configfiles: Sequence[str | Path] = ()) -> Plan:
    """Check ``config`` and plan the study; without a key ``study``, the demo's keys are the defaults.

    Snakemake keeps the last of two equal keys and of two ``--configfile``, silently. Both are refused here:
    ``configfiles``, which Snakemake has merged, are read again.

    ``config`` is completed in place, so that scripts see all of it. Jobs inherit a ``PYTHONPATH`` with the
    package of this clone, whichever interpreter they run in (``--sdm conda``).
    """
    paths = [str(project / "src"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(filter(None, paths)))
    with ending_in_one_line():
        _refuse_second_option(sys.argv)
        for path in configfiles:
            if os.path.isfile(path):  # not a pipe, which is empty now
                read_yaml(path)
        if "study" not in config:
            complete = merge(read_yaml(project / DEMO), config)
            config.clear()
            config.update(complete)
        study = parse_study(config)
        class_ids = tuple(
            info.class_id for info in open_source(study.dataset, study.seed, study.corpus).classes()
        )
        if problems := list(excluded_problems(study, class_ids)):
            raise ConfigError(problems)
        return Plan(study, class_ids)


def excluded_problems(study: Study, class_ids: Sequence[str]) -> Iterator[UserError]:
    """Yield listed classes that the data set does not have; at least two classes must remain."""
    listed = study.retrieval.listed
    for class_id in sorted(listed.difference(class_ids)):
        yield UserError(
            "retrieval.exclude",
            repr(folder_of(class_id)),
            f"allowed: class_ids of the data set, {some([*map(folder_of, class_ids)])}",
        )
    if len(set(class_ids) - listed) < 2:
        yield UserError(
            "retrieval.exclude", f"{len(listed)} of {len(class_ids)} classes", "at least 2 must stay"
        )


def _refuse_second_option(arguments: Sequence[str]) -> None:
    given = [name for name in arguments if name.partition("=")[0] in ("--configfile", "--configfiles")]
    if len(given) > 1 and "snakemake" in Path(arguments[0]).parts:
        raise UserError(
            "--configfile",
            f"given {len(given)} times, of which Snakemake reads the last only",
            "allowed: once, with all files after it",
        )
