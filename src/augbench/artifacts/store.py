"""The recipe-keyed store: finished artifacts survive when Snakemake deletes its targets (blocks and store).

Input: a recipe (plain values that decide an artifact's content) and a function that makes the artifact.
Output: the artifact at its target, hard-linked from ``results/{study}/.store/{kind}/{key}``. Snakemake
deletes a job's outputs before it runs and when it fails; an artifact in the store is then linked again
instead of made again. Store and targets belong on one file system. Where hard links are not supported, the
file is copied.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from augbench.errors import UserError
from augbench.files import atomic_path, canonical_hash

Recipe = Mapping[str, Any]


def link_file(kept: str | Path, target: str | Path) -> None:
    """Hard-link ``kept`` to ``target``, replacing any file there; copy it where links are not supported."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(kept, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EXDEV, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS):
            raise
        with atomic_path(target) as temporary:
            shutil.copyfile(kept, temporary)


@dataclass
class Tally:
    """Number of artifacts that a job made, and number that it found in the store."""

    made: int = 0
    reused: int = 0

    def __str__(self) -> str:
        return f"{self.made} made, {self.reused} taken from the store"


@dataclass
class Store:
    """The store in ``root``; ``tally`` counts the artifacts that this process made or reused.

    Artifacts are single files. A recipe holds JSON values only. It must name everything that shapes the
    content, including a version of the code's semantics, and nothing else (recipes).
    """

    root: Path
    tally: Tally = field(default_factory=Tally)

    def path(self, kind: str, recipe: Recipe, suffix: str) -> Path:
        """Path of the artifact of ``recipe`` in the store."""
        return self.root / kind / f"{canonical_hash(dict(recipe))}{suffix}"

    def has(
        self, kind: str, recipe: Recipe, suffix: str, valid: Callable[[Path], bool] | None = None
    ) -> bool:
        """Whether the store has the artifact; remove one that ``valid`` rejects (truncated, bits flipped)."""
        kept = self.path(kind, recipe, suffix)
        if not kept.exists():
            return False
        if valid is not None and not valid(kept):
            kept.unlink()
            return False
        return True

    def commit(self, kind: str, recipe: Recipe, suffix: str, write: Callable[[Path], None]) -> Path:
        """Make the artifact and return its path; ``write`` gets a temporary path, renamed into the store.

        Raises
        ------
        UserError
            The disk is full or not writable.
        """
        kept = self.path(kind, recipe, suffix)
        try:
            with atomic_path(kept) as temporary:
                write(temporary)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES):
                raise UserError(
                    str(kept.parent),
                    error.strerror or str(error),
                    "free space or make it writable, then run again; nothing finished is lost",
                ) from error
            raise
        self.tally.made += 1
        return kept

    def publish(self, kind: str, recipe: Recipe, target: str | Path) -> None:
        """Link the artifact to ``target``, replacing any file there."""
        target = Path(target)
        link_file(self.path(kind, recipe, target.suffix), target)

    def provide(
        self,
        kind: str,
        recipe: Recipe,
        target: str | Path,
        write: Callable[[Path], None],
        valid: Callable[[Path], bool] | None = None,
    ) -> bool:
        """Link the artifact to ``target``, making it first if it is missing; return whether it was made."""
        suffix = Path(target).suffix
        made = not self.has(kind, recipe, suffix, valid)
        if made:
            self.commit(kind, recipe, suffix, write)
        else:
            self.tally.reused += 1
        self.publish(kind, recipe, target)
        return made

    def unused(self) -> list[Path]:
        """Return the artifacts that no target links to any more (their link count is 1)."""
        return sorted(path for path in self.root.rglob("*") if path.is_file() and path.stat().st_nlink == 1)
