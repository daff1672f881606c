"""Provenance of a study's results: config, code, packages, machines, seeds, models, times.

Input: the records that computing jobs leave, the resolved config, the models' fingerprints, Snakemake's
benchmarks. Output: ``results/{study}/provenance.json``. Only the report reads it, so another revision of
the code remakes nothing (provenance).
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from augbench import __version__
from augbench.artifacts.store import Store
from augbench.config.study import Study
from augbench.files import PROJECT, canonical_hash, read_json, sha256_file, write_json
from augbench.plan.jobs import read_seconds
from augbench.seeds import classifier_seed

RECORDS = ".provenance"


def revision(project: Path = PROJECT) -> str | None:
    """Return ``git describe --always --dirty`` of this code's clone; None without a clone or without git."""
    if not (project / ".git").exists():  # a repository in a parent folder is another project's
        return None
    command = ["git", "-C", str(project), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        )
    except OSError:
        return None
    return done.stdout.strip() or None


def package_versions() -> dict[str, str | None]:
    """Return the installed version of every package that pyproject.toml names; None for missing packages."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = project["dependencies"]
    return {name: _version(name) for name in (Requirement(line).name for line in required)}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    """Return the CPU's name from ``/proc/cpuinfo``, or else the machine type."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _gpus() -> list[str]:
    """List the names of this process's GPUs, if it has used any."""
    if "torch" not in sys.modules:
        return []
    import torch

    if not torch.cuda.is_initialized():
        return []
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def surroundings() -> dict[str, Any]:
    """Describe the software and hardware of this process.

    The keys are ``version`` and ``revision`` (of augbench), ``python``, ``platform``, ``cpu``, ``gpus`` and
    ``packages``.
    """
    return {
        "version": __version__,
        "revision": revision(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "gpus": _gpus(),
        "packages": package_versions(),
    }


def now() -> str:
    """The time in UTC, in seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _stage(path: Path, folder: Path) -> str:
    """Return the stage of a file in the folder of logs or benchmarks."""
    return path.relative_to(folder).parts[0].partition(".")[0]


def record_surroundings(study_folder: Path, log: Path) -> None:
    """Record the surroundings of a job that has computed something.

    Jobs of one stage in equal surroundings leave one record.

    Parameters
    ----------
    log : Path
        The job's log, below ``logs/`` of the study's folder. Its path names the stage.
    """
    record = {"stage": _stage(log, study_folder / "logs"), **surroundings()}
    path = study_folder / RECORDS / f"{canonical_hash(record)}.json"
    if not path.exists():
        write_json(path, {**record, "first": now()})


def _computed(study_folder: Path) -> list[dict[str, Any]]:
    """Surroundings in which a study's jobs computed, each with its stages and when first seen."""
    stages: dict[str, dict[str, str]] = defaultdict(dict)
    computed: dict[str, dict[str, Any]] = {}
    for record in map(read_json, sorted((study_folder / RECORDS).glob("*.json"))):
        stage, first = record.pop("stage"), record.pop("first")
        key = canonical_hash(record)
        computed[key] = record
        stages[key][stage] = first
    return [{**record, "stages": stages[key]} for key, record in computed.items()]


def shared_files(store: Store) -> dict[str, int]:
    """Number of files that the store's study shares with each other study, by the other's folder."""
    mine = store.uses.of().study
    shared: Counter[str] = Counter()
    for uses in store.uses.live().values():
        users = {use.study for use in uses}
        if mine in users:
            shared.update(users - {mine})
    return dict(shared)


def write_provenance(
    study: Study,
    store: Store,
    config: str | Path,
    models: Iterable[str | Path],
    out: str | Path,
) -> None:
    """Write the provenance of a study's results.

    ``computed`` lists the surroundings in which jobs computed, each with its stages. More than one entry
    means that results come from different surroundings. The surroundings at the top level are those of this
    process, which runs after the tables. ``job_seconds`` sums, by stage, the last run of each job.
    ``shared`` names the studies that use files of the store with this one, and in which surroundings their
    jobs computed: a shared file may have been made by either.

    Parameters
    ----------
    store : Store
        The store as this study uses it.
    config : path
        The resolved config.
    models : iterable of path
        The models' fingerprints.
    """
    study_folder = store.study
    seconds: dict[str, float] = defaultdict(float)
    benchmarks = study_folder / "benchmarks"
    for path in sorted(benchmarks.rglob("*.tsv")):
        seconds[_stage(path, benchmarks)] += read_seconds(path)[0]
    fingerprints = {Path(path).stem: read_json(path) for path in models}
    write_json(
        out,
        {
            "study": study.study,
            "written": now(),
            "config": {"file": str(config), "sha256": sha256_file(config)},
            **surroundings(),
            "computed": _computed(study_folder),
            "shared": {
                os.path.relpath(folder, study_folder.parent): {
                    "files": files,
                    "computed": _computed(Path(folder)),
                }
                for folder, files in shared_files(store).items()
            },
            "seeds": {
                "study": study.seed,
                "classifiers": {
                    str(draw * study.augmentation.resamples + run): classifier_seed(
                        study.seed_of_draw(draw), run
                    )
                    for draw in range(study.dataset.draws)
                    for run in range(study.augmentation.resamples)
                },
            },
            "models": {
                name: {key: value for key, value in model.items() if key != "files"}
                for name, model in fingerprints.items()
            },
            "job_seconds": {stage: round(total, 1) for stage, total in seconds.items()},
        },
    )
