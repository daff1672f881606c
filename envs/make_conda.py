"""Print the environment file for ``snakemake --sdm conda``, with the same pins as ``make``'s environment.

Input: ``pyproject.toml`` (name, Python versions) and ``requirements.lock``. ``make lock`` writes the output
to ``conda.yaml``. Conda provides only Python and pip, because some of these packages are only on PyPI and
one resolver must decide all versions.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
PIN = re.compile(r"^(?P<pin>[a-z0-9][a-z0-9._-]*==[^\s;]+)(?: ; (?P<marker>.*?))?(?: \\)?$")


def pins(lock: str) -> list[str]:
    """List ``name==version``, with ``; marker`` if there is one, for every entry of a lock file's text."""
    found = [match for line in lock.splitlines() if (match := PIN.match(line))]
    return [f"{match['pin']} ; {match['marker']}" if match["marker"] else match["pin"] for match in found]


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
        *(f'      - "{pin}"' for pin in pins((HERE / "requirements.lock").read_text(encoding="utf-8"))),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(render(), end="")
