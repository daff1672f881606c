"""Compare finished studies: write tables and figure of a comparison, and return what the terminal shows."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from augbench import __version__
from augbench.commands.compare import configs, differences, tables
from augbench.commands.compare.answer import answer_of
from augbench.commands.compare.differences import (
    build_rows,
    errors_of,
    of_one_draw,
    pairs_of,
    run_differences,
    unpaired_because,
)
from augbench.commands.compare.studies import (
    RESULTS,
    Finished,
    files_of,
    folders_of,
    hits_of,
    needed_files,
    open_studies,
)
from augbench.errors import UserError, some
from augbench.files import explained_disk_errors, read_json, sha256_file, write_json
from augbench.report.tables.statistics import spread_note
from augbench.runtime.provenance import now, surroundings
from augbench.seeds import derive_seed

FILES = {
    "compare": "compare.csv",
    "differences": "differences.csv",
    "config": "config.csv",
    "md": "table.md",
    "pdf": "figure.pdf",
    "png": "figure.png",
    "provenance": "provenance.json",
}
LONGEST = 150  # characters of a folder's name that lists all studies


def default_folder(given: Sequence[str]) -> Path:
    """``results/compare/{a}-{b}``; if too long for a folder, the first name and the number of the others."""
    names = [folder.name for folder in folders_of(given)]
    joined = "-".join(names)
    short = f"{names[0][:LONGEST]}-and-{len(names) - 1}-more"
    return RESULTS / "compare" / (joined if len(joined) <= LONGEST else short)


def made_in(folder: Path) -> dict[str, Path]:
    """Files of a comparison, by kind."""
    return {kind: folder / name for kind, name in FILES.items()}


def inputs_of(given: Sequence[str]) -> list[Path]:
    """Files that a comparison of these studies reads, for the workflow; raises like :func:`compare`."""
    return [path for folder in folders_of(given) for path in needed_files(folder)]


def wanted_of(config: Mapping[str, Any]) -> tuple[list[str], Path]:
    """Studies and folder that the config of ``workflow/compare.smk`` asks for.

    Raises
    ------
    UserError
        The section ``compare`` is missing, or one of its keys is wrong.
    """
    section = config.get("compare")
    if not isinstance(section, Mapping):
        raise UserError("compare", repr(section), "allowed: a section with the key studies")
    if unknown := [name for name in section if name not in ("studies", "out")]:
        raise UserError(f"compare.{unknown[0]}", "no such key", "allowed: studies, out")
    studies, out = section.get("studies"), section.get("out")
    if not isinstance(studies, list) or not all(isinstance(study, str) for study in studies):
        raise UserError("compare.studies", repr(studies), "allowed: a list of studies")
    if out is not None and not isinstance(out, str):
        raise UserError("compare.out", repr(out), "allowed: a folder")
    return studies, default_folder(studies) if out is None else Path(out)


def compare(given: Sequence[str], out: Path | None = None) -> tuple[Path, str]:
    """Write a comparison of finished studies to ``out``; return its folder, and the tables as text.

    Parameters
    ----------
    given : sequence of str
        Studies: names, folders of results, or configs that name them. Every one is compared with the first.
    out : Path, optional
        Default: :func:`default_folder`.

    Raises
    ------
    UserError
        As :func:`augbench.commands.compare.studies.open_studies`; or the disk is full.
    """
    studies = open_studies(given)
    folder = default_folder(given) if out is None else out
    hits = hits_of(studies)
    differing = configs.differing(studies)
    factor = configs.factor_of(differing)
    pairs = pairs_of(studies)
    tests = build_rows(studies, hits, pairs, derive_seed(studies[0].study.seed, "bootstrap"))
    command = shlex.join(["augbench", "compare", *given])
    found = tables.Comparison(
        studies=studies,
        keys=configs.key_rows(differing),
        warnings=[*configs.warnings_of(studies, differing), *_draw_warnings(studies)],
        pairing=_pairing(studies),
        rows=tables.build_rows(studies, factor),
        tests=tests,
        pairs=pairs,
        spreads=_spreads(studies, tests),
        answer=answer_of(studies, pairs, tests),
        made_by=f"Made by {command} (augbench {__version__}); provenance.json says from which files.",
    )
    outs = made_in(folder)
    with explained_disk_errors(folder):
        tables.write_tables(found, outs)
        _draw(outs, "" if factor is None else factor.key)
        write_json(outs["provenance"], _provenance(studies, command))
    return folder, tables.render_text(found)


def _draw(outs: dict[str, Path], key: str) -> None:
    from augbench.commands.compare.figure import write_figure

    write_figure(outs["compare"], {kind: outs[kind] for kind in ("pdf", "png")}, key)


ONE_DRAW = "The tests do not cover other draws of the training images; dataset.draws does"


def _draw_warnings(studies: Sequence[Finished]) -> list[str]:
    """A sentence on studies that have another, single draw of the training images than the first."""
    first = studies[0]
    others = [other.name for other in studies[1:] if of_one_draw(first, other)]
    if not others:
        return []
    return [
        f"{some([first.name, *others])} have one draw of the training images each, and not the same. "
        f"{ONE_DRAW}."
    ]


def _pairing(studies: Sequence[Finished]) -> list[str]:
    """A note per study: whether its runs are paired with the first study's."""
    first, notes = studies[0], []
    for other in studies[1:]:
        why = unpaired_because(first, other)
        notes.append(
            f"{other.name} and {first.name} are not paired, because {why}: runs are independent (Welch's t "
            "test)." + (f" {ONE_DRAW}." if of_one_draw(first, other) else "")
            if why
            else f"{other.name} and {first.name} are paired by run: run r has the same training images, seeds and"
            f" test images in both.{_without_partner(first, other)}"
        )
    return notes


