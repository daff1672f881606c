"""Adoption of the stores of version 0.1, one per study in ``results/{study}/.store``.

A store there with records of use or claims is no such store: a study's ``execution.store`` names it, and a
run may be using it.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from augbench.artifacts.shards import key_of
from augbench.artifacts.store import CLAIMS, PRESENCE, Store, link_file
from augbench.artifacts.uses import FOLDER as USES
from augbench.errors import UserError
from augbench.files import canonical_hash

logger = logging.getLogger(__name__)
ADOPTION = 1 + PRESENCE  # the claim of the process that adopts
TRAINING = "pretrain"  # folders of unfinished pre-training, which are no artifacts


def adopt(store: Store) -> int:
    """Move the artifacts of earlier stores into ``store``; return their number.

    These are the store of the study, and those of all studies beside it if ``store`` is their default.
    """
    mine = store.study / ".store"
    beside = store.study.parent
    others = beside.glob("*/.store") if store.root.resolve().parent == beside.resolve() else ()
    with store.claims.held(ADOPTION):
        return sum(_adopt(Store(store.root, earlier.parent), earlier) for earlier in {mine, *others})


def _adopt(store: Store, earlier: Path) -> int:
    """Move the artifacts of ``earlier``, the own store of the study of ``store``; return their number.

    Shards get the key that names their content only. An interrupted adoption resumes. A shard that is damaged
    stays where it is: no key can be told for it. What a killed process was writing is deleted.
    """
    if not earlier.is_dir() or any((earlier / name).exists() for name in (USES, CLAIMS)):
        return 0
    found: dict[Path, str] = {}
    for folder in sorted(path for path in earlier.iterdir() if path.is_dir()):
        if folder.name == TRAINING:
            _move_training(folder, store.study / ".work" / TRAINING)
            continue
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.name.startswith("."):
                path.unlink()
            elif path.is_file() and (name := _name(path, earlier)) is not None:
                found[path] = name
    if found:
        use = store.uses.of()
        store.uses.note((name, use) for name in found.values())
        for path, name in found.items():
            _move(path, store.root / name)
        logger.info("adopted %d finished artifacts of %s", len(found), earlier)
    for folder in sorted(earlier.rglob("*"), reverse=True):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    if not any(earlier.iterdir()):
        earlier.rmdir()
    return len(found)


def _name(path: Path, earlier: Path) -> str | None:
    """Name in the shared store of a file of an earlier one; None if it can't be told."""
    if path.parent.name != "shards":
        return path.relative_to(earlier).as_posix()
    try:
        return f"shards/{canonical_hash(key_of(path))}{path.suffix}"
    except UserError:
        return None


def _move(path: Path, kept: Path) -> None:
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        link_file(path, kept)
    path.unlink()


def _move_training(folder: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for training in folder.iterdir():
        if not (target / training.name).exists():
            shutil.move(training, target / training.name)
