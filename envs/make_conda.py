"""Print a file of the environment for ``snakemake --sdm conda``: the same pins as ``make``'s environment.

Input: ``pyproject.toml`` (name, Python versions) and ``requirements.lock``. ``make lock`` writes the output
to ``conda.yaml`` and ``conda.post-deploy.sh``. Conda provides only Python and pip, because some of these
packages are only on PyPI and one resolver must decide all versions. pip refuses packages whose own caps the
lock exceeds (``tool.uv`` in ``pyproject.toml``); Snakemake runs the second file, which installs them alone.

Usage: ``make_conda.py`` or ``make_conda.py --post-deploy``.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
CAPPED = ("autofaiss", "clip-retrieval", "embedding-reader", "sentence-transformers")
PIN = re.compile(r"^(?P<pin>[a-z0-9][a-z0-9._-]*==[^\s;]+)(?: ; (?P<marker>.*?))?(?: \\)?$")


def pins(lock: str) -> list[str]:
    """List ``name==version``, with ``; marker`` if there is one, for every entry of a lock file's text."""
    found = [match for line in lock.splitlines() if (match := PIN.match(line))]
    return [f"{match['pin']} ; {match['marker']}" if match["marker"] else match["pin"] for match in found]


def lock_pins(capped: bool) -> list[str]:
    """List the lock's pins, either of the packages whose caps it exceeds or of the others."""
    lock = (HERE / "requirements.lock").read_text(encoding="utf-8")
    return [pin for pin in pins(lock) if (pin.partition("==")[0] in CAPPED) == capped]


def post_deploy() -> str:
    """Return the text of ``conda.post-deploy.sh``."""
    lines = [
        "# Made from requirements.lock by `make lock`: packages whose own caps the lock exceeds.",
        "python -m pip install --no-deps \\",
        *(f'    "{pin}" \\' for pin in lock_pins(capped=True)),
    ]
    return "\n".join(lines).removesuffix(" \\") + "\n"


def render() -> str:
    """Return the text of ``conda.yaml``."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [
        "# Made from requirements.lock by `make lock`; change pyproject.toml, not this file.",
        f"name: {project['name']}",
        "channels:",
        "  - conda-forge",
        "  - nodefaults",
        "dependencies:",
        f'  - "python{project["requires-python"]}"',
        "  - pip",
        "  - pip:",
        *(f'      - "{pin}"' for pin in lock_pins(capped=False)),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(post_deploy() if "--post-deploy" in sys.argv else render(), end="")
