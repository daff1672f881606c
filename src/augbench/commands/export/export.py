"""Write a training set into a folder: images in one of the formats, a data card, and the classes' names.

Everything is written into a hidden folder beside the target, which is renamed at the end, so the target is
complete or missing. An export that was stopped leaves the hidden folder. The next one of the same images
takes the finished files in it and writes the others; one of other images replaces it.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import PIL
import pyarrow as pa
import pyarrow.parquet as pq

from augbench import __version__
from augbench.artifacts.claims import Claims
from augbench.commands.export.best import best_of
from augbench.commands.export.card import card
from augbench.commands.export.contents import ADDED, REAL, Contents, Picture, needed_files, open_contents
from augbench.commands.export.formats import FORMATS, RECORDS, Pictures, has_finished
from augbench.config.study import Study
from augbench.data.classes import folder_of
from augbench.errors import UserError, some
from augbench.files import canonical_hash, explained_disk_errors, sha256_file, write_text
from augbench.plan.paths import Plan
from augbench.progress import track

BEST = "best"
SPLITS = ("train", "val", "test")
MARK = ".augbench-export"  # a file in unfinished folders, which says that they may be replaced
KEY = "key"  # a file of RECORDS, which says what the folder is an export of
LISTED = "addresses.parquet"
SPARE = 1.1  # of the estimated size, for metadata and rounding


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for, except the folder."""

    configfiles: tuple[str, ...]
    row: str
    run: int
    format: str
    splits: tuple[str, ...]
    addresses: bool

    @property
    def config_arguments(self) -> str:
        """The command's arguments that name the config; absolute paths by their last part."""
        names = [Path(path).name if Path(path).is_absolute() else path for path in self.configfiles]
        return f"--configfile {shlex.join(names)}"

    @property
    def command(self) -> str:
        """The command without the folder that the user named."""
        more = "" if self.splits == ("train",) else f" --splits {','.join(self.splits)}"
        listing = " --addresses" if self.addresses else ""
        return (
            f"augbench export {self.config_arguments} --row {shlex.quote(self.row)} --run {self.run} --to DIR"
            f" --format {self.format}{more}{listing}"
        )


def export(study: Study, wanted: Wanted, target: Path) -> tuple[bool, str]:
    """Write the training set to ``target``; return whether anything was written, and a line that says what.

    Nothing is written if the row is ``best`` and the statistics support none.

    Raises
    ------
    UserError
        The study has no such row, run or split, is not finished, or a file is damaged; the folder is not
        empty or in use, or the disk too small.
    """
    folded = Plan(study, ())
    _check(folded, wanted, target)
    row, reason = wanted.row, ""
    if row == BEST:
        _require([files["csv"] for files in (folded.table1, folded.contrasts, folded.statistics)], wanted)
        best = best_of(folded)
        if best.row is None:
            return False, f"augbench: {best.reason}; nothing is written"
        row, reason = best.row, best.reason
    plan = folded.unfolded
    _require(needed_files(plan, row, wanted.run, wanted.splits), wanted)
    contents = open_contents(plan, row, wanted.run, wanted.splits, wanted.addresses)
    _require(_files_of(contents), wanted)
    with _new_folder(target, _key(contents, wanted)) as folder:
        linking = folder if wanted.format == "imagefolder" else None
        _check_disk(contents.bytes_needed(linking) - _bytes_of(folder), folder, target)
        _write(contents, wanted, folder)
        text = card(contents, wanted.format, wanted.command, reason)
        (folder / "README.md").write_text(text, encoding="utf-8")
    return True, _summary(contents, target, reason)


def _check(plan: Plan, wanted: Wanted, target: Path) -> None:
    study = plan.study
    if wanted.row != BEST and wanted.row not in plan.unfolded.study.methods:
        draws = study.dataset.draws
        more = f"; of further draws: {{row}}_draw1 to {{row}}_draw{draws - 1}" if draws > 1 else ""
        raise UserError("--row", repr(wanted.row), f"allowed: {BEST}, {', '.join(study.methods)}{more}")
    if not 0 <= wanted.run < len(plan.runs):
        raise UserError("--run", wanted.run, f"allowed: 0 to {len(plan.runs) - 1}")
    unknown = [name for name in wanted.splits if name not in SPLITS]
    if unknown or len({*wanted.splits}) < len(wanted.splits):
        raise UserError(
            "--splits", repr(",".join(wanted.splits)), f"allowed: any of {','.join(SPLITS)}, each once"
        )
    if target.is_symlink() and not target.exists():
        where = str(target.readlink())
        raise UserError(
            "--to", f"{str(target)!r}, a link to {where!r}, which is missing", "make it, or remove the link"
        )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError("--to", f"{str(target)!r}, not empty", "allowed: a new or an empty folder")


