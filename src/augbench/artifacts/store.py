"""The store: finished artifacts under a hash of their recipe, shared by all studies (blocks and store).

Snakemake deletes a job's outputs before it runs and when it fails. An artifact that is in the store is linked
to its target again instead of made again. A recipe names what makes an artifact, not the row or study that
asks for it, so two studies with the same recipe share one file.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from augbench.artifacts.claims import Claims, place_of
from augbench.artifacts.uses import FOLDER as USES
from augbench.artifacts.uses import UNFINISHED, Uses
from augbench.errors import UserError
from augbench.files import atomic_path, canonical_hash, expand_path, explained_disk_errors

if TYPE_CHECKING:
    from augbench.config.study import Study

Recipe = Mapping[str, Any]
T = TypeVar("T")
CLAIMS = ".claims"
PRESENCE = 1 << 60  # the claim that every process which works with a store shares
NO_LINKS = (errno.EPERM, errno.EXDEV, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)


def link_file(kept: str | Path, target: str | Path) -> None:
    """Hard-link ``kept`` to ``target``, replacing an existing file; copy it where links are not supported."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(kept, target)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        with atomic_path(target) as temporary:
            shutil.copyfile(kept, temporary)


def open_store(study: Study) -> Store:
    """The store that a study's config names, for its results in the working directory."""
    return Store(expand_path("execution.store", study.execution.store), Path(f"results/{study.study}"))


@dataclass
class Tally:
    """Numbers of artifacts that a job made and that it took from the store."""

    made: int = 0
    reused: int = 0

    def __str__(self) -> str:
        return f"{self.made} made, {self.reused} taken from the store"


