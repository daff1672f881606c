"""Look up known vulnerabilities of all pins of all locks with pip-audit, which uv brings for this run alone.

Output: a line per vulnerability and one with the outcome. Exit status: 0 if every pin was looked up and none
has a known vulnerability, 1 if some have, 2 if some pin could not be looked up. PyPI's database is asked
first, then OSV's.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from make_conda import pins

HERE = Path(__file__).resolve().parent
PIP_AUDIT = "pip-audit==2.10.1"
LOCKS = ("requirements.lock", "cuda12.lock", "bootstrap.lock")
DATABASES = ("pypi", "osv")


def rounds(found: list[str]) -> list[list[str]]:
    """Spread ``name==version`` over lists with each name once: pip-audit takes one version of a package."""
    spread: list[dict[str, str]] = []
    for pin in dict.fromkeys(found):
        name = pin.partition("==")[0]
        free = next((round_ for round_ in spread if name not in round_), None)
        if free is None:
            spread.append(free := {})
        free[name] = pin
    return [list(round_.values()) for round_ in spread]


def look_up(found: list[str], database: str) -> list[dict] | str:
    """Ask one database for pins; return pip-audit's entry per package, or the reason why there is none."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as stream:
        stream.write("\n".join(found) + "\n")
        stream.flush()
        command = [
            "uv",
            "tool",
            "run",
            "--quiet",
            "--from",
            PIP_AUDIT,
            "pip-audit",
            "--no-deps",
            "--disable-pip",
        ]
        options = ["--progress-spinner", "off", "--format", "json", "--vulnerability-service", database]
        done = subprocess.run(
            [*command, *options, "--requirement", stream.name], capture_output=True, text=True, check=False
        )
    try:
        return json.loads(done.stdout)["dependencies"]
    except (json.JSONDecodeError, KeyError):
        return (done.stderr.strip().splitlines() or ["no answer"])[-1][:150]


def audit(found: list[str], database: str) -> tuple[list[str], str]:
    """Return a line per vulnerability, and why pins could not be looked up ("" if all were)."""
    lines: list[str] = []
    skipped: list[str] = []
    for part in rounds(found):
        entries = look_up(part, database)
        if isinstance(entries, str):
            return lines, entries
        for entry in entries:
            if "skip_reason" in entry:
                skipped.append(entry["name"])
            for known in entry.get("vulns", []):
                fixed = ", ".join(known["fix_versions"]) or "no version yet"
                lines.append(f"{entry['name']} {entry['version']}: {known['id']}, fixed in {fixed}")
    reason = f"{len(skipped)} of {len(found)} pins unknown to it ({skipped[0]}, ...)" if skipped else ""
    return lines, reason


def main() -> int:
    """Audit the locks and return the exit status."""
    texts = [(HERE / lock).read_text(encoding="utf-8") for lock in LOCKS]
    found = list(dict.fromkeys(pin.partition(" ; ")[0] for text in texts for pin in pins(text)))
    reasons = []
    for database in DATABASES:
        lines, reason = audit(found, database)
        for line in lines:
            print(f"audit: {line}")
        if lines or not reason:
            break
        reasons.append(f"{database}: {reason}")
    if lines:
        print(
            f"audit: {len(lines)} known vulnerabilities in {len(found)} pins; "
            "newer versions: make lock UPGRADE=1, then make test-full"
        )
        return 1
    if reason:
        print(
            f"audit: not done, no database of vulnerabilities answers ({'; '.join(reasons)})", file=sys.stderr
        )
        return 2
    print(f"audit: no known vulnerability in {len(found)} pins")
    return 0


if __name__ == "__main__":
    sys.exit(main())
