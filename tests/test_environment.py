"""The environment: one set of hashed pins for ``make`` and conda; the set-up names what is missing."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import tomllib
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ("requirements.lock", "cuda12.lock", "bootstrap.lock")
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


LOCKED = len(lock_entries("requirements.lock"))


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


@pytest.mark.parametrize("file", [*LOCKS, "conda.yaml", "conda.post-deploy.sh"])
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


def test_the_lock_for_older_gpus_differs_in_torch_and_its_libraries_alone():
    texts = [
        "\n".join(str(pin) for pin, _ in lock_entries(name)) for name in ("requirements.lock", "cuda12.lock")
    ]
    usual, older = (set(text.splitlines()) for text in texts)
    names = {canonicalize_name(Requirement(pin).name) for pin in usual ^ older}
    assert all(re.match("torch|triton|cuda|nvidia", name) for name in names)
    assert any(pin.startswith("nvidia-cuda-runtime-cu12==12.") for pin in older)
    assert not any("cu13" in pin for pin in older), "run `make lock`"


@pytest.mark.parametrize("name", DESIGN_CARD)
def test_the_lock_holds_the_packages_that_the_study_is_built_on(pins, name):
    assert canonicalize_name(name) in pins


CONDA_FILES = {"conda.yaml": [], "conda.post-deploy.sh": ["--post-deploy"]}


@pytest.mark.parametrize("file", CONDA_FILES)
def test_a_conda_file_is_what_its_script_makes_of_the_lock(file):
    made = subprocess.run(
        [sys.executable, ROOT / "envs" / "make_conda.py", *CONDA_FILES[file]],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert (ROOT / "envs" / file).read_text(encoding="utf-8") == made, "run `make lock`"


def post_deployed() -> list[Requirement]:
    """Pins that are installed after conda's environment, without a look at their dependencies."""
    text = (ROOT / "envs" / "conda.post-deploy.sh").read_text(encoding="utf-8")
    return [Requirement(pin) for pin in re.findall(r'^    "(.*)"', text, re.MULTILINE)]


def test_the_conda_files_have_the_pins_and_markers_of_the_lock():
    import yaml

    conda = yaml.safe_load((ROOT / "envs" / "conda.yaml").read_text(encoding="utf-8"))
    listed = [*map(Requirement, conda["dependencies"][-1]["pip"]), *post_deployed()]
    assert sorted(map(str, listed)) == sorted(
        str(requirement) for requirement, _ in lock_entries("requirements.lock")
    )


def test_conda_installs_without_dependencies_just_the_packages_whose_own_caps_the_lock_exceeds(pins):
    exceeding = {
        canonicalize_name(package.name)
        for package in importlib.metadata.distributions()
        if canonicalize_name(package.name) in pins
        for need in map(Requirement, package.requires or [])
        if (need.marker is None or need.marker.evaluate({"extra": ""}))
        and (name := canonicalize_name(need.name)) in pins
        and not need.specifier.contains(importlib.metadata.version(name), prereleases=True)
    }
    assert exceeding == {canonicalize_name(requirement.name) for requirement in post_deployed()}


@pytest.fixture
def bare_tree(tmp_path: Path) -> Path:
    """A folder with the files that the set-up reads, without environment; its ``bin`` is the whole PATH."""
    shutil.copytree(ROOT / "envs", tmp_path / "envs")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "bin").mkdir()
    for tool in (
        *(
            "bash",
            "dirname",
            "grep",
            "env",
            "mkdir",
            "mv",
            "rm",
            "tail",
            "touch",
            "sleep",
            "df",
            "du",
            "cat",
            "ln",
        ),
    ):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    return tmp_path


