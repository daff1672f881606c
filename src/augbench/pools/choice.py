"""The row that a ``choose`` row takes: the one whose classifiers have the best validation accuracy.

Input: histories of the rows' classifiers, which know validation accuracies and no test accuracies. Output:
``selected/{method}.json``, and the chosen row's index, training sets and classifiers under the choosing row's
name. Nothing is drawn or trained again.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from augbench.artifacts.store import link_file, open_store
from augbench.files import atomic_path, read_json, write_json
from augbench.plan.paths import Plan

logger = logging.getLogger(__name__)


def choose(method: str, histories: Mapping[str, Sequence[str | Path]], out: str | Path) -> str:
    """Write each row's validation accuracy, the mean over its runs, and the best row; of equals the first.

    Parameters
    ----------
    histories : mapping of str to sequence of path
        ``history.json`` of every run of each row, in the order of the config.

    Returns
    -------
    str
        The chosen row.
    """
    runs = {row: [read_json(path)["val_top1"] for path in paths] for row, paths in histories.items()}
    means = {row: fmean(values) for row, values in runs.items()}
    chosen = max(means, key=lambda row: means[row])
    figures = [{"candidate": row, "val_top1": means[row], "runs": values} for row, values in runs.items()]
    write_json(out, {"method": method, "selected": chosen, "candidates": figures})
    logger.info("%s: %s", method, ", ".join(f"{row} {mean:.4f}" for row, mean in means.items()))
    return chosen


def read_choice(path: str | Path) -> str:
    """Read the chosen row."""
    return str(read_json(path)["selected"])


def adopt(plan: Plan, method: str, chosen: str) -> None:
    """Give the chosen row's index, training sets and classifiers the choosing row's name.

    Weights are linked, small files copied; a run's ``result.json`` names the row that it is of.
    """
    links: dict[str | Path, str | Path] = {}
    _copy(plan.pool(chosen), plan.pool(method))
    for run in plan.runs:
        _copy(plan.resample(chosen, run), plan.resample(method, run))
        for theirs, own in zip(plan.run_files(chosen, run), plan.run_files(method, run), strict=True):
            if Path(own).name == "result.json":
                write_json(own, {**read_json(theirs), "method": method, "chosen": chosen})
                _copy(Path(theirs).with_name("timing.json"), Path(own).with_name("timing.json"))
            elif Path(own).suffix == ".safetensors":
                link_file(theirs, own)
                links[own] = theirs
            else:
                _copy(theirs, own)
    open_store(plan.study).uses.note_links(links)


def _copy(source: str | Path, target: str | Path) -> None:
    """Copy a file. A link would share its time stamp, by which Snakemake tells what to run again."""
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
