"""Print the notes of a release: its version's section of CHANGELOG.md. Needs Python 3.11 alone.

Usage: ``python .ci/release_notes.py v0.2.0``. Another tag than the version in pyproject.toml, or a version
without a section, is one line on stderr and status 1.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]


def notes_of(tag: str, changelog: str, version: str) -> str:
    """Section of the version ``tag`` names, without its heading.

    Raises
    ------
    SystemExit
        The tag is not ``v`` and the version, or the changelog has no text for it.
    """
    if tag != f"v{version}":
        raise SystemExit(f"tag {tag}: pyproject.toml has version {version}; allowed: v{version}")
    found = re.search(
        rf"^## {re.escape(version)}(?=[ \t(]|$)[^\n]*\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL
    )
    if found is None or not found[1].strip():
        raise SystemExit(f"CHANGELOG.md: no section '## {version}'; rename 'Unreleased'")
    return found[1].strip() + "\n"


if __name__ == "__main__":
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8")
    print(notes_of(sys.argv[1], text, project["version"]), end="")