def _require(paths: list[str], wanted: Wanted) -> None:
    if missing := [path for path in paths if not Path(path).is_file()]:
        raise UserError(
            some(missing, most=3),
            "missing, because the study is not finished or has changed",
            f"finish it: augbench run {wanted.config_arguments}",
        )


def _files_of(contents: Contents) -> list[str]:
    """Shards of the set, and the lists of its retrieved images that go out as addresses."""
    plan, shards = contents.plan, set[str]()
    if contents.added is not None:
        shards = {*contents.added.column("path").to_pylist()}
    listed = contents.listed
    pools = {path.split("/")[1] for path in listed.column("path").to_pylist()} if listed is not None else ()
    return [*(plan.path(path) for path in sorted(shards)), *(plan.manifest(pool) for pool in sorted(pools))]


def _key(contents: Contents, wanted: Wanted) -> str:
    """Hash of what shapes an export's images and their files: command, config, manifests, libraries."""
    plan, row = contents.plan, contents.row
    shaping = {*needed_files(plan, row, wanted.run, wanted.splits)} - {plan.table1["csv"]}
    return canonical_hash(
        {
            "wanted": [row, wanted.run, wanted.format, wanted.splits, wanted.addresses],
            "study": plan.study.model_dump(mode="json"),
            "files": {path: sha256_file(path) for path in sorted(shaping)},
            "versions": [__version__, pa.__version__, PIL.__version__],
        }
    )


@contextmanager
def _new_folder(target: Path, key: str) -> Iterator[Path]:
    """Yield a folder beside ``target``, which takes its name if the block succeeds.

    If the block fails, the folder stays if files in it are finished, and vanishes otherwise. A folder that an
    export with the same ``key`` left is continued.

    Raises
    ------
    UserError
        Another export is writing there, or the folder beside is not an export's.
    """
    target = target.absolute()
    target = target.resolve() if target.exists() else target
    folder = target.with_name(f".{target.name}.unfinished")
    mark = folder / MARK
    if folder.exists() and not mark.is_file():
        raise UserError(str(folder), "not an unfinished export", "move it away")
    with explained_disk_errors(target.parent):
        folder.mkdir(parents=True, exist_ok=True)
        if not Claims(mark).take(0, wait=False):
            raise UserError("--to", f"{str(target)!r}, which another export is writing", "wait for its end")
        mark.touch()
        _clear(folder, key)
        try:
            yield folder
            shutil.rmtree(folder / RECORDS)
            mark.unlink()
            folder.replace(target)
        except BaseException:
            if not has_finished(folder):
                shutil.rmtree(folder, ignore_errors=True)
            raise


def _clear(folder: Path, key: str) -> None:
    """Remove what a killed export left half; everything, if it was of another ``key``."""
    known = folder / RECORDS / KEY
    if known.is_file() and known.read_text(encoding="utf-8") == key:
        for place in (folder, folder / RECORDS):
            for path in place.glob(".*.tmp*"):
                path.unlink()
        return
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != MARK:
            path.unlink()
    write_text(known, key)


def _bytes_of(folder: Path) -> int:
    """Size of a folder's files, without links to others."""
    found = (path.stat() for path in folder.rglob("*") if path.is_file())
    return sum(one.st_size for one in found if one.st_nlink == 1)


def _check_disk(needed: int, folder: Path, target: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < SPARE * needed:
        raise UserError(
            "--to",
            f"{free / 1e9:.2f} GB are free at {str(target)!r}",
            f"the export needs about {SPARE * needed / 1e9:.2f} GB: free space, or choose another folder",
        )


def _write(contents: Contents, wanted: Wanted, folder: Path) -> None:
    names = [folder_of(info.class_id) for info in contents.classes]

    def begin(split: str, first: int) -> Iterator[Picture]:
        images = contents.pictures(split, first)
        return track(images, f"export {split}", "image", contents.size(split), done=first)

    sets = {split: Pictures(contents.size(split), partial(begin, split)) for split in wanted.splits}
    FORMATS[wanted.format](folder, sets, contents.classes)
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    if contents.listed is not None and "train" in wanted.splits:
        pq.write_table(contents.addresses(), folder / LISTED)


def _summary(contents: Contents, target: Path, reason: str) -> str:
    """Say on one line what was written; before it, why the row was chosen."""
    parts = []
    for split in contents.splits:
        counts = contents.counts(split)
        real, added = (sum(counts[kind].values()) for kind in (REAL, ADDED))
        listed = 0 if contents.listed is None or split != "train" else contents.listed.num_rows
        more = f" and {added:,} added" if added else ""
        some_listed = f" ({listed:,} of them as addresses)" if listed else ""
        parts.append(f"{split}: {real:,} real{more}{some_listed}")
    label = contents.plan.study.label(contents.row)
    first = f"best: {contents.row}; {reason}\n" if reason else ""
    return f"{first}{target}: {label}, set {contents.run}; images of {', '.join(parts)}"
