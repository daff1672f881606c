"""The environment: one set of hashed pins for ``make`` and conda; the set-up names what is missing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ("requirements.lock", "bootstrap.lock")
DESIGN_CARD = [
    "snakemake",
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "open_clip_torch",
    "clip-retrieval",
    "pyarrow",
    "pytest",
]


def lock_entries(name: str) -> list[tuple[Requirement, int]]:
    """Entries of a lock file, each with its number of hashes."""
    text = "\n".join(
        line
        for line in (ROOT / "envs" / name).read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    )
    entries = [entry.split(" --hash=sha256:") for entry in re.sub(r"\s*\\\n\s*", " ", text).splitlines()]
    return [(Requirement(pin), len(hashes)) for pin, *hashes in entries]


@pytest.fixture(scope="module")
def pins() -> dict[str, list[str]]:
    """Versions by name in requirements.lock; several where markers choose one."""
    found: dict[str, list[str]] = {}
    for requirement, _ in lock_entries("requirements.lock"):
        found.setdefault(canonicalize_name(requirement.name), []).append(
            str(requirement.specifier).removeprefix("==")
        )
    return found


@pytest.mark.parametrize("lock", LOCKS)
def test_every_entry_of_a_lock_is_pinned_and_hashed(lock):
    loose = [
        str(requirement)
        for requirement, hashes in lock_entries(lock)
        if not hashes or not re.fullmatch(r"==[^,*]+", str(requirement.specifier))
    ]
    assert loose == []


@pytest.mark.parametrize("file", [*LOCKS, "conda.yaml"])
def test_no_file_of_pins_names_an_address_or_a_folder_of_some_machine(file):
    text = (ROOT / "envs" / file).read_text(encoding="utf-8")
    assert (
        re.findall(
            r"\S*://\S*|--(?:extra-)?index-url.*|--find-links.*|(?<![\w.])/(?:home|root|tmp|work)\S*", text
        )
        == []
    )


def test_every_dependency_is_pinned_inside_its_range(pins):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        Requirement(line) for line in [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    ]
    wrong = [
        f"{requirement}: {pins.get(canonicalize_name(requirement.name), 'not in the lock')}"
        for requirement in wanted
        if not (found := pins.get(canonicalize_name(requirement.name)))
        or not all(map(requirement.specifier.contains, found))
    ]
    assert wrong == [], "run `make lock`"


@pytest.mark.parametrize("name", DESIGN_CARD)
def test_the_lock_holds_the_packages_that_the_study_is_built_on(pins, name):
    assert canonicalize_name(name) in pins


def test_packages_without_a_wheel_are_built_with_the_setuptools_that_is_installed(pins):
    assert [
        str(requirement.specifier)
        for requirement, _ in lock_entries("bootstrap.lock")
        if requirement.name == "setuptools"
    ] == [f"=={version}" for version in pins["setuptools"]]


def test_the_conda_file_is_what_its_script_makes_of_the_lock():
    made = subprocess.run(
        [sys.executable, ROOT / "envs" / "make_conda.py"], check=True, capture_output=True, text=True
    ).stdout
    assert (ROOT / "envs" / "conda.yaml").read_text(encoding="utf-8") == made, "run `make lock`"


def test_the_conda_file_has_the_pins_and_markers_of_the_lock():
    import yaml

    conda = yaml.safe_load((ROOT / "envs" / "conda.yaml").read_text(encoding="utf-8"))
    assert [str(Requirement(pin)) for pin in conda["dependencies"][-1]["pip"]] == [
        str(requirement) for requirement, _ in lock_entries("requirements.lock")
    ]


@pytest.fixture
def bare_tree(tmp_path: Path) -> Path:
    """A folder with the files that the set-up reads, without environment; its ``bin`` is the whole PATH."""
    shutil.copytree(ROOT / "envs", tmp_path / "envs")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "bin").mkdir()
    for tool in ("bash", "dirname", "grep"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    return tmp_path


def set_up(tree: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = (
        {name: value for name, value in os.environ.items() if name != "PYTHON"}
        | {"PATH": str(tree / "bin")}
        | variables
    )
    return subprocess.run(
        [tree / "bin" / "bash", tree / "envs" / "setup.sh"],
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def fake_python(path: Path, script: str) -> None:
    path.write_text(f"#!{shutil.which('bash')}\n{script}\n")
    path.chmod(0o755)


def test_set_up_without_a_usable_python_names_each_one_found_and_what_is_needed(bare_tree):
    fake_python(bare_tree / "bin" / "python3.12", "exit 127")
    fake_python(bare_tree / "bin" / "python3.11", "[[ $2 == *ensurepip* ]] && exit 1; echo 3.11.2")
    fake_python(bare_tree / "bin" / "python3", "echo 3.10.13")
    done = set_up(bare_tree)
    assert done.returncode == 1
    assert "3.11 or 3.12 is needed" in done.stderr
    assert f"{bare_tree}/bin/python3.12: does not run" in done.stderr
    assert f"{bare_tree}/bin/python3.11: is 3.11.2 without the venv module" in done.stderr
    assert f"{bare_tree}/bin/python3: is 3.10.13" in done.stderr
    assert not (bare_tree / ".venv").exists()


def test_set_up_tries_the_named_python_only(bare_tree):
    fake_python(bare_tree / "bin" / "other", "echo 3.13.0")
    done = set_up(bare_tree, PYTHON=str(bare_tree / "bin" / "other"))
    assert done.returncode == 1
    assert f"{bare_tree}/bin/other: is 3.13.0" in done.stderr
