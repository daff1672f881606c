"""What made a study's results: config, code, packages, machines, seeds, models, times.

Flows in: what each job that computed leaves about its surroundings, the resolved config, the models' fingerprints, Snakemake's benchmarks. Flows out:
``results/{study}/provenance.json``, which the report shows and nothing else reads: another revision of the code alone remakes nothing.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from augbench import __version__
from augbench.config.study import Study
from augbench.files import PROJECT, canonical_hash, read_json, sha256_file, write_json
from augbench.plan.jobs import read_seconds
from augbench.seeds import classifier_seed

RECORDS = ".provenance"


def revision(project: Path = PROJECT) -> str | None:
    """What ``git describe --always --dirty`` says of the clone that this code runs from; None where it is no clone, or git is not there."""
    if not (project / ".git").exists():  # a repository further up is another project's
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
    """The installed versions of all packages that pyproject.toml names; None for those that are missing."""
    required = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "dependencies"
    ]
    return {name: _version(name) for name in (Requirement(line).name for line in required)}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    """The CPU's name, as Linux gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def _gpus() -> list[str]:
    """The GPUs of this process, if it has used any."""
    if "torch" not in sys.modules:
        return []
    import torch

    return (
        [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        if torch.cuda.is_initialized()
        else []
    )


def surroundings() -> dict[str, Any]:
    """What this process runs on and with: ``version`` and ``revision`` of our code, ``python``, ``platform``, ``cpu``, ``gpus``, ``packages``."""
    return {
        "version": __version__,
        "revision": revision(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "gpus": _gpus(),
        "packages": package_versions(),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _stage(path: Path, folder: Path) -> str:
    """The stage that a file in the folder of logs or benchmarks belongs to."""
    return path.relative_to(folder).parts[0].partition(".")[0]


def record_surroundings(study_folder: Path, log: Path) -> None:
    """Keep the surroundings of a job that has computed something; jobs of one stage in equal surroundings leave one record.

    Parameters
    ----------
    log : Path
        The job's log, below ``logs/`` of the study's folder, which says the stage.
    """
    record = {"stage": _stage(log, study_folder / "logs"), **surroundings()}
    path = study_folder / RECORDS / f"{canonical_hash(record)}.json"
    if not path.exists():
        write_json(path, {**record, "first": _now()})


def write_provenance(
    study: Study, study_folder: Path, config: str | Path, models: Iterable[str | Path], out: str | Path
) -> None:
    """Write what made the results of a study.

    ``computed`` lists the surroundings of the jobs that computed, and in which stages; where there are several, the results are mixed. The
    surroundings at the top level are those of this process, which made the tables. ``job_seconds`` sums, by stage, the last run of each job.

    Parameters
    ----------
    config : path
        The resolved config.
    models : iterable of path
        Fingerprints.
    """
    stages: dict[str, dict[str, str]] = defaultdict(dict)
    computed: dict[str, dict[str, Any]] = {}
    for record in map(read_json, sorted((study_folder / RECORDS).glob("*.json"))):
        stage, first = record.pop("stage"), record.pop("first")
        key = canonical_hash(record)
        computed[key] = record
        stages[key][stage] = first
    seconds: dict[str, float] = defaultdict(float)
    benchmarks = study_folder / "benchmarks"
    for path in sorted(benchmarks.rglob("*.tsv")):
        seconds[_stage(path, benchmarks)] += read_seconds(path)[0]
    fingerprints = {Path(path).stem: read_json(path) for path in models}
    write_json(
        out,
        {
            "study": study.study,
            "written": _now(),
            "config": {"file": str(config), "sha256": sha256_file(config)},
            **surroundings(),
            "computed": [{**record, "stages": stages[key]} for key, record in computed.items()],
            "seeds": {
                "study": study.seed,
                "classifiers": {
                    str(run): classifier_seed(study.seed, run) for run in range(study.augmentation.resamples)
                },
            },
            "models": {
                name: {key: value for key, value in model.items() if key != "files"}
                for name, model in fingerprints.items()
            },
            "job_seconds": {stage: round(total, 1) for stage, total in seconds.items()},
        },
    )