@dataclass
class Store:
    """The store in the folder ``root``, as one study uses it.

    Artifacts are single files. A recipe holds JSON values only. It names everything that shapes the content,
    including a version of the code's semantics, and nothing else.

    Parameters
    ----------
    root : path
        Folder of the store.
    study : path, optional
        Folder of the study's results. Default: the folder that holds the store.
    """

    root: Path
    study: Path = Path()
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        if self.study == Path():
            self.study = self.root.parent

    @cached_property
    def uses(self) -> Uses:
        """Records of which study uses which file."""
        return Uses(self.root, self.study)

    @cached_property
    def claims(self) -> Claims:
        """Claims of this process on what it makes, and on the store as a whole."""
        return Claims(self.root / CLAIMS)

    def enter(self) -> None:
        """Wait until nobody deletes unused files, then keep others from it until this process ends."""
        self.claims.take(PRESENCE, shared=True)

    # --- artifacts ---

    def path(self, kind: str, recipe: Recipe, suffix: str) -> Path:
        """Path of the artifact of ``recipe`` in the store."""
        return self.root / kind / f"{canonical_hash(dict(recipe))}{suffix}"

    def name(self, path: Path) -> str:
        """Name of a file of the store in the records of use: its path relative to the root."""
        return path.relative_to(self.root).as_posix()

    def has(
        self, kind: str, recipe: Recipe, suffix: str, valid: Callable[[Path], bool] | None = None
    ) -> bool:
        """Whether the artifact exists, and is not one that ``valid`` rejects (truncated, bits flipped).

        A rejected one stays until it is made again: another process may replace it at any moment, and
        deleting it here could delete its successor.
        """
        kept = self.path(kind, recipe, suffix)
        if not kept.exists() and "dataset" in recipe:
            self._take_over(kind, recipe, suffix)
        try:
            return kept.exists() and (valid is None or valid(kept))
        except FileNotFoundError:  # another study freed it meanwhile
            return False

    def commit(self, kind: str, recipe: Recipe, suffix: str, write: Callable[[Path], None]) -> Path:
        """Make the artifact and return its path; ``write`` gets a temporary path, renamed into the store.

        Raises
        ------
        UserError
            The disk is full or not writable.
        """
        kept = self.path(kind, recipe, suffix)
        with explained_disk_errors(kept.parent), atomic_path(kept) as temporary:
            write(temporary)
        self.tally.made += 1
        return kept

    def make(self, kind: str, recipe: Recipe, target: str | Path, write: Callable[[Path], None]) -> None:
        """Make the artifact and publish it at ``target``. Raises as :meth:`commit`.

        Its use is recorded before it is in the store, so that no other study frees it in between.
        """
        target = Path(target)

        def write_and_note(path: Path) -> None:
            write(path)
            self.note_use(kind, recipe, target.suffix, target)

        link_file(self.commit(kind, recipe, target.suffix, write_and_note), target)

    def publish(self, kind: str, recipe: Recipe, target: str | Path) -> None:
        """Link the artifact to ``target``, replacing an existing file."""
        target = Path(target)
        self.note_use(kind, recipe, target.suffix, target)
        link_file(self.path(kind, recipe, target.suffix), target)

    def note_use(self, kind: str, recipe: Recipe, suffix: str, target: Path | None = None) -> None:
        """Record that the study uses an artifact, at ``target`` or without publishing it."""
        self.uses.note([(self.name(self.path(kind, recipe, suffix)), self.uses.of(target))])

    def note_passing_uses(self, kind: str, recipes: Iterable[Recipe], suffix: str) -> None:
        """Record that the study uses artifacts until it is finished; then they may be freed."""
        use = self.uses.of(self.study / UNFINISHED)
        self.uses.note((self.name(self.path(kind, recipe, suffix)), use) for recipe in recipes)

    def take(
        self,
        kind: str,
        recipe: Recipe,
        target: str | Path,
        valid: Callable[[Path], bool] | None = None,
    ) -> bool:
        """Publish the artifact at ``target`` if the store has it; False if it does not."""
        if not self.has(kind, recipe, Path(target).suffix, valid):
            return False
        try:
            self.publish(kind, recipe, target)
        except FileNotFoundError:  # another study freed it meanwhile
            return False
        return True

    def provide(
        self,
        kind: str,
        recipe: Recipe,
        target: str | Path,
        write: Callable[[Path], None],
        valid: Callable[[Path], bool] | None = None,
    ) -> bool:
        """Publish the artifact at ``target``, making it first if it is missing; True if it was made."""
        with self.claim(kind, recipe):
            made = not self.take(kind, recipe, target, valid)
            if made:
                self.make(kind, recipe, target, write)
            else:
                self.tally.reused += 1
        return made

    def keep(
        self,
        kind: str,
        recipe: Recipe,
        suffix: str,
        write: Callable[[Path], None],
        valid: Callable[[Path], bool] | None = None,
    ) -> Path:
        """Make an artifact that has no target, unless the store has it; return its path in the store."""
        with self.claim(kind, recipe):
            if self.has(kind, recipe, suffix, valid):
                self.tally.reused += 1
            else:
                self.commit(kind, recipe, suffix, write)
            self.note_use(kind, recipe, suffix)
            return self.path(kind, recipe, suffix)

    def artifacts(self, unfinished: bool = False) -> Iterator[Path]:
        """Yield the store's files that are artifacts, and those that are being written if ``unfinished``."""
        for folder in sorted(self.root.iterdir()) if self.root.is_dir() else ():
            if folder.is_dir() and folder.name != USES:
                files = sorted(path for path in folder.rglob("*") if path.is_file())
                yield from (path for path in files if unfinished or not path.name.startswith("."))

    @cached_property
    def _adopted(self) -> set[str]:
        """Names of the files that the study used when this process first asked."""
        mine = os.path.abspath(self.study)
        return {name for name, uses in self.uses.live().items() if any(use.study == mine for use in uses)}

    def _take_over(self, kind: str, recipe: Recipe, suffix: str) -> None:
        """Link an artifact of the study from before keys named the data set to its new key."""
        kept = self.path(kind, {name: recipe[name] for name in recipe if name != "dataset"}, suffix)
        if kept.exists() and self.name(kept) in self._adopted:
            link_file(kept, self.path(kind, recipe, suffix))

    # --- two processes never make the same artifact at once ---

    def claim(self, kind: str, recipe: Recipe) -> AbstractContextManager[None]:
        """Claim the making of an artifact, after waiting for others that make it.

        Without locks an artifact may be made twice, with the same content.
        """
        return self.claims.held(place_of([kind, dict(recipe)]))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep out all processes that enter the store.

        Raises
        ------
        UserError
            Another process works with it, or the file system has no locks, so that nobody can tell.
        """
        if not self.claims.take(PRESENCE, wait=False):
            raise UserError(str(self.root), "a run is using this store", "wait for it to end, or stop it")
        if not self.claims.work:
            raise UserError(
                str(self.root),
                "its file system has no locks, so a run that uses this store can't be seen",
                "nothing is deleted; mount it with locks (Lustre: the option flock), or, while nothing runs, "
                "delete the whole folder: what is still needed is then made again",
            )
        try:
            yield
        finally:
            self.claims.give_back(PRESENCE)

    def in_turn(
        self,
        kind: str,
        items: Sequence[T],
        recipe_of: Callable[[T], Recipe],
        is_there: Callable[[T], bool],
        at_once: int | None = None,
    ) -> Iterator[list[T]]:
        """Yield groups of missing items to make, so that other processes make none of them meanwhile.

        Items that are there count as reused. First come the items that nobody else is making. Then the rest:
        each is waited for, and yielded only if the other process ended without making it. Groups of at most
        ``at_once`` items let several processes share the work.
        """
        left = [item for item in items if not is_there(item)]
        self.tally.reused += len(items) - len(left)
        wait = False
        while left:
            claimed: list[tuple[int, T]] = []
            try:
                others = []
                for item in left:
                    place = place_of([kind, dict(recipe_of(item))])
                    # claims held while waiting could wait for each other in a circle: wait for one at a time
                    if len(claimed) != at_once and self.claims.take(place, wait and not claimed):
                        claimed.append((place, item))
                    else:
                        others.append(item)
                left = others
                missing = [item for _, item in claimed if not is_there(item)]
                self.tally.reused += len(claimed) - len(missing)
                if missing:
                    yield missing
            finally:
                for place, _ in claimed:
                    self.claims.give_back(place)
            wait = not claimed
