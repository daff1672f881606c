"""Select: which checkpoint of a fine-tuned method the study goes on with (paper, section 3.2).

Flows in: the results of one classifier per candidate, trained on real and added images and compared on the validation split; they have
never seen the test split. Flows out: ``selected/{method}.json``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from augbench.artifacts.shards import read_footer
from augbench.artifacts.store import Store
from augbench.errors import UserError
from augbench.files import read_json, write_json


def select(method: str, results: Mapping[str, str | Path], out: str | Path) -> str:
    """Write which candidate has the best validation accuracy, and every candidate's; the first of equals wins.

    Parameters
    ----------
    results : mapping of str to path
        ``result.json`` of each candidate's classifier, in the order of the config.

    Returns
    -------
    str
        The winner.

    Raises
    ------
    UserError
        A classifier was scored on the test split, which selection must not know.
    """
    figures = []
    for candidate, path in results.items():
        result = read_json(path)
        if result["test_top1"] is not None:
            raise UserError(
                str(path),
                "scored on the test split",
                "candidates are compared on the validation split alone; delete it and run again",
            )
        figures.append(
            {
                "candidate": candidate,
                "val_top1": result["val_top1"],
                "n_val": result["n_val"],
                "result": str(path),
            }
        )
    winner = max(figures, key=lambda figure: figure["val_top1"])["candidate"]
    write_json(out, {"method": method, "selected": winner, "candidates": figures})
    return str(winner)


def drop_from_store(store: Store, winner: Sequence[str | Path], losers: Sequence[str | Path]) -> int:
    """Delete the losers' shards from the store, but for images that are the winner's too; returns how many were deleted.

    Their targets are temporary files of the workflow, which deletes them itself.
    """

    def kept(path: str | Path) -> Path:
        return store.path("shards", read_footer(path)["recipe"], Path(path).suffix)

    spared = {kept(path) for path in winner}
    doomed = {kept(path) for path in losers} - spared
    for path in doomed:
        path.unlink(missing_ok=True)
    return len(doomed)
