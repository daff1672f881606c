"""Use wheels beside the scripts for packages that this Python lacks: a wheel is a zip file."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Packages of the stages by the name of their module, with those that belong together: if one is missing, the
# wheels of its whole group are used, because their versions go together.
GROUPS = (
    {"pydantic": "pydantic", "pydantic-core": "pydantic_core"},
    {"annotated-types": "annotated_types"},
    {"typing-extensions": "typing_extensions"},
    {"typing-inspection": "typing_inspection"},
    {"diffusers": "diffusers"},
    {"importlib-metadata": "importlib_metadata"},
    {"zipp": "zipp"},
    {
        "transformers": "transformers",
        "tokenizers": "tokenizers",
        "huggingface-hub": "huggingface_hub",
        "safetensors": "safetensors",
    },
    {"pyyaml": "yaml"},
    {"regex": "regex"},
    {"tqdm": "tqdm"},
    {"filelock": "filelock"},
    {"fsspec": "fsspec"},
    {"packaging": "packaging"},
    {"httpx": "httpx", "httpcore": "httpcore", "h11": "h11", "anyio": "anyio", "sniffio": "sniffio"},
    {"requests": "requests", "urllib3": "urllib3", "charset-normalizer": "charset_normalizer"},
    {"certifi": "certifi"},
    {"idna": "idna"},
)
OPTIONAL = ("sniffio", "anyio")  # not every version of their users needs them
FINDER = """
import importlib.util, json, sys
print(json.dumps([name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]))
"""


@dataclass(frozen=True)
class Wheel:
    """A wheel, by the tags in its file's name (PEP 427)."""

    path: Path
    package: str
    version: str
    pythons: tuple[str, ...]
    abis: tuple[str, ...]
    platforms: tuple[str, ...]

    @classmethod
    def of(cls, path: Path) -> Wheel:
        """Read a file's name."""
        package, version, *_, pythons, abis, platforms = path.stem.split("-")
        tags = (tuple(tag.split(".")) for tag in (pythons, abis, platforms))
        return cls(path, package.replace("_", "-").lower(), version, *tags)

    @property
    def is_pure(self) -> bool:
        """Whether it has no binary parts."""
        return self.platforms == ("any",)

    def fits(self, version: tuple[int, int], machine: str = "x86_64") -> bool:
        """Whether it works with CPython of ``version`` on Linux."""
        python = f"cp{version[0]}{version[1]}"
        if self.is_pure:
            return any(tag.startswith("py3") for tag in self.pythons) or python in self.pythons
        if not any("linux" in tag and tag.endswith(machine) for tag in self.platforms):
            return False
        if "abi3" in self.abis:
            oldest = min(int(tag[3:] or 0) for tag in self.pythons if tag.startswith("cp3"))
            return oldest <= version[1]
        return python in self.abis


def missing_modules(modules: Sequence[str]) -> list[str]:
    """Return the modules that this Python doesn't find, looked up in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", FINDER, *modules], capture_output=True, text=True, timeout=120
    )
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else list(modules)


def missing_packages() -> list[str]:
    """Return the packages that are missing, with those that belong to them."""
    modules = {module for group in GROUPS for module in group.values()}
    gone = set(missing_modules(sorted(modules)))
    found: list[str] = []
    for group in GROUPS:
        if any(module in gone and package not in OPTIONAL for package, module in group.items()):
            found += group
    return found


def provide(folder: Path, scratch: Path) -> Path | None:
    """Unpack the wheels in ``folder`` that this Python lacks; return the folder to put on its path.

    Nothing that the Python has is replaced, except the rest of a group of which something is missing.
    """
    lacking = missing_packages() if folder.is_dir() else []
    wheels = [Wheel.of(path) for path in sorted(folder.glob("*.whl"))] if lacking else []
    chosen = [wheel for wheel in wheels if wheel.package in lacking and wheel.fits(sys.version_info[:2])]
    if not chosen:
        return None
    site = scratch / f"site_cp{sys.version_info[0]}{sys.version_info[1]}"
    shutil.rmtree(site, ignore_errors=True)
    for wheel in chosen:
        with zipfile.ZipFile(wheel.path) as archive:
            archive.extractall(site)
    return site
