"""Records of use: which study needs which file of the store.

Link counts would not tell, since some file systems have no hard links. Each process appends to a file of its
own, so that processes do not disturb each other.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from augbench.files import explained_disk_errors

FOLDER = "uses"
WHOLE_STUDY = "."  # target of an artifact that a study needs but does not publish
UNFINISHED = ".unfinished"  # target of one that only an unfinished study needs; no such file exists
NOTHING = ""  # file of a target that needs none any more
FINISHED = "tables/table1.csv"  # a study without it may still ask for what it once used


class Use(NamedTuple):
    """One use of a file of the store: by which study's folder, for which file in it."""

    study: str  # absolute path of the study's folder
    target: str  # relative to it, or WHOLE_STUDY or UNFINISHED

    @property
    def is_live(self) -> bool:
        """Whether the target still exists."""
        return Path(self.study, self.target).exists()


Record = tuple[str, Use, float]  # file of the store, its use, and when that began


class Uses:
    """The records of the store in ``root``, as the study in the folder ``study`` sees and writes them."""

    def __init__(self, root: Path, study: Path) -> None:
        self.root, self.study = root, study
        self._file: Path | None = None

    def of(self, target: str | Path | None = None) -> Use:
        """The study's use of a file for ``target``; without one, for the study as a whole."""
        study = os.path.abspath(self.study)
        return Use(study, WHOLE_STUDY if target is None else os.path.relpath(os.path.abspath(target), study))

    def note(self, uses: Iterable[tuple[str, Use]]) -> None:
        """Record uses of files, which are named by their paths relative to the store.

        Raises
        ------
        UserError
            The store is not writable, or its disk is full.
        """
        now = time.time()
        self._write((kept, use, now) for kept, use in uses)

    def _write(self, records: Iterable[Record]) -> None:
        root = os.path.abspath(self.root)
        with explained_disk_errors(self.root):
            if self._file is None:
                name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.jsonl"
                self._file = self.root / FOLDER / name
                self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as stream:
                for kept, use, when in records:
                    # relative to the store, so that records stay true when results are moved
                    study = os.path.relpath(use.study, root)
                    record = {"kept": kept, "time": when, "study": study, "target": use.target}
                    stream.write(json.dumps(record) + "\n")

    def live(self, is_live: Callable[[Use], bool] = lambda use: use.is_live) -> dict[str, set[Use]]:
        """Live uses by file of the store, relative to its root; a target uses the newest file that it got."""
        found: dict[str, set[Use]] = {}
        for kept, use, _ in _newest(self._records()):
            if kept != NOTHING and is_live(use):
                found.setdefault(kept, set()).add(use)
        return found

    def needed(self, own: bool = True) -> dict[str, set[Use]]:
        """Live uses and those of unfinished studies, whose targets are gone while their jobs are made again.

        Parameters
        ----------
        own : bool
            If false, uses of this study count only while they are live.
        """
        is_unfinished, mine = cache(_is_unfinished), self.of().study
        return self.live(lambda use: use.is_live or ((own or use.study != mine) and is_unfinished(use.study)))

    def release(self, uses: Iterable[Use]) -> None:
        """Record that targets of an unfinished study need no file any more. Raises as :meth:`note`."""
        self.note((NOTHING, use) for use in uses)

    def note_links(self, links: Mapping[str | Path, str | Path]) -> None:
        """Record that the study has linked targets of its own to others, the keys. Raises as :meth:`note`."""
        mine = self.of().study
        files = {use.target: kept for kept, use, _ in _newest(self._records()) if use.study == mine}
        pairs = [
            (files.get(self.of(source).target, NOTHING), self.of(link)) for link, source in links.items()
        ]
        if found := [pair for pair in pairs if pair[0] != NOTHING]:
            self.note(found)

    def restore_times(self) -> None:
        """Give the study's targets that other studies use, too, the times at which this study got them.

        A target is a hard link, and Snakemake touches a job's outputs. A study that takes a file from the
        store therefore makes it newer than what other studies have made from it, and they would make that
        again. Files of other owners stay as they are.
        """
        records, mine = list(self._records()), self.of().study
        shared = {kept for kept, use, _ in records if use.study != mine and kept != NOTHING}
        targets: dict[str, list[Path]] = {}
        got: dict[str, float] = {}
        for kept, use, when in _newest(records):
            if use.study == mine and kept in shared:
                got[kept] = max(when, got.get(kept, 0.0))
                targets.setdefault(kept, []).append(Path(use.study, use.target))
        for kept, paths in targets.items():
            for path in paths:
                with suppress(OSError):  # gone, or of another owner
                    if path.is_file():
                        os.utime(path, (got[kept], got[kept]))

    def compact(self) -> None:
        """Rewrite the records as one file with the newest of each use; no other process may write any."""
        earlier = sorted((self.root / FOLDER).glob("*.jsonl"))
        records = sorted(_newest(self._records()), key=lambda record: record[2])
        self._file = None
        self._write(record for record in records if Path(record[1].study).exists())
        for path in earlier:
            path.unlink(missing_ok=True)

    def _records(self) -> Iterator[Record]:
        root = os.path.abspath(self.root)
        for path in sorted((self.root / FOLDER).glob("*.jsonl")):
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    record = json.loads(line)
                except ValueError:
                    continue  # the last line of a process that was killed
                study = os.path.normpath(os.path.join(root, record["study"]))
                yield record["kept"], Use(study, record["target"]), record["time"]


def _newest(records: Iterable[Record]) -> list[Record]:
    """The newest record of every use."""
    newest: dict[tuple[Use, str], tuple[float, str]] = {}
    for kept, use, when in records:
        key = (use, kept if use.target in (WHOLE_STUDY, UNFINISHED) else "")
        if key not in newest or newest[key][0] <= when:
            newest[key] = (when, kept)
    return [(kept, use, when) for (use, _), (when, kept) in newest.items()]


def _is_unfinished(study: str) -> bool:
    return Path(study).is_dir() and not Path(study, FINISHED).exists()
