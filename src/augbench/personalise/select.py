"""Select the checkpoint of a fine-tuned method that the study uses (paper, section 3.2).

Input: the result of one classifier per candidate, trained on real and added images and scored on the
validation split, never on the test split. Output: ``selected/{method}.json``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from augbench.artifacts.shards import key_of
from augbench.artifacts.store import Store
from augbench.errors import UserError
from augbench.files import read_json, write_json

logger = logging.getLogger(__name__)


def select(method: str, results: Mapping[str, str | Path], out: str | Path) -> str:
    """Write each candidate's validation accuracy and the best candidate; of equal ones the first is taken.

    Steps, reason for stopping, and whether a run was cut while rising are written beside the accuracy.

    Parameters
    ----------
    results : mapping of str to path
        ``result.json`` of each candidate's classifier, in the order of the config.

    Returns
    -------
    str
        The selected candidate.

    Raises
    ------
    UserError
        A classifier was scored on the test split, which selection must not use (guarded test split).
    """
    figures = []
    for candidate, path in results.items():
        result = read_json(path)
        if result["test_top1"] is not None:
            raise UserError(
                str(path),
                "scored on the test split",
                "candidates are compared on the validation split only; delete this file and run again",
            )
        known = ("val_top1", "n_val", "steps", "stopped", "rising")
        figures.append(
            {
                "candidate": candidate,
                **{name: result[name] for name in known if name in result},
                "result": str(path),
            }
        )
        log_candidate(method, candidate, result)
    winner = max(figures, key=lambda figure: figure["val_top1"])["candidate"]
    write_json(out, {"method": method, "selected": winner, "candidates": figures})
    return str(winner)


def log_candidate(method: str, candidate: str, result: Mapping[str, Any]) -> None:
    """Log a candidate's accuracy and training; warn if it was cut while accuracy was still rising.

    Results of earlier versions do not say how training ended.
    """
    trained = f", {result['steps']} steps, ended by {result['stopped']}" if "steps" in result else ""
    logger.info("%s, candidate %s: val top-1 %.4f%s", method, candidate, result["val_top1"], trained)
    if result.get("rising"):
        logger.warning(
            "%s, candidate %s: training was cut while validation accuracy was still rising; candidates are"
            " compared by classifiers that had not finished learning",
            method,
            candidate,
        )


def drop_from_store(store: Store, winner: Sequence[str | Path], losers: Sequence[str | Path]) -> int:
    """Delete the losers' shards from the store, except those in use elsewhere; return their number.

    The winner, another row or another study may use them; an unfinished study may have lost its targets only
    for the moment. The workflow itself deletes the shards' targets, which are temporary files.
    """

    def kept(path: str | Path) -> Path:
        return store.path("shards", key_of(path), Path(path).suffix)

    lost = {store.uses.of(path) for path in losers}
    going = lost | {store.uses.of()}
    used = store.uses.needed(own=False)
    doomed = {kept(path) for path in losers} - {kept(path) for path in winner}
    free = [path for path in doomed if not used.get(store.name(path), set()) - going]
    for path in free:
        path.unlink(missing_ok=True)
    store.uses.release(lost)  # the last study that selects frees what they share
    return len(free)