def _without_partner(first: Finished, other: Finished) -> str:
    """A sentence on runs that only one of two paired studies has; empty if there are none."""
    runs = [{run for own in study.accuracies.values() for run in own} for study in (first, other)]
    left = [
        f"{len(own - others)} of {len(own)} in {study.name}"
        for study, own, others in zip((first, other), runs, reversed(runs), strict=True)
        if own - others
    ]
    return f" Runs that only one of them has are left out of these tests: {', '.join(left)}." if left else ""


def _spreads(studies: Sequence[Finished], tests: Sequence[differences.Row]) -> list[str]:
    """Notes on the spread that the changes of contrasts are measured against."""
    first = studies[0]
    if first.study.report.error != "pooled" or all(test.kind != differences.CHANGE for test in tests):
        return []
    notes = []
    for other in studies[1:]:
        paired = not unpaired_because(first, other)
        errors = errors_of(first, other, paired)
        samples = [run_differences(first, other)] if paired else [other.accuracies, first.accuracies]
        names = [f"{other.name} - {first.name}"] if paired else [other.name, first.name]
        notes += [
            f"{name} (report.error: pooled): {spread_note(sample, error)}"
            for name, sample, error in zip(names, samples, errors, strict=True)
        ]
    return list(dict.fromkeys(notes))


def _provenance(studies: Sequence[Finished], command: str) -> dict[str, object]:
    """What made the comparison: code, packages, and the studies' files with the code that made them."""
    made = {study.name: study.folder / "provenance.json" for study in studies}
    return {
        "command": command,
        "written": now(),
        **surroundings(),
        "studies": {
            study.name: {
                "folder": str(study.folder),
                "files": {
                    str(path): sha256_file(path)
                    for path in files_of(study.folder, study.study)
                    if path.suffix in (".csv", ".yaml")
                },
                "made_by": {
                    key: read_json(made[study.name]).get(key) for key in ("version", "revision", "written")
                }
                if made[study.name].is_file()
                else None,
            }
            for study in studies
        },
    }
