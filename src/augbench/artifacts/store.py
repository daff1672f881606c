"""The store: finished artifacts under a hash of their recipe, shared by all studies (blocks and store).

Snakemake deletes a job's outputs before it runs and when it fails. An artifact that is in the store is linked
to its target again instead of made again. A recipe names what makes an artifact, not the row or study that
asks for it, so two studies with the same recipe share one file. ``uses`` records who uses which file; link
counts would not tell, since some file systems have no hard links.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from augbench.errors import UserError
from augbench.files import atomic_path, canonical_hash

if TYPE_CHECKING:
    from augbench.config.study import Study

Recipe = Mapping[str, Any]
T = TypeVar("T")
USES, CLAIMS = "uses", ".claims"  # folders of the store that hold no artifacts
NO_LINKS = (errno.EPERM, errno.EXDEV, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
WHOLE_STUDY = "."  # target of an artifact that a study needs but does not publish


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
    root = Path(os.path.expandvars(study.execution.store)).expanduser()
    return Store(root, Path(f"results/{study.study}"))


@dataclass
class Tally:
    """Numbers of artifacts that a job made and that it took from the store."""

    made: int = 0
    reused: int = 0

    def __str__(self) -> str:
        return f"{self.made} made, {self.reused} taken from the store"


class Use(NamedTuple):
    """One use of a file of the store: by which study's folder, for which file in it."""

    study: str  # absolute path of the study's folder
    target: str  # relative to it, or WHOLE_STUDY

    @property
    def is_live(self) -> bool:
        """Whether the target still exists."""
        return Path(self.study, self.target).exists()


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
    _record: Path | None = None

    def __post_init__(self) -> None:
        if self.study == Path():
            self.study = self.root.parent

    # --- artifacts ---

    def path(self, kind: str, recipe: Recipe, suffix: str) -> Path:
        """Path of the artifact of ``recipe`` in the store."""
        return self.root / kind / f"{canonical_hash(dict(recipe))}{suffix}"

    def has(
        self, kind: str, recipe: Recipe, suffix: str, valid: Callable[[Path], bool] | None = None
    ) -> bool:
        """Whether the artifact exists; one that ``valid`` rejects (truncated, bits flipped) is removed."""
        kept = self.path(kind, recipe, suffix)
        if not kept.exists() and "dataset" in recipe:
            self._take_over(kind, recipe, suffix)
        if not kept.exists():
            return False
        if valid is not None and not valid(kept):
            kept.unlink(missing_ok=True)
            return False
        return True

    def commit(self, kind: str, recipe: Recipe, suffix: str, write: Callable[[Path], None]) -> Path:
        """Make the artifact: ``write`` gets a temporary path, which is renamed into the store."""
        kept = self.path(kind, recipe, suffix)
        try:
            with atomic_path(kept) as temporary:
                write(temporary)
        except OSError as error:
            if error.errno in NO_ROOM:
                reason = error.strerror or str(error)
                allowed = "free space or make it writable, then run again; nothing finished is lost"
                raise UserError(str(kept.parent), reason, allowed) from error
            raise
        self.tally.made += 1
        return kept

    def publish(self, kind: str, recipe: Recipe, target: str | Path) -> None:
        """Link the artifact to ``target``, replacing an existing file."""
        target = Path(target)
        self.note_use(kind, recipe, target.suffix, target)
        link_file(self.path(kind, recipe, target.suffix), target)

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
        suffix = Path(target).suffix
        with self.claim(kind, recipe):
            made = not self.take(kind, recipe, target, valid)
            if made:
                self.commit(kind, recipe, suffix, write)
                self.publish(kind, recipe, target)
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

    # --- claims: two processes never make the same artifact at once ---

    @contextmanager
    def claim(self, kind: str, recipe: Recipe, wait: bool = True) -> Iterator[bool]:
        """Claim the making of an artifact; yield False if another process has it and ``wait`` is false.

        The operating system holds claims, so a kill leaves none behind. A file system without locks gives
        every claim: then an artifact may be made twice, with the same content.
        """
        place = _place(kind, recipe)
        taken = _lock(self.root / CLAIMS, place, wait)
        try:
            yield taken
        finally:
            if taken:
                _unlock(self.root / CLAIMS, place)

    def in_turn(
        self,
        kind: str,
        items: Sequence[T],
        recipe_of: Callable[[T], Recipe],
        is_there: Callable[[T], bool],
    ) -> Iterator[list[T]]:
        """Yield groups of missing items to make, so that other processes make none of them meanwhile.

        First come the items that nobody else is making. Then the rest: each is waited for, and yielded only
        if the other process ended without making it.
        """
        left = list(items)
        wait = False
        while left:
            mine: list[T] = []
            taken: list[int] = []
            try:
                others = []
                for item in left:
                    place = _place(kind, recipe_of(item))
                    # claims held while waiting could wait for each other in a circle: wait for one at a time
                    if _lock(self.root / CLAIMS, place, wait and not taken):
                        taken.append(place)
                        mine.append(item)
                    else:
                        others.append(item)
                left = others
                missing = [item for item in mine if not is_there(item)]
                self.tally.reused += (len(mine) - len(missing)) if wait else 0
                if missing:
                    yield missing
            finally:
                for place in taken:
                    _unlock(self.root / CLAIMS, place)
            wait = True

    def _take_over(self, kind: str, recipe: Recipe, suffix: str) -> None:
        """Rename an artifact of the study from before keys named the data set."""
        earlier = {name: value for name, value in recipe.items() if name != "dataset"}
        kept = self.path(kind, earlier, suffix)
        if kept.exists() and self.use_of(self.study) in self.uses().get(
            kept.relative_to(self.root).as_posix(), ()
        ):
            link_file(kept, self.path(kind, recipe, suffix))

    # --- uses: who needs which file ---

    def note_use(self, kind: str, recipe: Recipe, suffix: str, target: str | Path | None = None) -> None:
        """Record that the study uses an artifact, at ``target`` or without publishing it."""
        kept = self.path(kind, recipe, suffix).relative_to(self.root).as_posix()
        self.note([(kept, self.use_of(self.study if target is None else target))])

    def use_of(self, target: str | Path) -> Use:
        """The study's use of a file for ``target``; for the study's folder, the use without a target."""
        study = os.path.abspath(self.study)
        return Use(study, os.path.relpath(os.path.abspath(target), study))

    def note(self, uses: Sequence[tuple[str, Use]]) -> None:
        """Append records of use to a file of this process, so that processes do not disturb each other."""
        if self._record is None:
            name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.jsonl"
            self._record = self.root / USES / name
            self._record.parent.mkdir(parents=True, exist_ok=True)
        now, root = time.time(), os.path.abspath(self.root)
        with self._record.open("a", encoding="utf-8") as stream:
            for kept, use in uses:
                # relative to the store, so that records stay true when results are moved
                study = os.path.relpath(use.study, root)
                record = {"kept": kept, "time": now, "study": study, "target": use.target}
                stream.write(json.dumps(record) + "\n")

    def uses(self, live: Callable[[Use], bool] = lambda use: use.is_live) -> dict[str, set[Use]]:
        """Live uses by file of the store, relative to its root; a target uses the newest file that it got."""
        found: dict[str, set[Use]] = {}
        for kept, use, _ in self._records():
            if live(use):
                found.setdefault(kept, set()).add(use)
        return found

    def _records(self) -> list[tuple[str, Use, float]]:
        """Newest record of every use."""
        newest: dict[tuple[Use, str], tuple[float, str]] = {}
        root = os.path.abspath(self.root)
        for path in sorted((self.root / USES).glob("*.jsonl")):
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    record = json.loads(line)
                except ValueError:
                    continue  # the last line of a process that was killed
                study = os.path.normpath(os.path.join(root, record["study"]))
                use, kept, when = Use(study, record["target"]), record["kept"], record["time"]
                key = (use, kept if use.target == WHOLE_STUDY else "")
                if key not in newest or newest[key][0] <= when:
                    newest[key] = (when, kept)
        return [(kept, use, when) for (use, _), (when, kept) in newest.items()]

    def compact(self) -> None:
        """Rewrite the records of uses as one file with the newest of each; no other process may write any."""
        earlier = sorted((self.root / USES).glob("*.jsonl"))
        records = self._records()
        self._record = None
        self.note([(kept, use) for kept, use, _ in sorted(records, key=lambda record: record[2])])
        for path in earlier:
            path.unlink(missing_ok=True)

    def artifacts(self) -> Iterator[Path]:
        """Yield all files of the store that are artifacts."""
        for folder in sorted(self.root.iterdir()) if self.root.is_dir() else ():
            if folder.is_dir() and folder.name != USES:
                yield from sorted(path for path in folder.rglob("*") if path.is_file())


# Claims are locks on single bytes of one file, at a place that the recipe's hash gives. A process keeps the
# file open: closing it would release all its locks.

_open_claims: dict[Path, int] = {}


def _place(kind: str, recipe: Recipe) -> int:
    return int(canonical_hash([kind, dict(recipe)])[:15], 16)


def _lock(file: Path, place: int, wait: bool) -> bool:
    key = file.absolute()
    if key not in _open_claims:
        key.parent.mkdir(parents=True, exist_ok=True)
        _open_claims[key] = os.open(key, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(_open_claims[key], fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, place)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True


def _unlock(file: Path, place: int) -> None:
    try:
        fcntl.lockf(_open_claims[file.absolute()], fcntl.LOCK_UN, 1, place)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
