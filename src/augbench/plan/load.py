"""The bridge from Snakemake's config to the plan: the Snakefile's only entry point besides recipes.

Input: the dictionary that Snakemake merged from its ``--configfile`` and ``--config``. Problems in the
config end the parse, with one clear line for each.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from augbench.config.study import DEMO, merge, parse_study, read_yaml
from augbench.data.sources import open_source
from augbench.errors import ending_in_one_line
from augbench.plan.paths import Plan


def load_plan(config: dict[str, Any], project: Path) -> Plan:
    """Check ``config`` and plan the study; without a key ``study``, the demo's keys are the defaults.

    ``config`` is completed in place, so that scripts see all of it. Jobs inherit a ``PYTHONPATH`` with the
    package of this clone, whichever interpreter they run in (``--sdm conda``).
    """
    paths = [str(project / "src"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(filter(None, paths)))
    with ending_in_one_line():
        if "study" not in config:
            complete = merge(read_yaml(project / DEMO), config)
            config.clear()
            config.update(complete)
        study = parse_study(config)
        class_ids = tuple(
            info.class_id for info in open_source(study.dataset, study.seed, study.corpus).classes()
        )
        return Plan(study, class_ids)