def set_up(tree: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = (
        {name: value for name, value in os.environ.items() if name != "PYTHON"}
        | {"PATH": str(tree / "bin"), "HOME": str(tree / "home")}
        | variables
    )
    return subprocess.run(
        [tree / "bin" / "bash", tree / "envs" / "setup.sh"],
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def program(path: Path, script: str) -> None:
    """Write a program that is a bash script."""
    path.write_text(f"#!{shutil.which('bash')}\n{script}\n")
    path.chmod(0o755)


UV = """
echo "$*" >> {tree}/uv_calls
case "$*" in
    --version) echo "uv {version}" ;;
    "python find"*"{found}") echo {python} ;;
    "python find"*) exit 2 ;;
    "python install"*) echo "error: no route to the mirror" >&2; exit 1 ;;
    "cache dir") echo {tree}/cache ;;
    venv*) mkdir -p .venv/bin && ln -s {python} .venv/bin/python ;;
    *"sync --dry-run"*) echo "Would download {missing} packages" ;;
    *sync*) printf '%s\n' "Downloading torch (800.0MiB)" " + torch==2.15.0" >&2; exit {status} ;;
esac
"""


def uv_script(tree: Path, **answers: object) -> str:
    """Script of an uv that installs nothing: ``found`` is the version that it finds as ``python``."""
    return UV.format(
        tree=tree,
        **{
            "version": "0.13.9",
            "found": "cpython@3.13",
            "python": sys.executable,
            "missing": 200,
            "status": 0,
        }
        | answers,
    )


def uv_calls(tree: Path) -> str:
    return (tree / "uv_calls").read_text() if (tree / "uv_calls").exists() else ""


@pytest.mark.parametrize(
    ("script", "reason"),
    [("echo 3.10.13", "is 3.10.13"), ("echo 3.15.0", "is 3.15.0"), ("exit 127", "does not run")],
)
def test_set_up_refuses_a_named_python_that_does_not_fit_before_it_brings_anything(bare_tree, script, reason):
    program(bare_tree / "bin" / "uv", uv_script(bare_tree))
    program(bare_tree / "bin" / "other", script)
    done = set_up(bare_tree, PYTHON="other")
    assert (done.returncode, done.stderr) == (1, f"setup: PYTHON=other: {reason}; 3.11 to 3.14 is needed\n")
    assert uv_calls(bare_tree) == "" and not (bare_tree / ".venv").exists()


def test_without_uv_and_python_set_up_names_what_it_found_and_the_line_that_brings_uv(bare_tree):
    program(bare_tree / "bin" / "uv", 'echo "uv 0.4.30"')
    program(bare_tree / "bin" / "python3", "exit 127")
    program(bare_tree / "bin" / "python", "echo 2.7.18")
    done = set_up(bare_tree)
    assert done.returncode == 1
    assert f"{bare_tree}/bin/uv: is 0.4.30, older than 0.13" in done.stderr
    assert f"{bare_tree}/bin/python3: does not run" in done.stderr
    assert f"{bare_tree}/bin/python: is 2.7.18" in done.stderr
    assert "curl -LsSf https://astral.sh/uv/install.sh | sh" in done.stderr
    assert not (bare_tree / ".venv").exists()


def test_set_up_takes_an_installed_uv_and_the_python_that_it_finds(bare_tree):
    program(bare_tree / "bin" / "uv", uv_script(bare_tree))
    done = set_up(bare_tree)
    assert done.returncode == 0, done.stderr
    assert (bare_tree / ".venv/.installed").exists()
    assert (bare_tree / ".uv/bin/uv").resolve() == bare_tree / "bin/uv"
    assert (
        f"200 of {LOCKED} packages to download (all: 3.4 GB); .venv will have 7.3 GB on disk" in done.stdout
    )
    assert "Downloading torch (800.0MiB)" in done.stdout and "torch==" not in done.stdout
    assert set_up(bare_tree).stdout == ""  # nothing is left to do


def test_set_up_installs_the_lock_for_older_gpus_on_request_and_keeps_to_it(bare_tree):
    program(bare_tree / "bin" / "uv", uv_script(bare_tree))
    done = set_up(bare_tree, CUDA="12")
    assert done.returncode == 0, done.stderr
    assert "envs/cuda12.lock" in uv_calls(bare_tree) and "envs/requirements.lock" not in uv_calls(bare_tree)
    assert "(all: 4.8 GB); .venv will have 9.1 GB on disk" in done.stdout
    assert set_up(bare_tree).stdout == set_up(bare_tree, CUDA="12").stdout == ""
    shutil.rmtree(bare_tree / ".venv/bin")
    assert set_up(bare_tree).returncode == 0 and "envs/requirements.lock" not in uv_calls(bare_tree)
    assert "environment .venv: updating it" in set_up(bare_tree, CUDA="13").stdout
    assert "envs/requirements.lock" in uv_calls(bare_tree)


def test_another_cuda_is_one_line(bare_tree):
    done = set_up(bare_tree, CUDA="11")
    assert (done.returncode, done.stderr) == (
        1,
        "setup: CUDA=11: allowed: 12, for older drivers and GPUs, or 13\n",
    )


def test_set_up_takes_the_uv_that_its_own_installer_has_brought(bare_tree):
    (bare_tree / "home/.local/bin").mkdir(parents=True)
    program(bare_tree / "home/.local/bin/uv", uv_script(bare_tree))
    assert set_up(bare_tree).returncode == 0
    assert (bare_tree / ".uv/bin/uv").resolve() == bare_tree / "home/.local/bin/uv"


def test_a_python_that_cannot_be_downloaded_ends_with_what_to_do(bare_tree):
    program(bare_tree / "bin" / "uv", uv_script(bare_tree, found="none"))
    done = set_up(bare_tree)
    assert done.returncode == 1
    assert "no Python 3.11 to 3.14 here; uv downloads Python 3.12 (35 MB) to .uv" in done.stdout
    assert "no route to the mirror" in done.stderr
    assert "make PYTHON=/path/to/python3.12" in done.stderr and "UV_PYTHON_INSTALL_MIRROR" in done.stderr
    assert not (bare_tree / ".venv").exists()


@pytest.mark.parametrize(("missing", "needed"), [(200, "8.8"), (1, "1.9"), (0, "0.4")])
def test_set_up_checks_the_space_that_it_needs_before_it_installs(bare_tree, missing, needed):
    program(bare_tree / "bin" / "uv", uv_script(bare_tree, missing=missing))
    (bare_tree / "bin" / "df").unlink()
    program(
        bare_tree / "bin" / "df",
        'printf "Filesystem M Used Available\n/dev/sda 999999 700000 299999 70%% /\n"',
    )
    done = set_up(bare_tree)
    assert done.returncode == 1
    assert f"setup: {bare_tree}: 0.3 GB free, {needed} GB needed; free some" in done.stderr
    assert "--compile-bytecode" not in uv_calls(bare_tree)


def test_the_cache_and_the_environment_on_two_disks_need_space_on_each(bare_tree):
    program(bare_tree / "bin" / "uv", uv_script(bare_tree))
    (bare_tree / "bin" / "df").unlink()
    program(
        bare_tree / "bin" / "df",
        'disk=b; [[ $2 == */cache ]] && disk=a; printf "Filesystem\n/dev/$disk 9999999 1999999 8000000 20%% /\n"',
    )
    done = set_up(bare_tree)
    assert f"setup: {bare_tree}/cache: 8.1 GB free, 8.4 GB needed" in done.stderr


def test_after_a_failed_installation_the_next_set_up_goes_on_with_uvs_cache(bare_tree):
    program(bare_tree / "bin" / "uv", uv_script(bare_tree, status=2))
    done = set_up(bare_tree)
    assert done.returncode == 1
    assert (
        "installing packages failed, see above; the next make goes on with what is downloaded" in done.stderr
    )
    program(bare_tree / "bin" / "uv", uv_script(bare_tree, missing=0))
    done = set_up(bare_tree)
    assert done.returncode == 0 and "made again: its installation did not finish" in done.stdout


@pytest.fixture
def index(bare_tree: Path) -> Iterator[str]:
    """Address of a package index with one wheel of uv for this machine; the tree's lock has its hash."""
    library = "manylinux_2_17_x86_64" if platform.libc_ver()[0] == "glibc" else "musllinux_1_1_x86_64"
    library = library.replace("x86_64", platform.machine())
    folder = bare_tree / "index" / "uv"
    folder.mkdir(parents=True)
    wheel = folder / f"uv-0.13.9-py3-none-{library}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("uv-0.13.9.data/scripts/uv", f"#!{shutil.which('bash')}\n{uv_script(bare_tree)}")
    (folder / "index.html").write_text(
        f'<a href="uv-0.13.9-py3-none-win32.whl">.</a><a href="{wheel.name}#sha256=0">.</a>'
    )
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (bare_tree / "envs/bootstrap.lock").write_text(f"uv==0.13.9 \\\n    --hash=sha256:{digest}\n")
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(bare_tree / "index"))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def old_python(tree: Path) -> None:
    """Put a Python on PATH that has no pip and calls itself 3.8."""
    program(
        tree / "bin" / "python3",
        f'case "$*" in *pip*) exit 1 ;; -c*) echo 3.8.18 ;; *) exec {sys.executable} "$@" ;; esac',
    )


def test_a_python_without_pip_brings_uv_with_its_standard_library(bare_tree, index):
    old_python(bare_tree)
    done = set_up(bare_tree, UV_DEFAULT_INDEX=index)
    assert done.returncode == 0, done.stderr
    assert "setup: uv 0.13.9 (24 MB) to .uv with" in done.stdout
    assert (bare_tree / ".venv/.installed").exists()
    assert not (bare_tree / ".uv/part").exists() and "venv --quiet" in uv_calls(bare_tree)


def test_a_wheel_with_another_hash_than_the_locks_is_not_taken(bare_tree, index):
    old_python(bare_tree)
    (bare_tree / "envs/bootstrap.lock").write_text(f"uv==0.13.9 \\\n    --hash=sha256:{'0' * 64}\n")
    done = set_up(bare_tree, UV_DEFAULT_INDEX=index)
    assert done.returncode == 1 and "its hash is not in bootstrap.lock" in done.stderr
    assert not (bare_tree / ".uv/bin/uv").exists()


def test_an_index_that_does_not_answer_is_named(bare_tree):
    old_python(bare_tree)
    done = set_up(bare_tree, UV_DEFAULT_INDEX="http://127.0.0.1:1")
    assert done.returncode == 1 and "Connection refused" in done.stderr
    assert "setup: installing uv failed, see above" in done.stderr


# --- audit ----------------------------------------------------------------------------------------

KNOWN = {"id": "PYSEC-1", "fix_versions": ["9.9"]}
CLEAN = {"name": "torch", "version": "2.15.0", "vulns": []}
VULNERABLE = {"name": "torch", "version": "2.15.0", "vulns": [KNOWN]}
SKIPPED = {"name": "torch", "skip_reason": "not found on PyPI"}


def audit(folder: Path, answers: dict[str, list[dict] | None]) -> subprocess.CompletedProcess[str]:
    """Run the audit with a pip-audit that answers with these entries per database; None: it fails."""
    for database, entries in answers.items():
        if entries is not None:
            (folder / database).write_text(json.dumps({"dependencies": entries}))
    program(folder / "uv", f'while [[ $1 != --vuln* ]]; do shift; done; cat "{folder}/$2"')
    return subprocess.run(
        [sys.executable, ROOT / "envs" / "audit.py"],
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"},
    )


@pytest.mark.parametrize(
    ("answers", "status", "said"),
    [
        ({"pypi": [CLEAN]}, 0, "no known vulnerability in"),
        ({"pypi": [VULNERABLE]}, 1, "audit: torch 2.15.0: PYSEC-1, fixed in 9.9"),
        ({"pypi": None, "osv": [CLEAN]}, 0, "no known vulnerability in"),
        ({"pypi": [SKIPPED], "osv": [VULNERABLE]}, 1, "fixed in 9.9"),
        ({"pypi": [SKIPPED], "osv": None}, 2, "audit: not done, no database of vulnerabilities answers"),
        ({"pypi": None, "osv": None}, 2, "audit: not done, no database of vulnerabilities answers"),
    ],
    ids=["clean", "vulnerable", "second database", "second finds one", "pins unknown", "no answer"],
)
def test_the_audits_status_says_what_was_looked_up(tmp_path, answers, status, said):
    done = audit(tmp_path, answers)
    assert done.returncode == status and said in done.stdout + done.stderr


def test_the_audit_looks_up_every_version_of_every_pin(tmp_path, pins):
    program(tmp_path / "uv", f'cat "${{@: -1}}" >> {tmp_path}/asked; echo \'{{"dependencies": []}}\'')
    subprocess.run(
        [sys.executable, ROOT / "envs" / "audit.py"],
        check=True,
        capture_output=True,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    asked = (tmp_path / "asked").read_text().splitlines()
    locked = {f"{r.name}{r.specifier}" for lock in LOCKS for r, _ in lock_entries(lock)}
    assert len(pins["numpy"]) == 2 and sorted(asked) == sorted(locked)
