"""Make the folder to bring to a machine without network: code, small data, wheels, and a README."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.day.preflight import MOST_MB, locked_versions
from benchmarks.day.runner import ROOT
from benchmarks.day.wheels import GROUPS, Wheel

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
# pip matches these exactly
PLATFORMS = tuple(
    f"manylinux{name}_x86_64"
    for name in ("_2_34", "_2_31", "_2_28", "_2_27", "_2_24", "_2_17", "2014", "_2_12", "2010", "_2_5", "1")
)
CODE = ("src/augbench", "benchmarks", "config")
DATA = ("resources/classes", "resources/models", "resources/prompts", "resources/mini")
FILES = ("envs/requirements.lock", "resources/throughput.yaml", "LICENSE")
LEFT_OUT = ("__pycache__", "*.pyc", "*.safetensors", "*.png", ".snakemake*")
README = """Figures of augbench for a GPU that one has for minutes: no network, nothing stays.

bring in:   copy this folder to the machine ({size:.1f} MB)
run:        python benchmarks/gpu_day.py --out OUT --minutes 9
take back:  the files of OUT: lines.jsonl, table.md, preflight.json, throughput.yaml

Run the same line again for what was left out; on another machine of the same kind, put lines.jsonl into its
OUT first. `--stage preflight` only looks at the machine. Use the Python that has torch (wheels are for
{pythons}); packages that it lacks are unpacked from wheels/.
"""


def pack(folder: Path, pythons: Sequence[str] = PYTHONS, wheels: Path | None = None) -> float:
    """Fill ``folder``, which must be new or empty; return its size in MB.

    Parameters
    ----------
    wheels : Path, optional
        Folder that has the wheels already; by default pip fetches them, with the lock's versions and hashes.

    Raises
    ------
    SystemExit
        The folder is not empty, wheels can't be fetched, or the result is larger than 60 MB.
    """
    if folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"--pack {folder}: not empty; give a new folder")
    with tempfile.TemporaryDirectory() as place:
        fetched = wheels or fetch(Path(place), pythons)
        (folder / "wheels").mkdir(parents=True)
        for path in needed(sorted(fetched.glob("*.whl")), pythons):
            shutil.copyfile(path, folder / "wheels" / path.name)
    for name in CODE + DATA:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns(*LEFT_OUT))
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    if size > MOST_MB:
        shutil.rmtree(folder)
        raise SystemExit(f"--pack {folder}: {size:.1f} MB; at most {MOST_MB}: ask for fewer --pythons")
    (folder / "README.txt").write_text(README.format(size=size, pythons=", ".join(pythons)))
    return size


def needed(wheels: Sequence[Path], pythons: Sequence[str]) -> list[Path]:
    """Return the wheels of the stages' packages that fit one of the Pythons."""
    packages = {package for group in GROUPS for package in group}
    versions = [_version(python) for python in pythons]
    found = [Wheel.of(path) for path in wheels]
    return [
        wheel.path
        for wheel in found
        if wheel.package in packages and any(wheel.fits(version) for version in versions)
    ]


def _version(python: str) -> tuple[int, int]:
    major, _, minor = python.partition(".")
    return int(major), int(minor)


def fetch(folder: Path, pythons: Sequence[str]) -> Path:
    """Fetch the wheels of all Pythons into ``folder``, with the lock's versions and hashes.

    By this Python's pip, or by the one that uv brings where there is none, as in set-up's environment.
    """
    pinned = locked_versions()
    packages = sorted(package for group in GROUPS for package in group if package in pinned)
    asked = folder / "wanted.txt"
    asked.write_text("\n".join(block(package) for package in packages) + "\n")
    for python in pythons:
        abi = "cp" + python.replace(".", "")
        command = [*pip(), "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--disable-pip-version-check", "--require-hashes", "--implementation", "cp"]
        command += ["--python-version", python, "--abi", abi, "--abi", "abi3", "--abi", "none"]
        command += [word for platform in PLATFORMS for word in ("--platform", platform)]
        done = subprocess.run([*command, "-r", str(asked), "-d", str(folder)], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"--pack: wheels for Python {python}: {done.stderr.strip()[-600:]}")
    return folder


def pip() -> list[str]:
    """Return the command that runs pip."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    own = ROOT / ".uv/bin/uv"  # set-up's
    uv = str(own) if own.exists() else shutil.which("uv")
    if uv is None:
        raise SystemExit("--pack: needs pip or uv to fetch wheels; install one, or run `make setup` before")
    return [uv, "tool", "run", "--quiet", "pip"]


def block(package: str) -> str:
    """Return a package's lines in the lock, hashes included, without conditions on the platform."""
    lines = (ROOT / "envs/requirements.lock").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"{package}=="))
    end = next(
        (number for number in range(start + 1, len(lines)) if not lines[number].startswith(" ")), len(lines)
    )
    first, _, _ = lines[start].rstrip(" \\").partition(" ;")
    return " \\\n".join([first, *(line.strip().rstrip(" \\") for line in lines[start + 1 : end])])
